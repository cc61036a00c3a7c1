//! A scenario, run to its end with one seed: on a paused clock, in one thread.
//!
//! - `life`: what one node does.
//! - `report`: many seeds together: a table, JSON.
//! - `plot`: the same as a picture.

mod life;
mod plot;
mod report;

use std::{collections::BTreeSet, io::Write, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

pub use plot::plot;
pub(crate) use plot::{Area, Failed, svg};
pub use report::{Report, Summary};

use self::life::{Life, Outing};
use crate::{
    model::Model,
    net::{Breach, Manner, Net, Place, Room, Tally, Weather},
    scenario::{Group, Has, Scenario, Wants},
    trace::Trace,
};

/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The seed of its dice.
    pub seed: u64,
    /// Seconds at which each node that wanted something had it, in order.
    pub finished_s: Vec<f64>,
    /// Seconds at which each had the first tenth of the chunks, in order.
    pub tenth_s: Vec<f64>,
    /// Bytes that those who had everything at the beginning sent.
    pub seeds_sent: u64,
    /// Bytes that came whole and were there already, for all nodes together.
    pub duplicate: u64,
    /// Bytes that came for nothing, for all nodes together.
    pub wasted: u64,
    /// Times that a node was told that nobody has a chunk.
    pub gave_up: u64,
    /// How the run looked meanwhile.
    pub samples: Vec<Sample>,
    /// How each node has done.
    pub nodes: Vec<Tally>,
    /// How many events there were.
    pub events: u64,
    /// Their hash: equal hashes mean equal runs.
    pub trace: String,
}

/// A run at one time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the start.
    pub at_s: f64,
    /// Nodes that have what they want.
    pub finished: usize,
    /// Bytes that those who had everything at the beginning have sent.
    pub seeds_sent: u64,
}

/// A scenario with its model, ready to run.
#[derive(Debug)]
pub struct Run {
    scenario: Scenario,
    model: Arc<Model>,
}

impl Run {
    /// Makes the model.
    pub fn new(scenario: Scenario) -> Self {
        let shape = scenario.model;
        let model = Arc::new(Model::random(shape.chunks, scenario.chunk_size() as usize, shape.layers));
        Self { scenario, model }
    }

    /// What is run.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Runs with one seed. `text` gets every event, if there is one.
    pub fn seed(&self, seed: u64, text: Option<Box<dyn Write + Send>>) -> Result<Outcome, Breach> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| Breach {
            seed,
            at: Duration::ZERO,
            node: None,
            what: format!("no runtime: {error}"),
        })?;
        runtime.block_on(self.on_this_clock(seed, text))
    }

    async fn on_this_clock(&self, seed: u64, text: Option<Box<dyn Write + Send>>) -> Result<Outcome, Breach> {
        let net = Net::new(seed, Arc::clone(&self.model), self.weather(), Trace::start(text));
        let start = Instant::now();
        let mut dice = ChaCha8Rng::seed_from_u64(!seed);
        let (mut seeds, mut wanting) = (Vec::new(), Vec::new());
        let mut lives = JoinSet::new();
        for (at, group) in self.scenario.nodes.iter().enumerate() {
            for nth in 0..group.count {
                let node = net.add(place(group, at));
                let life = self.life(group, node, nth, start, &mut dice);
                self.furnish(&net, group, node, nth);
                if group.has == Has::All && group.manner == Manner::Honest {
                    seeds.push(node);
                }
                let comes_back = life.outings.iter().all(|outing| outing.returns.is_some());
                if group.wants != Wants::Nothing && comes_back {
                    net.expect(node);
                    wanting.push(node);
                }
                lives.spawn(life.live(Arc::clone(&net), Arc::clone(&self.model)));
            }
        }
        let mut samples = Vec::new();
        let end = tokio::select! {
            biased;
            breach = net.breached() => Err(breach),
            () = net.all_finished() => Ok(()),
            () = watch(&net, &seeds, start, &mut samples) => Ok(()),
            () = sleep(self.scenario.at_most.0) => {
                net.breach(None, format!("not everyone has everything after {:?}", self.scenario.at_most.0));
                Err(net.breached().await)
            }
        };
        samples.push(sample(&net, &seeds, start));
        end.map(|()| outcome(seed, &net, &seeds, &wanting, samples))
    }

    fn weather(&self) -> Weather {
        let network = &self.scenario.network;
        let regions = network.regions.iter().map(|row| row.iter().map(|span| span.0).collect()).collect();
        let partitions = self.scenario.partition.iter().map(|partition| {
            let groups: BTreeSet<usize> =
                partition.groups.iter().filter_map(|name| self.scenario.group(name)).collect();
            (partition.at.0..partition.at.0 + partition.lasts.0, groups)
        });
        Weather {
            round_trips: if network.regions.is_empty() { vec![vec![network.round_trip.0]] } else { regions },
            look_up: network.look_up.0,
            providers_max: network.providers,
            partitions: partitions.collect(),
            patience: self.scenario.patience.0,
        }
    }

    /// Puts on a node's shelf what it has at the beginning.
    fn furnish(&self, net: &Net, group: &Group, node: usize, nth: usize) {
        match group.has {
            Has::Nothing => (),
            Has::All => net.shelf(node).put(0..self.model.chunks()),
            Has::Share => net.shelf(node).put((0..self.model.chunks()).skip(nth).step_by(group.count)),
        }
    }

    fn life(&self, group: &Group, node: usize, nth: usize, start: Instant, dice: &mut ChaCha8Rng) -> Life {
        let joins = start + group.joins.0 + group.every.0 * nth as u32;
        let mut outings = Vec::new();
        let mut now = joins;
        let about = |span: Duration, dice: &mut ChaCha8Rng| span.mul_f64(dice.random_range(0.5..1.5));
        for churn in self.scenario.churn.iter().filter(|churn| churn.group == group.name) {
            for _ in 0..churn.times {
                let leaves = now + about(churn.stays.0, dice);
                let returns = churn.away.map(|away| leaves + about(away.0, dice));
                let forgets = dice.random_bool(churn.forgets.clamp(0.0, 1.0));
                let silently = dice.random_bool(churn.silently.clamp(0.0, 1.0));
                outings.push(Outing { leaves, returns, forgets, silently });
                let Some(back) = returns else { break };
                now = back;
            }
        }
        Life {
            node,
            wants: group.wants,
            ahead: group.ahead.of(self.model.size()),
            compute: group.compute.0,
            joins,
            outings,
            seed: dice.random(),
        }
    }
}

fn place(group: &Group, at: usize) -> Place {
    let room = Room {
        quota: group.quota.map(|quota| quota.of(u64::MAX)),
        disk: group.disk.map(|disk| disk.of(u64::MAX)),
        leased: group.wants == Wants::All,
    };
    Place {
        manner: group.manner,
        up: group.up.bytes_per_s,
        down: group.down.bytes_per_s,
        region: group.region,
        group: at,
        room,
    }
}

/// Looks at a run again and again.
async fn watch(net: &Net, seeds: &[usize], start: Instant, samples: &mut Vec<Sample>) {
    loop {
        net.check_progress();
        samples.push(sample(net, seeds, start));
        sleep(LOOK).await;
    }
}

fn sample(net: &Net, seeds: &[usize], start: Instant) -> Sample {
    Sample {
        at_s: start.elapsed().as_secs_f64(),
        finished: net.finish_times().len(),
        seeds_sent: net.sent(seeds),
    }
}

fn outcome(seed: u64, net: &Net, seeds: &[usize], wanting: &[usize], samples: Vec<Sample>) -> Outcome {
    let sorted = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times
    };
    let nodes: Vec<Tally> = wanting.iter().map(|&node| net.tally(node)).collect();
    let (events, trace) = net.trace();
    Outcome {
        seed,
        finished_s: sorted(net.finish_times().into_iter().map(|(_, at)| at).collect()),
        tenth_s: sorted(nodes.iter().filter_map(|tally| tally.tenth_s).collect()),
        seeds_sent: net.sent(seeds),
        duplicate: nodes.iter().map(|tally| tally.duplicate).sum(),
        wasted: nodes.iter().map(|tally| tally.wasted).sum(),
        gave_up: nodes.iter().map(|tally| tally.gave_up).sum(),
        samples,
        nodes,
        events,
        trace,
    }
}
