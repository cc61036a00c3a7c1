//! What is held, in memory: for each chunk its places, and what of the quota is spent. No I/O.
//!
//! A chunk file that is being written or removed is *in transit*: nobody else may touch that name
//! until it has settled, and its bytes count until then. A chunk enters and leaves the books in one step
//! each, so nothing that is put here lets the files exceed the quota, not even for a moment.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use surf_protocol::{ChunkId, ModelId, manifest::ChunkEntry};

use super::{
    Usage,
    evict::{Candidate, Marks, sweep},
    files::Stamp,
    record::Record,
    space::Space,
};

/// How much more must be used before a search for what may go is worth repeating that found too little.
const EXHAUSTED_BYTES: u64 = 64 << 20;

/// A file of the user's, parts of which are chunks.
#[derive(Debug)]
pub(super) struct UserFile {
    /// The model that it was published as.
    pub(super) model: ModelId,
    /// Position in the manifest's list of files.
    pub(super) file: u32,
    /// Where it is.
    pub(super) path: PathBuf,
    /// How it looked when it was cut.
    pub(super) stamp: Stamp,
    /// Set once it is found to have changed, so that this is dealt with once.
    pub(super) gone: AtomicBool,
}

impl UserFile {
    /// A file that is as it was.
    pub(super) fn new(model: ModelId, file: u32, path: PathBuf, stamp: Stamp) -> Self {
        Self { model, file, path, stamp, gone: AtomicBool::new(false) }
    }
}

/// A file of the user's, and the chunks in it with their offsets.
pub(super) type Cut = (Arc<UserFile>, Vec<(u64, ChunkEntry)>);

/// Where a chunk's bytes are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Bytes in the chunk.
    pub(super) size: u32,
    pub(super) kind: PlaceKind,
}

/// One of a chunk's places.
#[derive(Clone, Debug)]
pub(super) enum PlaceKind {
    /// A chunk file. The number tells it from an earlier or later file of the same name.
    Own { serial: u64 },
    /// Part of a user's file.
    Range { file: Arc<UserFile>, offset: u64 },
}

/// What became of the wish to write a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is a file already.
    Here,
    /// Files are on their way in or out, and these besides: wait until some have settled, and ask again.
    Wait { evicted: Vec<ChunkId> },
    /// The name and the room are the caller's. These left the books and are to be removed, sometime.
    Started { evicted: Vec<ChunkId>, new: bool },
    /// Not enough can be evicted, for the quota or for what is free on the disk.
    Full(Bound),
}

/// What bounds the chunk files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// What the user said.
    Quota,
    /// What is free on the disk.
    Disk,
}

/// Everything held, and what it costs.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    chunks: HashMap<ChunkId, Held>,
    quota: u64,
    /// Bytes of the chunk files in the books.
    used: u64,
    /// Bytes of those that are being written.
    writing: u64,
    /// Bytes of those that left the books and are still on the disk.
    leaving: u64,
    /// Counts uses: the last use of a chunk is a number, not a time.
    clock: u64,
    /// Files that are being written or removed, with their bytes.
    in_transit: HashMap<ChunkId, u64>,
    /// What is used after chunks were evicted, if that is still beyond the high mark. Until it has grown
    /// by a few chunks or something is no longer protected, looking again would find little.
    exhausted: Option<u64>,
    leased: Counts,
    pinned: Counts,
    /// Chunks whose last use the index does not know yet.
    touched: HashSet<ChunkId>,
}

#[derive(Debug)]
struct Held {
    size: u32,
    own: Option<Own>,
    ranges: Vec<Range>,
    /// How many other nodes are known to hold it, if anything is known.
    copies: Option<u8>,
}

impl Held {
    fn new(size: u32) -> Self {
        Self { size, own: None, ranges: Vec::new(), copies: None }
    }
}

#[derive(Debug)]
struct Own {
    serial: u64,
    last_use: u64,
}

#[derive(Debug)]
struct Range {
    file: Arc<UserFile>,
    offset: u64,
}

impl Holdings {
    /// Nothing, and room for `quota` bytes.
    pub(super) fn new(quota: u64) -> Self {
        Self { quota, ..Self::default() }
    }

    /// Whether the chunk is in any place.
    pub(super) fn contains(&self, id: ChunkId) -> bool {
        self.chunks.contains_key(&id)
    }

    /// How many bytes a chunk has that is here.
    pub(super) fn size(&self, id: ChunkId) -> Option<usize> {
        self.chunks.get(&id).map(|held| held.size as usize)
    }

    /// Books a chunk file that was found when the store opened.
    pub(super) fn adopt(&mut self, id: ChunkId, record: Record) {
        self.clock = self.clock.max(record.last_use);
        self.set_own(id, record.size, record.last_use);
    }

    /// Asks for the name and the room to write a chunk of `size` bytes, on a disk that has this `space`.
    pub(super) fn begin(&mut self, id: ChunkId, size: u32, space: Space) -> Begun {
        if self.in_transit.contains_key(&id) {
            return Begun::Wait { evicted: Vec::new() };
        }
        if self.chunks.get(&id).is_some_and(|held| held.own.is_some()) {
            self.touch(id);
            return Begun::Here;
        }
        let size = u64::from(size);
        let limit = self.limit(space);
        let after = self.used + self.writing + size;
        let Some(evicted) = self.make_room(limit, after) else {
            let moving = 0 < self.writing + self.leaving;
            return match () {
                () if self.quota <= limit => Begun::Full(Bound::Quota),
                // Half written files are counted twice, and half removed ones perhaps not at all.
                () if moving => Begun::Wait { evicted: Vec::new() },
                () => Begun::Full(Bound::Disk),
            };
        };
        if limit < self.used + self.writing + self.leaving + size {
            return Begun::Wait { evicted };
        }
        self.in_transit.insert(id, size);
        self.writing += size;
        Begun::Started { evicted, new: !self.contains(id) }
    }

    /// Takes chunk files out of the books because the disk has no room for `size` bytes, whatever it
    /// says. Returns them, in transit. None if nothing can go.
    pub(super) fn give_way(&mut self, size: u64) -> Vec<ChunkId> {
        let used = self.used + self.writing;
        let limit = used.min(self.quota);
        self.make_room(limit, limit.saturating_add(size)).unwrap_or_default()
    }

    /// Takes chunk files out of the books until the quota is kept, as it may not be after it has been
    /// lowered. Returns them, in transit; `None` if too much is pinned.
    pub(super) fn shrink(&mut self) -> Option<Vec<ChunkId>> {
        if self.used <= self.quota { Some(Vec::new()) } else { self.make_room(self.quota, self.used) }
    }

    /// The chunk is written: it enters the books. Returns its record.
    pub(super) fn finish(&mut self, id: ChunkId, size: u32) -> Record {
        self.abort(id);
        self.clock += 1;
        self.set_own(id, size, self.clock);
        Record { size, last_use: self.clock }
    }

    /// The chunk could not be written.
    pub(super) fn abort(&mut self, id: ChunkId) {
        self.writing -= self.in_transit.remove(&id).unwrap_or(0);
    }

    /// Files that left the books are gone from the disk.
    pub(super) fn settle(&mut self, ids: &[ChunkId]) {
        let gone = ids.iter().filter_map(|id| self.in_transit.remove(id));
        self.leaving -= gone.sum::<u64>();
    }

    /// How many other nodes hold these chunks, as far as is known. Says nothing about chunks that are
    /// not here.
    pub(super) fn note_copies(&mut self, copies: impl Iterator<Item = (ChunkId, u8)>) {
        for (id, copies) in copies {
            if let Some(held) = self.chunks.get_mut(&id) {
                held.copies = Some(copies);
            }
        }
    }

    /// Books the chunks of users' files, with their offsets, instead of what was booked for the same
    /// files of the same model before. Returns how many chunks were nowhere before, and their bytes.
    pub(super) fn set_ranges(&mut self, files: &[Cut]) -> (usize, u64) {
        let entries = || files.iter().flat_map(|(_, entries)| entries.iter().map(|(_, entry)| *entry));
        let new: HashMap<_, _> =
            entries().filter(|entry| !self.contains(entry.id)).map(|entry| (entry.id, entry.size)).collect();
        self.forget_ranges(|old, _| {
            files.iter().any(|(file, _)| (file.model, file.file) == (old.model, old.file))
        });
        for (file, entries) in files {
            entries.iter().for_each(|&(offset, entry)| self.add_range(entry, file, offset));
        }
        (new.len(), new.values().map(|&size| u64::from(size)).sum())
    }

    /// Where to read a chunk, best first, and notes that it was used.
    pub(super) fn place(&mut self, id: ChunkId) -> Option<Place> {
        let place = self.places(id).into_iter().next();
        if let Some(Place { kind: PlaceKind::Own { .. }, .. }) = place {
            self.touch(id);
        }
        place
    }

    /// Every place of a chunk: our own file first, then parts of the user's.
    pub(super) fn places(&self, id: ChunkId) -> Vec<Place> {
        let Some(held) = self.chunks.get(&id) else { return Vec::new() };
        let own = held.own.iter().map(|own| PlaceKind::Own { serial: own.serial });
        let range = |range: &Range| PlaceKind::Range { file: Arc::clone(&range.file), offset: range.offset };
        own.chain(held.ranges.iter().map(range)).map(|kind| Place { size: held.size, kind }).collect()
    }

    /// Takes a chunk file out of the books, if it is still the one of that serial number (any, if
    /// `None`). Then it is in transit: remove the file, and [`Holdings::settle`].
    pub(super) fn take_own(&mut self, id: ChunkId, serial: Option<u64>) -> Option<u64> {
        let held = self.chunks.get_mut(&id)?;
        held.own.take_if(|own| serial.is_none_or(|serial| own.serial == serial))?;
        let size = u64::from(held.size);
        if held.ranges.is_empty() {
            self.chunks.remove(&id);
        }
        self.used -= size;
        self.leaving += size;
        self.exhausted = None;
        self.touched.remove(&id);
        self.in_transit.insert(id, size);
        Some(size)
    }

    /// Takes every chunk file out of the books that `doomed` says yes to and nobody has leased.
    /// Returns them, in transit, and their bytes.
    pub(super) fn take_own_where(&mut self, doomed: impl Fn(&ChunkId) -> bool) -> (Vec<ChunkId>, u64) {
        let owned = self.chunks.iter().filter(|(_, held)| held.own.is_some()).map(|(&id, _)| id);
        let taken: Vec<_> = owned.filter(|id| doomed(id) && !self.leased.contains(*id)).collect();
        let bytes = taken.iter().filter_map(|&id| self.take_own(id, None)).sum();
        (taken, bytes)
    }

    /// Whether a chunk is under a lease.
    pub(super) fn is_leased(&self, id: &ChunkId) -> bool {
        self.leased.contains(*id)
    }

    /// Forgets the parts of users' files that `doomed` says yes to: file and offset.
    pub(super) fn forget_ranges(&mut self, doomed: impl Fn(&Arc<UserFile>, u64) -> bool) {
        self.chunks.retain(|_, held| {
            held.ranges.retain(|range| !doomed(&range.file, range.offset));
            held.own.is_some() || !held.ranges.is_empty()
        });
    }

    /// The user's files that are referred to, each once.
    pub(super) fn user_files(&self) -> Vec<Arc<UserFile>> {
        let all = self.chunks.values().flat_map(|held| held.ranges.iter().map(|range| &range.file));
        let distinct: HashMap<_, _> = all.map(|file| (Arc::as_ptr(file), file)).collect();
        distinct.into_values().cloned().collect()
    }

    /// The ids of what is held whose first byte is `first`, in order.
    pub(super) fn ids_from(&self, first: u8) -> Vec<ChunkId> {
        let ids = self.chunks.keys().copied().filter(|id| id.as_bytes()[0] == first);
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids
    }

    /// The ids of everything held.
    pub(super) fn ids(&self) -> Vec<ChunkId> {
        self.chunks.keys().copied().collect()
    }

    /// Protects chunks from eviction until [`Holdings::release`].
    pub(super) fn lease(&mut self, ids: &[ChunkId]) {
        ids.iter().for_each(|&id| self.leased.add(id));
    }

    /// Takes back one [`Holdings::lease`].
    pub(super) fn release(&mut self, ids: &[ChunkId]) {
        ids.iter().for_each(|&id| self.leased.sub(id));
        self.exhausted = None;
    }

    /// Protects chunks from eviction until [`Holdings::unpin`].
    pub(super) fn pin(&mut self, ids: impl Iterator<Item = ChunkId>) {
        ids.for_each(|id| self.pinned.add(id));
    }

    /// Takes back one [`Holdings::pin`].
    pub(super) fn unpin(&mut self, ids: impl Iterator<Item = ChunkId>) {
        ids.for_each(|id| self.pinned.sub(id));
        self.exhausted = None;
    }

    /// The records of chunks used since the last call, if there are at least `least`.
    pub(super) fn drain_touched(&mut self, least: usize) -> Vec<(ChunkId, Record)> {
        if self.touched.len() < least {
            return Vec::new();
        }
        let touched = std::mem::take(&mut self.touched).into_iter();
        let records = touched.filter_map(|id| {
            let held = self.chunks.get(&id)?;
            Some((id, Record { size: held.size, last_use: held.own.as_ref()?.last_use }))
        });
        records.collect()
    }

    /// Bytes that chunk files may take, as the user said.
    pub(super) fn quota(&self) -> u64 {
        self.quota
    }

    /// What is spent, on a disk that has this `space`.
    pub(super) fn usage(&self, space: Space) -> Usage {
        let elsewhere = self.chunks.values().filter(|held| held.own.is_none());
        let Marks { high, low } = Marks::of(self.limit(space));
        Usage {
            used: self.used,
            quota: self.quota,
            high,
            low,
            free: (space != Space::UNKNOWN).then_some(space.free),
            referenced: elsewhere.map(|held| u64::from(held.size)).sum(),
            chunks: self.chunks.len(),
            hashed: 0,
            damaged: 0,
        }
    }

    /// What the chunk files may take, by the quota and by what is free.
    fn limit(&self, space: Space) -> u64 {
        self.quota.min(space.limit(self.used + self.leaving))
    }

    /// Takes what must go out of the books, so that chunk files may take `after` bytes of `limit`.
    fn make_room(&mut self, limit: u64, after: u64) -> Option<Vec<ChunkId>> {
        if after <= limit && self.exhausted.is_some_and(|used| after < used + EXHAUSTED_BYTES) {
            return Some(Vec::new());
        }
        let candidates = self.chunks.iter().filter_map(|(&id, held)| {
            let last_use = held.own.as_ref()?.last_use;
            let protected = self.leased.contains(id) || self.pinned.contains(id);
            Some(Candidate { id, size: held.size.into(), last_use, copies: held.copies, protected })
        });
        let evicted = sweep(candidates, limit, after)?;
        let freed: u64 = evicted.iter().filter_map(|&id| self.take_own(id, None)).sum();
        self.exhausted = Some(after - freed).filter(|left| Marks::of(limit).high < *left);
        Some(evicted)
    }

    fn add_range(&mut self, entry: ChunkEntry, file: &Arc<UserFile>, offset: u64) {
        let empty = || Held::new(entry.size);
        let ranges = &mut self.chunks.entry(entry.id).or_insert_with(empty).ranges;
        // Once in each file will do: a chunk of zeros may be in a file thousands of times. But in every file, because
        // any of them may be the one that stays. Files are added one after the other.
        let known = ranges.last().is_some_and(|range| Arc::ptr_eq(&range.file, file));
        if !known {
            ranges.push(Range { file: Arc::clone(file), offset });
        }
    }

    fn set_own(&mut self, id: ChunkId, size: u32, last_use: u64) {
        let held = self.chunks.entry(id).or_insert_with(|| Held::new(size));
        // Bytes of ours were hashed; the size of a range is only what a manifest says.
        held.size = size;
        held.own = Some(Own { serial: self.clock, last_use });
        self.used += u64::from(size);
    }

    fn touch(&mut self, id: ChunkId) {
        self.clock += 1;
        if let Some(own) = self.chunks.get_mut(&id).and_then(|held| held.own.as_mut()) {
            own.last_use = self.clock;
            self.touched.insert(id);
        }
    }
}

/// How many times something is held.
#[derive(Debug, Default)]
struct Counts(HashMap<ChunkId, u32>);

impl Counts {
    fn contains(&self, id: ChunkId) -> bool {
        self.0.contains_key(&id)
    }

    fn add(&mut self, id: ChunkId) {
        *self.0.entry(id).or_default() += 1;
    }

    fn sub(&mut self, id: ChunkId) {
        if let Some(count) = self.0.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&id);
            }
        }
    }
}
