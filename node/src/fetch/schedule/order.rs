//! In which order wishes are looked at.
//!
//! What inference needs within the next moments goes by deadline. Everything else goes rarest first,
//! ties by the dice: layer order alone would make every node of a cold-starting herd want the same
//! chunk. A herd is there when some holder of the model has only a part of it; then even what is
//! needed next is taken rarest first, a few chunks at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use surf_protocol::{Bitmap, ChunkId, ModelId, NodeId};
use tokio::time::Instant;

use super::{
    Schedule, Want,
    limits::{DEADLINE_STEP, DEADLINE_WINDOW, DEADLINE_WINDOW_MIN},
};
use crate::source::Urgency;

/// Claims change many times a second; the order follows them this often.
const REFRESH: Duration = Duration::from_millis(20);

/// All wants in order, as of a while ago: those that are gone or under way are passed over.
#[derive(Debug, Default)]
pub(super) struct Line {
    ids: Vec<ChunkId>,
    sorted: Option<Instant>,
    stale: bool,
}

impl Line {
    /// There are other wants: sort again before the next use.
    pub(super) fn is_old(&mut self) {
        self.sorted = None;
    }

    /// Others have other chunks: sort again soon.
    pub(super) fn is_stale(&mut self) {
        self.stale = true;
    }

    fn is_due(&self, now: Instant) -> bool {
        self.sorted.is_none_or(|sorted| self.stale && sorted + REFRESH <= now)
    }
}

/// What is needed soonest, then by how rare it is, then as the dice fell. The smaller goes first.
type Rank = (u8, u64, usize, u64);

impl Schedule {
    /// The wants in order.
    pub(super) fn in_line(&mut self, now: Instant) -> Vec<ChunkId> {
        if self.line.is_due(now) {
            let (near, herds) = (self.near(), self.herds());
            let mut ranked: Vec<(Rank, ChunkId)> = self
                .wants
                .values()
                .map(|want| (self.rank(want, &near, herds.contains(&want.model)), want.chunk.id))
                .collect();
            ranked.sort_unstable();
            self.line =
                Line { ids: ranked.into_iter().map(|(_, id)| id).collect(), sorted: Some(now), stale: false };
        }
        self.line.ids.clone()
    }

    fn rank(&self, want: &Want, near: &BTreeMap<u64, u64>, herd: bool) -> Rank {
        let copies = self.holders(want).count();
        let Urgency::Deadline(at) = want.urgency else { return (2, 0, copies, want.order) };
        match (near.get(&at), herd) {
            (Some(&step), true) => (0, step, copies, want.order),
            (Some(_), false) => (0, at, copies, want.order),
            (None, true) => (1, 0, copies, want.order),
            (None, false) => (1, at, copies, want.order),
        }
    }

    /// The deadlines that are near, in steps of a few chunks: a herd takes those of a step rarest first.
    fn near(&self) -> BTreeMap<u64, u64> {
        let rate: f64 = self.peers.values().filter_map(super::PeerState::rate).sum();
        let window = ((rate * DEADLINE_WINDOW) as u64).max(DEADLINE_WINDOW_MIN);
        let mut bytes_at: BTreeMap<u64, u64> = BTreeMap::new();
        for want in self.wants.values() {
            if let Urgency::Deadline(at) = want.urgency {
                *bytes_at.entry(at).or_default() += u64::from(want.chunk.size);
            }
        }
        let mut bytes = 0;
        let steps = bytes_at.into_iter().map(|(at, size)| {
            let before = bytes;
            bytes += size;
            (at, before)
        });
        steps
            .take_while(|(_, before)| *before < window)
            .map(|(at, before)| (at, before / DEADLINE_STEP))
            .collect()
    }

    /// Models of which some holder has only a part: it is fetching too.
    fn herds(&self) -> BTreeSet<ModelId> {
        let part = |claims: &BTreeMap<NodeId, Bitmap>| claims.values().any(|has| !has.is_full());
        self.claims.iter().filter(|(_, claims)| part(claims)).map(|(&model, _)| model).collect()
    }
}
