//! What a swarm of a size that cannot be simulated with the real code would cost and take.
//!
//! Two questions, two models, both calibrated or filled in from the code itself:
//!
//! - How many messages announcing and looking up cost each node: walks through a Kademlia network of that size
//!   ([`dht`]), times what the node's own `announced` says about what it holds.
//! - How long a crowd takes that starts together: chunks spread in rounds ([`spread`]); how long a round
//!   is, and how much longer with each doubling, is fitted to runs of the real code with few nodes (`calibrate`).
//!
//! Every assumption is in the report.

mod calibrate;
pub mod dht;
mod load;
mod plot;
pub mod spread;

use std::fmt;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

pub use calibrate::{Calibration, Point};
pub use load::{Announcing, Load};
pub use plot::plot;

use self::spread::{Crowd, Rounds};
use crate::net::Breach;

/// What to work out.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes in the swarm, one row for each.
    pub nodes: Vec<usize>,
    /// Bytes of the model that everyone wants.
    pub model: u64,
    /// Bytes in a chunk.
    pub chunk: u64,
    /// Bytes per second up and down, of everyone.
    pub rate: u64,
    /// Bytes that each node holds and announces.
    pub held: u64,
    /// Seconds of a round trip in the DHT.
    pub round_trip_s: f64,
    /// Others that a node asks for chunks.
    pub neighbours: usize,
    /// Sizes of the crowds with which the real code is run.
    pub measured: Vec<usize>,
    /// Seeds with which each is run.
    pub seeds: u64,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was taken for granted.
    pub assumptions: Vec<String>,
    /// How the real code fared, and what was made of it.
    pub calibration: Calibration,
    /// What each node announces.
    pub announcing: Announcing,
    /// A row for each size.
    pub rows: Vec<Row>,
}

/// A swarm of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Nodes in it.
    pub nodes: usize,
    /// Messages of the DHT.
    pub load: Load,
    /// Seconds until half of the crowd have everything, and all.
    pub half_s: f64,
    /// The same, all.
    pub all_s: f64,
    /// The latter beside the time that one copy takes.
    pub ratio: f64,
    /// Copies of the model that the seed gives.
    pub seed_copies: f64,
}

/// Chunks with which crowds are played out; what more chunks take is drawn as a line through both.
const CHUNKS: [usize; 2] = [64, 128];

/// Works it out. The real code is run first, which may break a rule.
pub fn run(options: &Options) -> Result<Report, Breach> {
    let calibration = Calibration::measure(&options.measured, options.seeds, options.neighbours)?;
    let announcing = Announcing::of(options);
    let rows = options.nodes.iter().map(|&nodes| {
        let mut dice = ChaCha8Rng::seed_from_u64(nodes as u64);
        let load = Load::of(nodes, &announcing, options, &mut dice);
        row(nodes, load, &calibration, options, &mut dice)
    });
    let rows = rows.collect();
    Ok(Report { assumptions: assumptions(options, &announcing, &calibration), calibration, announcing, rows })
}

fn row(nodes: usize, load: Load, fit: &Calibration, options: &Options, dice: &mut ChaCha8Rng) -> Row {
    let played = CHUNKS.map(|chunks| Crowd { nodes, chunks, neighbours: options.neighbours }.spread(dice));
    let chunks = options.model.div_ceil(options.chunk) as f64;
    let along = |figure: &dyn Fn(&Rounds) -> f64| {
        let [few, more] = [&played[0], &played[1]].map(figure);
        more + (more - few) / (CHUNKS[1] - CHUNKS[0]) as f64 * (chunks - CHUNKS[1] as f64)
    };
    let chunk_s = options.chunk as f64 / options.rate as f64;
    let seconds = |rounds: f64| rounds * chunk_s * fit.stretch(nodes);
    let all_s = seconds(along(&|rounds| f64::from(rounds.all)));
    let one_copy_s = options.model as f64 / options.rate as f64;
    Row {
        nodes,
        load,
        half_s: seconds(along(&|rounds| f64::from(rounds.half))),
        all_s,
        ratio: all_s / one_copy_s,
        seed_copies: along(&|rounds| rounds.seed_gave as f64) / chunks,
    }
}

fn assumptions(options: &Options, announcing: &Announcing, fit: &Calibration) -> Vec<String> {
    let Options { model, chunk, rate, held, round_trip_s, neighbours, .. } = options;
    vec![
        format!(
            "the DHT: K = {}, {} nodes keep a key, {} requests of a walk at once, buckets as full as they can be, every node \
             answers, a round trip takes {:.0} ms, half of it more or less",
            load::K,
            load::REPLICAS,
            load::PARALLEL,
            round_trip_s * 1e3
        ),
        format!(
            "announcing: {:.0} GB held in {} models of {:.1} GB, {} groups and {} chunks of each to be announced if there is \
             room; the node's own policy, played for three days, of which the last is looked at; a key costs a walk and {} \
             stores, and answers are counted as messages too",
            *held as f64 / 1e9,
            announcing.models,
            *model as f64 / 1e9,
            announcing.groups,
            announcing.chunks,
            load::REPLICAS
        ),
        "look-ups: one node that starts cold looks up one model; messages are shared equally, as keys are hashes".to_owned(),
        format!(
            "the crowd: everyone starts together, one seed, {:.1} Mbit/s up and down each, nobody leaves or lies",
            *rate as f64 * 8e-6
        ),
        format!(
            "everyone knows {neighbours} others, drawn from all, as those are that a directory names by the dice"
        ),
        format!(
            "chunks spread in rounds, one given and one taken by everyone; beyond {} chunks of {:.1} MiB each one more costs \
             what it costs from {} to {}",
            CHUNKS[1],
            *chunk as f64 / f64::from(1 << 20),
            CHUNKS[0],
            CHUNKS[1]
        ),
        format!(
            "from the real code with {:?} nodes: a round is {:.3} times as long as a chunk at full rate, and {:.3} times \
             more with each doubling, of larger crowds and models too; the fit is off by {:.1} % at most",
            fit.points.iter().map(|point| point.nodes).collect::<Vec<_>>(),
            fit.stretch,
            fit.per_doubling,
            100.0 * fit.error_max
        ),
    ]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "assumed:")?;
        self.assumptions.iter().try_for_each(|assumption| writeln!(f, "  - {assumption}"))?;
        writeln!(f, "\n{:>9} {:>12} {:>12} {:>8}", "nodes", "real code", "this model", "off by")?;
        for point in &self.calibration.points {
            let Point { nodes, measured_s, predicted_s, .. } = point;
            let off = 100.0 * (predicted_s / measured_s - 1.0);
            writeln!(f, "{nodes:>9} {measured_s:>10.2} s {predicted_s:>10.2} s {off:>+7.1}%")?;
        }
        let head = [
            "look-up",
            "hops",
            "first",
            "complete",
            "a key",
            "announcing",
            "keys",
            "half",
            "all",
            "÷ copy",
            "copies",
        ];
        write!(f, "\n{:>9}", "nodes")?;
        head.iter().try_for_each(|head| write!(f, " {head:>11}"))?;
        writeln!(f)?;
        for row in &self.rows {
            let Row { nodes, load, half_s, all_s, ratio, seed_copies } = row;
            write!(f, "{nodes:>9} {:>7.1} msg {:>11.1}", load.look_up_messages, load.hops)?;
            write!(f, " {:>8.0} ms {:>8.0} ms", 1e3 * load.first_p95_s, 1e3 * load.all_p95_s)?;
            write!(f, " {:>7.1} msg {:>7.2} m/s", load.announce_messages, load.announce_messages_per_s)?;
            write!(f, " {:>11} {half_s:>9.0} s {all_s:>9.0} s", load.keys)?;
            writeln!(f, " {ratio:>11.3} {seed_copies:>11.2}")?;
        }
        write!(
            f,
            "look-up: messages of one; first, complete: 95 of 100 know somebody, everybody within this; a key: \
             messages that announcing one costs; announcing: messages that each node causes every second; keys: that each \
             node has out; half, all: of the crowd have the model; copies: that the seed gives"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tolerance that `docs/benchmarks.md` states.
    const TOLERANCE: f64 = 0.15;

    #[test]
    fn the_model_predicts_what_the_real_code_does_with_sizes_that_it_has_not_seen() {
        let seen = Calibration::measure(&[1, 4, 12], 1, 40).unwrap();
        for unseen in Calibration::measure(&[2, 8], 1, 40).unwrap().points {
            let predicted = seen.predict(unseen.nodes, unseen.rounds);
            let off = predicted / unseen.measured_s - 1.0;
            assert!(off.abs() < TOLERANCE, "{} nodes: {predicted} s, off by {off}", unseen.nodes);
        }
    }
}
