//! Which groups stay in memory and which stream through it: pure arithmetic on sizes.
//!
//! A forward pass visits the same groups in the same order again and again. For such a cycle LRU is
//! the worst policy (with room for 5 of 22 groups it hits never), so the set that stays is fixed,
//! and the others pass through a small ring: one computing, one coming.
//!
//! - With memory for `k` groups, at least `k − 2` of those that every pass visits stay.
//! - Resident bytes and the ring never exceed the budget together, unless a single group does: that
//!   one is then held alone, and nothing else. A budget that is too small makes a model slow; it
//!   does not stop it.
//! - A table that is multiplied last and is larger than two ordinary groups comes in runs of rows, unless
//!   everything fits. Each run is planned like a group, so the table needs no room of its own.
//! - Routed experts are fetched when they are asked for, and kept by use in what is left; room for two
//!   of them is always left.

use std::{cmp::Reverse, collections::BTreeSet, ops::Range};

/// Sizes that differ from the median by less than one part in this many are taken for the ordinary
/// blocks of the model.
const ORDINARY_PART: u64 = 8;

/// How many of the largest sizes are tried as the largest that streams. Models have some five; this
/// bounds what a manifest that was made to be slow can cost.
const SIZES_TRIED_MAX: usize = 16;

/// Bytes of single rows that may be kept, at most: some ten thousand rows of a large model, more
/// than a conversation has distinct tokens.
const ROWS_MAX: u64 = 64 << 20;

/// Bytes of single rows that may be kept even where the budget has nothing to spare.
const ROWS_MIN: u64 = 4 << 20;

/// Bytes in a run of a table, at most: computing begins when the first has come.
const RUN_MAX: u64 = 64 << 20;

/// What is to be planned: groups are named by their position in the manifest.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    /// Bytes of each group.
    pub(super) sizes: Vec<u64>,
    /// The groups that every pass visits, in order.
    pub(super) cycle: Vec<usize>,
    /// The position in `cycle` to which a pass returns after its end. What precedes is visited first,
    /// and then not before something new begins.
    pub(super) again: usize,
    /// The group whose table is read by row, if there is one.
    pub(super) table: Option<usize>,
    /// The groups that are routed experts: visited when a router says so.
    pub(super) experts: Vec<usize>,
    /// Those that are runs of a table's rows. They are planned like groups, but are not the model's
    /// ordinary ones, whatever their number.
    pub(super) runs: Range<usize>,
}

/// What stays, and how much room there is for what does not.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    load: Load,
    /// For each group, its position in the cycle.
    positions: Vec<Option<usize>>,
    resident: Vec<bool>,
    ring: u64,
    rows: u64,
    experts: u64,
}

impl Plan {
    /// What to do with `load` in `memory` bytes.
    pub(super) fn new(load: Load, memory: u64) -> Self {
        let mut positions = vec![None; load.sizes.len()];
        for (position, &group) in load.cycle.iter().enumerate() {
            positions[group] = Some(position);
        }
        let floor = floor(&load);
        let (resident, ring) = choose(&load, memory.saturating_sub(floor));
        let mut plan = Self { load, positions, resident, ring, rows: 0, experts: 0 };
        if plan.load.table.is_some_and(|table| plan.positions[table].is_none()) {
            // Rows live in what neither the resident set nor the ring could use, or in very little.
            let spare = memory.saturating_sub(plan.resident_bytes() + ring + floor);
            plan.rows = spare.clamp(ROWS_MIN.min(memory / 64), ROWS_MAX.min(memory / 16));
        }
        let spare = memory.saturating_sub(plan.resident_bytes() + plan.rows);
        if !plan.load.experts.is_empty() {
            let all = total(&plan.load, plan.load.experts.iter().copied());
            let room = spare.saturating_sub(plan.ring);
            plan.experts = if all <= room { all } else { room.saturating_sub(floor) };
        } else if plan.streams() {
            plan.ring = plan.ring.max(spare);
        }
        plan
    }

    /// Whether `group` stays in memory.
    pub(super) fn is_resident(&self, group: usize) -> bool {
        self.resident[group]
    }

    /// Bytes of the groups that stay.
    pub(super) fn resident_bytes(&self) -> u64 {
        total(&self.load, (0..self.resident.len()).filter(|&group| self.resident[group]))
    }

    /// Bytes that streamed groups may take at once.
    pub(super) fn ring(&self) -> u64 {
        self.ring
    }

    /// Bytes that single rows of the table may take. They come on top of the budget where it has
    /// nothing to spare: at most a 64th of it, and at most 4 MiB.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes that routed experts may take to stay. Beside them there is room for two that pass through,
    /// unless all can stay.
    pub(super) fn experts_kept(&self) -> u64 {
        self.experts
    }

    /// Bytes of `group`.
    pub(super) fn size(&self, group: usize) -> u64 {
        self.load.sizes[group]
    }

    /// Where every pass visits `group`, if it does.
    pub(super) fn position(&self, group: usize) -> Option<usize> {
        self.positions[group]
    }

    /// How many groups every pass visits.
    pub(super) fn pass_len(&self) -> usize {
        self.load.cycle.len()
    }

    /// The groups that come after position `after` of a pass, or from its start: one round, with
    /// the position of each. What precedes comes again in the next pass, and last what passes do not
    /// return to.
    pub(super) fn coming(&self, after: Option<usize>) -> impl Iterator<Item = (usize, usize)> + '_ {
        let (count, again, next) = (self.pass_len(), self.load.again, after.map_or(0, |after| after + 1));
        let round = (next..count).chain(again..count.min(next)).chain(0..again.min(next));
        round.map(|at| (at, self.load.cycle[at]))
    }

    /// The streamed groups that may be in memory while `current` computes and position `after` was
    /// the last of the pass to be visited: `current`, and as many of those to come as the ring holds.
    ///
    /// A group larger than the ring is in it alone.
    pub(super) fn ring_at(&self, current: Option<usize>, after: Option<usize>) -> Vec<usize> {
        let streamed = |group: &usize| !self.resident[*group];
        let mut held: Vec<usize> = current.into_iter().filter(streamed).collect();
        let mut bytes = total(&self.load, held.iter().copied());
        for (_, group) in self.coming(after).filter(|(_, group)| streamed(group)) {
            if Some(group) == current {
                continue;
            }
            bytes += self.size(group);
            if self.ring < bytes && !held.is_empty() {
                break;
            }
            held.push(group);
        }
        held
    }

    /// Whether every pass fetches something again.
    fn streams(&self) -> bool {
        self.load.cycle.iter().any(|&group| !self.resident[group])
    }
}

/// Bytes in a run of rows of the table that makes up `group`, at most; `None` if the group is better whole:
/// because everything fits, or because the ring holds as much anyway.
pub(super) fn run_bytes(load: &Load, group: usize, memory: u64) -> Option<u64> {
    let cycle = load.cycle.iter().copied();
    if total(load, cycle.clone()) <= memory.saturating_sub(floor(load)) {
        return None;
    }
    let ordinary = median(load, cycle.filter(|&other| other != group))?;
    (2 * ordinary < load.sizes[group]).then_some(ordinary.min(RUN_MAX))
}

/// What experts that pass through need: while one computes, one more may come.
fn floor(load: &Load) -> u64 {
    2 * load.experts.iter().map(|&at| load.sizes[at]).max().unwrap_or(0)
}

/// What an ordinary one of `groups` takes, if there is one.
fn median(load: &Load, groups: impl Iterator<Item = usize>) -> Option<u64> {
    let groups = groups.filter(|group| !load.runs.contains(group));
    let mut sizes: Vec<_> = groups.map(|group| load.sizes[group]).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied()
}

/// Which groups of the cycle stay, and the least room that the ring needs.
fn choose(load: &Load, memory: u64) -> (Vec<bool>, u64) {
    let mut resident = vec![false; load.sizes.len()];
    if total(load, load.cycle.iter().copied()) <= memory {
        load.cycle.iter().for_each(|&group| resident[group] = true);
        return (resident, 0);
    }
    match best(load, memory) {
        Some((set, ring)) => {
            set.iter().for_each(|&group| resident[group] = true);
            (resident, ring)
        }
        // Not even two ordinary groups, or not even the largest one: everything streams, through
        // all there is.
        None => (resident, memory),
    }
}

/// The set that saves the most bytes per pass.
///
/// The ring must hold the largest group that streams and two ordinary ones. One very large group (a
/// head over a large vocabulary) would so widen the ring at the cost of many others; then it is
/// better to keep that one. So: for each size, keep what is larger, fill up, and compare.
fn best(load: &Load, memory: u64) -> Option<(Vec<usize>, u64)> {
    let sizes: BTreeSet<u64> = load.cycle.iter().map(|&group| load.sizes[group]).collect();
    let mut best: Option<(u64, Vec<usize>, u64)> = None;
    for &largest in sizes.iter().rev().take(SIZES_TRIED_MAX) {
        let (mut kept, rest): (Vec<_>, Vec<_>) =
            load.cycle.iter().partition(|&&group| largest < load.sizes[group]);
        // Where only runs are left, one computes while another comes, like groups.
        let median = median(load, rest.iter().copied()).unwrap_or(largest);
        let ring = largest.max(2 * median);
        let Some(room) = memory.checked_sub(total(load, kept.iter().copied()) + ring) else { continue };
        kept.extend(fill(load, &rest, median, room));
        let saved = total(load, kept.iter().copied());
        if best.as_ref().is_none_or(|(most, ..)| *most < saved) {
            best = Some((saved, kept, ring));
        }
    }
    best.map(|(_, kept, ring)| (kept, ring))
}

/// Groups of `candidates` (in order of use) that fit `room`: ordinary ones first, evenly spaced,
/// then whatever fits.
///
/// Evenly, because the time in which a streamed group can come is the time that the resident ones
/// before it compute: all at the end of the pass, they would wait for each other.
fn fill(load: &Load, candidates: &[usize], median: u64, room: u64) -> Vec<usize> {
    let size = |group: usize| load.sizes[group];
    let ordinary = |group: &usize| size(*group).abs_diff(median) <= median / ORDINARY_PART;
    let blocks: Vec<usize> = candidates.iter().copied().filter(ordinary).collect();
    let fits = |count: &usize| total(load, evenly(&blocks, *count)) <= room;
    let counts: Vec<usize> = (1..=blocks.len()).collect();
    let mut kept: Vec<usize> = evenly(&blocks, counts.partition_point(fits)).collect();
    let mut room = room - total(load, kept.iter().copied());

    let chosen: BTreeSet<usize> = kept.iter().copied().collect();
    let mut others: Vec<usize> = candidates.iter().copied().filter(|at| !chosen.contains(at)).collect();
    others.sort_by_key(|&group| (size(group).abs_diff(median), Reverse(group)));
    for group in others {
        if size(group) <= room {
            room -= size(group);
            kept.push(group);
        }
    }
    kept
}

/// `count` of `groups`, evenly spaced.
fn evenly(groups: &[usize], count: usize) -> impl Iterator<Item = usize> + '_ {
    let share = move |at: usize| at * count / groups.len();
    let all: Range<usize> = 0..groups.len();
    all.filter(move |&at| share(at) < share(at + 1)).map(|at| groups[at])
}

fn total(load: &Load, groups: impl IntoIterator<Item = usize>) -> u64 {
    groups.into_iter().map(|group| load.sizes[group]).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(count: usize, size: u64) -> Load {
        Load { sizes: vec![size; count], cycle: (0..count).collect(), ..Load::default() }
    }

    fn kept(plan: &Plan) -> Vec<usize> {
        (0..plan.load.sizes.len()).filter(|&group| plan.is_resident(group)).collect()
    }

    /// A pass as the engine makes it: how many groups were resident, and the most that was held.
    fn pass(plan: &Plan) -> (usize, u64) {
        let mut peak = 0;
        for (position, group) in plan.coming(None) {
            let held = plan.ring_at(Some(group), Some(position));
            peak = peak.max(plan.resident_bytes() + total(&plan.load, held));
        }
        (plan.load.cycle.iter().filter(|&&group| plan.is_resident(group)).count(), peak)
    }

    #[test]
    fn what_is_visited_once_comes_again_last() {
        let mut load = blocks(5, 10);
        load.again = 2;
        let plan = Plan::new(load, 20);
        let coming = |after| plan.coming(after).map(|(_, group)| group).collect::<Vec<_>>();
        assert_eq!(coming(None), [0, 1, 2, 3, 4]);
        assert_eq!(coming(Some(0)), [1, 2, 3, 4, 0]);
        assert_eq!(coming(Some(1)), [2, 3, 4, 0, 1]);
        assert_eq!(coming(Some(3)), [4, 2, 3, 0, 1]);
        assert_eq!(coming(Some(4)), [2, 3, 4, 0, 1]);
    }

    #[test]
    fn everything_stays_if_it_fits() {
        let plan = Plan::new(blocks(22, 10), 220);
        assert_eq!(pass(&plan), (22, 220));
        assert_eq!(plan.ring(), 0);
    }

    #[test]
    fn with_room_for_five_of_22_three_stay_evenly_and_two_pass_through() {
        let plan = Plan::new(blocks(22, 10), 50);
        assert_eq!(kept(&plan), [7, 14, 21]);
        assert_eq!(plan.ring(), 20);
        assert_eq!(plan.ring_at(Some(6), Some(6)), [6, 8]);
        assert_eq!(plan.ring_at(Some(7), Some(7)), [8, 9]);
        assert_eq!(plan.ring_at(Some(20), Some(20)), [20, 0]);
        assert_eq!(plan.ring_at(None, None), [0, 1]);
    }

    #[test]
    fn a_small_norm_does_not_cost_a_block() {
        let mut load = blocks(9, 1000);
        load.sizes[8] = 3;
        assert_eq!(kept(&Plan::new(load, 5000)), [2, 5, 7]);
    }

    #[test]
    fn a_head_of_many_blocks_stays_rather_than_widen_the_ring() {
        let mut load = blocks(9, 10);
        load.sizes[8] = 45;
        let plan = Plan::new(load.clone(), 80);
        assert_eq!(kept(&plan), [7, 8]);
        assert_eq!(plan.ring(), 25);
        // It streams where there is no room for that, alone.
        let plan = Plan::new(load, 60);
        assert_eq!(kept(&plan), [7]);
        assert_eq!(plan.ring_at(Some(8), Some(8)), [8]);
    }

    #[test]
    fn a_table_is_cut_if_the_ring_would_be_wider_for_it() {
        let mut load = blocks(9, 10);
        load.sizes[8] = 45;
        for memory in [0, 20, 70, 124] {
            assert_eq!(run_bytes(&load, 8, memory), Some(10));
        }
        assert_eq!(run_bytes(&load, 8, 125), None);
        load.sizes[8] = 20;
        assert_eq!(run_bytes(&load, 8, 0), None);
        // There are no blocks to compare it with.
        assert_eq!(run_bytes(&blocks(1, 10), 0, 0), None);
        // What experts need is not there to hold it.
        load.sizes.push(7);
        (load.sizes[8], load.experts) = (21, vec![9]);
        assert_eq!((run_bytes(&load, 8, 114), run_bytes(&load, 8, 115)), (Some(10), None));
        // Large blocks make no large runs.
        let mut load = blocks(9, 1 << 30);
        load.sizes[8] = 3 << 30;
        assert_eq!(run_bytes(&load, 8, 0), Some(RUN_MAX));
    }

    #[test]
    fn many_small_runs_leave_room_for_two_blocks() {
        // Eight blocks, a norm, and twenty runs.
        let mut load = blocks(29, 2);
        load.sizes[..8].fill(10);
        load.sizes[8] = 1;
        load.runs = 9..29;
        let plan = Plan::new(load.clone(), 40);
        assert_eq!((kept(&plan), plan.ring()), (vec![3, 7], 20));
        assert_eq!(plan.ring_at(Some(0), Some(0)), [0, 1]);
        assert_eq!(plan.ring_at(Some(20), Some(20)), (20..29).collect::<Vec<_>>());
        // What blocks leave is for runs.
        let plan = Plan::new(load, 45);
        assert_eq!((kept(&plan), plan.ring()), (vec![3, 7, 8, 27, 28], 20));
    }

    #[test]
    fn a_table_read_by_row_is_never_loaded() {
        let mut load = blocks(6, 1 << 20);
        (load.cycle, load.table) = ((1..6).collect(), Some(0));
        let all = Plan::new(load.clone(), 6 << 20);
        assert_eq!((kept(&all), all.ring(), all.rows()), (vec![1, 2, 3, 4, 5], 0, (6 << 20) / 16));
        let few = Plan::new(load.clone(), 4 << 20);
        assert_eq!((kept(&few).len(), few.ring(), few.rows()), (2, 2 << 20, 1 << 16));
        // Unless it is the head too.
        load.cycle = (0..6).collect();
        assert_eq!((kept(&Plan::new(load.clone(), 6 << 20)).len(), Plan::new(load, 6 << 20).rows()), (6, 0));
    }

    #[test]
    fn experts_have_what_is_left_and_room_for_two() {
        // Four blocks of 100, each with eight experts of 10.
        let mut load = blocks(36, 10);
        load.cycle = (0..36).step_by(9).collect();
        load.experts = (0..36).filter(|at| at % 9 != 0).collect();
        load.cycle.iter().for_each(|&block| load.sizes[block] = 100);
        let experts = |memory| {
            let plan = Plan::new(load.clone(), memory);
            (kept(&plan).len(), plan.ring(), plan.experts_kept())
        };
        assert_eq!(experts(1000), (4, 0, 320));
        assert_eq!(experts(720), (4, 0, 320));
        assert_eq!(experts(600), (4, 0, 180));
        assert_eq!(experts(420), (4, 0, 0));
        assert_eq!(experts(419), (1, 200, 99));
        assert_eq!(experts(100), (0, 80, 0));
    }

    #[test]
    fn a_budget_of_nothing_still_has_a_plan() {
        for memory in [0, 1, 9, 10, 15] {
            let plan = Plan::new(blocks(4, 10), memory);
            assert_eq!(plan.ring_at(Some(2), Some(2)), [2]);
            assert_eq!(plan.ring_at(None, None), [0]);
            assert_eq!(pass(&plan), (0, 10));
        }
        let none = Plan::new(Load::default(), 5);
        assert_eq!(none.coming(None).count() + none.coming(Some(3)).count(), 0);
        assert_eq!(none.ring_at(None, None), [0; 0]);
    }

    proptest! {
        #[test]
        fn hits_are_the_share_that_memory_holds(n in 1usize..80, k in 0u64..90, size in 1u64..1 << 40) {
            let plan = Plan::new(blocks(n, size), k * size);
            let (hits, peak) = pass(&plan);
            prop_assert!(k.saturating_sub(2).min(n as u64) <= hits as u64);
            prop_assert!(peak <= (k * size).max(size));
        }

        #[test]
        fn whatever_the_sizes(
            sizes in prop::collection::vec(0u64..1000, 1..40),
            memory in 0u64..30_000,
            skipped in 0usize..3,
            table in any::<bool>(),
        ) {
            let skipped = skipped.min(sizes.len() - 1);
            let cycle: Vec<usize> = (skipped..sizes.len()).collect();
            let table = (table && 0 < skipped).then_some(0);
            let largest = *sizes.iter().max().unwrap();
            let plan = Plan::new(Load { sizes, cycle: cycle.clone(), table, ..Load::default() }, memory);
            let (hits, peak) = pass(&plan);
            let room = memory.checked_div(largest).unwrap_or(u64::MAX);
            prop_assert!(room.saturating_sub(2).min(cycle.len() as u64) <= hits as u64);
            prop_assert!(peak <= memory.max(largest), "{} in {}", peak, memory);
            prop_assert!(plan.resident_bytes() + plan.ring() <= memory);
            prop_assert!(plan.rows() <= memory / 16);
        }

        #[test]
        fn streamed_blocks_are_evenly_spaced(n in 3usize..80, k in 2u64..80) {
            let plan = Plan::new(blocks(n, 10), 10 * k);
            let streamed: Vec<usize> = (0..n).filter(|&group| !plan.is_resident(group)).collect();
            let gaps = streamed.iter().zip(streamed.iter().cycle().skip(1));
            let gaps: Vec<usize> = gaps.map(|(a, b)| (b + n - a - 1) % n).collect();
            prop_assume!(!gaps.is_empty());
            prop_assert!(gaps.iter().max().unwrap() - gaps.iter().min().unwrap() <= 1, "{:?}", gaps);
        }
    }
}
