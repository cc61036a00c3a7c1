//! What goes wrong in a run of chaos: seeded dice, nothing else. One honest seed, which the dice
//! choose, suffers nothing, so that there is always somebody to fetch from.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::lab::rogue::Manner;

/// Honest hosts that have the model: 0, 1, …
pub(super) const SEEDS: usize = 3;
/// Rogues at most; they follow.
pub(super) const ROGUES_MAX: usize = 3;
/// Hosts that want the model; they come last.
pub(super) const RECEIVERS: usize = 2;
/// Hosts in all.
pub(super) const HOSTS: usize = SEEDS + ROGUES_MAX + RECEIVERS;

/// When faults begin: while the model is on its way.
const FAULTS_MS: std::ops::Range<u32> = 100..3000;
/// How long a link is cut, or a host sleeps.
const CUT_MS: std::ops::Range<u32> = 300..6000;

/// Something that goes wrong with a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its link is cut.
    Cut,
    /// Its link is joined again.
    Heal,
    /// What runs on it is killed.
    Kill,
    /// It stops, as a lid that is closed does.
    Sleep,
    /// It goes on.
    Wake,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// What is wrong with the rogues.
    pub(super) rogues: Vec<Manner>,
    /// When what happens to which host, earliest first.
    pub(super) faults: Vec<(Duration, usize, Fault)>,
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let mut between = |from: u32, to: u32| from + dice.next_u32() % (to - from);
        let steady = between(0, SEEDS as u32) as usize;
        let rogues: Vec<Manner> = (0..between(0, ROGUES_MAX as u32 + 1))
            .map(|_| Manner::ALL[between(0, Manner::ALL.len() as u32) as usize])
            .collect();
        let mut faults = Vec::new();
        let others = (0..SEEDS).filter(|&host| host != steady);
        for host in others.chain(SEEDS..SEEDS + rogues.len()) {
            let begins = between(FAULTS_MS.start, FAULTS_MS.end);
            let ends = begins + between(CUT_MS.start, CUT_MS.end);
            let at = |ms: u32| Duration::from_millis(u64::from(ms));
            let mut happens = |begin, end| {
                faults.push((at(begins), host, begin));
                faults.push((at(ends), host, end));
            };
            match between(0, 6) {
                0 => faults.push((at(begins), host, Fault::Kill)),
                1 | 2 => happens(Fault::Cut, Fault::Heal),
                3 | 4 => happens(Fault::Sleep, Fault::Wake),
                _ => (),
            }
        }
        faults.sort_by_key(|&(at, host, _)| (at, host));
        Self { rogues, faults }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_somebody_stays() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let plan = Plan::new(seed);
            assert_eq!(plan, Plan::new(seed));
            let steady = (0..SEEDS).filter(|host| plan.faults.iter().all(|(_, hit, _)| hit != host));
            assert!(0 < steady.count(), "{plan:?}");
            assert!(plan.faults.iter().all(|&(_, host, _)| host < HOSTS - RECEIVERS), "{plan:?}");
            seen.extend(plan.rogues.iter().map(|manner| manner.name()));
            seen.extend(plan.faults.iter().map(|(_, _, fault)| match fault {
                Fault::Cut => "cut",
                Fault::Heal => "heal",
                Fault::Kill => "kill",
                Fault::Sleep => "sleep",
                Fault::Wake => "wake",
            }));
        }
        assert_eq!(seen.len(), 9, "everything happens to somebody: {seen:?}");
    }
}
