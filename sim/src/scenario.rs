//! A swarm as a small file describes it. Those that come with the program stand in `sim/scenarios/`.
//!
//! ```toml
//! title = "One seed, eight downloads"
//!
//! [model]
//! chunks = 64
//! chunk = "2MiB"
//!
//! [network]
//! round-trip = "2ms"
//!
//! [[nodes]]
//! name = "seed"
//! has = "all"
//!
//! [[nodes]]
//! name = "downloads"
//! count = 8
//! wants = "all"
//! ```

use std::{fs, path::Path, time::Duration};

use serde::Deserialize;
use surf_node::config::{Rate, Size, Span};

use crate::net::Manner;

/// The scenarios that come with the program: name and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("single", include_str!("../scenarios/single.toml")),
    ("herd", include_str!("../scenarios/herd.toml")),
    ("herd-in-order", include_str!("../scenarios/herd-in-order.toml")),
    ("four-seeds", include_str!("../scenarios/four-seeds.toml")),
    ("churn", include_str!("../scenarios/churn.toml")),
    ("partition", include_str!("../scenarios/partition.toml")),
    ("outage", include_str!("../scenarios/outage.toml")),
    ("outage-long", include_str!("../scenarios/outage-long.toml")),
    ("sleepers", include_str!("../scenarios/sleepers.toml")),
    ("liars", include_str!("../scenarios/liars.toml")),
    ("stallers", include_str!("../scenarios/stallers.toml")),
    ("mixed-links", include_str!("../scenarios/mixed-links.toml")),
    ("disk-full", include_str!("../scenarios/disk-full.toml")),
    ("crowd-1000", include_str!("../scenarios/crowd-1000.toml")),
];

/// Most nodes of a scenario: each is a real fetcher.
const NODES_MAX: usize = 10_000;

/// A swarm, and what happens to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it is about, in a line.
    pub title: String,
    /// What is distributed.
    pub model: Shape,
    /// What is between the nodes.
    #[serde(default)]
    pub network: Network,
    /// Who takes part.
    pub nodes: Vec<Group>,
    /// Nodes that come and go.
    #[serde(default)]
    pub churn: Vec<Churn>,
    /// Times at which some groups cannot reach the others.
    #[serde(default)]
    pub partition: Vec<Partition>,
    /// How long a node may get nothing while somebody who can be reached has something for it.
    #[serde(default = "patience")]
    pub patience: Span,
    /// How long a run may take, in simulated time.
    #[serde(default = "at_most")]
    pub at_most: Span,
}

/// A model's size.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// How many chunks.
    pub chunks: usize,
    /// Bytes in each.
    pub chunk: Size,
    /// Groups of chunks that inference needs together, in order.
    #[serde(default = "layers")]
    pub layers: usize,
}

/// What is between the nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Network {
    /// The round trip between any two nodes, unless there are regions.
    pub round_trip: Span,
    /// Round trips between regions: a row for each.
    pub regions: Vec<Vec<Span>>,
    /// How long a look-up in the directory takes, half of it more or less.
    pub look_up: Span,
    /// How many providers of a key one look-up names, by the dice: Kademlia's K.
    pub providers: usize,
}

/// Nodes that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// What they are called.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// What they have at the beginning.
    #[serde(default)]
    pub has: Has,
    /// What they want.
    #[serde(default)]
    pub wants: Wants,
    /// What leaves each of them.
    #[serde(default = "rate")]
    pub up: Rate,
    /// What reaches each of them.
    #[serde(default = "rate")]
    pub down: Rate,
    /// How they treat others.
    #[serde(default)]
    pub manner: Manner,
    /// Which row of the table of round trips is theirs.
    #[serde(default)]
    pub region: usize,
    /// When the first of them joins.
    #[serde(default)]
    pub joins: Time,
    /// How much later each other one joins than the one before.
    #[serde(default)]
    pub every: Time,
    /// Bytes of wishes ahead of the compute, in order.
    #[serde(default = "ahead")]
    pub ahead: Size,
    /// How long one layer computes, in order.
    #[serde(default)]
    pub compute: Time,
    /// What they may keep.
    pub quota: Option<Size>,
    /// What fits on their disks.
    pub disk: Option<Size>,
}

/// What a node has at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Has {
    /// Nothing.
    #[default]
    Nothing,
    /// The whole model.
    All,
    /// Of a group of N nodes, each every N-th chunk.
    Share,
}

/// What a node wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wants {
    /// Nothing.
    #[default]
    Nothing,
    /// The whole model, in any order.
    All,
    /// To compute: layer after layer.
    InOrder,
}

/// Nodes that come and go, until all have what they want.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Churn {
    /// Which group.
    pub group: String,
    /// How long one stays, half of it more or less.
    pub stays: Span,
    /// How long it is away, half of it more or less. Forever, if there is nothing.
    pub away: Option<Span>,
    /// How often one leaves.
    #[serde(default = "one")]
    pub times: usize,
    /// How likely it has lost everything when it comes back.
    #[serde(default)]
    pub forgets: f64,
    /// How likely it leaves without a word.
    #[serde(default)]
    pub silently: f64,
}

/// A time at which some groups cannot reach the others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// When it begins.
    pub at: Span,
    /// How long it is.
    #[serde(rename = "for")]
    pub lasts: Span,
    /// Who is on one side.
    pub groups: Vec<String>,
}

/// A length of time that may be none.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(from = "Span")]
pub struct Time(pub Duration);

impl From<Span> for Time {
    fn from(span: Span) -> Self {
        Self(span.0)
    }
}

impl Default for Network {
    fn default() -> Self {
        let span = |ms| Span(Duration::from_millis(ms));
        Self { round_trip: span(2), regions: Vec::new(), look_up: span(100), providers: 20 }
    }
}

fn patience() -> Span {
    Span(Duration::from_secs(30))
}

fn at_most() -> Span {
    Span(Duration::from_secs(3600))
}

fn layers() -> usize {
    1
}

fn one() -> usize {
    1
}

fn rate() -> Rate {
    Rate { bytes_per_s: 12_500_000 }
}

fn ahead() -> Size {
    Size::Bytes(256 << 20)
}

/// Why there is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Neither a file nor a built-in name.
    #[error("there is no file {0}, and no scenario of that name; there are: {names}", names = names())]
    Unknown(String),
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// The text is no scenario.
    #[error("{name}: {cause}")]
    Malformed {
        /// Which file or scenario.
        name: String,
        /// Why not.
        #[source]
        cause: Box<toml::de::Error>,
    },
    /// What it says cannot be.
    #[error("{name}: {why}")]
    Senseless {
        /// Which file or scenario.
        name: String,
        /// Why it cannot be.
        why: String,
    },
}

fn names() -> String {
    BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl Scenario {
    /// The file, or the scenario of that name.
    pub fn open(which: &str) -> Result<Self, ScenarioError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == which) {
            return Self::read(name, text);
        }
        let path = Path::new(which);
        if !path.exists() {
            return Err(ScenarioError::Unknown(which.to_owned()));
        }
        let text = fs::read_to_string(path)
            .map_err(|cause| ScenarioError::Unreadable { path: which.to_owned(), cause })?;
        Self::read(which, &text)
    }

    /// The scenario that `text` describes; `name` is for errors.
    pub fn read(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|cause| ScenarioError::Malformed { name: name.to_owned(), cause: Box::new(cause) })?;
        scenario.check().map_err(|why| ScenarioError::Senseless { name: name.to_owned(), why })?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), String> {
        let Shape { chunks, layers, .. } = self.model;
        if !(1..=chunks).contains(&layers) {
            return Err(format!("{layers} layers of {chunks} chunks"));
        }
        let chunk = self.chunk_size();
        if !(1..=surf_protocol::limits::CHUNK_SIZE_MAX as u64).contains(&chunk) {
            return Err(format!("a chunk of {chunk} bytes"));
        }
        let nodes: usize = self.nodes.iter().map(|group| group.count).sum();
        if !(1..=NODES_MAX).contains(&nodes) {
            return Err(format!("{nodes} nodes where 1 to {NODES_MAX} can be simulated"));
        }
        let regions = &self.network.regions;
        if regions.iter().any(|row| row.len() != regions.len()) {
            return Err("the table of regions is not square".to_owned());
        }
        if self.nodes.iter().any(|group| regions.len().max(1) <= group.region) {
            return Err("a group is in a region that there is not".to_owned());
        }
        let named = self.churn.iter().map(|churn| &churn.group);
        let named = named.chain(self.partition.iter().flat_map(|partition| &partition.groups));
        match named.into_iter().find(|name| self.group(name).is_none()) {
            Some(name) => Err(format!("there is no group {name:?}")),
            None => Ok(()),
        }
    }

    /// Bytes in a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.model.chunk.of(0)
    }

    /// Bytes in the model.
    pub fn size(&self) -> u64 {
        self.chunk_size() * self.model.chunks as u64
    }

    /// The place of a group in the list.
    pub fn group(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|group| group.name == name)
    }

    /// Seconds that one copy takes: the model at the rate of one who wants it, or of all together who
    /// have it at the beginning and tell the truth, if that is less.
    pub fn one_copy_s(&self) -> f64 {
        let down = self.nodes.iter().filter(|group| group.wants != Wants::Nothing);
        let down = down.map(|group| group.down.bytes_per_s).max().unwrap_or(u64::MAX);
        let honest = |group: &&Group| group.has != Has::Nothing && group.manner == Manner::Honest;
        let up: u64 =
            self.nodes.iter().filter(honest).map(|group| group.up.bytes_per_s * group.count as u64).sum();
        self.size() as f64 / down.min(up.max(1)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_come_along_are_read_and_say_what_they_are() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::read(name, text).unwrap();
            assert!(
                !scenario.title.is_empty()
                    && scenario.nodes.iter().any(|group| group.wants != Wants::Nothing)
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let text = |more: &str| {
            format!("title = \"x\"\n[model]\nchunks = 2\nchunk = \"1KiB\"\n{more}\n[[nodes]]\nname = \"a\"\n")
        };
        assert!(Scenario::read("x", &text("")).is_ok());
        for more in [
            "layers = 3",
            "colour = 1",
            "[network]\nregions = [[\"1ms\", \"2ms\"]]",
            "[[churn]]\ngroup = \"b\"\nstays = \"1s\"",
        ] {
            assert!(Scenario::read("x", &text(more)).is_err(), "{more}");
        }
        assert!(matches!(Scenario::open("nothing"), Err(ScenarioError::Unknown(_))));
    }

    #[test]
    fn one_copy_takes_what_the_narrowest_place_lets_through() {
        let seconds = |name| Scenario::open(name).unwrap().one_copy_s();
        let lab = f64::from(128 << 20) / 12_500_000.0;
        for name in ["single", "herd", "four-seeds"] {
            assert!((seconds(name) - lab).abs() < 1e-9, "{name}");
        }
    }
}
