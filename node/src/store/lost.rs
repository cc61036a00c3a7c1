//! What was found damaged, until somebody sees to it: chunks to be had again, and users' files to be
//! looked at once more. In memory, no I/O.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
};

use surf_protocol::ChunkId;
use tokio::sync::Notify;

use super::holdings::UserFile;

/// Chunks remembered. As many as a model may have; what is beyond is found again when it is wanted.
const CHUNKS_MAX: usize = surf_protocol::limits::MANIFEST_CHUNKS_MAX;

/// What was found damaged.
#[derive(Debug, Default)]
pub(super) struct Lost {
    found: Mutex<Found>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Found {
    chunks: BTreeSet<ChunkId>,
    files: Vec<Arc<UserFile>>,
    /// Since the store was opened.
    total: u64,
}

impl Lost {
    /// A chunk is gone from a place where it should be.
    pub(super) fn chunk(&self, id: ChunkId) {
        let mut found = self.found();
        found.total += 1;
        if found.chunks.len() < CHUNKS_MAX {
            found.chunks.insert(id);
        }
        drop(found);
        self.told.notify_one();
    }

    /// These were told, and nobody has seen to them.
    pub(super) fn again(&self, ids: Vec<ChunkId>) {
        self.found().chunks.extend(ids);
        self.told.notify_one();
    }

    /// A file of the user's is not what it was. Each is told once: see [`UserFile::gone`].
    pub(super) fn file(&self, file: Arc<UserFile>) {
        self.found().files.push(file);
        self.told.notify_one();
    }

    /// Everything told since this was last asked. Waits until there is something.
    pub(super) async fn take(&self) -> (Vec<ChunkId>, Vec<Arc<UserFile>>) {
        loop {
            {
                let mut found = self.found();
                if !found.chunks.is_empty() || !found.files.is_empty() {
                    let chunks = std::mem::take(&mut found.chunks);
                    return (chunks.into_iter().collect(), std::mem::take(&mut found.files));
                }
            }
            self.told.notified().await;
        }
    }

    /// Chunks that were found damaged since the store was opened.
    pub(super) fn total(&self) -> u64 {
        self.found().total
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().expect("no panics while held")
    }
}
