//! The only pass over the bytes: each is read once and given to three hashes and the sink.
//!
//! One thread per file reads; the hashes run in rayon's pool. While one chunk is hashed, its reader
//! hands over the chunk before and reads the one after, so a file has two buffers in use and SHA-256, which
//! cannot be split, is never kept waiting. Reads are plain: a mapped file that shrinks would kill the process.

use std::{
    fs::File,
    io::{self, Read},
    num::NonZero,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use surf_protocol::{Chunk, FileEntry, manifest::ChunkEntry};

use crate::{CutError, Listed, cut::Sink};

/// Files read at once, if there are as many cores. Each takes two chunks of memory.
const FILES_MAX: usize = 4;

/// Bytes up to which a chunk is hashed by its reader: less work than asking other threads.
const ALONE_SIZE_MAX: usize = 128 * 1024;

/// Reads and hashes `files`, cut as `plans` say, and hands their chunks to `sink`.
pub(crate) fn files(
    files: &[Listed],
    plans: &[Vec<u32>],
    sink: &dyn Sink,
) -> Result<Vec<FileEntry>, CutError> {
    // Large files first, so that no core idles while the last is read.
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(files[at].size));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut done = Vec::new();
        while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let outcome = file(&files[at], &plans[at], sink, &stop);
            let failed = outcome.is_err();
            done.extend(outcome.transpose().map(|outcome| (at, outcome)));
            if failed {
                stop.store(true, Ordering::Relaxed);
            }
        }
        done
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(FILES_MAX).min(files.len());
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(panicked)).collect()
    });
    // If several failed, the first by path is told of.
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Goes on with the panic of a sink, on the thread that asked.
fn panicked<T>(panic: Box<dyn std::any::Any + Send>) -> T {
    std::panic::resume_unwind(panic)
}

/// `None`, if told to stop.
fn file(
    listed: &Listed,
    plan: &[u32],
    sink: &dyn Sink,
    stop: &AtomicBool,
) -> Result<Option<FileEntry>, CutError> {
    let mut reader = Reader { file: listed.open()?, listed, plan: plan.iter(), spare: None };
    let mut hashes = Hashes { blake3: blake3::Hasher::new(), sha256: Sha256::new() };
    let mut handing = Handing { listed, sink, offset: 0, chunks: Vec::with_capacity(plan.len()) };
    let mut before: Option<(Chunk, Buffer)> = None;
    let mut current = reader.next()?;
    while let Some(buffer) = current {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut meanwhile = || {
            if let Some((chunk, buffer)) = before.take() {
                handing.hand_over(chunk)?;
                reader.reuse(buffer);
            }
            reader.next()
        };
        let (chunk, after) = match buffer.bytes.len() {
            ..=ALONE_SIZE_MAX => (hashes.here(&buffer.bytes), meanwhile()),
            _ => hashes.in_pool(&buffer.bytes, meanwhile),
        };
        before = Some((chunk, buffer));
        current = after?;
    }
    if let Some((chunk, _)) = before {
        handing.hand_over(chunk)?;
    }
    reader.finish()?;
    Ok(Some(FileEntry {
        path: listed.path.clone(),
        size: listed.size,
        blake3: *hashes.blake3.finalize().as_bytes(),
        sha256: hashes.sha256.finalize().into(),
        chunks: handing.chunks,
    }))
}

struct Hashes {
    blake3: blake3::Hasher,
    sha256: Sha256,
}

impl Hashes {
    fn here(&mut self, bytes: &Bytes) -> Chunk {
        self.sha256.update(bytes);
        self.blake3.update(bytes);
        Chunk::of(bytes.clone())
    }

    /// Hashes on other threads, and does `meanwhile` on this one, which may wait for the disk.
    fn in_pool<T>(&mut self, bytes: &Bytes, meanwhile: impl FnOnce() -> T) -> (Chunk, T) {
        let mut chunk = None;
        let after = rayon::in_place_scope(|scope| {
            scope.spawn(|_| self.sha256.update(bytes));
            scope.spawn(|_| chunk = Some(Chunk::of(bytes.clone())));
            scope.spawn(|_| {
                self.blake3.update(bytes);
            });
            meanwhile()
        });
        (chunk.expect("the scope has waited for what was spawned in it"), after)
    }
}

struct Handing<'a> {
    listed: &'a Listed,
    sink: &'a dyn Sink,
    offset: u64,
    chunks: Vec<ChunkEntry>,
}

impl Handing<'_> {
    fn hand_over(&mut self, chunk: Chunk) -> Result<(), CutError> {
        let size = chunk.bytes().len() as u32;
        self.sink
            .chunk(&chunk, &self.listed.real, self.offset)
            .map_err(|source| CutError::Sink { file: self.listed.seen.clone(), source })?;
        self.chunks.push(ChunkEntry { id: chunk.id(), size });
        self.offset += u64::from(size);
        Ok(())
    }
}

/// Bytes of one chunk, at the start of memory that may be larger.
struct Buffer {
    bytes: Bytes,
    memory: Bytes,
}

struct Reader<'a> {
    file: File,
    listed: &'a Listed,
    plan: std::slice::Iter<'a, u32>,
    spare: Option<Vec<u8>>,
}

impl Reader<'_> {
    /// The next chunk's bytes; `None` after the last.
    fn next(&mut self) -> Result<Option<Buffer>, CutError> {
        let Some(&size) = self.plan.next() else { return Ok(None) };
        let size = size as usize;
        let spare = self.spare.take().filter(|spare| size <= spare.len());
        let mut memory = spare.unwrap_or_else(|| vec![0; size]);
        self.file.read_exact(&mut memory[..size]).map_err(|source| self.listed.failed(source))?;
        let memory = Bytes::from(memory);
        Ok(Some(Buffer { bytes: memory.slice(..size), memory }))
    }

    /// Takes back the memory of a chunk that was handed over, unless the sink has kept it.
    fn reuse(&mut self, Buffer { bytes, memory }: Buffer) {
        drop(bytes);
        self.spare = memory.is_unique().then(|| memory.into());
    }

    /// Checks that the file ends where it did, and was not touched.
    fn finish(mut self) -> Result<(), CutError> {
        match self.file.read(&mut [0]) {
            Ok(0) => self.listed.unchanged(&self.file),
            Ok(_) => Err(CutError::Changed { file: self.listed.seen.clone() }),
            Err(source) if source.kind() == io::ErrorKind::Interrupted => self.finish(),
            Err(source) => Err(self.listed.failed(source)),
        }
    }
}
