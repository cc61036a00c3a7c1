//! What opening and writing cost. Measurements, not tests: they print, and assert nothing about time.
//!
//! `cargo test --workspace --lib store::tests::cost -- --ignored --nocapture --test-threads 1`

use futures::StreamExt;
use tokio::time::Instant;

use super::*;

/// 100 GB in chunks of 2 MiB.
const MANY: u64 = 50_000;
/// 1 GiB of them.
const GIB_CHUNKS: u64 = 512;
const CHUNK_BYTES: usize = 2 << 20;

#[tokio::test]
#[ignore = "a measurement"]
async fn opening() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..MANY).map(|seed| sized(seed, 16)).collect();
    open(dir.path()).put_manifest(&model(&[&chunks])).await.unwrap();
    for chunk in &chunks {
        let file = chunk_file(dir.path(), chunk);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, chunk.bytes()).unwrap();
    }
    timed("50,000 chunk files, none in the index", || open(dir.path()));
    timed("the same, all in the index", || open(dir.path()));
    timed("the same, again", || open(dir.path()));
    fs::remove_dir_all(dir.path().join("manifests")).unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    timed("the same, neither index nor manifest: hashed", || open(dir.path()));
    let started = Instant::now();
    let opened = index::Index::open(&dir.path().join("index")).unwrap();
    println!("of which the index takes {:?} for {}", started.elapsed(), opened.1.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn writing() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..GIB_CHUNKS).map(|seed| sized(seed, CHUNK_BYTES)).collect();
    let store = open(dir.path());
    let started = Instant::now();
    for chunk in &chunks {
        store.put(chunk.clone()).await.unwrap();
    }
    println!("512 chunks of 2 MiB, one after the other: {:?}", started.elapsed());
    drop(store);
    println!("and closed: {:?}", started.elapsed());
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let started = Instant::now();
    let puts = chunks.iter().map(|chunk| store.put(chunk.clone()));
    let mut puts = StreamExt::buffer_unordered(futures::stream::iter(puts), 8);
    while let Some(put) = puts.next().await {
        put.unwrap();
    }
    println!("512 chunks of 2 MiB, eight at once: {:?}", started.elapsed());
}

fn timed(what: &str, open: impl FnOnce() -> Store) {
    let started = Instant::now();
    let store = open();
    let took = started.elapsed();
    let usage = store.usage();
    assert_eq!(usage.chunks as u64, MANY);
    println!("{what}: {took:?}, {} bytes hashed", usage.hashed);
}
