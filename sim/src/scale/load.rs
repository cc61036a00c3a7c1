//! Messages of the DHT: what one look-up takes, and what announcing costs each node all the time.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use surf_node::{
    fetch::Key,
    publish::Announced,
    swarm::announcements::{Announcements, BOUNDS, Step},
};
use surf_protocol::{Bitmap, ChunkId, ModelId};
use tokio::time::Instant;

use super::{
    Options,
    dht::{Dht, Walk},
};
use crate::model::Model;

/// Nodes in a bucket and in an answer: libp2p's.
pub(super) const K: usize = 20;

/// Nodes that keep a key, and requests of one walk that are under way at once, as the node sets them.
pub(super) const REPLICAS: usize = 8;
pub(super) const PARALLEL: usize = 6;

/// Groups in a model: blocks, and what stands before and after them.
const GROUPS: usize = 50;

/// Walks from which means and percentiles are taken.
const WALKS: usize = 400;

/// How long announcing is played, and how much of that is looked at, after what a start costs.
const PLAYED: Duration = Duration::from_secs(3 * 86_400);
const STEADY: Duration = Duration::from_secs(86_400);

/// What each node announces.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Announcing {
    /// Models that it holds whole.
    pub models: usize,
    /// Groups, and chunks, of each that it would like to announce.
    pub groups: usize,
    /// The same, chunks.
    pub chunks: usize,
}

/// What it costs in a network of one size.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Requests and answers of one look-up.
    pub look_up_messages: f64,
    /// Nodes that name each other until the nearest is found.
    pub hops: f64,
    /// Seconds within which 95 of 100 look-ups know a first holder.
    pub first_p95_s: f64,
    /// Seconds within which 95 of 100 look-ups are complete.
    pub all_p95_s: f64,
    /// Messages that announcing one key costs.
    pub announce_messages: f64,
    /// Messages that each node causes every second by announcing, day after day.
    pub announce_messages_per_s: f64,
    /// Keys that a node has out after a day.
    pub keys: usize,
}

impl Announcing {
    /// What the node's own code would announce about as many models of that size as are held.
    pub(super) fn of(options: &Options) -> Self {
        let models = options.held.div_ceil(options.model).clamp(1, 1 << 16) as usize;
        let chunks = options.model.div_ceil(options.chunk).clamp(1, 1 << 16) as usize;
        let model = Model::random(chunks, 16, GROUPS.min(chunks));
        let all = Bitmap::from_fn(chunks, |_| true);
        let keys = Announced::new(model.manifest().clone()).update(&all, false).unwrap_or_default();
        let count = |wanted: fn(&Key) -> bool| keys.iter().filter(|key| wanted(key)).count();
        let groups = count(|key| matches!(key, Key::Stem(_)));
        Self { models, groups, chunks: count(|key| matches!(key, Key::Chunk(_))) }
    }

    /// The keys of the `nth` model.
    fn keys(&self, nth: usize) -> (ModelId, Vec<Key>) {
        let hash = |kind: u8, at: usize| {
            let name = [&[kind][..], &nth.to_le_bytes(), &at.to_le_bytes()].concat();
            *blake3::hash(&name).as_bytes()
        };
        let model = ModelId::of(&nth.to_le_bytes());
        let groups = (0..self.groups).map(|at| Key::Stem(hash(0, at)));
        let chunks = (0..self.chunks).map(|at| Key::Chunk(ChunkId::of(&hash(1, at))));
        (model, [Key::Model(model)].into_iter().chain(groups).chain(chunks).collect())
    }

    /// Plays the node's own policy, with `cost` messages for each key: keys that go out in its last day, each
    /// second, and how many are out.
    fn play(&self, cost: f64) -> (f64, usize) {
        let start = Instant::now();
        let mut plan = Announcements::new(BOUNDS, start);
        for nth in 0..self.models {
            let (model, keys) = self.keys(nth);
            plan.set(model, keys, start);
        }
        let (mut now, mut sent, mut out) = (start, 0u32, std::collections::BTreeSet::new());
        while now < start + PLAYED {
            while let Some(step) = plan.next(now) {
                if let Step::Announce(key) = step {
                    plan.charge(cost.round() as u32);
                    out.insert(key);
                    sent += u32::from(start + PLAYED - STEADY <= now);
                }
            }
            let Some(wake) = plan.wake(now) else { break };
            now = wake.max(now + Duration::from_millis(1));
        }
        (f64::from(sent) / STEADY.as_secs_f64(), out.len())
    }
}

impl Load {
    pub(super) fn of(
        nodes: usize,
        announcing: &Announcing,
        options: &Options,
        dice: &mut ChaCha8Rng,
    ) -> Self {
        let dht = Dht::new(nodes.max(2), K, REPLICAS, PARALLEL, dice);
        let walks: Vec<Walk> = (0..WALKS).map(|_| dht.walk(dice)).collect();
        let mean = |figure: &dyn Fn(&Walk) -> f64| walks.iter().map(figure).sum::<f64>() / walks.len() as f64;
        let p95 = |figure: &dyn Fn(&Walk) -> f64| {
            let mut all: Vec<f64> = walks.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() * 95 / 100] * options.round_trip_s
        };
        // Each request is answered; a store is not.
        let look_up_messages = 2.0 * mean(&|walk| walk.requests as f64);
        let announce_messages = look_up_messages + REPLICAS.min(nodes) as f64;
        let (keys_per_s, keys) = announcing.play(announce_messages);
        Self {
            look_up_messages,
            hops: mean(&|walk| walk.hops as f64),
            first_p95_s: p95(&|walk| walk.first),
            all_p95_s: p95(&|walk| walk.all),
            announce_messages,
            announce_messages_per_s: keys_per_s * announce_messages,
            keys,
        }
    }
}
