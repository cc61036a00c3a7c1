//! Chunks in memory, for tests and for the simulator.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Mutex,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_protocol::{Bitmap, Chunk, ChunkId, Manifest, ModelId, VerifiedRange, manifest::ChunkEntry};
use tokio::sync::watch;

use super::{ChunkSource, Keeper, Library, ModelSource, SourceError, Urgency};

/// Chunks and manifests in memory.
#[derive(Debug, Default)]
pub struct Memory {
    held: Mutex<Held>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Held {
    chunks: HashMap<ChunkId, Chunk>,
    manifests: HashMap<ModelId, Manifest>,
}

impl Memory {
    /// Keeps `chunk`.
    pub fn put(&self, chunk: Chunk) {
        self.held().chunks.insert(chunk.id(), chunk);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Keeps `manifest`.
    pub fn put_manifest(&self, manifest: Manifest) {
        self.held().manifests.insert(manifest.id(), manifest);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The ids of all chunks kept.
    pub fn ids(&self) -> HashSet<ChunkId> {
        self.held().chunks.keys().copied().collect()
    }

    fn chunk(&self, id: ChunkId) -> Option<Chunk> {
        self.held().chunks.get(&id).cloned()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no panics while held")
    }
}

impl ChunkSource for Memory {
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        let found = self.chunk(chunk.id);
        Box::pin(async move { Ok(found) })
    }
}

impl Keeper for Memory {
    fn get_in_place(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        self.get(chunk)
    }

    fn keep(&self, chunk: Chunk) -> BoxFuture<'_, Result<(), SourceError>> {
        self.put(chunk);
        Box::pin(async { Ok(()) })
    }

    fn contains(&self, id: ChunkId) -> bool {
        self.held().chunks.contains_key(&id)
    }
}

impl ModelSource for Memory {
    fn chunk(&self, chunk: ChunkEntry, _: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        let found = self.chunk(chunk.id).ok_or(SourceError::Missing(chunk.id));
        Box::pin(async move { found })
    }

    fn chunk_in_place(
        &self,
        chunk: ChunkEntry,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        ModelSource::chunk(self, chunk, urgency)
    }

    fn range(
        &self,
        chunk: ChunkEntry,
        range: Range<u32>,
    ) -> BoxFuture<'_, Result<VerifiedRange, SourceError>> {
        let found = self.chunk(chunk.id).ok_or(SourceError::Missing(chunk.id));
        Box::pin(async move {
            VerifiedRange::of(&found?, range).map_err(|error| SourceError::failed("memory", error))
        })
    }
}

impl Library for Memory {
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        let found = self.held().manifests.get(&model).map(|manifest| manifest.encode().into());
        Box::pin(async move { Ok(found) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn have(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>> {
        let held = self.held();
        let found = held.manifests.get(&model).map(|manifest| {
            let chunks = manifest.chunks();
            Bitmap::from_fn(chunks.len(), |at| held.chunks.contains_key(&chunks[at].id))
        });
        Box::pin(async move { Ok(found) })
    }

    fn size(&self, id: ChunkId) -> Option<usize> {
        self.chunk(id).map(|chunk| chunk.bytes().len())
    }

    fn serve(&self, id: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        let found = self.chunk(id).map(|chunk| chunk.bytes().clone());
        Box::pin(async move { Ok(found) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        let memory = Memory::default();
        crate::source::conformance::chunk_source(&memory, async |chunk| memory.put(chunk)).await;
    }
}
