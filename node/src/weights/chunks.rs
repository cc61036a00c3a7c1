//! What is known of each chunk: whether it is on its way, whether it has been here, and, where its
//! bytes are a mapped file, the mapping.
//!
//! Reading a chunk through the source verifies it, and hashing a whole model for each token would
//! take longer than computing with it. Bytes that lie in a mapped file cost no memory of ours, so
//! their handles are kept from pass to pass. Other bytes are never kept here.
//!
//! A mapped file may change under us. So it is noted which a pass computes with, and at its end
//! [`Chunks::settle`] looks at their files, before the result counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use surf_chunker::Checkpoint;
use surf_protocol::{Chunk, manifest::ChunkEntry};
use tokio::sync::Notify;

use crate::source::{ModelSource, SourceError, Urgency};

/// Mappings kept. A process may have 65,530 under Linux unless told otherwise, and others need some.
const MAPPED_MAX: usize = 16_384;

/// The chunks of a model.
#[derive(Debug)]
pub(super) struct Chunks {
    manifest: Arc<Checkpoint>,
    source: Arc<dyn ModelSource>,
    book: Mutex<Book>,
    /// Told whenever a chunk has come, failed, or is no longer wanted.
    changed: Notify,
}

#[derive(Debug)]
struct Book {
    /// By position in the manifest.
    states: Vec<State>,
    in_flight: u64,
    mapped: HashMap<usize, Chunk>,
    /// Mapped chunks that this pass computes with.
    used: Vec<Arc<[Chunk]>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How many wait for it.
    waiting: u32,
    /// It was here, so the source has it close by.
    seen: bool,
    /// The last one who asked was refused.
    failed: bool,
}

/// Someone waits for a chunk, until this is dropped.
#[derive(Debug)]
pub(super) struct Asked {
    chunks: Arc<Chunks>,
    at: usize,
    urgency: Urgency,
}

impl Chunks {
    /// The chunks of `manifest`, from `source`.
    pub(super) fn new(manifest: Arc<Checkpoint>, source: Arc<dyn ModelSource>) -> Self {
        let states = vec![State::default(); manifest.chunks().len()];
        let book = Book { states, in_flight: 0, mapped: HashMap::new(), used: Vec::new() };
        Self { manifest, source, book: Mutex::new(book), changed: Notify::new() }
    }

    /// Counts the chunk at `at` as on its way from now on, so that nobody else starts it too.
    pub(super) fn ask(self: &Arc<Self>, at: usize, urgency: Urgency) -> Asked {
        self.book().begin(at, self.entry(at).size);
        Asked { chunks: Arc::clone(self), at, urgency }
    }

    /// As [`Chunks::ask`], for those of `among` that were never here, are not on their way, and may
    /// be had; until `in_flight_max` bytes are on their way.
    pub(super) fn ask_missing(
        self: &Arc<Self>,
        among: &[usize],
        in_flight_max: u64,
        urgency: Urgency,
    ) -> Vec<Asked> {
        let mut asked = Vec::new();
        let mut book = self.book();
        for &at in among {
            let State { waiting, seen, failed } = book.states[at];
            if in_flight_max <= book.in_flight {
                break;
            }
            if !seen && !failed && waiting == 0 {
                book.begin(at, self.entry(at).size);
                asked.push(Asked { chunks: Arc::clone(self), at, urgency });
            }
        }
        asked
    }

    /// Bytes on their way.
    pub(super) fn in_flight(&self) -> u64 {
        self.book().in_flight
    }

    /// How many mappings are kept.
    pub(super) fn mapped(&self) -> usize {
        self.book().mapped.len()
    }

    /// This pass computes with `mapped`, which lie in files.
    pub(super) fn used(&self, mapped: &Arc<[Chunk]>) {
        if !mapped.is_empty() {
            self.book().used.push(Arc::clone(mapped));
        }
    }

    /// Whether all that was [used](Chunks::used) is as it was when it was checked. What is not is let go,
    /// and comes from the source when it is asked for again. Forgets what was used, if that is `over`.
    pub(super) fn settle(&self, over: bool) -> bool {
        let used = self.book().used.clone();
        // Asks the system, so not under the lock.
        let used = used.iter().flat_map(|chunks| chunks.iter());
        let changed: Vec<_> = used.filter(|chunk| !chunk.is_unchanged()).map(Chunk::id).collect();
        let mut book = self.book();
        if over || !changed.is_empty() {
            book.used.clear();
        }
        for id in &changed {
            tracing::warn!(%id, "a chunk file changed while it was computed with; computing again");
            if let Some(at) = self.manifest.position(*id) {
                book.mapped.remove(&at);
            }
        }
        changed.is_empty()
    }

    /// What could not be had may be asked for again.
    pub(super) fn forget_failures(&self) {
        self.book().states.iter_mut().for_each(|state| state.failed = false);
        self.changed.notify_one();
    }

    /// Waits until something has changed since the last call. For one waiter.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes the one who waits for a change.
    pub(super) fn notify(&self) {
        self.changed.notify_one();
    }

    /// The source behind.
    pub(super) fn source(&self) -> &dyn ModelSource {
        &*self.source
    }

    fn entry(&self, at: usize) -> ChunkEntry {
        self.manifest.chunks()[at]
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panics while held")
    }
}

impl Book {
    fn begin(&mut self, at: usize, size: u32) {
        self.states[at].waiting += 1;
        if self.states[at].waiting == 1 {
            self.in_flight += u64::from(size);
        }
    }

    fn end(&mut self, at: usize, size: u32) {
        self.states[at].waiting -= 1;
        if self.states[at].waiting == 0 {
            self.in_flight -= u64::from(size);
        }
    }
}

impl Asked {
    /// The chunk, of the size that the manifest says. `in_place`, it may be a mapping, which is kept.
    pub(super) async fn wait(self, in_place: bool) -> Result<Chunk, SourceError> {
        let kept = self.chunks.book().mapped.get(&self.at).cloned();
        if in_place && let Some(kept) = kept {
            return Ok(kept);
        }
        let (entry, source) = (self.chunks.entry(self.at), &self.chunks.source);
        let got = match in_place {
            true => source.chunk_in_place(entry, self.urgency).await,
            false => source.chunk(entry, self.urgency).await,
        };
        let got = got.and_then(|chunk| of_size(chunk, entry));
        let mut book = self.chunks.book();
        book.states[self.at].seen |= got.is_ok();
        book.states[self.at].failed = got.is_err();
        if let Ok(chunk) = &got
            && chunk.is_in_file()
            && book.mapped.len() < MAPPED_MAX
        {
            book.mapped.insert(self.at, chunk.clone());
        }
        drop(book);
        got
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.chunks.book().end(self.at, self.chunks.entry(self.at).size);
        self.chunks.notify();
    }
}

/// A manifest may lie about the size of a chunk that exists.
fn of_size(chunk: Chunk, entry: ChunkEntry) -> Result<Chunk, SourceError> {
    let size = chunk.bytes().len();
    if chunk.id() == entry.id && size == entry.size as usize {
        return Ok(chunk);
    }
    let cause = format!("has {size} bytes; the manifest says {}", entry.size);
    Err(SourceError::failed(format!("chunk {}", entry.id), cause))
}
