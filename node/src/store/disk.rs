//! Chunks in and out, on the thread that calls. The store runs this on the blocking pool.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use surf_chunker::Families;
use surf_protocol::{Chunk, ChunkId, Manifest, ModelId};
use tokio::{runtime::Handle, sync::watch};

use super::{
    StoreError, Usage,
    catalogue::Catalogue,
    files::{self, Layout},
    holdings::{Begun, Bound, Holdings, Place, PlaceKind, UserFile},
    index::Index,
    lost::Lost,
    mapped::{self, Mapping},
    open,
    scrub::ScrubState,
    space::Space,
};
use crate::config;

/// Chunk files that may be written but not yet synced: what a power failure can cost, half a gibibyte.
/// A pull is held back by the disk only when it is this far ahead of it. Each is an open file, of which
/// a process may often have no more than a thousand.
const UNSYNCED_FILES_MAX: usize = 256;

/// Files that are synced at once. A file system's journal commits for all who wait together, so four
/// take little longer than one.
const SYNCED_AT_ONCE: usize = 4;

/// Uses that may be unknown to the index: what eviction may get wrong after a crash.
const TOUCHED_MAX: usize = 1024;

/// Evicted files that a writer removes itself. More are removed behind its back.
const REMOVED_AT_ONCE_MAX: usize = 8;

/// Files that are removed before whoever waits for the room is told. At most so much of the reserve may
/// be used for a moment, because these files are gone and still counted.
const REMOVED_TOGETHER_MAX: usize = 16;

/// The folder, and everything that is known about it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) layout: Layout,
    pub(super) index: Index,
    /// Never held across I/O.
    holdings: Mutex<Holdings>,
    /// Told when chunk files are no longer in transit.
    settled: Condvar,
    /// Never held across I/O, nor together with the holdings.
    catalogue: Mutex<Catalogue>,
    /// Held across reading, changing and writing what is in the catalogue, so that the files agree
    /// with it: its lock is taken before the two above.
    pub(super) notebook: Mutex<()>,
    /// How many groups each model has, by the names of its tensors, of those that were asked about.
    groups: Mutex<HashMap<ModelId, usize>>,
    /// Files to be synced, behind the back of whoever wrote them.
    unsynced: mpsc::SyncSender<File>,
    /// Bytes that were hashed to find out whether they are what they should be.
    hashed: AtomicU64,
    /// Encoded manifests that somebody is being sent.
    encoded: Mutex<HashMap<ModelId, Weak<Vec<u8>>>>,
    /// What was found damaged and is to be had again.
    pub(super) lost: Lost,
    /// How far the scrubbing is.
    pub(super) scrubbing: Mutex<Option<ScrubState>>,
    /// Counts changes of what is held.
    pub(super) changes: watch::Sender<u64>,
    /// Released last, when the index is closed.
    _lock: File,
}

/// How the bytes of a chunk are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// In memory of our own.
    Copied,
    /// Where they lie, if that is a file of ours.
    InPlace,
    /// In memory of our own, from the disk and not from what the system remembers of it.
    FromDisk,
}

/// What was found where something should be.
#[derive(Debug)]
pub(super) enum Look<T> {
    Good(T),
    /// It was damaged, or its file was gone or changed.
    Bad,
    /// It was evicted just before.
    Gone,
}

impl Disk {
    /// Opens the folder.
    pub(super) fn open(config: &config::Store) -> Result<Self, StoreError> {
        let layout = Layout::new(&config.dir);
        let lock = open::lock(&layout)?;
        let (index, records) = Index::open(&layout.index())?;
        let mut holdings = Holdings::new(config.quota);
        let catalogue = open::catalogue(&layout, &index)?;
        let hashed = open::chunks(&layout, &index, records, &catalogue, &mut holdings)?;
        let lost = Lost::default();
        open::apply_notes(&catalogue, &mut holdings, &lost);
        let too_many = holdings.shrink();
        let unsynced = start_syncing().map_err(|cause| StoreError::file(layout.root(), cause))?;
        let disk = Self {
            layout,
            index,
            holdings: Mutex::new(holdings),
            settled: Condvar::new(),
            catalogue: Mutex::new(catalogue),
            notebook: Mutex::new(()),
            groups: Mutex::default(),
            unsynced,
            hashed: AtomicU64::new(hashed),
            encoded: Mutex::default(),
            lost,
            scrubbing: Mutex::default(),
            changes: watch::Sender::new(0),
            _lock: lock,
        };
        match too_many {
            Some(evicted) => disk.discard(&evicted),
            None => tracing::warn!(quota = config.quota, "pinned chunks take more than the cache may"),
        }
        Ok(disk)
    }

    /// How many groups `manifest` has, by the names of its tensors.
    pub(super) fn groups_of(&self, manifest: &Arc<Manifest>) -> usize {
        if let Some(&known) = self.groups.lock().expect("no panics while held").get(&manifest.id()) {
            return known;
        }
        let count = surf_chunker::groups(manifest, &Families::default()).len();
        self.groups.lock().expect("no panics while held").insert(manifest.id(), count);
        count
    }

    /// Writes a chunk file, after making room for it. True if the chunk was nowhere before.
    pub(super) fn put(self: &Arc<Self>, chunk: &Chunk) -> Result<bool, StoreError> {
        let (id, size) = (chunk.id(), chunk.bytes().len() as u32);
        let Some(new) = self.begin(id, size)? else { return Ok(false) };
        let claim = Claim { disk: self, id, size };
        let file = self.write(&self.layout.chunk(id), chunk.bytes(), Layout::write)?;
        let record = claim.finish();
        self.index.insert([(id, record)]);
        // If the thread is gone, the system syncs the file when it likes.
        let _ = self.unsynced.send(file);
        self.changed();
        Ok(new)
    }

    /// Writes a file in one of the ways of [`Layout`]. If the disk is full, chunks go for it, once.
    pub(super) fn write<T>(
        &self,
        path: &Path,
        bytes: &[u8],
        write: impl Fn(&Layout, &Path, &[u8]) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let mut written = write(&self.layout, path, bytes);
        if written.as_ref().is_err_and(files::is_disk_full) {
            let evicted = self.holdings().give_way(bytes.len() as u64);
            if !evicted.is_empty() {
                tracing::warn!(chunks = evicted.len(), "the disk is full; evicting");
                self.discard(&evicted);
                self.changed();
                written = write(&self.layout, path, bytes);
            }
        }
        written.map_err(|cause| StoreError::file(path, cause))
    }

    /// What is held, and may be held.
    pub(super) fn usage(&self) -> Usage {
        let space = Space::at(self.layout.root());
        let (hashed, damaged) = (self.hashed.load(Ordering::Relaxed), self.lost.total());
        Usage { hashed, damaged, ..self.holdings().usage(space) }
    }

    /// The checked bytes of a chunk of `size`. A place that turns out to be bad is forgotten.
    pub(super) fn get(&self, id: ChunkId, size: u32, manner: Manner) -> Result<Option<Chunk>, StoreError> {
        while let Some(place) = self.place(id).filter(|place| place.size == size) {
            if let Look::Good(chunk) = self.read_checked(id, &place, manner)? {
                self.write_touched(TOUCHED_MAX);
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// The bytes of a chunk, for peers. They are checked each time: somebody may have changed the file, and
    /// a peer that gets wrong bytes never asks us again.
    pub(super) fn serve(&self, id: ChunkId) -> Result<Option<Bytes>, StoreError> {
        let size = self.holdings().size(id).and_then(|size| u32::try_from(size).ok());
        let Some(size) = size else { return Ok(None) };
        Ok(self.get(id, size, Manner::Copied)?.map(|chunk| chunk.bytes().clone()))
    }

    /// The chunk at `place`. If it is not there or damaged, the place is forgotten.
    pub(super) fn read_checked(
        &self,
        id: ChunkId,
        place: &Place,
        manner: Manner,
    ) -> Result<Look<Chunk>, StoreError> {
        let (bytes, mapping) = match self.read(id, place, manner)? {
            Look::Good(read) => read,
            Look::Bad => return Ok(Look::Bad),
            Look::Gone => return Ok(Look::Gone),
        };
        self.hashed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match Chunk::verify(id, bytes) {
            Ok(chunk) => Ok(Look::Good(match mapping {
                Some(mapping) => chunk.in_file(mapping),
                None => chunk,
            })),
            Err(error) => Ok(self.forget_damaged(id, place, &error.to_string())),
        }
    }

    /// The bytes of a manifest, of which many askers share one copy.
    pub(super) fn encoded(&self, manifest: &Manifest) -> Bytes {
        let mut encoded = self.encoded.lock().expect("no panics while held");
        encoded.retain(|_, shared| shared.strong_count() != 0);
        let shared = encoded.get(&manifest.id()).and_then(Weak::upgrade).unwrap_or_else(|| {
            let shared = Arc::new(manifest.encode());
            encoded.insert(manifest.id(), Arc::downgrade(&shared));
            shared
        });
        Bytes::from_owner(Encoded(shared))
    }

    /// Removes chunk files that have left the books.
    pub(super) fn discard(&self, ids: &[ChunkId]) {
        for ids in ids.chunks(REMOVED_TOGETHER_MAX) {
            self.index.remove(ids.iter().copied());
            for &id in ids {
                let path = self.layout.chunk(id);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        // It will be found when the store next opens.
                        tracing::warn!(path = %path.display(), %error, "cannot remove a chunk file");
                    }
                    _ => (),
                }
            }
            self.holdings().settle(ids);
            self.settled.notify_all();
        }
    }

    /// Tells the index about uses, if there are at least `least` that it does not know.
    pub(super) fn write_touched(&self, least: usize) {
        let records = self.holdings().drain_touched(least);
        if !records.is_empty() {
            self.index.insert(records);
        }
    }

    /// What is held has changed.
    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// What is held.
    pub(super) fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().expect("no panics while held")
    }

    /// Which models there are.
    pub(super) fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().expect("no panics while held")
    }

    /// Forgets a whole file of the user's, that is not what it was.
    pub(super) fn forget_file(&self, gone: &Arc<UserFile>, why: &str) {
        if gone.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(path = %gone.path.display(), why, "a published file is no longer used");
        self.holdings().forget_ranges(|file, _| Arc::ptr_eq(file, gone));
        self.lost.file(Arc::clone(gone));
        self.changed();
    }

    /// The name and the room for a chunk; whether it is new. `None` if it is here.
    fn begin(self: &Arc<Self>, id: ChunkId, size: u32) -> Result<Option<bool>, StoreError> {
        loop {
            let space = Space::at(self.layout.root());
            let mut holdings = self.holdings();
            match holdings.begin(id, size, space) {
                Begun::Here => return Ok(None),
                Begun::Started { evicted, new } => {
                    drop(holdings);
                    self.evict(evicted);
                    return Ok(Some(new));
                }
                Begun::Wait { evicted } if evicted.is_empty() => {
                    drop(self.settled.wait(holdings).expect("no panics while held"));
                }
                Begun::Wait { evicted } => {
                    drop(holdings);
                    self.evict(evicted);
                }
                Begun::Full(Bound::Quota) => {
                    let quota = holdings.quota();
                    return Err(StoreError::Full { need: size.into(), quota });
                }
                Begun::Full(Bound::Disk) => {
                    drop(holdings);
                    let Space { free, reserve } = Space::at(self.layout.root());
                    // Something was removed since we looked.
                    if space.free < free {
                        continue;
                    }
                    return Err(StoreError::NearlyFull { dir: self.layout.root().to_owned(), free, reserve });
                }
            }
        }
    }

    /// Removes evicted files: a few here and now, many behind the caller's back.
    fn evict(self: &Arc<Self>, ids: Vec<ChunkId>) {
        if ids.is_empty() {
            return;
        }
        tracing::debug!(chunks = ids.len(), "evicting");
        let at_once = ids.len() <= REMOVED_AT_ONCE_MAX;
        let evicted = Evicted { disk: Arc::clone(self), ids };
        match Handle::try_current() {
            Ok(runtime) if !at_once => drop(runtime.spawn_blocking(move || drop(evicted))),
            _ => drop(evicted),
        }
    }

    fn place(&self, id: ChunkId) -> Option<Place> {
        self.holdings().place(id)
    }

    /// The bytes at `place`, and the mapping that they are, if they are one. If the file is gone or has
    /// changed, the place is forgotten. Any other failure says nothing about the file, and costs nothing.
    fn read(&self, id: ChunkId, place: &Place, manner: Manner) -> Result<Look<Read>, StoreError> {
        let size = place.size;
        let (path, read) = match &place.kind {
            PlaceKind::Own { .. } => {
                let path = self.layout.chunk(id);
                let read = read_own(&path, size, manner);
                (path, read)
            }
            PlaceKind::Range { file, offset } => {
                if manner == Manner::FromDisk {
                    files::forget_cached(&file.path, *offset, size);
                }
                let read = files::read_range(&file.path, file.stamp, *offset, size);
                (file.path.clone(), read.map(|bytes| (bytes, None)))
            }
        };
        let lost = |kind| {
            // What the disk cannot read is lost, too.
            use io::ErrorKind::{InvalidData, NotFound};
            matches!(kind, NotFound | InvalidData)
        };
        match read {
            Ok(read) => Ok(Look::Good(read)),
            Err(error) if lost(error.kind()) || files::is_unreadable(&error) => Ok(match &place.kind {
                PlaceKind::Range { file, .. } if lost(error.kind()) => {
                    self.forget_file(file, &error.to_string());
                    Look::Bad
                }
                _ => self.forget_damaged(id, place, &error.to_string()),
            }),
            Err(cause) => Err(StoreError::file(path, cause)),
        }
    }

    fn forget_damaged<T>(&self, id: ChunkId, place: &Place, why: &str) -> Look<T> {
        match &place.kind {
            PlaceKind::Own { serial } => {
                // If it is not in the books any more, it was evicted meanwhile: nothing is damaged.
                if self.holdings().take_own(id, Some(*serial)).is_none() {
                    return Look::Gone;
                }
                tracing::warn!(%id, why, "a chunk file is damaged; dropping it");
                self.discard(&[id]);
                self.lost.chunk(id);
            }
            PlaceKind::Range { file, offset } => {
                tracing::warn!(path = %file.path.display(), offset, why, "a published file is damaged");
                self.holdings().forget_ranges(|other, at| Arc::ptr_eq(other, file) && at == *offset);
                self.note_bad(file, *offset);
                self.lost.chunk(id);
            }
        }
        self.changed();
        Look::Bad
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.write_touched(1);
    }
}

/// Bytes that were read, and the mapping that they are, if they are one.
type Read = (Bytes, Option<Arc<Mapping>>);

fn read_own(path: &Path, size: u32, manner: Manner) -> io::Result<Read> {
    if manner == Manner::InPlace
        && let Some((bytes, mapping)) = mapped::map(path, size)?
    {
        return Ok((bytes, Some(mapping)));
    }
    let read = if manner == Manner::FromDisk { files::read_from_disk } else { files::read };
    Ok((read(path, size)?, None))
}

/// An encoded manifest, kept by those who are sent it.
struct Encoded(Arc<Vec<u8>>);

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Files that left the books. Removed when dropped, so that nobody waits for them for ever, whatever
/// becomes of the thread that was to remove them.
struct Evicted {
    disk: Arc<Disk>,
    ids: Vec<ChunkId>,
}

impl Drop for Evicted {
    fn drop(&mut self) {
        self.disk.discard(&self.ids);
        self.disk.changed();
    }
}

/// The name of a chunk file and room for it, until it is written or given up.
struct Claim<'a> {
    disk: &'a Disk,
    id: ChunkId,
    size: u32,
}

impl Claim<'_> {
    fn finish(self) -> super::record::Record {
        let record = self.disk.holdings().finish(self.id, self.size);
        self.disk.settled.notify_all();
        std::mem::forget(self);
        record
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.disk.holdings().abort(self.id);
        self.disk.settled.notify_all();
    }
}

/// Starts the threads that sync files. They end when the store is dropped and its queue is empty.
fn start_syncing() -> io::Result<mpsc::SyncSender<File>> {
    let (sender, receiver) = mpsc::sync_channel::<File>(UNSYNCED_FILES_MAX);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..SYNCED_AT_ONCE {
        let receiver = Arc::clone(&receiver);
        std::thread::Builder::new().name("store-sync".to_owned()).spawn(move || {
            // Held while waiting: the others wait for the same.
            let next = || receiver.lock().expect("no panics while held").recv();
            while let Ok(file) = next() {
                if let Err(error) = file.sync_data() {
                    // The bytes are checked whenever they are read.
                    tracing::warn!(%error, "a chunk file could not be synced");
                }
            }
        })?;
    }
    Ok(sender)
}
