//! When room is made, how much of it, and which chunk files go for it. Pure: the simulator runs it too.
//!
//! When: what is used grows past the *high mark*, a little below the quota. How much: in one go, down
//! to the *low mark*. So there is room before it is needed, and no writer waits until files are
//! removed. The quota itself is never exceeded, whatever has to go for it.
//!
//! Which, of what is neither pinned nor in use: first what at least [`PLENTY`] other nodes are known to
//! hold; then what one holds, or of which nothing is known; last what no other node is known to hold.
//! Within each, what was used longest ago. A chunk that the swarm has plenty of costs a fetch from a
//! neighbour; the last copy cannot be had again at any price.

use surf_protocol::ChunkId;

/// The high mark leaves this part of the quota: what may be written while files are being removed.
const SLACK_PARTS: u64 = 20;

/// But no more than this. A thousand chunks take longer to arrive than to remove, and a larger part of
/// a large cache would lie idle.
const SLACK_MAX: u64 = 4 << 30;

/// From the high mark to the low one it is this many times the slack, so that room is rarely made.
/// More would throw away what may be used again.
const SWEEP_SLACKS: u64 = 2;

/// Copies elsewhere with which a chunk is easily had again, even if one of the holders leaves.
pub const PLENTY: u8 = 2;

/// A chunk file that may or may not go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The chunk.
    pub id: ChunkId,
    /// Bytes that removing it frees.
    pub size: u64,
    /// When it was last used, by any count that grows.
    pub last_use: u64,
    /// How many other nodes are known to hold it, if anything is known.
    pub copies: Option<u8>,
    /// Whether it is pinned or in use, and must stay.
    pub protected: bool,
}

/// Between which amounts a cache is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Beyond this, room is made.
    pub high: u64,
    /// Down to this.
    pub low: u64,
}

impl Marks {
    /// Of a cache of `quota` bytes: 95 % and 85 % of it; above 80 GiB, 4 GiB and 12 GiB below it.
    pub fn of(quota: u64) -> Self {
        let slack = (quota / SLACK_PARTS).min(SLACK_MAX);
        let high = quota - slack;
        Self { high, low: high - SWEEP_SLACKS * slack }
    }
}

/// What to remove so that a cache of `quota` bytes may hold `used` bytes, in which is counted what is
/// about to be written. `None` if too much is protected to keep the quota.
///
/// Nothing goes up to the high mark. Beyond it, as much as leads down to the low mark; but of all that
/// may go no more than half, unless the quota asks for it: beside much that is pinned, what is left is
/// still a cache.
pub fn sweep(candidates: impl IntoIterator<Item = Candidate>, quota: u64, used: u64) -> Option<Vec<ChunkId>> {
    let marks = Marks::of(quota);
    if used <= marks.high {
        return Some(Vec::new());
    }
    let open: Vec<_> = candidates.into_iter().filter(|candidate| !candidate.protected).collect();
    let half = open.iter().map(|candidate| candidate.size).fold(0, u64::saturating_add) / 2;
    let must = used.saturating_sub(quota);
    victims(open, must.max(half.min(used - marks.low)))
}

/// The chunks to remove so that at least `need` bytes become free: no more of them than it takes, in
/// the order that the head of this file tells, ties by id. `None` if the unprotected do not suffice.
pub fn victims(candidates: impl IntoIterator<Item = Candidate>, need: u64) -> Option<Vec<ChunkId>> {
    let mut open: Vec<_> = candidates.into_iter().filter(|candidate| !candidate.protected).collect();
    open.sort_unstable_by_key(turn);
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for candidate in open {
        if need <= freed {
            break;
        }
        freed = freed.saturating_add(candidate.size);
        chosen.push(candidate.id);
    }
    (need <= freed).then_some(chosen)
}

/// What goes in which turn: the least first.
fn turn(candidate: &Candidate) -> (u8, u64, ChunkId) {
    let class = match candidate.copies {
        Some(PLENTY..) => 0,
        Some(1..) | None => 1,
        Some(0) => 2,
    };
    (class, candidate.last_use, candidate.id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (1u64..1000, 0u64..50, prop::option::of(0u8..5), any::<bool>());
        prop::collection::vec(one, 0..60).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let made = numbered.map(|(at, (size, last_use, copies, protected))| {
                let id = ChunkId::of(&at.to_le_bytes());
                Candidate { id, size, last_use, copies, protected }
            });
            made.collect()
        })
    }

    fn sum(of: &[Candidate]) -> u64 {
        of.iter().map(|candidate| candidate.size).sum()
    }

    fn split(all: &[Candidate], chosen: &[ChunkId]) -> (Vec<Candidate>, Vec<Candidate>) {
        let gone: HashSet<_> = chosen.iter().collect();
        all.iter().partition(|candidate| gone.contains(&candidate.id))
    }

    proptest! {
        #[test]
        fn what_goes_is_enough_and_not_protected(all in candidates(), need in 0u64..20_000) {
            let open: Vec<_> = all.iter().copied().filter(|c| !c.protected).collect();
            let Some(chosen) = victims(all.clone(), need) else {
                prop_assert!(sum(&open) < need, "gave up though {} bytes could go for {need}", sum(&open));
                return Ok(());
            };
            let (out, _) = split(&all, &chosen);
            prop_assert!(need <= sum(&out));
            prop_assert!(out.iter().all(|c| !c.protected));
            let last = chosen.last().and_then(|id| out.iter().find(|c| c.id == *id));
            prop_assert!(last.is_none_or(|last| sum(&out) - last.size < need), "one fewer would have done");
        }

        #[test]
        fn plenty_goes_first_the_last_copy_last_and_the_old_before_the_young(
            all in candidates(),
            need in 0u64..20_000,
        ) {
            let (out, stay) = split(&all, &victims(all.clone(), need).unwrap_or_default());
            for out in out {
                for stay in stay.iter().filter(|c| !c.protected) {
                    prop_assert!(!(out.copies == Some(0) && stay.copies != Some(0)), "{out:?} before {stay:?}");
                    let plenty = |copies: Option<u8>| copies.is_some_and(|copies| PLENTY <= copies);
                    prop_assert!(plenty(out.copies) || !plenty(stay.copies), "{out:?} before {stay:?}");
                    prop_assert!(
                        out.copies != stay.copies || (out.last_use, out.id) < (stay.last_use, stay.id),
                        "{out:?} before {stay:?}"
                    );
                }
            }
        }

        #[test]
        fn the_order_of_the_question_does_not_matter(all in candidates(), need in 0u64..20_000) {
            let reversed: Vec<_> = all.iter().rev().copied().collect();
            prop_assert_eq!(victims(all, need), victims(reversed, need));
        }

        #[test]
        fn a_sweep_keeps_the_quota_and_more_only_of_what_is_left(
            all in candidates(),
            quota in 0u64..40_000,
            new in 0u64..2000,
        ) {
            let (marks, used) = (Marks::of(quota), sum(&all) + new);
            let open: Vec<_> = all.iter().copied().filter(|c| !c.protected).collect();
            let Some(chosen) = sweep(all.clone(), quota, used) else {
                prop_assert!(quota < used - sum(&open));
                return Ok(());
            };
            let (out, _) = split(&all, &chosen);
            let left = used - sum(&out);
            prop_assert!(left <= quota);
            prop_assert!(marks.high < used || out.is_empty());
            let largest = all.iter().map(|c| c.size).max().unwrap_or(0);
            prop_assert!(out.is_empty() || marks.low <= left + largest, "{left} are left of {marks:?}");
            prop_assert!(used <= marks.high || left <= marks.low || sum(&open) / 2 <= sum(&out));
        }

        #[test]
        fn marks_are_in_order(quota in any::<u64>()) {
            let marks = Marks::of(quota);
            prop_assert!(marks.low <= marks.high && marks.high <= quota);
            prop_assert!(quota / 100 * 85 <= marks.low && quota - marks.low <= 3 * SLACK_MAX);
        }
    }

    #[test]
    fn up_to_80_gib_the_marks_are_95_and_85_percent() {
        assert_eq!(Marks::of(1000), Marks { high: 950, low: 850 });
        assert_eq!(Marks::of(80 << 30), Marks { high: 76 << 30, low: 68 << 30 });
        assert_eq!(Marks::of(1 << 40), Marks { high: 1020 << 30, low: 1012 << 30 });
        assert_eq!(Marks::of(0), Marks { high: 0, low: 0 });
    }

    #[test]
    fn beside_pinned_chunks_only_half_of_the_rest_goes() {
        let all: Vec<_> = (0..96u64)
            .map(|at| {
                let id = ChunkId::of(&at.to_le_bytes());
                Candidate { id, size: 10, last_use: at, copies: None, protected: at < 90 }
            })
            .collect();
        let ids = |of: std::ops::Range<usize>| all[of].iter().map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(sweep(all.clone(), 1000, 960), Some(ids(90..93)));
        assert_eq!(sweep(all.clone(), 950, 990), Some(ids(90..94)), "the quota asks for four");
        assert_eq!(sweep(all, 890, 990), None);
    }
}
