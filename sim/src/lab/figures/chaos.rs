//! Runs in which peers lie, stall, hang up and boast, links are cut and joined again, and seeds are
//! killed or sleep for a while. Every receiver must end with everything; a liar may waste one chunk; nobody may wait long
//! while a good source is there.

mod plan;

use std::{path::Path, sync::Arc, time::Duration};

use futures::future::try_join_all;
use serde_json::Value;
use tokio::time::Instant;

use super::SETTLE;
use crate::{
    bench::{Failed, median, write_noise},
    lab::{
        Lab,
        net::Network,
        peers::soon,
        process::{Node, Process},
        report::{OneCopy, Report, round},
        rogue::Manner,
    },
};
use plan::{Fault, HOSTS, Plan, RECEIVERS, SEEDS};

/// Bytes in a file of the model, each of which is one chunk.
const CHUNK: u64 = 512 << 10;

/// How long a pull may take. Without faults it takes 2 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a run showed.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    /// Seconds until the last receiver had everything.
    seconds: f64,
    /// The longest time in which no verified byte came to a receiver that still wanted some.
    gap_s: f64,
    /// The most bytes that one liar, staller or other rogue wasted at one receiver.
    by_rogue: u64,
    /// Bytes that came in vain from honest peers, all receivers together.
    by_honest: u64,
}

/// Measures: `runs` runs, from seed `first`.
pub async fn run(lab: &Lab, runs: u64, first: u64) -> Result<Report, Failed> {
    let options = &lab.options;
    let folder = lab.folder("payload")?;
    for at in 0..options.size / CHUNK {
        let kind = format!("surf-sim chaos {at}");
        write_noise(&folder.join(format!("weights-{at:03}.bin")), kind.as_bytes(), CHUNK)?;
    }
    let network = Arc::new(Network::up(HOSTS, &options.rate)?);
    let what = format!("{runs} runs of chaos, {} MiB, {}", options.size >> 20, options.rate);
    let copy = OneCopy::new(options.size, &options.rate, None);
    let mut report = Report::new("chaos", what, copy);
    let (mut outcomes, mut failed) = (Vec::new(), Vec::new());
    for seed in first..first + runs {
        let plan = Plan::new(seed);
        let ran = once(lab, &network, &folder, &plan).await;
        // Whatever the run did to the network is undone.
        for host in 0..HOSTS {
            network.kill(host);
            network.heal(host)?;
        }
        match ran {
            Ok(outcome) => {
                lab.note(&format!("seed {seed}: {outcome:?}"));
                outcomes.push((seed, outcome));
            }
            Err(error) => {
                lab.note(&format!("seed {seed} failed: {error}: {plan:?}"));
                failed.push(seed);
            }
        }
    }
    sum_up(&mut report, &outcomes, failed);
    Ok(report)
}

fn sum_up(report: &mut Report, outcomes: &[(u64, Outcome)], failed: Vec<u64>) {
    report.value("runs that completed", outcomes.len());
    report.value("seeds of those that did not", failed);
    let of = |field: fn(&Outcome) -> f64| outcomes.iter().map(move |(seed, outcome)| (field(outcome), *seed));
    let mut most = |name: &str, field: fn(&Outcome) -> f64| {
        if let Some((value, seed)) = of(field).max_by(|one, other| one.0.total_cmp(&other.0)) {
            report.value(&format!("{name}, most"), round(value));
            report.value(&format!("{name}, most, in seed"), seed);
            report.value(&format!("{name}, median"), round(median(of(field).map(|(v, _)| v).collect())));
        }
    };
    most("until all had everything, s", |outcome| outcome.seconds);
    most("without a verified byte, s", |outcome| outcome.gap_s);
    most("chunks wasted by a rogue at a receiver", |outcome| outcome.by_rogue as f64 / CHUNK as f64);
    most("chunks wasted by honest peers", |outcome| outcome.by_honest as f64 / CHUNK as f64);
}

async fn once(lab: &Lab, network: &Arc<Network>, folder: &Path, plan: &Plan) -> Result<Outcome, Failed> {
    let dir = lab.folder("chaos")?;
    let program = &lab.options.program;
    let join = async |host: usize, through: &[String]| {
        Node::join(network, host, program, &dir.join(format!("node-{host}")), through, &[]).await
    };
    let mut seeds = vec![join(0, &[]).await?];
    let through = [seeds[0].addr.clone()];
    seeds.extend(try_join_all((1..SEEDS).map(|host| join(host, &through))).await?);
    let mut model = String::new();
    for seed in &seeds {
        model = seed.publish(network, folder).await?;
    }
    let rogues = plan.rogues.iter().enumerate();
    let rogues = rogues.map(|(at, &manner)| {
        let log = dir.join(format!("rogue-{at}.log"));
        rogue(lab, network, SEEDS + at, manner, &through[0], folder, log)
    });
    let rogues = try_join_all(rogues).await?;
    let receivers = try_join_all((HOSTS - RECEIVERS..HOSTS).map(|host| join(host, &through))).await?;
    tokio::time::sleep(SETTLE).await;

    let pulls = receivers.iter().map(|node| pull(network, node, &model, &rogues));
    let pulled = tokio::select! {
        pulled = tokio::time::timeout(PATIENCE, try_join_all(pulls)) => pulled,
        never = happen(network, &plan.faults) => match never? {},
    };
    let late = |_| Failed(format!("not done after {} s", PATIENCE.as_secs()));
    let mut all = Outcome::default();
    for one in pulled.map_err(late)?? {
        all.seconds = all.seconds.max(one.seconds);
        all.gap_s = all.gap_s.max(one.gap_s);
        all.by_rogue = all.by_rogue.max(one.by_rogue);
        all.by_honest += one.by_honest;
    }
    Ok(all)
}

async fn rogue(
    lab: &Lab,
    network: &Network,
    host: usize,
    manner: Manner,
    through: &str,
    folder: &Path,
    log: std::path::PathBuf,
) -> Result<(Process, String), Failed> {
    let mut command = network.command(host, &lab.options.this);
    let ip = network.address(host);
    command.args(["lab", "rogue", "--manner", manner.name(), "--bootstrap", through]);
    command.args(["--listen", &format!("{ip}:8470"), "--transfer", &format!("{ip}:8472")]);
    command.arg(folder);
    let mut process = Process::start(command, &log)?;
    let line = soon("a rogue", process.line_with("ready")).await?;
    let peer = line.rsplit(' ').next().unwrap_or_default().to_owned();
    Ok((process, peer))
}

/// Lets faults happen when they are due, and then nothing.
async fn happen(
    network: &Network,
    faults: &[(Duration, usize, Fault)],
) -> Result<std::convert::Infallible, Failed> {
    let started = Instant::now();
    for &(at, host, fault) in faults {
        tokio::time::sleep_until(started + at).await;
        match fault {
            Fault::Cut => network.cut(host)?,
            Fault::Heal => network.heal(host)?,
            Fault::Kill => network.kill(host),
            Fault::Sleep => network.sleep(host),
            Fault::Wake => network.wake(host),
        }
    }
    std::future::pending().await
}

async fn pull(
    network: &Arc<Network>,
    node: &Node,
    model: &str,
    rogues: &[(Process, String)],
) -> Result<Outcome, Failed> {
    let started = Instant::now();
    let first = std::cell::Cell::new(None);
    let pulled = node.pull(network, model, |event| {
        if event["fetched_bytes"].as_u64().is_some_and(|bytes| 0 < bytes) && first.get().is_none() {
            first.set(Some(started.elapsed().as_secs_f64()));
        }
    });
    let pulled = pulled.await.map_err(|error| Failed(format!("host {}: {error}", node.host())))?;
    let seconds = started.elapsed().as_secs_f64();
    if pulled["fetched_bytes"] != pulled["bytes"] {
        return Err(Failed(format!("host {} has not fetched everything: {pulled}", node.host())));
    }
    let events = node.get(network, "/surf/v1/events").await?;
    let events = events.as_array().map_or(&[][..], Vec::as_slice);
    let is_rogue = |peer: &str| rogues.iter().any(|(_, rogue)| rogue == peer);
    let by_rogue = rogues.iter().map(|(_, rogue)| wasted(events, |from| from == rogue)).max();
    Ok(Outcome {
        seconds,
        gap_s: first.get().unwrap_or(0.0).max(longest_gap_s(events)),
        by_rogue: by_rogue.unwrap_or(0),
        by_honest: wasted(events, |from| !is_rogue(from)),
    })
}

fn wasted(events: &[Value], from: impl Fn(&str) -> bool) -> u64 {
    let wasted = events.iter().filter(|event| event["event"] == "wasted");
    let theirs = wasted.filter(|event| event["from"].as_str().is_some_and(&from));
    theirs.filter_map(|event| event["bytes"].as_u64()).sum()
}

fn longest_gap_s(events: &[Value]) -> f64 {
    let arrived = events.iter().filter(|event| event["event"] == "chunk_arrived");
    let times: Vec<u64> = arrived.filter_map(|event| event["at_us"].as_u64()).collect();
    let gaps = times.windows(2).map(|two| two[1].saturating_sub(two[0]));
    gaps.max().unwrap_or(0) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_tell_gaps_and_waste() {
        let arrived = |at_us: u64| json!({"event": "chunk_arrived", "at_us": at_us, "from": "a", "bytes": 1});
        let wasted_by = |from: &str| json!({"event": "wasted", "at_us": 5, "from": from, "bytes": 7});
        let events =
            [arrived(1_000_000), wasted_by("b"), arrived(1_500_000), arrived(4_000_000), wasted_by("a")];
        assert_eq!(longest_gap_s(&events), 2.5);
        assert_eq!(wasted(&events, |from| from == "b"), 7);
        assert_eq!(wasted(&events, |_| true), 14);
    }
}
