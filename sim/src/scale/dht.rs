//! How many messages a look-up takes in a Kademlia network, found by walking through one.
//!
//! Every node knows up to K random others at each distance, as Kademlia's buckets fill by themselves;
//! which, is drawn when somebody asks. A walk asks the nearest that it knows of, some at a time, until those
//! that keep the key have answered, as libp2p's does.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    ops::Range,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A network, by the ids of its nodes. 64 bits are enough to tell them apart.
#[derive(Debug)]
pub struct Dht {
    /// Sorted.
    ids: Vec<u64>,
    /// Nodes in a bucket, and in an answer.
    k: usize,
    /// Nodes that keep a key.
    replicas: usize,
    /// Requests of one walk that are under way at once.
    parallel: usize,
}

/// What one walk took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Walk {
    /// Requests sent.
    pub requests: usize,
    /// Longest chain of nodes of which each named the next, among those who answered.
    pub hops: usize,
    /// Round trips until one of those that keep the key had answered, which is when the first holder is known.
    pub first: f64,
    /// Round trips until all had.
    pub all: f64,
}

/// Where a walk stands with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    No,
    Waiting,
    Answered,
}

impl Dht {
    /// A network of `nodes` nodes.
    pub fn new(nodes: usize, k: usize, replicas: usize, parallel: usize, dice: &mut ChaCha8Rng) -> Self {
        let mut ids: Vec<u64> = (0..nodes).map(|_| dice.random()).collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids, k, replicas, parallel }
    }

    /// A walk from a random node to a random key. A round trip takes 0.5 to 1.5 of the mean.
    pub fn walk(&self, dice: &mut ChaCha8Rng) -> Walk {
        let (from, target) = (dice.random_range(0..self.ids.len()), dice.random::<u64>());
        let mut known: BTreeMap<u64, (usize, usize, Asked)> = BTreeMap::new();
        for node in self.nearest_known(from, target) {
            known.insert(self.ids[node] ^ target, (node, 1, Asked::No));
        }
        let mut under_way: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
        let (mut walk, mut now) = (Walk::default(), 0.0);
        let goal = self.nearest(target);
        loop {
            let nearest: Vec<u64> = known.keys().copied().take(self.replicas).collect();
            for distance in &nearest {
                let (_, _, asked) = known.get_mut(distance).expect("just listed");
                if *asked == Asked::No && under_way.len() < self.parallel {
                    *asked = Asked::Waiting;
                    walk.requests += 1;
                    let answers = now + dice.random_range(0.5..1.5);
                    under_way.push(Reverse((f64::to_bits(answers), *distance)));
                }
            }
            if nearest.iter().all(|distance| known[distance].2 == Asked::Answered) {
                walk.all = now;
                return walk;
            }
            let Some(Reverse((at, distance))) = under_way.pop() else { return walk };
            // Positive numbers sort by their bits.
            now = f64::from_bits(at);
            let (node, hops, asked) = known.get_mut(&distance).expect("asked nodes are known");
            (*asked, walk.hops) = (Asked::Answered, walk.hops.max(*hops));
            let (node, hops) = (*node, *hops);
            if walk.first == 0.0 && goal.contains(&node) {
                walk.first = now;
            }
            for named in self.nearest_known(node, target) {
                known.entry(self.ids[named] ^ target).or_insert((named, hops + 1, Asked::No));
            }
        }
    }

    /// The nodes nearest to a key, which keep it.
    fn nearest(&self, target: u64) -> Vec<usize> {
        let mut shared = 64;
        let mut range = 0..0;
        while shared > 0 && range.len() < self.replicas.min(self.ids.len()) {
            shared -= 1;
            range = self.sharing(target, shared);
        }
        let mut all: Vec<usize> = range.collect();
        all.sort_unstable_by_key(|&node| self.ids[node] ^ target);
        all.truncate(self.replicas);
        all
    }

    /// Of what `node` knows, the K nearest to a key.
    fn nearest_known(&self, node: usize, target: u64) -> Vec<usize> {
        let id = self.ids[node];
        let shared = (id ^ target).leading_zeros();
        // Those that differ from the node where the key does, then those that share more with the node
        // than the key does, then those that share less.
        let mut found = if shared < 64 { self.bucket(node, shared) } else { Vec::new() };
        for deeper in shared + 1..64 {
            if self.k <= found.len() || self.sharing(id, deeper).len() <= 1 {
                break;
            }
            found.extend(self.bucket(node, deeper));
        }
        for shallower in (0..shared.min(64)).rev() {
            if self.k <= found.len() {
                break;
            }
            found.extend(self.bucket(node, shallower));
        }
        found.sort_unstable_by_key(|&other| self.ids[other] ^ target);
        found.truncate(self.k);
        found
    }

    /// Up to K nodes that share exactly `shared` first bits with `node`. The same in every call.
    fn bucket(&self, node: usize, shared: u32) -> Vec<usize> {
        let range = self.sharing(self.ids[node] ^ (1 << (63 - shared)), shared + 1);
        if range.len() <= self.k {
            return range.collect();
        }
        let mut dice = ChaCha8Rng::seed_from_u64(self.ids[node] ^ u64::from(shared));
        // One of each K-th part: as good as a draw without repetition.
        let part = |at: usize| range.start + range.len() * at / self.k;
        (0..self.k).map(|at| dice.random_range(part(at)..part(at + 1))).collect()
    }

    /// Nodes whose first `bits` bits are those of `id`.
    fn sharing(&self, id: u64, bits: u32) -> Range<usize> {
        if bits == 0 {
            return 0..self.ids.len();
        }
        let mask = u64::MAX << (64 - bits);
        let first = self.ids.partition_point(|other| *other < id & mask);
        let after = self.ids.partition_point(|other| *other <= id | !mask);
        first..after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ends_at_the_nearest_and_grows_slowly_with_the_network() {
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        let mean = |nodes: usize, dice: &mut ChaCha8Rng| {
            let dht = Dht::new(nodes, 20, 8, 6, dice);
            let walks: Vec<Walk> = (0..50).map(|_| dht.walk(dice)).collect();
            assert!(
                walks.iter().all(|walk| walk.first > 0.0 && walk.first <= walk.all),
                "somebody near answered"
            );
            walks.iter().map(|walk| walk.requests).sum::<usize>() as f64 / 50.0
        };
        let (small, large) = (mean(20, &mut dice), mean(20_000, &mut dice));
        assert!((8.0..=19.0).contains(&small), "at least those that keep the key are asked: {small}");
        assert!((small..60.0).contains(&large), "{large}");
    }

    #[test]
    fn what_is_nearest_is_nearest() {
        let mut dice = ChaCha8Rng::seed_from_u64(2);
        let dht = Dht::new(500, 20, 8, 6, &mut dice);
        let target: u64 = dice.random();
        let mut all: Vec<usize> = (0..500).collect();
        all.sort_by_key(|&node| dht.ids[node] ^ target);
        assert_eq!(dht.nearest(target), all[..8]);
    }
}
