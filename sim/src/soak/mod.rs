//! Three nodes at work for as long as is wanted: publish, pull, generate, abort, remove, collect, verify.
//!
//! The time is cut into equal phases. At the end of each, every model is removed and the nodes come to rest; then
//! each is asked for the bytes that its allocator has given out and not got back. What a node keeps for a while
//! (caches, journals, what it knows of peers) is full after two phases, so what grows after them is a leak.

mod node;

use std::{fmt, fs, path::PathBuf, time::Duration};

use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::{
    process::Child,
    time::{Instant, sleep},
};

use self::node::{Node, Use};
use crate::bench::{Failed, write_noise};

/// Folders that are published in turn. Few, so that models come again, whole and in part.
const FOLDERS: usize = 6;

/// Bytes of noise beside the model in each folder: some chunks of their own.
const NOISE_SIZE: u64 = 5 << 20;

/// How long a client that gives up has waited.
const GIVES_UP_AFTER: Duration = Duration::from_millis(40);

/// How long a node may take to come to rest.
const REST_MAX: Duration = Duration::from_secs(30);

/// What may be live at the end of the last phase beyond the end of the second.
const GROWTH_MAX: u64 = 2 << 20;

/// What to do.
#[derive(Debug)]
pub struct Options {
    /// `surf-node`.
    pub program: PathBuf,
    /// The model that is run: a small one.
    pub model: PathBuf,
    /// Folder for everything; needs some hundred MiB.
    pub dir: PathBuf,
    /// How long each phase takes.
    pub phase: Duration,
    /// How many phases: three at least.
    pub phases: usize,
    /// Seed of the dice.
    pub seed: u64,
}

/// What was seen.
#[derive(Debug, Serialize)]
pub struct Report {
    /// At the end of each phase.
    pub phases: Vec<Phase>,
    /// Live bytes at the end of the last phase beyond those of the second, of each node.
    pub growth: Vec<i64>,
    /// Whether every node grew by less than 2 MiB, and no text was wrong.
    pub pass: bool,
}

/// The end of a phase.
#[derive(Debug, Default, Serialize)]
pub struct Phase {
    /// Operations that were done.
    pub operations: u64,
    /// Of those, operations that failed though nobody had aborted them.
    pub failed: u64,
    /// Texts that were not what the model says.
    pub wrong_texts: u64,
    /// What each node used.
    pub nodes: Vec<Use>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "| phase | operations | failed | wrong texts | live MiB | anonymous MiB | files | threads |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for (number, phase) in self.phases.iter().enumerate() {
            let each =
                |of: &dyn Fn(&Use) -> String| phase.nodes.iter().map(of).collect::<Vec<_>>().join(", ");
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                number + 1,
                phase.operations,
                phase.failed,
                phase.wrong_texts,
                each(&|node| format!("{:.1}", mib(node.live_bytes))),
                each(&|node| format!("{:.1}", mib(node.anonymous_bytes))),
                each(&|node| node.files.to_string()),
                each(&|node| node.threads.to_string()),
            )?;
        }
        let grew: Vec<String> =
            self.growth.iter().map(|bytes| format!("{:+.2}", *bytes as f64 / f64::from(1 << 20))).collect();
        write!(f, "\nlive bytes, last phase less second: {} MiB", grew.join(", "))
    }
}

/// Runs it, and tells `said` at the end of each phase.
pub async fn run(options: &Options, said: impl Fn(&str)) -> Result<Report, Failed> {
    if options.phases < 3 {
        return Err(Failed("a soak has three phases at least: growth is told from the second on".to_owned()));
    }
    let mut soak = Soak::start(options).await?;
    let mut phases = Vec::new();
    for number in 1..=options.phases {
        let phase = soak.phase(options.phase).await?;
        said(&format!("phase {number} of {}: {} operations", options.phases, phase.operations));
        phases.push(phase);
    }
    let (second, last) = (&phases[1], &phases[options.phases - 1]);
    let growth: Vec<i64> = (second.nodes.iter().zip(&last.nodes))
        .map(|(second, last)| last.live_bytes as i64 - second.live_bytes as i64)
        .collect();
    let right = phases.iter().all(|phase| phase.wrong_texts == 0);
    let pass = right && growth.iter().all(|grew| *grew < GROWTH_MAX as i64);
    Ok(Report { phases, growth, pass })
}

struct Soak {
    nodes: Vec<Node>,
    folders: Vec<PathBuf>,
    dice: ChaCha8Rng,
    /// What the model says to the prompt, once it is known.
    text: Option<String>,
    /// Goes with everything in it.
    _dir: tempfile::TempDir,
}

impl Soak {
    async fn start(options: &Options) -> Result<Self, Failed> {
        let dir = tempfile::Builder::new().prefix("surf-soak-").tempdir_in(&options.dir)?;
        let mut nodes: Vec<Node> = Vec::new();
        for name in ["a", "b", "c"] {
            let bootstrap = nodes.first().map(|first| first.addr.clone());
            nodes.push(Node::join(&options.program, &dir.path().join(name), bootstrap.as_deref()).await?);
        }
        let mut folders = Vec::new();
        for number in 0..FOLDERS {
            let folder = dir.path().join(format!("model-{number}"));
            fs::create_dir(&folder)?;
            for entry in fs::read_dir(&options.model)? {
                let entry = entry?;
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
            write_noise(&folder.join("noise"), &[number as u8], NOISE_SIZE)?;
            folders.push(folder);
        }
        let dice = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { nodes, folders, dice, text: None, _dir: dir })
    }

    async fn phase(&mut self, lasts: Duration) -> Result<Phase, Failed> {
        let (end, mut phase) = (Instant::now() + lasts, Phase::default());
        while Instant::now() < end {
            self.round(&mut phase).await?;
        }
        for node in &mut self.nodes {
            node.forget_everything().await?;
        }
        for node in &self.nodes {
            phase.nodes.push(node.at_rest(REST_MAX).await?);
        }
        Ok(phase)
    }

    /// One node publishes, the others pull and run; somebody gives up; something goes.
    async fn round(&mut self, phase: &mut Phase) -> Result<(), Failed> {
        let publisher = self.dice.random_range(0..self.nodes.len());
        let folder = self.folders.choose(&mut self.dice).expect("there are some").clone();
        let folder = folder.to_string_lossy().into_owned();
        phase.operations += 1;
        let published = self.nodes[publisher].done(&["publish", &folder]).await?;
        let Some(model) = published["model"].as_str().map(str::to_owned) else {
            phase.failed += 1;
            return Ok(());
        };
        let others: Vec<usize> = (0..self.nodes.len()).filter(|node| *node != publisher).collect();
        let pull = ["pull", &model];
        let generate = ["generate", &model, "-p", "Once upon a time", "--max-tokens", "24"];
        // Both at once; each is given up now and then.
        let first = self.start_one(others[0], &pull).await?;
        let second = self.start_one(others[1], &generate).await?;
        for (node, child, aborted) in [first, second] {
            phase.operations += 1;
            let output = child.wait_with_output().await?;
            if !aborted && !output.status.success() {
                phase.failed += 1;
            }
            if node == others[1] && !aborted && output.status.success() {
                self.check(&String::from_utf8_lossy(&output.stdout), phase);
            }
        }
        self.tidy_up(&model, phase).await
    }

    async fn start_one(&mut self, node: usize, args: &[&str]) -> Result<(usize, Child, bool), Failed> {
        let mut child = self.nodes[node].start(args)?;
        let aborted = self.dice.random_ratio(1, 4);
        if aborted {
            sleep(GIVES_UP_AFTER).await;
            child.kill().await?;
        }
        Ok((node, child, aborted))
    }

    fn check(&mut self, lines: &str, phase: &mut Phase) {
        let text = node::text(lines);
        match &self.text {
            Some(right) if *right != text => phase.wrong_texts += 1,
            Some(_) => (),
            None => self.text = Some(text),
        }
    }

    async fn tidy_up(&mut self, model: &str, phase: &mut Phase) -> Result<(), Failed> {
        for node in 0..self.nodes.len() {
            let args: &[&str] = match self.dice.random_range(0..6) {
                0 | 1 => &["rm", model],
                2 => &["gc"],
                3 => &["verify"],
                4 => &["status"],
                _ => continue,
            };
            phase.operations += 1;
            // What is not here cannot be removed: that is no failure.
            let output = self.nodes[node].start(args)?.wait_with_output().await?;
            phase.failed += u64::from(!matches!(output.status.code(), Some(0 | 3)));
        }
        Ok(())
    }
}
