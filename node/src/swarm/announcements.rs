//! What this node tells the DHT that it has: which keys, in what order, when again.
//!
//! Pure: time is an argument. From coarse to fine over all models: every model's own key first, then
//! groups, then chunks, as far as a budget goes; at a bounded rate, so that publishing a large model
//! is no flood; again before the records expire; and gone from here as soon as nobody wants it said.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use surf_protocol::ModelId;
use tokio::time::Instant;

use crate::fetch::Key;

/// Bounds of what is announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Keys that are out at once.
    pub(super) keys: usize,
    /// Keys that may go out per second, in the long run.
    pub(super) per_second: u32,
    /// Keys that may go out at once after a quiet time.
    pub(super) burst: u32,
    /// How long after it went out a key goes out again.
    pub(super) again: Duration,
}

/// How long changes gather before the plan is made anew: a pull changes it many times a second.
const GATHER: Duration = Duration::from_millis(200);

/// Everything that should be announced, and how far that has come.
#[derive(Debug)]
pub(super) struct Announcements {
    bounds: Bounds,
    wanted: BTreeMap<ModelId, Vec<Key>>,
    /// The keys within the budget.
    planned: HashMap<Key, Planned>,
    /// Due now, the most important first.
    due: BTreeSet<(Priority, Key)>,
    /// Not due yet, the next first.
    later: BTreeSet<(Instant, Key)>,
    /// When `wanted` changed, if `planned` does not show it yet.
    changed: Option<Instant>,
    bucket: Bucket,
}

/// The smaller goes first: kind of key, place in its model's list, model.
type Priority = (u8, usize, ModelId);

#[derive(Clone, Copy, Debug)]
struct Planned {
    priority: Priority,
    /// When it is due again. `None` if it is due now.
    later: Option<Instant>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Tell the DHT.
    Announce(Key),
    /// Say it no longer.
    Withdraw(Key),
}

impl Announcements {
    pub(super) fn new(bounds: Bounds, now: Instant) -> Self {
        Self {
            bounds,
            wanted: BTreeMap::new(),
            planned: HashMap::new(),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            changed: None,
            bucket: Bucket { tokens: bounds.burst.into(), at: now },
        }
    }

    /// From now on `keys`, the most important first, and nothing else, are to be said of `model`.
    pub(super) fn set(&mut self, model: ModelId, mut keys: Vec<Key>, now: Instant) {
        keys.sort_by_key(rank); // Stable: their order within a rank stays.
        keys.truncate(self.bounds.keys);
        if keys.is_empty() {
            self.wanted.remove(&model);
        } else {
            self.wanted.insert(model, keys);
        }
        self.changed.get_or_insert(now);
    }

    /// Everything is due again: those who were told before may all be gone.
    pub(super) fn repeat_all(&mut self) {
        for (key, planned) in &mut self.planned {
            if let Some(at) = planned.later.take() {
                self.later.remove(&(at, *key));
                self.due.insert((planned.priority, *key));
            }
        }
    }

    /// What to do at `now`, if anything; ask until there is nothing. Withdrawals are for free.
    pub(super) fn next(&mut self, now: Instant) -> Option<Step> {
        if self.changed.is_some_and(|at| at + GATHER <= now || self.planned.is_empty()) {
            self.changed = None;
            self.plan();
        }
        // Keys that are planned no longer are marked by standing in `later` alone.
        while let Some(&(at, key)) = self.later.first() {
            if now < at {
                break;
            }
            self.later.pop_first();
            match self.planned.get_mut(&key) {
                Some(planned) => {
                    planned.later = None;
                    self.due.insert((planned.priority, key));
                }
                None => return Some(Step::Withdraw(key)),
            }
        }
        let (_, key) = *self.due.first()?;
        if !self.bucket.take(&self.bounds, now) {
            return None;
        }
        self.due.pop_first();
        let again = now + self.bounds.again;
        self.later.insert((again, key));
        self.planned.get_mut(&key).expect("what is due is planned").later = Some(again);
        Some(Step::Announce(key))
    }

    /// When [`Announcements::next`] may have something to do, if not now.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let changed = self.changed.map(|at| at + GATHER);
        let due = (!self.due.is_empty()).then(|| self.bucket.full_at(&self.bounds, now));
        let later = self.later.first().map(|&(at, _)| at);
        [changed, due, later].into_iter().flatten().min()
    }

    /// How many keys are announced, or wait for their turn.
    #[cfg(test)]
    fn planned(&self) -> usize {
        self.planned.len()
    }

    fn plan(&mut self) {
        let mut all: Vec<(Priority, Key)> = Vec::new();
        for (&model, keys) in &self.wanted {
            all.extend(keys.iter().enumerate().map(|(at, key)| ((rank(key), at, model), *key)));
        }
        all.sort_unstable();
        let mut planned = HashMap::new();
        for (priority, key) in all {
            if planned.len() == self.bounds.keys {
                break;
            }
            // A chunk that two models share counts once, at its better place.
            planned.entry(key).or_insert(Planned { priority, later: None });
        }
        self.due.clear();
        for (key, before) in std::mem::take(&mut self.planned) {
            match (planned.get_mut(&key), before.later) {
                (Some(now), later) => now.later = later,
                (None, Some(at)) => {
                    // It was out: to be withdrawn at once. All such stand before everything else.
                    self.later.remove(&(at, key));
                    self.later.insert((self.bucket.at, key));
                }
                (None, None) => {}
            }
        }
        let due = planned.iter().filter(|(_, planned)| planned.later.is_none());
        self.due.extend(due.map(|(key, planned)| (planned.priority, *key)));
        // A key that was about to be withdrawn and is wanted again.
        self.later.retain(|(at, key)| planned.get(key).is_none_or(|planned| planned.later == Some(*at)));
        self.planned = planned;
    }
}

fn rank(key: &Key) -> u8 {
    match key {
        Key::Model(_) => 0,
        Key::Group(_) => 1,
        Key::Chunk(_) => 2,
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, bounds: &Bounds, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * f64::from(bounds.per_second)).min(bounds.burst.into());
        self.at = self.at.max(now);
        let enough = 1.0 <= self.tokens;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn full_at(&self, bounds: &Bounds, now: Instant) -> Instant {
        let missing = (1.0 - self.tokens).max(0.0) / f64::from(bounds.per_second);
        // A little late rather than a little early, which would be for nothing.
        now.max(self.at + Duration::from_secs_f64(missing) + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use surf_protocol::ChunkId;

    use super::*;

    const BOUNDS: Bounds = Bounds { keys: 40, per_second: 10, burst: 5, again: Duration::from_secs(60) };

    fn model(n: u8) -> ModelId {
        ModelId::of(&[n])
    }

    /// The keys of a model: itself, two groups and `chunks` chunks.
    fn keys(n: u8, chunks: u16) -> Vec<Key> {
        let chunks = (0..chunks).map(|at| Key::Chunk(ChunkId::of(&[n, at as u8, (at >> 8) as u8])));
        let groups = [Key::Group([n; 32]), Key::Group([n + 100; 32])];
        [Key::Model(model(n))].into_iter().chain(groups).chain(chunks).collect()
    }

    /// Does everything that is to be done up to `end`, and says what and when.
    fn run(announcements: &mut Announcements, mut now: Instant, end: Instant) -> Vec<(Instant, Step)> {
        let mut steps = Vec::new();
        loop {
            while let Some(step) = announcements.next(now) {
                steps.push((now, step));
            }
            match announcements.wake(now) {
                Some(wake) if wake <= end => now = wake.max(now + Duration::from_micros(100)),
                _ => return steps,
            }
        }
    }

    #[test]
    fn coarse_first_over_all_models_and_no_faster_than_allowed() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(BOUNDS, begin);
        announcements.set(model(1), keys(1, 100), begin);
        announcements.set(model(2), keys(2, 100), begin);
        let steps = run(&mut announcements, begin, begin + Duration::from_secs(50));
        assert_eq!(steps.len(), BOUNDS.keys);
        let ranks: Vec<_> = steps.iter().map(|(_, step)| rank(&announced(step))).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(ranks.iter().filter(|&&rank| rank < 2).count(), 6);
        let of_two = keys(2, 100);
        let fine = steps.iter().filter(|(_, step)| of_two[3..].contains(&announced(step))).count();
        assert_eq!(fine, 17, "both models get their share of the budget");
        for (sent, (at, _)) in steps.iter().enumerate() {
            let passed = (*at - begin).as_secs_f64();
            assert!(sent as f64 <= 5.0 + 10.0 * passed, "{sent} keys after {passed} s");
        }
        assert!(steps.last().unwrap().0 < begin + Duration::from_secs(4), "nor much slower");
    }

    #[test]
    fn again_before_they_expire_and_all_when_the_neighbours_are_new() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(BOUNDS, begin);
        announcements.set(model(1), keys(1, 2), begin);
        let steps = run(&mut announcements, begin, begin + Duration::from_secs(125));
        assert_eq!(steps.len(), 15, "{steps:?}");
        let later = begin + Duration::from_secs(125);
        announcements.repeat_all();
        let steps = run(&mut announcements, later, later + Duration::from_secs(10));
        assert_eq!(steps.len(), 5);
        assert_eq!(steps[0].1, Step::Announce(Key::Model(model(1))));
    }

    #[test]
    fn what_is_no_longer_wanted_is_withdrawn_and_can_come_back() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(BOUNDS, begin);
        announcements.set(model(1), keys(1, 10), begin);
        run(&mut announcements, begin, begin + Duration::from_secs(10));
        let later = begin + Duration::from_secs(10);
        announcements.set(model(1), keys(1, 1), later);
        let steps = run(&mut announcements, later, later + Duration::from_secs(10));
        assert_eq!(steps.len(), 9);
        assert!(steps.iter().all(|(_, step)| matches!(step, Step::Withdraw(Key::Chunk(_)))));
        let later = later + Duration::from_secs(10);
        announcements.set(model(1), Vec::new(), later);
        announcements.set(model(1), keys(1, 0), later);
        let steps = run(&mut announcements, later, later + Duration::from_secs(10));
        assert_eq!(steps.len(), 1, "what is wanted again at once is not withdrawn: {steps:?}");
    }

    fn announced(step: &Step) -> Key {
        match step {
            Step::Announce(key) => *key,
            Step::Withdraw(_) => panic!("nothing to withdraw"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// After any history, once things are quiet: out is exactly what is planned, no more than the
        /// budget, all of it wanted, and nothing finer while something coarser is left out.
        #[test]
        fn what_is_out_is_what_is_wanted(changes in prop::collection::vec((0u8..4, 0u16..30, 0u64..3_000), 1..20)) {
            let mut now = Instant::now();
            let mut announcements = Announcements::new(BOUNDS, now);
            let mut wanted = BTreeMap::new();
            let mut out = HashSet::new();
            let mut apply = |steps: Vec<(Instant, Step)>| {
                for (_, step) in steps {
                    match step {
                        Step::Announce(key) => { out.insert(key); }
                        Step::Withdraw(key) => { assert!(out.remove(&key), "withdrew what was not out"); }
                    }
                }
                out.clone()
            };
            for (n, chunks, wait_ms) in changes {
                let keys = if chunks == 0 { Vec::new() } else { keys(n, chunks - 1) };
                announcements.set(model(n), keys.clone(), now);
                wanted.insert(n, keys);
                let end = now + Duration::from_millis(wait_ms);
                apply(run(&mut announcements, now, end));
                now = end;
            }
            let out = apply(run(&mut announcements, now, now + Duration::from_secs(30)));
            let all: HashSet<_> = wanted.into_values().flatten().collect();
            prop_assert!(out.is_subset(&all));
            prop_assert_eq!(out.len(), all.len().min(BOUNDS.keys));
            prop_assert_eq!(out.len(), announcements.planned());
            let finest = out.iter().map(rank).max().unwrap_or(0);
            prop_assert!(all.difference(&out).all(|key| finest <= rank(key)));
        }
    }
}
