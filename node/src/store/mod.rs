//! Chunks on disk.
//!
//! The bytes of a chunk are a file named by its hash, or part of a file of the user's that was
//! published from where it is. Files are the truth: chunks, manifests, and what the user said about
//! models (names, pins, where published files are). sled only remembers which chunk files were known
//! to be whole, and when each was last used.
//!
//! A chunk is written under a temporary name, renamed, and only then indexed. So a process killed at
//! any point leaves either a whole chunk or a temporary file, which [`Store::open`] removes; a whole
//! chunk that missed the index is hashed and kept. Syncing to the disk follows behind, a bounded
//! number of files late: a power failure can cost the last of them, which is then noticed by their
//! size, or by their hash when they are first read. What cannot be fetched again is synced at once.
//!
//! Reading checks, every time: bytes are copied into memory and hashed there, so nothing that happens to a
//! file changes what was checked. What is computed with again and again is mapped instead (`mapped`),
//! and looked at afterwards. What fails is forgotten and noted as lost (`lost`), so a damaged chunk is an
//! absent chunk, which the node fetches again. What nobody reads is read by the scrubber (`scrub`).
//!
//! All disk work runs on the blocking pool: sled and files are synchronous on purpose. Threads of its
//! own sync.
//!
//! Reading order: `disk` (chunks in and out), `holdings` (what is held, and the quota), [`evict`] and
//! `space` (when room is made, and what goes), `upkeep` (models, pins, clearing up), `open`; `mapped`,
//! `lost`, `recheck` and `scrub` (disks that fail); then the formats: `files`, `record`,
//! `notes`; `older` is what becomes of what an earlier version kept.

mod catalogue;
mod disk;
mod error;
pub mod evict;
mod files;
mod holdings;
mod index;
mod lost;
#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
mod mapped;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
#[path = "unmapped.rs"]
mod mapped;
mod notes;
mod older;
mod open;
mod recheck;
mod record;
mod scrub;
mod space;
mod upkeep;
mod writable;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_protocol::{Bitmap, Chunk, ChunkId, Manifest, ModelId, manifest::ChunkEntry};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
};

pub use error::{ResolveError, StoreError};
pub use scrub::ScrubState;

use self::disk::{Disk, Manner};
use crate::{
    config,
    source::{ChunkSource, Keeper, Library, SourceError},
};

/// Chunks read or written at once. Enough to keep a disk and all cores busy; the rest wait without
/// taking a thread from anyone else.
const DISK_WORK_MAX: usize = 32;

/// A handle to the chunks on disk. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    disk: Arc<Disk>,
    working: Arc<Semaphore>,
}

/// What the store has of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    /// The model.
    pub id: ModelId,
    /// The names it has here, sorted.
    pub aliases: Vec<String>,
    /// Files in it.
    pub files: usize,
    /// Tensors in it.
    pub tensors: usize,
    /// Groups in it.
    pub groups: usize,
    /// Distinct chunks in it.
    pub chunks: usize,
    /// Bytes of its distinct chunks.
    pub bytes: u64,
    /// How many of its chunks are here, in whatever place.
    pub held_chunks: usize,
    /// Bytes of those.
    pub held_bytes: u64,
    /// Bytes of its chunks that another model here has too.
    pub shared_bytes: u64,
    /// Whether its chunks are protected from eviction.
    pub pinned: bool,
}

/// What the store holds, and may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of chunk files.
    pub used: u64,
    /// Bytes that chunk files may take.
    pub quota: u64,
    /// Beyond so many, chunks are evicted. Less than the quota allows if the disk has no room for it.
    pub high: u64,
    /// Down to so many.
    pub low: u64,
    /// Bytes that are free on the disk, if the system tells.
    pub free: Option<u64>,
    /// Bytes of chunks that are only in files of the user's.
    pub referenced: u64,
    /// Distinct chunks, in whatever place.
    pub chunks: usize,
    /// Bytes hashed since the store was opened, and for that, to find out whether they are good.
    pub hashed: u64,
    /// Chunks that were found damaged or gone since then.
    pub damaged: u64,
}

/// What was removed from the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Chunk files.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What publishing added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Referenced {
    /// Distinct chunks that were not here before.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What was found by hashing what is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Distinct chunks that were hashed.
    pub checked: usize,
    /// Those of which a copy was bad and is forgotten, in order. A chunk that also was in another
    /// place may still be here.
    pub bad: Vec<ChunkId>,
    /// Distinct chunks that a model names and that are not here, those that are bad among them.
    pub missing: usize,
}

/// Keeps chunks from being evicted as long as it lives.
#[derive(Debug)]
pub struct Lease {
    disk: Arc<Disk>,
    ids: Vec<ChunkId>,
}

impl Store {
    /// Opens the store in its folder, making it if it is not there. Blocks: chunk files that neither the
    /// index nor a manifest knows are hashed, and models that an earlier version kept are read and cut again.
    pub fn open(config: &config::Store) -> Result<Self, StoreError> {
        let disk = Arc::new(Disk::open(config)?);
        older::cut_again(&disk);
        Ok(Self { disk, working: Arc::new(Semaphore::new(DISK_WORK_MAX)) })
    }

    /// Keeps a copy of `chunk` in a file of its own, evicting others if the quota or the disk asks for
    /// it (see [`evict`]). When this returns, the chunk survives the end of the process. True if it was
    /// in no place before.
    pub async fn put(&self, chunk: Chunk) -> Result<bool, StoreError> {
        self.working(move |disk| disk.put(&chunk)).await?
    }

    /// Refers to files of the user's as places of the chunks of `manifest`: each is a position in its
    /// list of files, and the real file. They are expected to be as they were when they were cut; how
    /// they look now is remembered, and as soon as that changes they are no longer used.
    ///
    /// Replaces what was referred to for the same files of the same model before. To survive a
    /// restart, the manifest must be [put](Store::put_manifest) too.
    pub async fn reference(
        &self,
        manifest: &Manifest,
        files: Vec<(u32, PathBuf)>,
    ) -> Result<Referenced, StoreError> {
        let held = self.manifest_of(manifest.id());
        let manifest = held.unwrap_or_else(|| Arc::new(manifest.clone()));
        self.blocking(move |disk| disk.reference(&manifest, files)).await?
    }

    /// Whether a chunk is here, in any place. From memory.
    pub fn contains(&self, id: ChunkId) -> bool {
        self.disk.holdings().contains(id)
    }

    /// Keeps `manifest`.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        if self.manifest_of(manifest.id()).is_some() {
            return Ok(());
        }
        self.share_manifest(Arc::new(manifest.clone())).await
    }

    /// The same, without a copy of it.
    pub async fn share_manifest(&self, manifest: Arc<Manifest>) -> Result<(), StoreError> {
        self.blocking(move |disk| disk.put_manifest(manifest)).await?
    }

    /// The manifest of `model`, if it is here. From memory.
    pub fn manifest_of(&self, model: ModelId) -> Option<Arc<Manifest>> {
        self.disk.catalogue().manifests.get(&model).cloned()
    }

    /// Models that have another id since the store was opened, because an earlier version cut them: the old id and
    /// the new one. From memory.
    pub fn renamed(&self) -> Vec<(ModelId, ModelId)> {
        self.disk.catalogue().renamed.clone()
    }

    /// Every manifest that is here. From memory.
    pub fn manifests(&self) -> Vec<Arc<Manifest>> {
        self.disk.catalogue().manifests.values().cloned().collect()
    }

    /// Every model whose manifest is here, by id.
    pub fn models(&self) -> Vec<ModelSummary> {
        let mut manifests: Vec<_> = self.disk.catalogue().manifests.values().cloned().collect();
        manifests.sort_by_key(|manifest| manifest.id());
        let mut models_with = HashMap::new();
        for chunk in manifests.iter().flat_map(|manifest| manifest.chunks()) {
            *models_with.entry(chunk.id).or_insert(0usize) += 1;
        }
        manifests.iter().map(|manifest| self.summary(manifest, &models_with)).collect()
    }

    /// Calls `model` by a name. The name means no other model from then on.
    pub async fn set_alias(&self, name: &str, model: ModelId) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.blocking(move |disk| disk.set_alias(&name, model)).await?
    }

    /// The model that is called `name`, if one is.
    pub fn named(&self, name: &str) -> Option<ModelId> {
        self.disk.catalogue().aliases.get(name).copied()
    }

    /// The model that `text` means: an id, here or not; a name; or at least eight first digits of the
    /// id of a model that is here. `surf:` may be left out.
    pub fn resolve(&self, text: &str) -> Result<ModelId, ResolveError> {
        self.disk.catalogue().resolve(text)
    }

    /// Protects the chunks of a model from eviction, those here and those that come.
    pub async fn pin(&self, model: ModelId) -> Result<(), StoreError> {
        self.blocking(move |disk| disk.set_pinned(model, true)).await?
    }

    /// Takes [`Store::pin`] back.
    pub async fn unpin(&self, model: ModelId) -> Result<(), StoreError> {
        self.blocking(move |disk| disk.set_pinned(model, false)).await?
    }

    /// Removes a model: its manifest, names, pin and references, and the chunk files that no other
    /// model here names. Those under a lease stay, until [`Store::gc`]. Files of the user's stay.
    pub async fn remove(&self, model: ModelId) -> Result<Freed, StoreError> {
        self.blocking(move |disk| disk.remove(model)).await?
    }

    /// Removes those chunk files of `chunks` that belong to no model here. Returns also how many of them are under a
    /// lease, and stay.
    pub async fn sweep(&self, chunks: HashSet<ChunkId>) -> Result<(Freed, usize), StoreError> {
        self.blocking(move |disk| disk.sweep(&chunks)).await?
    }

    /// Removes chunk files that belong to no model here and are not under a lease, and references to
    /// files of the user's that are gone or have changed.
    pub async fn gc(&self) -> Result<Freed, StoreError> {
        self.blocking(|disk| disk.gc()).await?
    }

    /// Looks whether the files of the user's are what they were, without reading those that are. What is no longer in
    /// one that has changed is not here any more.
    pub async fn look_at_files(&self) -> Result<(), StoreError> {
        self.working(|disk| {
            let files = disk.holdings().user_files();
            disk.look_at_files(&files);
        })
        .await
    }

    /// Hashes everything here, or everything here of one model. What is bad is forgotten, and can be
    /// fetched again. `progress` is called from several threads with bytes done and bytes in all.
    pub async fn verify(
        &self,
        model: Option<ModelId>,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Verified, StoreError> {
        self.blocking(move |disk| disk.verify(model, &progress)).await?
    }

    /// Protects chunks from eviction as long as the lease lives, those here and those that come.
    pub fn lease(&self, ids: impl IntoIterator<Item = ChunkId>) -> Lease {
        let ids: Vec<_> = ids.into_iter().collect();
        self.disk.holdings().lease(&ids);
        Lease { disk: Arc::clone(&self.disk), ids }
    }

    /// How many other nodes hold each chunk of `model`, in the order of its manifest, as far as is
    /// known: what many hold is evicted first. Replaces what was said about these chunks before; kept
    /// in memory, for chunks that are here now. Costs a look at each chunk: say it every few seconds.
    pub fn note_copies(&self, model: ModelId, copies: &[u8]) {
        let Some(manifest) = self.manifest_of(model) else { return };
        let ids = manifest.chunks().iter().map(|chunk| chunk.id);
        self.disk.holdings().note_copies(ids.zip(copies.iter().copied()));
    }

    /// Chunks that were found damaged or gone since this was last asked: for the node to fetch again. Waits
    /// until there are some. Meanwhile looks which parts of published files are still what they were.
    pub async fn lost(&self) -> Vec<ChunkId> {
        loop {
            let (chunks, files) = self.disk.lost.take().await;
            if files.is_empty() {
                return chunks;
            }
            // Finished also if nobody waits any more, so nothing is forgotten.
            let rechecked = self.blocking(move |disk| {
                disk.lost.again(chunks);
                for file in files {
                    disk.recheck(&file).into_iter().for_each(|id| disk.lost.chunk(id));
                }
            });
            if rechecked.await.is_err() {
                return Vec::new();
            }
        }
    }

    /// Models whose manifest here is damaged, so that it should be fetched again.
    pub fn lost_manifests(&self) -> Vec<ModelId> {
        let catalogue = self.disk.catalogue();
        let lost = catalogue.damaged.iter().filter(|id| !catalogue.manifests.contains_key(id));
        lost.copied().collect()
    }

    /// Reads and hashes everything here once in every `period`, for ever. What is bad is forgotten, and
    /// [lost](Store::lost).
    pub async fn scrub(&self, period: Duration) {
        scrub::run(self, period).await;
    }

    /// How far the scrubbing is. `None` if it has not begun.
    pub fn scrubbing(&self) -> Option<ScrubState> {
        *self.disk.scrubbing.lock().expect("no panics while held")
    }

    /// What is held, and may be held. Asks the system what is free.
    pub fn usage(&self) -> Usage {
        self.disk.usage()
    }

    /// `models_with`: how many models have each chunk.
    fn summary(&self, manifest: &Arc<Manifest>, models_with: &HashMap<ChunkId, usize>) -> ModelSummary {
        let id = manifest.id();
        let (aliases, pinned) = {
            let catalogue = self.disk.catalogue();
            (catalogue.aliases_of(id), catalogue.is_pinned(id))
        };
        let (held_chunks, held_bytes) = {
            let holdings = self.disk.holdings();
            let held = manifest.chunks().iter().filter(|chunk| holdings.contains(chunk.id));
            held.fold((0, 0), |(chunks, bytes), chunk| (chunks + 1, bytes + u64::from(chunk.size)))
        };
        let shared = manifest.chunks().iter().filter(|chunk| 1 < models_with[&chunk.id]);
        ModelSummary {
            id,
            aliases,
            files: manifest.files().len(),
            tensors: manifest.tensors().len(),
            groups: self.disk.groups_of(manifest),
            chunks: manifest.chunks().len(),
            bytes: manifest.size(),
            held_chunks,
            held_bytes,
            shared_bytes: shared.map(|chunk| u64::from(chunk.size)).sum(),
            pinned,
        }
    }

    /// Does disk work when its turn has come. Work that was begun is finished, also if nobody waits.
    async fn working<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Disk>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = Arc::clone(&self.working).acquire_owned().await.map_err(|_| StoreError::Stopped)?;
        self.blocking(move |disk| {
            let _turn = turn;
            work(disk)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Disk>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let disk = Arc::clone(&self.disk);
        spawn_blocking(move || work(&disk)).await.map_err(|_| StoreError::Stopped)
    }
}

impl Store {
    async fn find(&self, chunk: ChunkEntry, manner: Manner) -> Result<Option<Chunk>, SourceError> {
        if !self.contains(chunk.id) {
            return Ok(None);
        }
        self.working(move |disk| disk.get(chunk.id, chunk.size, manner)).await.flatten().map_err(failed)
    }
}

impl ChunkSource for Store {
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        Box::pin(self.find(chunk, Manner::Copied))
    }
}

impl Keeper for Store {
    fn get_in_place(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        Box::pin(self.find(chunk, Manner::InPlace))
    }

    fn keep(&self, chunk: Chunk) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move { self.put(chunk).await.map(drop).map_err(failed) })
    }

    fn contains(&self, id: ChunkId) -> bool {
        Self::contains(self, id)
    }
}

impl Library for Store {
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move {
            let Some(manifest) = self.manifest_of(model) else { return Ok(None) };
            self.working(move |disk| disk.encoded(&manifest)).await.map(Some).map_err(failed)
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.disk.changes.subscribe()
    }

    fn have(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>> {
        let found = self.manifest_of(model).map(|manifest| {
            let (chunks, holdings) = (manifest.chunks(), self.disk.holdings());
            Bitmap::from_fn(chunks.len(), |at| holdings.contains(chunks[at].id))
        });
        Box::pin(async move { Ok(found) })
    }

    fn size(&self, id: ChunkId) -> Option<usize> {
        self.disk.holdings().size(id)
    }

    fn serve(&self, id: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move {
            if !self.contains(id) {
                return Ok(None);
            }
            self.working(move |disk| disk.serve(id)).await.flatten().map_err(failed)
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.disk.holdings().release(&self.ids);
    }
}

fn failed(error: StoreError) -> SourceError {
    SourceError::failed("store", error)
}
