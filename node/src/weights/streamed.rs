//! Weights that arrive while the model runs.
//!
//! What stays in memory and what streams through it is planned once, from sizes and the budget
//! ([`plan`](super::plan)). From then on there are two horizons. Up to the nearer one, groups are
//! held: the resident ones, and those of the ring, which come while another computes. Up to the
//! farther one ([`AHEAD`]), chunks that were never here are only wished for and let go when they
//! arrive: the source keeps them, so the network is never idle and memory stays bounded.
//!
//! Held at once: the budget, one tensor (a resident one that is being copied out of its chunks), and
//! single chunks that arrive and are let go. A budget that is too small for a group is exceeded by
//! that group alone.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use surf_chunker::{Checkpoint, Group};
use tokio::{runtime, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    RawTensor, Tensors, Weights, WeightsError,
    ahead::{self, Shared},
    chunks::Chunks,
    experts::{ExpertStats, Experts},
    rows, tensors,
};
use crate::{
    journal::{Event, Journal},
    source::ModelSource,
};

/// Bytes asked for ahead of their use and not here yet: two seconds of a gigabit link, so that
/// peers always have something to send.
const AHEAD: u64 = 256 << 20;

/// Weights fetched from a source ahead of their use, in bounded memory.
///
/// Dropping it cancels what is on its way.
#[derive(Debug)]
pub struct Streamed {
    shared: Arc<Shared>,
    journal: Arc<Journal>,
    memory: u64,
    /// By group, and by run.
    counts: Mutex<Vec<Counts>>,
    experts: Experts,
    _ahead: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    hits: u64,
    ready: u64,
    misses: u64,
}

/// What happened so far, and what is held now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Passes over the groups that have begun.
    pub passes: u64,
    /// Bytes that may be held.
    pub memory_bytes: u64,
    /// Bytes of resident groups that are here.
    pub resident_bytes: u64,
    /// Bytes of resident groups when all of them are here.
    pub resident_bytes_max: u64,
    /// Bytes of streamed groups that are here or on their way into memory.
    pub ring_bytes: u64,
    /// The most that `ring_bytes` has been.
    pub ring_bytes_peak: u64,
    /// Bytes that `ring_bytes` may be, unless a single group is larger.
    pub ring_bytes_max: u64,
    /// Bytes of chunks asked of the source and not here yet.
    pub in_flight_bytes: u64,
    /// Chunks in mapped files that are kept open between passes.
    pub mapped_chunks: usize,
    /// Bytes of single rows kept.
    pub row_bytes: u64,
    /// Routed experts.
    pub experts: ExpertStats,
    /// Each group, in the manifest's order, and each run of rows of a table that comes in runs.
    pub groups: Vec<GroupStats>,
}

/// What happened to one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupStats {
    /// Its name.
    pub group: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it stays in memory once it is there.
    pub resident: bool,
    /// Times it was asked for and there, because it stays.
    pub hits: u64,
    /// Times it was asked for and there, because it had been fetched ahead.
    pub ready: u64,
    /// Times it was asked for and waited for.
    pub misses: u64,
}

impl Streamed {
    /// The weights of `manifest` from `source`, in `memory` bytes. Begins to fetch at once, on
    /// `runtime`.
    pub fn new(
        manifest: Arc<Checkpoint>,
        source: Arc<dyn ModelSource>,
        memory: u64,
        runtime: runtime::Handle,
        journal: Arc<Journal>,
    ) -> Self {
        Self::reaching(AHEAD, manifest, source, memory, runtime, journal)
    }

    fn reaching(
        ahead: u64,
        manifest: Arc<Checkpoint>,
        source: Arc<dyn ModelSource>,
        memory: u64,
        runtime: runtime::Handle,
        journal: Arc<Journal>,
    ) -> Self {
        let chunks = Arc::new(Chunks::new(Arc::clone(&manifest), source));
        let shared = Arc::new(Shared::new(manifest, chunks, memory, ahead, runtime.clone()));
        let counts = Mutex::new(vec![Counts::default(); shared.layout.len()]);
        let ahead = runtime.spawn(ahead::drive(Arc::clone(&shared)));
        let experts = Experts::new(Arc::clone(&shared));
        Self { shared, journal, memory, counts, experts, _ahead: AbortOnDropHandle::new(ahead) }
    }

    /// What happened so far, and what is held now.
    pub fn stats(&self) -> Stats {
        let Shared { manifest, layout, plan, chunks, .. } = &*self.shared;
        let counts = self.counts().clone();
        let asked = |counts: &Counts| counts.hits + counts.ready + counts.misses;
        let every_pass = counts.iter().enumerate().filter(|(at, _)| plan.position(*at).is_some());
        let groups = counts.iter().enumerate().map(|(at, counts)| GroupStats {
            group: layout.name(manifest, at),
            bytes: plan.size(at),
            resident: plan.is_resident(at),
            hits: counts.hits,
            ready: counts.ready,
            misses: counts.misses,
        });
        // No lock is held while another is taken: whoever computes takes them in another order.
        let [resident_bytes, ring_bytes, ring_bytes_peak] = {
            let held = self.shared.held();
            [held.resident(), held.ring(), held.ring_peak()]
        };
        let row_bytes = self.shared.rows.lock().expect("no panics while held").bytes();
        let experts = self.experts.stats();
        Stats {
            passes: every_pass.map(|(_, counts)| asked(counts)).max().unwrap_or(0),
            memory_bytes: self.memory,
            resident_bytes,
            resident_bytes_max: plan.resident_bytes(),
            ring_bytes,
            ring_bytes_peak,
            ring_bytes_max: plan.ring(),
            in_flight_bytes: chunks.in_flight(),
            mapped_chunks: chunks.mapped(),
            row_bytes,
            experts,
            groups: groups.collect(),
        }
    }

    /// The bytes of `rows` of the tensor at position `table`, joined.
    fn join_rows(&self, table: usize, rows: &[u32]) -> Result<Bytes, WeightsError> {
        let runtime = &self.shared.runtime;
        let distinct: BTreeSet<u32> = rows.iter().copied().collect();
        // On the runtime, not here: timers of the source need a runtime that is not shut down.
        let fetch = rows::fetch(Arc::clone(&self.shared), table, distinct);
        let fetch = AbortOnDropHandle::new(runtime.spawn(fetch));
        let found: HashMap<u32, Bytes> = runtime.block_on(fetch).map_err(|_| WeightsError::Stopped)??;
        let mut joined = BytesMut::new();
        rows.iter().for_each(|row| joined.extend_from_slice(&found[row]));
        Ok(joined.freeze())
    }

    /// The group or run at position `at`, visited.
    fn take(&self, at: usize) -> Result<Arc<Tensors>, WeightsError> {
        let asked = Instant::now();
        let Shared { manifest, layout, plan, runtime, .. } = &*self.shared;
        let (tensors, hit, ready) = if layout.is_expert(manifest, at) {
            let (loaded, hit) = self.experts.take(at);
            (loaded?, hit, hit)
        } else {
            let (slot, found) = self.shared.visit(at);
            let ready = found.is_some();
            let loaded = found.unwrap_or_else(|| runtime.block_on(slot.wait()));
            (loaded?, ready && plan.is_resident(at), ready)
        };
        self.shared.chunks.used(&tensors.mapped);
        let waited = asked.elapsed().as_micros();
        let counts = &mut self.counts()[at];
        match (hit, ready) {
            (true, _) => counts.hits += 1,
            (false, true) => counts.ready += 1,
            (false, false) => counts.misses += 1,
        }
        let waited_us = u64::try_from(waited).unwrap_or(u64::MAX);
        self.journal.record(Event::GroupReady { group: layout.name(manifest, at), hit, waited_us });
        Ok(tensors)
    }

    fn positions(&self, groups: &[Group]) -> Vec<usize> {
        let expert = |group: &&Group| matches!(group, Group::Expert { .. });
        groups.iter().filter(expert).filter_map(|group| self.shared.layout.index(group)).collect()
    }

    fn counts(&self) -> MutexGuard<'_, Vec<Counts>> {
        self.counts.lock().expect("no panics while held")
    }
}

impl Weights for Streamed {
    fn checkpoint(&self) -> &Checkpoint {
        &self.shared.manifest
    }

    fn group(&self, group: &Group) -> Result<Arc<Tensors>, WeightsError> {
        let at = self.shared.layout.index(group).ok_or_else(|| WeightsError::NoSuchGroup(group.clone()))?;
        self.take(at)
    }

    fn ready(&self, group: &Group) -> Option<Arc<Tensors>> {
        let slot = self.shared.held().slot(self.shared.layout.index(group)?)?;
        slot.outcome()?.ok()
    }

    fn expect(&self, experts: &[Group]) {
        self.experts.expect(self.positions(experts));
    }

    fn guess(&self, experts: &[Group]) {
        self.experts.guess(&self.positions(experts));
    }

    fn rows(&self, tensor: &str, rows: &[u32]) -> Result<RawTensor, WeightsError> {
        let Shared { manifest, layout, .. } = &*self.shared;
        let table = manifest.tensors().binary_search_by(|entry| (*entry.name).cmp(tensor));
        let table = table.map_err(|_| WeightsError::NoSuchTensor(tensor.to_owned()))?;
        let entry = &manifest.tensors()[table];
        let count = entry.shape.first().copied().unwrap_or(0);
        if let Some(&row) = rows.iter().find(|row| count <= u64::from(**row)) {
            let tensor = tensor.to_owned();
            return Err(WeightsError::NoSuchRow { tensor, rows: count as usize, row });
        }
        let slot = self.shared.held().slot(layout.group_of_tensor(table));
        let group = slot.and_then(|slot| slot.outcome()?.ok());
        let bytes = match group.as_ref().and_then(|group| group.tensors.get(tensor)) {
            Some(table) => {
                group.iter().for_each(|group| self.shared.chunks.used(&group.mapped));
                tensors::gather(table, rows)
            }
            None => self.join_rows(table, rows)?,
        };
        let mut raw = tensors::raw(entry, vec![bytes]);
        raw.shape.splice(..raw.shape.len().min(1), [rows.len()]);
        Ok(raw)
    }

    fn run(&self, tensor: &str, rows: &Range<usize>) -> Result<RawTensor, WeightsError> {
        let no_such = || WeightsError::NoSuchRun { tensor: tensor.to_owned(), rows: rows.clone() };
        let Shared { manifest, layout, .. } = &*self.shared;
        let at = layout.run(manifest, tensor, rows).ok_or_else(no_such)?;
        self.take(at)?.tensors.get(tensor).cloned().ok_or_else(no_such)
    }

    fn settle(&self, over: bool) -> bool {
        let settled = self.shared.chunks.settle(over);
        if !settled {
            // Rare, so all that may have been made of what changed goes.
            self.shared.let_go();
            self.experts.let_go();
        }
        settled
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // Tasks share what owns them; this is where the circle is broken.
        self.shared.held().close();
        self.experts.close();
    }
}

#[cfg(test)]
mod tests;
