//! How much memory a manifest from a stranger takes while it is checked: at most four times its size, its own bytes
//! included.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use surf_protocol::{
    ChunkId, FileEntry, Manifest, TensorEntry,
    manifest::{ChunkEntry, FORMAT, Parts},
};

/// The system's allocator, counting what is taken.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one hands everything to the system's")]
// SAFETY: every call is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        more(size);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn file(path: String, chunks: Vec<ChunkEntry>) -> FileEntry {
    let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    FileEntry { path, size, blake3: [1; 32], sha256: [2; 32], chunks }
}

fn chunk(at: usize) -> ChunkEntry {
    ChunkEntry { id: ChunkId::of(&at.to_le_bytes()), size: 200 }
}

fn tensor(name: String, at: usize) -> TensorEntry {
    let shape = [100, 2].into();
    TensorEntry {
        file: 0,
        name: name.into(),
        dtype: "U8".parse().unwrap(),
        shape,
        offset: 200 * at as u64,
        size: 200,
    }
}

fn parts(files: Vec<FileEntry>, tensors: Vec<TensorEntry>) -> Vec<u8> {
    // Encoded by the library, whatever the check says.
    let parts = Parts { format: FORMAT, files, tensors };
    Manifest::new(parts).unwrap().encode()
}

/// What it is called, the path of each file, and whether each has a chunk of its own.
type Shape = (&'static str, fn(usize) -> String, bool);

/// All in one test: the counter is one for all threads.
#[test]
fn a_manifest_takes_at_most_four_times_its_size() {
    const MANY: usize = 100_000;
    let chunks = || (0..MANY).map(chunk).collect::<Vec<_>>();
    let shapes: [Shape; 3] = [
        ("deep paths", |at| format!("{at:06}{}", "/a".repeat(400)), false),
        ("short paths", |at| format!("{at:06}"), false),
        ("one chunk each", |at| format!("{at:06}"), true),
    ];
    let mut manifests: Vec<(&str, Vec<u8>)> = Vec::new();
    for (what, path, with_chunk) in shapes {
        let count = if what == "deep paths" { MANY / 10 } else { MANY };
        let of = |at: usize| if with_chunk { vec![chunk(at)] } else { Vec::new() };
        manifests.push((what, parts((0..count).map(|at| file(path(at), of(at))).collect(), Vec::new())));
    }
    manifests.push(("one file of many chunks", parts(vec![file("w".to_owned(), chunks())], Vec::new())));
    let twice = [chunks(), chunks()].concat();
    manifests.push(("the same chunks twice", parts(vec![file("w".to_owned(), twice)], Vec::new())));
    let names = (0..MANY).map(|at| tensor(format!("model.layers.{at:06}.mlp.experts.gate_proj.weight"), at));
    manifests.push(("tensors", parts(vec![file("w".to_owned(), chunks())], names.collect())));
    for (what, bytes) in manifests {
        let before = NOW.load(Ordering::Relaxed) - bytes.len();
        PEAK.store(before, Ordering::Relaxed);
        let manifest = Manifest::decode(&bytes).unwrap();
        let peak = PEAK.load(Ordering::Relaxed) - before;
        let ratio = peak as f64 / bytes.len() as f64;
        println!("{what}: {} bytes, {peak} at the most, {ratio:.2} times", bytes.len());
        assert!(ratio <= 4.0, "{what} takes {ratio:.2} times its {} bytes", bytes.len());
        drop(manifest);
    }
}
