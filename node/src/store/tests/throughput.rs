//! How fast chunks go in and out. Measured by hand:
//! `cargo test -p surf-node --lib store::tests::throughput -- --ignored --nocapture`, with `SURF_BENCH_DIR`.

use futures::StreamExt;
use tokio::time::Instant;

use super::*;

const CHUNKS: u64 = 128;
const CHUNK_BYTES: usize = 8 << 20;
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_gibibyte_in_and_out() {
    let parent = std::env::var_os("SURF_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let chunks: Vec<_> = (0..CHUNKS).map(|seed| sized(seed, CHUNK_BYTES)).collect();
    let store = open(dir.path());
    timed("put", &chunks, async |chunk| assert!(store.put(chunk.clone()).await.unwrap())).await;
    timed("get (map, hash)", &chunks, async |chunk| assert!(read(&store, chunk).await.is_some())).await;
    timed("serve (map)", &chunks, async |chunk| {
        assert_eq!(store.serve(chunk.id()).await.unwrap().unwrap().len(), CHUNK_BYTES);
    })
    .await;
    drop(store);
    let start = Instant::now();
    let store = open(dir.path());
    println!("open, index whole: {:?}", start.elapsed());
    drop(store);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let start = Instant::now();
    assert_eq!(open(dir.path()).usage().chunks as u64, CHUNKS);
    println!("open, index lost: {:?}", start.elapsed());
}

async fn timed(what: &str, chunks: &[Chunk], work: impl AsyncFn(&Chunk)) {
    let start = Instant::now();
    futures::stream::iter(chunks)
        .map(|chunk| work(chunk))
        .buffer_unordered(AT_ONCE)
        .for_each(|()| async {})
        .await;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = CHUNKS as f64 * CHUNK_BYTES as f64;
    println!("{what}: {:.0} MB/s", bytes / seconds / 1e6);
}
