//! Weights as a node has them: a folder that was cut into chunks, streamed in bounded memory.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use surf_chunker::{Checkpoint, Group, Options, Sink};
use surf_protocol::{Chunk, ChunkId, VerifiedRange, manifest::ChunkEntry};

use crate::{
    journal::Journal,
    source::{Memory, ModelSource, SourceError, Urgency},
    weights::Streamed,
};

/// A published folder, and what was fetched of it.
#[derive(Debug)]
pub(super) struct Published {
    memory: Memory,
    pub(super) manifest: Arc<Checkpoint>,
    /// Bytes given out, each time that they were.
    pub(super) fetched: AtomicU64,
    /// Those of them that were ranges of chunks.
    pub(super) ranged: AtomicU64,
    /// Chunks given out whole.
    pub(super) seen: Mutex<HashSet<ChunkId>>,
}

struct Keep<'a>(&'a Memory);

impl Sink for Keep<'_> {
    fn chunk(&self, chunk: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.put(chunk.clone());
        Ok(())
    }
}

impl Published {
    pub(super) fn open(folder: &str) -> Arc<Self> {
        let memory = Memory::default();
        let manifest = surf_chunker::open(Path::new(folder), &Options::default(), &Keep(&memory)).unwrap();
        let (fetched, ranged, seen) = Default::default();
        Arc::new(Self { memory, manifest: Arc::new(manifest), fetched, ranged, seen })
    }

    /// Its weights, in `memory` bytes.
    pub(super) fn weights(self: &Arc<Self>, memory: u64) -> Arc<Streamed> {
        let runtime = tokio::runtime::Handle::current();
        let source = Arc::clone(self) as Arc<dyn ModelSource>;
        Arc::new(Streamed::new(
            Arc::clone(&self.manifest),
            source,
            memory,
            runtime,
            Arc::new(Journal::default()),
        ))
    }

    /// Bytes of the tensors of `group`.
    pub(super) fn size(&self, group: &Group) -> u64 {
        self.manifest.group(group).unwrap().map(|tensor| tensor.size).sum()
    }

    /// Room for the two largest blocks, and nothing else.
    pub(super) fn two_blocks(&self) -> u64 {
        let groups = self.manifest.groups().iter().map(|entry| &entry.group);
        let blocks = groups.filter(|group| matches!(group, Group::Layer(..)));
        2 * blocks.map(|block| self.size(block)).max().unwrap_or(0)
    }
}

impl ModelSource for Published {
    fn chunk(&self, chunk: ChunkEntry, urgency: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        if self.seen.lock().unwrap().insert(chunk.id) {
            self.fetched.fetch_add(chunk.size.into(), Ordering::Relaxed);
        }
        ModelSource::chunk(&self.memory, chunk, urgency)
    }

    fn chunk_in_place(
        &self,
        chunk: ChunkEntry,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        self.chunk(chunk, urgency)
    }

    fn range(
        &self,
        chunk: ChunkEntry,
        range: std::ops::Range<u32>,
    ) -> BoxFuture<'_, Result<VerifiedRange, SourceError>> {
        self.fetched.fetch_add(range.len() as u64, Ordering::Relaxed);
        self.ranged.fetch_add(range.len() as u64, Ordering::Relaxed);
        self.memory.range(chunk, range)
    }
}
