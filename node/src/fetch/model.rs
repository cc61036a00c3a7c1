//! One model's chunks, for someone who computes with them: the store, else the fetching task.

use std::{ops::Range, sync::Arc};

use futures::future::BoxFuture;
use surf_protocol::{Chunk, Manifest, VerifiedRange, manifest::ChunkEntry};

use super::Fetcher;
use crate::source::{Keeper, ModelSource, SourceError, Urgency};

/// One model, as a source of its chunks.
#[derive(Clone, Debug)]
pub struct Model {
    fetcher: Fetcher,
    keeper: Arc<dyn Keeper>,
    manifest: Arc<Manifest>,
}

impl Model {
    pub(super) fn new(fetcher: Fetcher, keeper: Arc<dyn Keeper>, manifest: Arc<Manifest>) -> Self {
        Self { fetcher, keeper, manifest }
    }

    async fn find(&self, chunk: ChunkEntry, urgency: Urgency) -> Result<Chunk, SourceError> {
        match self.keeper.get(chunk).await? {
            Some(chunk) => Ok(chunk),
            None => self.fetcher.chunk(&self.manifest, chunk, urgency).await,
        }
    }

    async fn find_in_place(&self, chunk: ChunkEntry, urgency: Urgency) -> Result<Chunk, SourceError> {
        match self.keeper.get_in_place(chunk).await? {
            Some(chunk) => Ok(chunk),
            None => self.fetcher.chunk(&self.manifest, chunk, urgency).await,
        }
    }

    async fn find_range(&self, chunk: ChunkEntry, range: Range<u32>) -> Result<VerifiedRange, SourceError> {
        if !self.keeper.contains(chunk.id)
            && let Some(range) = self.fetcher.range(&self.manifest, chunk, range.clone()).await?
        {
            return Ok(range);
        }
        // It is here, or no peer gives ranges of it, as an origin does not: take the whole chunk.
        let whole = self.find(chunk, Urgency::Deadline(0)).await?;
        VerifiedRange::of(&whole, range).map_err(|error| SourceError::failed("model", error))
    }
}

impl ModelSource for Model {
    fn chunk(&self, chunk: ChunkEntry, urgency: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(self.find(chunk, urgency))
    }

    fn chunk_in_place(
        &self,
        chunk: ChunkEntry,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(self.find_in_place(chunk, urgency))
    }

    fn range(
        &self,
        chunk: ChunkEntry,
        range: Range<u32>,
    ) -> BoxFuture<'_, Result<VerifiedRange, SourceError>> {
        Box::pin(self.find_range(chunk, range))
    }
}
