//! What this node tells one peer about what it has of one model: all of it once, then what changes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use surf_protocol::{
    Bitmap, ModelId,
    wire::{Holdings, encode_holdings},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Library, SourceError};

/// How often a peer is told that nothing has changed, so that silence means that we are gone.
pub const HEARTBEAT: Duration = Duration::from_secs(4);

/// Changes within this time are told together, and the more of them the more chunks there are: looking
/// through a hundred thousand takes a while.
const PAUSE: Duration = Duration::from_millis(40);
const CHUNKS_PER_PAUSE: usize = 4096;

/// One peer that listens to what we have of one model.
#[derive(Debug)]
pub struct Telling {
    library: Arc<dyn Library>,
    model: ModelId,
    changes: watch::Receiver<u64>,
    told: Option<Bitmap>,
}

impl Telling {
    /// Nothing has been told yet.
    pub fn new(library: Arc<dyn Library>, model: ModelId) -> Self {
        let changes = library.changes();
        Self { library, model, changes, told: None }
    }

    /// The next frame, when there is something to tell. `None` if the model is not here.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let Some(before) = self.told.take() else {
            self.changes.borrow_and_update();
            let now = self.library.have(self.model).await?;
            self.told.clone_from(&now);
            return Ok(now.map(|now| encode_holdings(&Holdings::All(now)).into()));
        };
        // A library whose changes nobody can tell any more still answers.
        let _elapsed = timeout(HEARTBEAT, self.change(&before)).await;
        self.changes.borrow_and_update();
        let Some(now) = self.library.have(self.model).await? else { return Ok(None) };
        let frame = encode_holdings(&Holdings::between(&before, &now)).into();
        self.told = Some(now);
        Ok(Some(frame))
    }

    /// Waits until something of this model has changed.
    async fn change(&mut self, before: &Bitmap) {
        loop {
            sleep(PAUSE * (1 + before.len() / CHUNKS_PER_PAUSE) as u32).await;
            if self.changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            if !matches!(self.library.have(self.model).await, Ok(Some(now)) if now == *before) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use surf_protocol::{Chunk, FileEntry, Manifest, manifest, wire::decode_holdings};

    use super::*;
    use crate::source::Memory;

    #[tokio::test(start_paused = true)]
    async fn all_is_told_once_and_then_what_changes() {
        let chunks: Vec<Chunk> = (0..3u8).map(|n| Chunk::of(vec![n].into())).collect();
        let entries = chunks.iter().map(|chunk| manifest::ChunkEntry { id: chunk.id(), size: 1 }).collect();
        let file = FileEntry { path: "x".into(), size: 3, blake3: [0; 32], sha256: [0; 32], chunks: entries };
        let parts = manifest::Parts { format: manifest::FORMAT, files: vec![file], ..Default::default() };
        let manifest = Manifest::new(parts).unwrap();
        let memory = Arc::new(Memory::default());
        let mut telling = Telling::new(Arc::clone(&memory) as _, manifest.id());
        assert!(telling.next().await.unwrap().is_none(), "the model is not here");
        memory.put_manifest(manifest.clone());
        memory.put(chunks[0].clone());
        let mut telling = Telling::new(Arc::clone(&memory) as _, manifest.id());
        let mut known = Bitmap::none(3);
        for (put, expected) in [(None, 1), (Some(1), 2), (Some(2), 3), (None, 3)] {
            if let Some(at) = put {
                memory.put(Chunk::clone(&chunks[at]));
            }
            let frame = telling.next().await.unwrap().expect("the model is here");
            known = decode_holdings(&frame[4..]).unwrap().after(&known).unwrap();
            assert_eq!(known.count(), expected);
        }
    }
}
