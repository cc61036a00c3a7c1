//! How fast a node finds out who has something, and what being found costs: real control planes on loopback.
//!
//! A swarm of nodes announces keys. Nodes that have just joined look some up that they have not asked for before.
//! Then the policy that decides what is announced runs for three days of no real time, at the cost that was
//! measured for a key, as a node that holds 100 GB.

use std::{net::SocketAddr, time::Duration};

use serde::Serialize;
use surf_node::{
    config,
    fetch::{Directory, Key},
    identity::Identity,
    members::Members,
    swarm::{
        self,
        announcements::{Announcements, BOUNDS, Step},
    },
};
use surf_protocol::{ChunkId, ModelId};
use tokio::time::{Instant, sleep, timeout};

use super::Failed;

/// How long the swarm may take to come together, and a look-up to find somebody.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the swarm is left alone before it is measured.
const REST: Duration = Duration::from_secs(3);

/// The models of a node that holds 100 GB in chunks of 2 MiB, and the groups and chunks of each.
const HELD: (u8, u8, u32) = (7, 50, 7_000);

/// What is measured.
#[derive(Debug)]
pub struct Options {
    /// Nodes in the swarm.
    pub nodes: usize,
    /// Nodes that join, one after the other, and look up.
    pub fresh: usize,
    /// Keys that each of those looks up.
    pub lookups: usize,
    /// Keys that each node of the swarm announces besides its model's.
    pub keys: usize,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    nodes: usize,
    lookups: usize,
    /// Of all look-ups, in milliseconds.
    p50_ms: f64,
    p95_ms: f64,
    max_ms: f64,
    /// Of those that were a node's first, right after it was connected.
    first_p95_ms: f64,
    /// What a look-up cost the node that made it.
    messages_per_lookup: f64,
    /// What a key cost the node that announced it.
    messages_per_key: f64,
    /// What announcing costs a node that holds 100 GB, at that cost and at the one that is planned with.
    steady_messages_per_s: f64,
    steady_messages_per_s_planned: f64,
    /// Keys that such a node announces.
    steady_keys: usize,
}

struct Peer {
    handle: swarm::Handle,
    addrs: Vec<String>,
}

/// Measures.
pub async fn run(options: &Options) -> Result<Report, Failed> {
    let mut peers: Vec<Peer> = Vec::new();
    for at in 0..options.nodes {
        let through = peers.get(at / 2).map_or(&[][..], |peer| &peer.addrs[..1]);
        peers.push(start(at, through).await?);
    }
    for peer in &peers {
        until("come together", || peer.handle.connected() >= options.nodes.saturating_sub(1).min(8)).await?;
    }
    sleep(REST).await;
    for (at, peer) in peers.iter().enumerate() {
        let chunks =
            (0..options.keys).map(|n| Key::Chunk(ChunkId::of(&[at, n].map(usize::to_le_bytes).concat())));
        let keys = [Key::Model(model(at))].into_iter().chain(chunks).collect();
        peer.handle.announce(model(at), keys).await.map_err(|error| Failed::to("announce", error))?;
    }
    for peer in &peers {
        until("announce", || peer.handle.load().keys > options.keys as u64).await?;
    }
    let announcing: Vec<_> = peers.iter().map(|peer| peer.handle.load()).collect();
    sleep(REST).await;
    let (mut all, mut first, mut asked) = (Vec::new(), Vec::new(), 0);
    for fresh in 0..options.fresh {
        let through = &peers[fresh * 7 % peers.len()].addrs[..1];
        let node = start(options.nodes + fresh, through).await?;
        until("connect", || node.handle.connected() != 0).await?;
        for n in 0..options.lookups {
            let before = node.handle.load().asking;
            let key = Key::Model(model((fresh * options.lookups + n) % options.nodes));
            let took = look_up(&node, key).await?;
            asked += node.handle.load().asking - before;
            all.push(took);
            if n == 0 {
                first.push(took);
            }
        }
    }
    let messages: u64 = announcing.iter().map(|load| load.announcing).sum();
    let keys: u64 = announcing.iter().map(|load| load.keys).sum();
    let messages_per_key = messages as f64 / keys as f64;
    let (steady_messages_per_s, steady_keys) = steady(messages_per_key.round() as u32);
    let (steady_messages_per_s_planned, _) = steady(BOUNDS.cost as u32);
    Ok(Report {
        nodes: options.nodes,
        lookups: all.len(),
        messages_per_lookup: asked as f64 / all.len() as f64,
        p50_ms: share(&mut all, 0.5),
        p95_ms: share(&mut all, 0.95),
        max_ms: share(&mut all, 1.0),
        first_p95_ms: share(&mut first, 0.95),
        messages_per_key,
        steady_messages_per_s,
        steady_messages_per_s_planned,
        steady_keys,
    })
}

/// The control plane of a node; its data plane only claims to be somewhere.
async fn start(at: usize, through: &[String]) -> Result<Peer, Failed> {
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let config =
        config::Swarm { listen, bootstrap: through.to_vec(), mdns: false, relay: config::Relay::default() };
    let data = SocketAddr::from(([127, 0, 0, 1], 1024 + at as u16));
    let started = swarm::start(&Identity::generate(), &config, &Members::default(), data).await;
    let (handle, listening) = started.map_err(|error| Failed::to("start a node", error))?;
    Ok(Peer { handle, addrs: listening.addrs })
}

fn model(at: usize) -> ModelId {
    ModelId::of(&at.to_le_bytes())
}

/// Milliseconds until somebody is known to have `key`.
async fn look_up(node: &Peer, key: Key) -> Result<f64, Failed> {
    let begun = Instant::now();
    let looking = async {
        while node.handle.providers(key).await?.is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    let looked = timeout(PATIENCE, looking).await.map_err(|_| Failed("nobody was found".to_owned()))?;
    looked.map_err(|error: surf_node::fetch::DirectoryError| Failed::to("look up", error))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), Failed> {
    let waiting = async {
        while !done() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.map_err(|_| Failed::to(what, "it takes too long"))
}

/// The value that this share of `values` is not above.
fn share(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Messages per second on the last two of three days, and keys that are out, when each costs so many.
fn steady(cost: u32) -> (f64, usize) {
    let begun = Instant::now();
    let mut announcements = Announcements::new(BOUNDS, begun);
    let (models, groups, chunks) = HELD;
    for n in 0..models {
        let groups = (0..groups).map(|at| Key::stem([ChunkId::of(&[n, at])]));
        let chunks =
            (0..chunks).map(|at| Key::Chunk(ChunkId::of(&[&[n, 0][..], &at.to_le_bytes()].concat())));
        let model = model(n.into());
        let keys = [Key::Model(model)].into_iter().chain(groups).chain(chunks).collect();
        announcements.set(model, keys, begun);
    }
    let day = Duration::from_secs(86_400);
    let (mut now, mut messages) = (begun, 0u64);
    let mut out = std::collections::HashSet::new();
    while now < begun + 3 * day {
        while let Some(step) = announcements.next(now) {
            announcements.charge(cost);
            if begun + day <= now {
                messages += u64::from(cost);
            }
            match step {
                Step::Announce(key) => out.insert(key),
                Step::Withdraw(key) => out.remove(&key),
            };
        }
        let wake = announcements.wake(now).unwrap_or(now + day);
        now = wake.max(now + Duration::from_millis(10));
    }
    (messages as f64 / (2 * day).as_secs_f64(), out.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_holds_much_says_little() {
        for cost in [6, 30, 48, 60] {
            let (rate, keys) = steady(cost);
            assert!(rate <= 1.0, "{rate} messages a second at {cost} for a key");
            // Beside seven models, as `announcements` works out: their own keys, and 253 others.
            assert_eq!(keys, 7 + 253);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_small_swarm_is_measured() {
        let options = Options { nodes: 6, fresh: 2, lookups: 3, keys: 4 };
        let report = run(&options).await.unwrap();
        assert_eq!(report.lookups, 6);
        assert!(0.0 < report.p50_ms && report.p50_ms <= report.p95_ms, "{report:?}");
        assert!((2.0..=48.0).contains(&report.messages_per_key), "{report:?}");
        assert!(report.steady_messages_per_s <= 1.0, "{report:?}");
    }
}
