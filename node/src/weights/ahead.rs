//! Fetching ahead of the compute.
//!
//! One task decides what to start whenever something has changed: a chunk has come, or the engine
//! has moved on. Groups of the ring start at once. Beyond it, groups that will stay are loaded, and
//! of those that stream, chunks that were never here are wished for and let go when they arrive, as
//! long as less than a bounded number of bytes is on its way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, FuturesUnordered},
};
use surf_chunker::{Checkpoint, Parameter};
use surf_protocol::{Chunk, ChunkId};
use tokio::{
    runtime,
    sync::{Semaphore, watch},
    task,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    WeightsError,
    chunks::{Asked, Chunks},
    held::{Held, Loaded, Reach, Slot},
    layout::Layout,
    plan::Plan,
    rows::RowCache,
    tensors::{self, Scattered},
};
use crate::source::Urgency;

/// Chunks of one group that are waited for at once.
const CHUNKS_AT_ONCE: usize = 256;

/// Chunks that are wished for, until this is dropped.
#[derive(Debug)]
pub(super) struct Wish {
    arrived: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Wish {
    /// Bytes that came of it.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// What the engine's thread and the tasks have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) manifest: Arc<Checkpoint>,
    pub(super) layout: Layout,
    pub(super) plan: Arc<Plan>,
    pub(super) chunks: Arc<Chunks>,
    pub(super) rows: Mutex<RowCache>,
    pub(super) runtime: runtime::Handle,
    /// Bytes that may be on their way.
    ahead: u64,
    held: Mutex<Held>,
    /// One group is copied at a time, so that only one tensor is in memory twice.
    copying: Semaphore,
}

/// Runs until aborted.
pub(super) async fn drive(shared: Arc<Shared>) {
    let mut wishes = FuturesUnordered::new();
    loop {
        wishes.extend(shared.reach().into_iter().map(|asked| asked.wait(true)));
        tokio::select! {
            // A wish that fails is asked for again when its turn comes, and then somebody is told.
            Some(_) = wishes.next() => (),
            () = shared.chunks.changed() => (),
        }
    }
}

impl Shared {
    /// Holds nothing yet. At most about `ahead` bytes are asked for at once beyond the ring.
    pub(super) fn new(
        manifest: Arc<Checkpoint>,
        chunks: Arc<Chunks>,
        memory: u64,
        ahead: u64,
        runtime: runtime::Handle,
    ) -> Self {
        let layout = Layout::of(&manifest, memory);
        let plan = Arc::new(Plan::new(layout.load(&manifest), memory));
        Self {
            rows: Mutex::new(RowCache::new(plan.rows())),
            held: Mutex::new(Held::new(Arc::clone(&plan))),
            copying: Semaphore::new(1),
            manifest,
            layout,
            plan,
            chunks,
            runtime,
            ahead,
        }
    }

    /// The engine asks for `group`: the slot to wait at, and whether it is ready now.
    pub(super) fn visit(self: &Arc<Self>, group: usize) -> (Arc<Slot>, Option<Loaded>) {
        let mut held = self.held();
        let again = held.visit(group);
        let slot = held.slot(group).unwrap_or_else(|| {
            let slot = self.start(group, held.now(), self.plan.is_resident(group));
            held.hold(group, Arc::clone(&slot));
            slot
        });
        let found = slot.outcome();
        drop(held);
        if again {
            self.chunks.forget_failures();
        }
        self.chunks.notify();
        (slot, found)
    }

    /// Lets go of what is not a copy of our own, and of rows that were read from it.
    pub(super) fn let_go(&self) {
        self.held().let_go();
        *self.rows.lock().expect("no panics while held") = RowCache::new(self.plan.rows());
        self.chunks.notify();
    }

    /// The groups held. Never keep this across a wait.
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panics while held")
    }

    /// Starts what may start, and says which chunks are wished for.
    fn reach(self: &Arc<Self>) -> Vec<Asked> {
        let mut held = self.held();
        let mut started = Vec::new();
        let mut wished = Vec::new();
        for next in held.next() {
            if next.reach != Reach::Ring && self.ahead <= self.chunks.in_flight() {
                break;
            }
            match next.reach {
                Reach::Ring | Reach::Resident => {
                    let stays = next.reach == Reach::Resident;
                    started.push((next.group, self.start(next.group, next.urgency, stays)));
                }
                Reach::Source => {
                    let chunks = self.layout.chunks(next.group);
                    wished.extend(self.chunks.ask_missing(chunks, self.ahead, next.urgency));
                }
            }
        }
        started.into_iter().for_each(|(group, slot)| held.hold(group, slot));
        wished
    }

    /// Loads `group`; into memory of our own if it `stays`, else where its bytes lie.
    pub(super) fn start(self: &Arc<Self>, group: usize, urgency: Urgency, stays: bool) -> Arc<Slot> {
        // Counted before the task first runs, so that nothing is counted as missing meanwhile.
        let asked = self.layout.chunks(group).iter().map(|&at| self.chunks.ask(at, urgency)).collect();
        let (tell, outcome) = watch::channel(None);
        let shared = Arc::clone(self);
        let task = self.runtime.spawn(async move {
            let loaded = shared.load(group, asked, stays).await;
            tell.send_replace(Some(loaded));
            shared.chunks.notify();
        });
        Slot::new(outcome, task)
    }

    /// Wishes for the chunks of `group` that were never here, until that is dropped. `None` if all were
    /// here or are on their way.
    pub(super) fn wish(self: &Arc<Self>, group: usize, urgency: Urgency) -> Option<Wish> {
        let asked = self.chunks.ask_missing(self.layout.chunks(group), u64::MAX, urgency);
        if asked.is_empty() {
            return None;
        }
        let arrived = Arc::new(AtomicU64::default());
        let counted = Arc::clone(&arrived);
        let wishing = async move {
            let mut coming =
                stream::iter(asked).map(|asked| asked.wait(true)).buffer_unordered(CHUNKS_AT_ONCE);
            // One that fails is asked for again by whoever needs it, who is told.
            while let Some(got) = coming.next().await {
                counted.fetch_add(got.map_or(0, |chunk| chunk.bytes().len() as u64), Ordering::Relaxed);
            }
        };
        Some(Wish { arrived, _task: AbortOnDropHandle::new(self.runtime.spawn(wishing)) })
    }

    async fn load(&self, group: usize, asked: Vec<Asked>, stays: bool) -> Loaded {
        let coming = stream::iter(asked).map(|asked| asked.wait(!stays));
        let chunks = coming.buffer_unordered(CHUNKS_AT_ONCE);
        let chunks = chunks.map_ok(|chunk| (chunk.id(), chunk));
        let chunks: HashMap<ChunkId, Chunk> = chunks.try_collect().await?;
        let entries = self.layout.entries(&self.manifest, group);
        let piece = |piece: surf_protocol::manifest::Piece| {
            let range = piece.range.start as usize..piece.range.end as usize;
            chunks[&piece.chunk.id].bytes().slice(range)
        };
        let pieces = |tensor: &Parameter| self.manifest.tensor_pieces(tensor).map(piece).collect();
        let scattered: Vec<Scattered> = entries.map(|entry| (entry.clone(), pieces(entry))).collect();
        let mapped = chunks.into_values().filter(Chunk::is_in_file).collect();
        let work = async |work: fn(Vec<Scattered>) -> super::Tensors| {
            task::spawn_blocking(move || work(scattered)).await.map_err(|_| WeightsError::Stopped)
        };
        let mut loaded = if stays {
            let _permit = self.copying.acquire().await.map_err(|_| WeightsError::Stopped)?;
            work(tensors::copied).await?
        } else {
            work(tensors::in_place).await?
        };
        loaded.runs = self.layout.left_out(&self.manifest, group);
        loaded.mapped = mapped;
        Ok(Arc::new(loaded))
    }
}
