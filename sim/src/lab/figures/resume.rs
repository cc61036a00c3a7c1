//! The receiver is killed when it has half, and started again: how much comes twice, and how soon
//! the first new byte comes.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::SETTLE;
use crate::{
    bench::Failed,
    lab::{
        Lab,
        net::Network,
        process::Node,
        report::{OneCopy, Report, round},
    },
};

/// How often to look at what has come.
const LOOK: Duration = Duration::from_millis(5);

/// Bytes over the link that cannot be greetings any more.
const PAYLOAD: u64 = 128 << 10;

/// How long to ask again for, after the restart.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait before.
const AGAIN: Duration = Duration::from_millis(100);

/// What one round showed.
#[derive(Debug, Default)]
struct Resumed {
    /// Bytes that the model has.
    size: u64,
    /// Verified bytes that the first process had told of last.
    told: u64,
    /// Bytes that were there when the second was ready.
    held: u64,
    /// Bytes that the second fetched.
    fetched: u64,
    /// Bytes over the link until the kill.
    link_before: u64,
    /// Bytes over the link after it.
    link_after: u64,
    /// Seconds from the start of the second process until it was ready.
    ready_s: f64,
    /// Seconds from there until bytes came over the link.
    first_byte_s: f64,
    /// Seconds from there until all of it was there.
    rest_s: f64,
    /// How often the second process said that nobody has the model, before it knew better.
    refusals: u32,
}

impl Resumed {
    /// Bytes that came twice. Payload is told from headers by what they were after the kill.
    fn again(&self) -> f64 {
        let of_payload = self.fetched as f64 / self.link_after.max(1) as f64;
        self.link_before as f64 * of_payload + self.fetched as f64 - self.size as f64
    }
}

/// Measures.
pub async fn run(lab: &Lab) -> Result<Report, Failed> {
    let options = &lab.options;
    let payload = lab.payload(options.size)?;
    let network = Arc::new(Network::up(2, &options.rate)?);
    let copy = OneCopy::new(payload.size, &options.rate, None);
    let what = format!(
        "1 → 1, {} MiB, {}; the receiver is killed half-way and started again",
        payload.size >> 20,
        options.rate
    );
    let mut report = Report::new("resume", what, copy);
    let mut most_again: f64 = 0.0;
    for at in 0..options.rounds {
        let dir = lab.folder("resume")?;
        let resumed = once(lab, &network, &dir, &payload.folder).await?;
        lab.note(&format!("round {at}: {resumed:?}"));
        let mib = |bytes: f64| round(bytes / f64::from(1 << 20));
        let values = [
            ("held when killed and told of, MiB", mib(resumed.told as f64)),
            ("held after the restart, MiB", mib(resumed.held as f64)),
            ("fetched after the restart, MiB", mib(resumed.fetched as f64)),
            ("came twice by the link's count, MiB", mib(resumed.again())),
            ("restart to ready, s", round(resumed.ready_s)),
            ("ready to first new byte, s", round(resumed.first_byte_s)),
            ("restart to first new byte, s", round(resumed.ready_s + resumed.first_byte_s)),
            ("ready to the end, s", round(resumed.rest_s)),
            ("pulls that found nobody", f64::from(resumed.refusals)),
        ];
        values.into_iter().for_each(|(name, value)| report.value(name, value));
        most_again = most_again.max(resumed.again());
    }
    report.value("most that came twice in a round, MiB", round(most_again / f64::from(1 << 20)));
    Ok(report)
}

async fn once(lab: &Lab, network: &Arc<Network>, dir: &Path, folder: &Path) -> Result<Resumed, Failed> {
    let program = &lab.options.program;
    let seed = Node::join(network, 0, program, &dir.join("seed"), &[], &[]).await?;
    let model = seed.publish(network, folder).await?;
    let through = [seed.addr.clone()];
    let home = dir.join("node");
    let join = async || Node::join(network, 1, program, &home, &through, &[]).await;
    let node = join().await?;
    tokio::time::sleep(SETTLE).await;

    let mut resumed = Resumed::default();
    let before = network.traffic(1).received;
    let told = std::cell::Cell::new((0, 0));
    let tell = |event: &Value| {
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        told.set((number("bytes"), number("total")));
    };
    tokio::select! {
        pulled = node.pull(network, &model, tell) => {
            return Err(Failed(format!("the first pull ended before it was half done: {pulled:?}")));
        }
        () = half(network, before, lab.options.size / 2) => (),
    }
    node.kill().await?;
    (resumed.told, resumed.size) = told.get();
    resumed.link_before = network.traffic(1).received - before;
    restart(network, &model, join, resumed).await
}

async fn half(network: &Network, before: u64, size: u64) {
    while network.traffic(1).received - before < size {
        tokio::time::sleep(LOOK).await;
    }
}

/// Pulls, and asks again for a while where nobody is known yet who has the model, as a user would.
/// Returns how often that was so.
async fn pull(network: &Arc<Network>, node: &Node, model: &str) -> Result<(Value, u32), Failed> {
    let started = Instant::now();
    for refusals in 0.. {
        match node.pull(network, model, |_| ()).await {
            Ok(pulled) => return Ok((pulled, refusals)),
            Err(error) if PATIENCE < started.elapsed() => return Err(error),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
    Err(Failed("never asked".to_owned()))
}

async fn restart(
    network: &Arc<Network>,
    model: &str,
    join: impl AsyncFnOnce() -> Result<Node, Failed>,
    mut resumed: Resumed,
) -> Result<Resumed, Failed> {
    let started = Instant::now();
    let before = network.traffic(1).received;
    let node = join().await?;
    resumed.ready_s = started.elapsed().as_secs_f64();
    let path = format!("/surf/v1/models/{model}");
    // A node that has not kept the manifest knows of no model, and holds nothing.
    let detail = node.get(network, &path).await?;
    resumed.held = detail["held_bytes"].as_u64().unwrap_or(0);
    let (ready, at_ready) = (Instant::now(), network.traffic(1).received);
    let first = async {
        while network.traffic(1).received < at_ready + PAYLOAD {
            tokio::time::sleep(LOOK).await;
        }
        Ok(ready.elapsed().as_secs_f64())
    };
    let (pulled, first) = tokio::try_join!(pull(network, &node, model), first)?;
    let (pulled, refusals) = pulled;
    resumed.first_byte_s = first;
    resumed.refusals = refusals;
    resumed.rest_s = ready.elapsed().as_secs_f64();
    resumed.fetched = pulled["fetched_bytes"].as_u64().unwrap_or(0);
    resumed.link_after = network.traffic(1).received - before;
    if resumed.size == 0 {
        resumed.size = pulled["bytes"].as_u64().unwrap_or(0);
    }
    Ok(resumed)
}
