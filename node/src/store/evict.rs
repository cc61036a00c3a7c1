//! Which chunk files go when room is needed: those used longest ago. Pure.

use surf_protocol::ChunkId;

/// A chunk file that may or may not go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The chunk.
    pub(super) id: ChunkId,
    /// Bytes that removing it frees.
    pub(super) size: u64,
    /// When it was last used, by any count that grows.
    pub(super) last_use: u64,
    /// Whether it is pinned or in use, and must stay.
    pub(super) protected: bool,
}

/// The chunks to remove so that at least `need` bytes become free: no more of them than it takes,
/// the longest unused first, ties by id. `None` if the unprotected ones do not suffice.
pub(super) fn victims(candidates: impl IntoIterator<Item = Candidate>, need: u64) -> Option<Vec<ChunkId>> {
    let mut open: Vec<_> = candidates.into_iter().filter(|candidate| !candidate.protected).collect();
    open.sort_unstable_by_key(|candidate| (candidate.last_use, candidate.id));
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (1u64..1000, 0u64..50, any::<bool>());
        prop::collection::vec(one, 0..60).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let made = numbered.map(|(at, (size, last_use, protected))| {
                let id = ChunkId::of(&at.to_le_bytes());
                Candidate { id, size, last_use, protected }
            });
            made.collect()
        })
    }

    proptest! {
        #[test]
        fn what_goes_is_enough_old_and_not_protected(all in candidates(), need in 0u64..20_000) {
            let room: u64 = all.iter().filter(|c| !c.protected).map(|c| c.size).sum();
            let Some(chosen) = victims(all.clone(), need) else {
                prop_assert!(room < need, "gave up though {room} bytes could go for {need}");
                return Ok(());
            };
            let gone: HashSet<_> = chosen.iter().copied().collect();
            let (out, stay): (Vec<Candidate>, Vec<Candidate>) = all.iter().copied().partition(|c| gone.contains(&c.id));
            let freed: u64 = out.iter().map(|c| c.size).sum();
            prop_assert!(need <= freed);
            prop_assert!(out.iter().all(|c| !c.protected));
            let youngest_out = out.iter().map(|c| (c.last_use, c.id)).max();
            let oldest_left = stay.iter().filter(|c| !c.protected).map(|c| (c.last_use, c.id)).min();
            prop_assert!(youngest_out.zip(oldest_left).is_none_or(|(out, left)| out < left));
            let last = chosen.last().and_then(|id| out.iter().find(|c| c.id == *id));
            prop_assert!(last.is_none_or(|last| freed - last.size < need), "one fewer would have done");
        }

        #[test]
        fn the_order_of_the_question_does_not_matter(all in candidates(), need in 0u64..20_000) {
            let reversed: Vec<_> = all.iter().rev().copied().collect();
            prop_assert_eq!(victims(all, need), victims(reversed, need));
        }
    }
}
