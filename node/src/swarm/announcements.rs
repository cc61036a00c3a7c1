//! What this node tells the DHT that it has: which keys, in what order, when again.
//!
//! Pure: time is an argument. From coarse to fine over all models: every model's own key first, then
//! stems, then chunks, as far as a budget goes; again before the records expire; and gone from here as
//! soon as nobody wants it said.
//!
//! The budget is in messages, because keys cost more of them the larger the swarm is. Announcing a key is a
//! look-up of the nodes closest to it and a message to each of those. Until the look-up is over it is taken to
//! cost [`Bounds::cost`]; then it is charged what it really cost. So the long-run rate holds in any swarm, and
//! what does not fit waits.
//!
//! The arithmetic of [`BOUNDS`]. With 8 replicas and three disjoint paths a look-up asks 8 to 28 nodes, each of which
//! answers, and then tells 8: 24 to 64 messages, and 64 is what is planned with. Of one message a second, four fifths are
//! planned for:
//!
//! - Models: each again every 25 minutes of a life of 60 costs 64 / 1500 s = 0.043 messages a second. Nine take half of
//!   what is planned for. More go out less often, up to every 50 minutes, so that 18 take half. Still more take from the other
//!   half, and 46 the whole rate; keys of models go out all the same.
//! - Stems, then chunks: each again every 9 hours of a life of 24 costs 64 / 32,400 s = 0.002 messages a second.
//!   With one model 383 fit, with five 297: all stems of five models of 50 layers, and 47 chunks.
//!
//! How many chunks a node holds makes no difference. The fifth that is not planned for is for what changes. A burst
//! of 4,000 messages, after a start or a quiet time, lets some 60 new keys out at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use surf_protocol::ModelId;
use tokio::time::Instant;

use crate::fetch::Key;

/// Bounds of what is announced.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Messages per second, in the long run.
    pub per_second: f64,
    /// Messages at once after a quiet time. Keys of models may borrow as much again.
    pub burst: f64,
    /// Messages that a key is taken to cost.
    pub cost: f64,
    /// How long after it went out the key of a model goes out again, at least and at most.
    pub models_again: [Duration; 2],
    /// How long after it went out any other key goes out again.
    pub others_again: Duration,
    /// Keys of models, and other keys, however cheap they are.
    pub keys: [usize; 2],
}

/// What this program announces at most. The lives of records, which end after these, are in `records`.
pub const BOUNDS: Bounds = Bounds {
    per_second: 1.0,
    burst: 4_000.0,
    cost: 64.0,
    models_again: [Duration::from_secs(25 * 60), Duration::from_secs(50 * 60)],
    others_again: Duration::from_secs(9 * 3600),
    keys: [super::MODELS_MAX, super::KEYS_MAX],
};

/// How much of the rate is planned for. The rest is for what changes.
const PLANNED: f64 = 0.8;

/// How much of that models may take before their keys go out less often.
const MODELS_SHARE: f64 = 0.5;

impl Bounds {
    /// How long after it went out the key of one of so many models goes out again.
    pub fn models_again(&self, models: usize) -> Duration {
        let [least, most] = self.models_again;
        let needed = models as f64 * self.cost / (self.per_second * PLANNED * MODELS_SHARE);
        Duration::from_secs_f64(needed.clamp(least.as_secs_f64(), most.as_secs_f64()))
    }

    /// How many other keys fit beside those of so many models.
    pub fn others(&self, models: usize) -> usize {
        let of_models = models as f64 * self.cost / self.models_again(models).as_secs_f64();
        let left = (self.per_second * PLANNED - of_models).max(0.0);
        let fit = left * self.others_again.as_secs_f64() / self.cost;
        (fit as usize).min(self.keys[1])
    }
}

/// How long changes gather before the plan is made anew: a pull changes it many times a second.
const GATHER: Duration = Duration::from_millis(200);

/// Everything that should be announced, and how far that has come.
#[derive(Debug)]
pub struct Announcements {
    bounds: Bounds,
    /// How long after it went out the key of a model goes out again, now.
    models_again: Duration,
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
pub enum Step {
    /// Tell the DHT.
    Announce(Key),
    /// Say it no longer.
    Withdraw(Key),
}

impl Announcements {
    /// Nothing is announced yet.
    pub fn new(bounds: Bounds, now: Instant) -> Self {
        Self {
            bounds,
            models_again: bounds.models_again[0],
            wanted: BTreeMap::new(),
            planned: HashMap::new(),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            changed: None,
            bucket: Bucket { tokens: bounds.burst, at: now },
        }
    }

    /// From now on `keys`, the most important first, and nothing else, are to be said of `model`.
    pub fn set(&mut self, model: ModelId, mut keys: Vec<Key>, now: Instant) {
        keys.sort_by_key(rank); // Stable: their order within a rank stays.
        keys.truncate(1 + self.bounds.keys[1]);
        if keys.is_empty() {
            self.wanted.remove(&model);
        } else {
            self.wanted.insert(model, keys);
        }
        self.changed.get_or_insert(now);
    }

    /// Everything is due again: those who were told before may all be gone.
    pub fn repeat_all(&mut self) {
        for (key, planned) in &mut self.planned {
            if let Some(at) = planned.later.take() {
                self.later.remove(&(at, *key));
                self.due.insert((planned.priority, *key));
            }
        }
    }

    /// What to do at `now`, if anything; ask until there is nothing. Withdrawals are for free.
    pub fn next(&mut self, now: Instant) -> Option<Step> {
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
        let (priority, key) = *self.due.first()?;
        if !self.bucket.take(&self.bounds, priority.0, now) {
            return None;
        }
        self.due.pop_first();
        let again = now + if priority.0 == 0 { self.models_again } else { self.bounds.others_again };
        self.later.insert((again, key));
        self.planned.get_mut(&key).expect("what is due is planned").later = Some(again);
        Some(Step::Announce(key))
    }

    /// What [`Announcements::next`] said to announce is done, and cost so many messages.
    pub fn charge(&mut self, messages: u32) {
        self.bucket.tokens += self.bounds.cost - f64::from(messages);
    }

    /// When [`Announcements::next`] may have something to do, if not now.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        let changed = self.changed.map(|at| at + GATHER);
        let due = self.due.first().map(|(priority, _)| self.bucket.ready_at(&self.bounds, priority.0, now));
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
        let models = all.iter().take_while(|(priority, _)| priority.0 == 0).count().min(self.bounds.keys[0]);
        self.models_again = self.bounds.models_again(models);
        let others = all.iter().position(|(priority, _)| priority.0 != 0).unwrap_or(all.len());
        let mut planned = HashMap::new();
        for &(priority, key) in all[..others].iter().take(models) {
            planned.insert(key, Planned { priority, later: None });
        }
        let room = planned.len() + self.bounds.others(models);
        for &(priority, key) in &all[others..] {
            if room <= planned.len() {
                break;
            }
            // What two models share counts once, at its better place.
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
        Key::Stem(_) => 1,
        Key::Chunk(_) => 2,
    }
}

/// Messages that may go out.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Takes what a key of this rank is taken to cost, if there is as much.
    fn take(&mut self, bounds: &Bounds, rank: u8, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * bounds.per_second).min(bounds.burst);
        self.at = self.at.max(now);
        let enough = needed(bounds, rank) <= self.tokens;
        if enough {
            self.tokens -= bounds.cost;
        }
        enough
    }

    fn ready_at(&self, bounds: &Bounds, rank: u8, now: Instant) -> Instant {
        let missing = (needed(bounds, rank) - self.tokens).max(0.0) / bounds.per_second;
        // A little late rather than a little early, which would be for nothing.
        now.max(self.at + Duration::from_secs_f64(missing) + Duration::from_millis(1))
    }
}

/// Messages that must be left for a key of this rank. Those of models do not wait for what finer ones have used
/// up: whoever has none of a model's keys cannot be found at all.
fn needed(bounds: &Bounds, rank: u8) -> f64 {
    if rank == 0 { bounds.cost - bounds.burst } else { bounds.cost }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use surf_protocol::ChunkId;

    use super::*;

    /// 37 other keys fit beside three models.
    const SMALL: Bounds = Bounds {
        per_second: 10.0,
        burst: 50.0,
        cost: 10.0,
        models_again: [Duration::from_secs(60), Duration::from_secs(120)],
        others_again: Duration::from_secs(50),
        keys: [100, 100],
    };

    fn model(n: u8) -> ModelId {
        ModelId::of(&[n])
    }

    /// The keys of a model: itself, two stems and `chunks` chunks.
    fn keys(n: u8, chunks: u16) -> Vec<Key> {
        let chunks = (0..chunks).map(|at| Key::Chunk(ChunkId::of(&[n, at as u8, (at >> 8) as u8])));
        let stems = [Key::Stem([n; 32]), Key::Stem([n + 100; 32])];
        [Key::Model(model(n))].into_iter().chain(stems).chain(chunks).collect()
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
        let mut announcements = Announcements::new(SMALL, begin);
        announcements.set(model(1), keys(1, 100), begin);
        announcements.set(model(2), keys(2, 100), begin);
        let others = SMALL.others(2);
        let steps = run(&mut announcements, begin, begin + Duration::from_secs(45));
        assert_eq!(steps.len(), 2 + others);
        let ranks: Vec<_> = steps.iter().map(|(_, step)| rank(&announced(step))).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(ranks.iter().filter(|&&rank| rank < 2).count(), 6);
        let of_two = keys(2, 100);
        let fine = steps.iter().filter(|(_, step)| of_two[3..].contains(&announced(step))).count();
        assert!(fine.abs_diff((others - 4) / 2) <= 1, "both models get their share of the budget");
        for (sent, (at, _)) in steps.iter().enumerate() {
            let passed = (*at - begin).as_secs_f64();
            assert!(sent as f64 <= 5.0 + passed, "{sent} keys of 10 messages after {passed} s");
        }
        assert!(steps.last().unwrap().0 < begin + Duration::from_secs(36), "nor much slower");
    }

    #[test]
    fn what_a_key_really_cost_is_charged() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(SMALL, begin);
        announcements.set(model(1), keys(1, 30), begin);
        let mut sent = 0;
        let mut now = begin;
        while now < begin + Duration::from_secs(10) {
            while announcements.next(now).is_some() {
                announcements.charge(20);
                sent += 20;
            }
            now += Duration::from_millis(50);
        }
        assert!((100..=50 + 100 + 20).contains(&sent), "{sent} messages in 10 s of 10, after a burst of 50");
    }

    #[test]
    fn keys_of_models_do_not_wait_for_finer_ones_and_others_do() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(SMALL, begin);
        announcements.set(model(1), keys(1, 30), begin);
        assert_eq!(run(&mut announcements, begin, begin).len(), 5);
        announcements.set(model(2), keys(2, 0), begin);
        let soon = begin + GATHER;
        let steps = run(&mut announcements, soon, soon);
        assert_eq!(steps, [(soon, Step::Announce(Key::Model(model(2))))]);
    }

    #[test]
    fn again_before_they_expire_and_all_when_the_neighbours_are_new() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(SMALL, begin);
        announcements.set(model(1), keys(1, 2), begin);
        let steps = run(&mut announcements, begin, begin + Duration::from_secs(110));
        assert_eq!(steps.len(), 2 + 4 * 3, "the model twice, the others three times: {steps:?}");
        let later = begin + Duration::from_secs(115);
        announcements.repeat_all();
        let steps = run(&mut announcements, later, later + Duration::from_secs(4));
        assert_eq!(steps.len(), 5);
        assert_eq!(steps[0].1, Step::Announce(Key::Model(model(1))));
    }

    #[test]
    fn what_is_no_longer_wanted_is_withdrawn_and_can_come_back() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(SMALL, begin);
        announcements.set(model(1), keys(1, 10), begin);
        run(&mut announcements, begin, begin + Duration::from_secs(20));
        let later = begin + Duration::from_secs(20);
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

    #[test]
    fn the_arithmetic_is_as_written() {
        let minutes = |models| BOUNDS.models_again(models).as_secs() / 60;
        assert_eq!([1, 9, 18, 19, 1000].map(minutes), [25, 25, 48, 50, 50]);
        assert_eq!([1, 5, 7, 25, 50, 1000].map(|models| BOUNDS.others(models)), [383, 297, 253, 135, 0, 0]);
        assert!(super::super::records::MODEL_LIFE > BOUNDS.models_again[1]);
        assert!(super::super::records::OTHER_LIFE > 2 * BOUNDS.others_again);
    }

    /// Three days of a node that holds five models in 35,000 chunks, when each key costs what it may in a
    /// large swarm.
    #[test]
    fn a_steady_node_says_no_more_than_one_message_a_second_and_nothing_expires() {
        let begin = Instant::now();
        let mut announcements = Announcements::new(BOUNDS, begin);
        for n in 0..5 {
            let chunks =
                (0..7_000u32).map(|at| Key::Chunk(ChunkId::of(&[&[n][..], &at.to_le_bytes()].concat())));
            let stems = (0..50).map(|at| {
                let mut hash = [at; 32];
                hash[0] = n + 100;
                Key::Stem(hash)
            });
            let keys = [Key::Model(model(n))].into_iter().chain(stems).chain(chunks).collect();
            announcements.set(model(n), keys, begin);
        }
        let (day, mut now) = (Duration::from_secs(86_400), begin);
        let mut costs = [32, 64, 72, 48].into_iter().cycle();
        let mut spent = Vec::new();
        let mut said: HashMap<Key, Instant> = HashMap::new();
        while now < begin + 3 * day {
            while let Some(step) = announcements.next(now) {
                let (key, cost) = (announced(&step), costs.next().unwrap());
                announcements.charge(cost);
                spent.push((now, cost));
                let life = if rank(&key) == 0 { 3600 } else { 86_400 };
                let before = said.insert(key, now);
                assert!(
                    before.is_none_or(|before| now - before < Duration::from_secs(life)),
                    "{key:?} expired"
                );
            }
            now = announcements.wake(now).unwrap().max(now + Duration::from_millis(10));
        }
        assert_eq!(said.len(), 5 + 297);
        assert_eq!(said.keys().filter(|key| rank(key) == 1).count(), 250, "all stems");
        for hours in [6, 24] {
            let window = Duration::from_secs(hours * 3600);
            let mut from = begin + day;
            while from + window <= begin + 3 * day {
                let inside = spent.iter().filter(|(at, _)| (from..from + window).contains(at));
                let rate = f64::from(inside.map(|(_, cost)| cost).sum::<u32>()) / window.as_secs_f64();
                assert!(rate <= 1.0, "{rate} messages a second within {hours} hours");
                from += Duration::from_secs(3600);
            }
        }
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
            let mut announcements = Announcements::new(SMALL, now);
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
            let out = apply(run(&mut announcements, now, now + Duration::from_secs(100)));
            let all: HashSet<_> = wanted.into_values().flatten().collect();
            prop_assert!(out.is_subset(&all));
            let models = all.iter().filter(|key| rank(key) == 0).count();
            prop_assert_eq!(out.len(), models + (all.len() - models).min(SMALL.others(models)));
            prop_assert_eq!(out.len(), announcements.planned());
            let finest = out.iter().map(rank).max().unwrap_or(0);
            prop_assert!(all.difference(&out).all(|key| finest <= rank(key)));
        }
    }
}
