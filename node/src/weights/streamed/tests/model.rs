//! A model to stream in tests, and a source that can be watched, held up and made to fail.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use surf_chunker::{Checkpoint, Group, GroupEntry, Parameter, Stack};
use surf_protocol::{
    Chunk, ChunkId, Dtype, FileEntry, Manifest, VerifiedRange,
    chunk::InFile,
    manifest::{ChunkEntry, FORMAT, Parts},
};
use tokio::sync::watch;

use crate::source::{Memory, ModelSource, SourceError, Urgency};

/// Bytes of a block of [`Model::of`].
pub(super) const BLOCK_SIZE: u64 = 4096 + 256;
/// Bytes in a row of its table.
pub(super) const ROW: usize = 256;

/// Files in the making.
#[derive(Default)]
pub(super) struct Model {
    pub(super) memory: Memory,
    pub(super) bytes: HashMap<String, Vec<u8>>,
    chunks: Vec<ChunkEntry>,
    size: u64,
    tensors: Vec<(Group, Parameter)>,
}

impl Model {
    /// A table of 32 rows, `blocks` blocks, and a head, with or without a matrix of its own.
    pub(super) fn of(blocks: u32, tied: bool) -> Self {
        let mut model = Self::default();
        model.add(Group::Embed, "embed", &[32, 64], 2048);
        for block in 0..blocks {
            model.add(self::block(block), &format!("{block}.matrix"), &[16, 64], 1024);
            model.add(self::block(block), &format!("{block}.norm"), &[64], 256);
        }
        model.add(Group::Head, "norm", &[64], 256);
        if !tied {
            model.add(Group::Head, "output", &[8, 64], 1024);
        }
        model
    }

    /// Adds an f32 tensor, cut into chunks of `chunk` bytes.
    pub(super) fn add(&mut self, group: Group, name: &str, shape: &[u64], chunk: usize) {
        let size = Dtype::F32.size_of(shape).unwrap();
        let seed = blake3::hash(name.as_bytes());
        let mut bytes = vec![0; size as usize];
        blake3::Hasher::new_keyed(seed.as_bytes()).finalize_xof().fill(&mut bytes);
        for piece in bytes.chunks(chunk) {
            let chunk = Chunk::of(Bytes::copy_from_slice(piece));
            self.chunks.push(ChunkEntry { id: chunk.id(), size: piece.len() as u32 });
            self.memory.put(chunk);
        }
        let (name, shape, offset) = (name.to_owned(), shape.to_vec(), self.size);
        self.bytes.insert(name.clone(), bytes);
        self.size += size;
        let name = name.into();
        self.tensors.push((group, Parameter { name, dtype: Dtype::F32, shape, file: 0, offset, size }));
    }

    /// Says that chunk `at` of the matrix of `group` has `size` bytes, and moves what follows.
    pub(super) fn claim_size(&mut self, group: &Group, at: usize, size: u32) {
        let tensor = self.tensors.iter().position(|(other, _)| other == group).unwrap();
        let mut end = 0;
        let starts = self.chunks.iter().map(|chunk| (end, end += u64::from(chunk.size)).0);
        let first = starts.collect::<Vec<_>>().binary_search(&self.tensors[tensor].1.offset).unwrap();
        let more = u64::from(size - self.chunks[first + at].size);
        self.chunks[first + at].size = size;
        self.size += more;
        self.tensors[tensor + 1..].iter_mut().for_each(|(_, entry)| entry.offset += more);
    }

    /// Says that the elements of `name`, four bytes each, are of another type, four times as many in a row.
    pub(super) fn retype(&mut self, name: &str, dtype: Dtype) {
        let (_, entry) = self.tensors.iter_mut().find(|(_, entry)| *entry.name == *name).unwrap();
        entry.dtype = dtype;
        entry.shape[1] *= 4;
    }

    pub(super) fn manifest(&self) -> Checkpoint {
        let mut tensors = self.tensors.clone();
        tensors.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        let mut groups = Vec::<GroupEntry>::new();
        for (group, entry) in &self.tensors {
            let at = tensors.iter().position(|(_, other)| other.name == entry.name).unwrap() as u32;
            match groups.last_mut().filter(|last| last.group == *group) {
                Some(last) => last.tensors.push(at),
                None => groups.push(GroupEntry { group: group.clone(), tensors: vec![at] }),
            }
        }
        let tensors = tensors.into_iter().map(|(_, entry)| entry).collect();
        let path = "model.safetensors".to_owned();
        let (size, chunks) = (self.size, self.chunks.clone());
        let file = FileEntry { path, size, blake3: [0; 32], sha256: [0; 32], chunks };
        let parts = Parts { format: FORMAT, files: vec![file], tensors: Vec::new() };
        Checkpoint::chosen(Arc::new(Manifest::new(parts).unwrap()), tensors, groups)
    }
}

pub(super) fn block(block: u32) -> Group {
    Group::Layer(Stack::Decoder, block)
}

/// A source that tells what it was asked.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) memory: Memory,
    /// Every chunk asked for, in order.
    pub(super) asked: Mutex<Vec<(ChunkId, Urgency)>>,
    pub(super) ranges: Mutex<Vec<(ChunkId, Range<u32>)>>,
    /// Chunks that nobody has, for now.
    pub(super) lost: Mutex<HashSet<ChunkId>>,
    /// Chunks whose file has changed since it was checked.
    pub(super) changed: Arc<Mutex<HashSet<ChunkId>>>,
    /// Chunks that may come; `None` is all.
    passing: watch::Sender<Option<HashSet<ChunkId>>>,
    /// Whether its chunks lie in mapped files.
    pub(super) in_file: bool,
    /// Futures that were not answered yet.
    pub(super) waiting: Arc<AtomicU64>,
    pub(super) live: Arc<Live>,
}

/// Bytes that were given out and are still held.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) now: AtomicU64,
    pub(super) peak: AtomicU64,
}

struct Counted {
    bytes: Bytes,
    live: Arc<Live>,
}

struct Waiting(Arc<AtomicU64>);

impl Watched {
    /// A source of all that `memory` has; with `open`, one that answers at once.
    pub(super) fn new(memory: Memory, open: bool, in_file: bool) -> Arc<Self> {
        Arc::new(Self {
            memory,
            asked: Mutex::default(),
            ranges: Mutex::default(),
            lost: Mutex::default(),
            changed: Arc::default(),
            passing: watch::Sender::new((!open).then(HashSet::new)),
            in_file,
            waiting: Arc::default(),
            live: Arc::default(),
        })
    }

    /// Lets `ids` come.
    pub(super) fn let_pass(&self, ids: impl Iterator<Item = ChunkId>) {
        self.passing.send_replace(Some(ids.collect()));
    }

    /// Lets everything come.
    pub(super) fn open(&self) {
        self.passing.send_replace(None);
    }

    /// How often each chunk was asked for.
    pub(super) fn times(&self) -> HashMap<ChunkId, usize> {
        let mut times = HashMap::new();
        for (id, _) in &*self.asked.lock().unwrap() {
            *times.entry(*id).or_default() += 1;
        }
        times
    }
}

/// A file whose changes a test decides on.
#[derive(Debug)]
struct Changes {
    id: ChunkId,
    changed: Arc<Mutex<HashSet<ChunkId>>>,
}

impl InFile for Changes {
    fn is_unchanged(&self) -> bool {
        !self.changed.lock().unwrap().contains(&self.id)
    }
}

impl ModelSource for Watched {
    fn chunk_in_place(
        &self,
        chunk: ChunkEntry,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        async move {
            let found = self.chunk(chunk, urgency).await?;
            let file = Changes { id: chunk.id, changed: Arc::clone(&self.changed) };
            Ok(if self.in_file { found.in_file(Arc::new(file)) } else { found })
        }
        .boxed()
    }

    fn chunk(&self, chunk: ChunkEntry, urgency: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>> {
        self.asked.lock().unwrap().push((chunk.id, urgency));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting(Arc::clone(&self.waiting));
        async move {
            let _waiting = waiting;
            let passes =
                |passing: &Option<HashSet<_>>| passing.as_ref().is_none_or(|ids| ids.contains(&chunk.id));
            drop(self.passing.subscribe().wait_for(passes).await);
            tokio::task::yield_now().await;
            if self.lost.lock().unwrap().contains(&chunk.id) {
                return Err(SourceError::Missing(chunk.id));
            }
            let found = ModelSource::chunk(&self.memory, chunk, urgency).await?;
            let counted = Bytes::from_owner(Counted::new(found.bytes().clone(), &self.live));
            Ok(Chunk::verify(chunk.id, counted).unwrap())
        }
        .boxed()
    }

    fn range(
        &self,
        chunk: ChunkEntry,
        range: Range<u32>,
    ) -> BoxFuture<'_, Result<VerifiedRange, SourceError>> {
        self.ranges.lock().unwrap().push((chunk.id, range.clone()));
        if self.lost.lock().unwrap().contains(&chunk.id) {
            return async move { Err(SourceError::Missing(chunk.id)) }.boxed();
        }
        self.memory.range(chunk, range)
    }
}

impl Counted {
    fn new(bytes: Bytes, live: &Arc<Live>) -> Self {
        let now = live.now.fetch_add(bytes.len() as u64, Ordering::SeqCst) + bytes.len() as u64;
        live.peak.fetch_max(now, Ordering::SeqCst);
        Self { bytes, live: Arc::clone(live) }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.now.fetch_sub(self.bytes.len() as u64, Ordering::SeqCst);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
