//! When room is made, and what goes.

use super::*;

/// Chunks that fit in the quota. The high mark is at 190 of them, the low one at 170.
const FIT: u64 = 200;
const QUOTA: u64 = FIT * SIZE as u64;

/// Waits until what was evicted is removed.
pub(super) async fn settled(store: &Store, dir: &Path) {
    for _ in 0..5000 {
        if bytes_in(&dir.join("chunks")) == store.usage().used {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("evicted files are still there");
}

fn first_held(store: &Store, chunks: &[Chunk]) -> Vec<usize> {
    let held = held(store, chunks);
    (0..chunks.len()).filter(|&at| held[at]).collect()
}

#[tokio::test]
async fn the_longest_unused_go_when_the_high_mark_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..FIT).map(chunk).collect();
    let store = open_with(dir.path(), QUOTA);
    put_all(&store, &chunks[..190]).await;
    let usage = store.usage();
    assert_eq!((usage.used, usage.high, usage.low, usage.quota), (190_000, 190_000, 170_000, QUOTA));
    read(&store, &chunks[0]).await.unwrap();
    drop(store);
    // That 0 was used after 1 is known after a restart, at which nothing goes.
    let store = open_with(dir.path(), QUOTA);
    assert_eq!(store.usage().used, 190_000);
    put_all(&store, &chunks[190..191]).await;
    let expected: Vec<_> = [0].into_iter().chain(22..191).collect();
    assert_eq!(first_held(&store, &chunks), expected);
    settled(&store, dir.path()).await;
    assert!(!chunk_file(dir.path(), &chunks[1]).exists());
    store.serve(chunks[22].id()).await.unwrap().unwrap();
    put_all(&store, &chunks[1..22]).await;
    assert!(store.contains(chunks[22].id()) && !store.contains(chunks[23].id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_never_exceed_the_quota_while_others_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), QUOTA);
    let folder = dir.path().join("chunks");
    let mut most = 0;
    for first in (0..1500).step_by(15) {
        let puts = (first..first + 15).map(|seed| store.put(chunk(seed)));
        assert!(futures::future::join_all(puts).await.into_iter().all(|put| put.unwrap()));
        // Nothing is added while this looks, so it counts no more than there was when it began.
        most = most.max(bytes_in(&folder));
    }
    assert!(QUOTA / 2 < most && most <= QUOTA, "{most}");
    let used = store.usage().used;
    assert!((170_000..=190_000).contains(&used), "{used}");
    settled(&store, dir.path()).await;
    assert_eq!(store.verify(None, |_, _| ()).await.unwrap().bad, []);
}

#[tokio::test]
async fn what_others_hold_goes_first_and_the_last_copy_last() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..FIT).map(chunk).collect();
    let store = open_with(dir.path(), QUOTA);
    let (known, unknown) = (model(&[&chunks[..60]]), model(&[&chunks[60..]]));
    for manifest in [&known, &unknown] {
        store.put_manifest(manifest).await.unwrap();
    }
    put_all(&store, &chunks[..190]).await;
    // The oldest twenty are nowhere else, the next are with one, the youngest of the sixty with many.
    let copies: Vec<u8> = (0..60).map(|at| [0, 1, 200][at / 20]).collect();
    store.note_copies(known.id(), &copies);
    store.note_copies(unknown.id(), &[]);
    store.note_copies(ModelId::of(b"nobody's"), &[1, 2, 3]);
    put_all(&store, &chunks[190..191]).await;
    let expected: Vec<_> = (0..20).chain(21..40).chain(60..191).collect();
    assert_eq!(first_held(&store, &chunks), expected, "twenty with many copies, and one by age");
    put_all(&store, &chunks[40..60]).await;
    let _lease = store.lease(chunks[60..].iter().map(Chunk::id));
    put_all(&store, &chunks[191..192]).await;
    assert!(store.contains(chunks[19].id()), "the last copy stays while others may go");
    assert!(!store.contains(chunks[21].id()), "but one with one more copy went");
}

#[tokio::test]
async fn a_lowered_quota_is_kept_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..100).map(chunk).collect();
    let store = open_with(dir.path(), QUOTA);
    put_all(&store, &chunks).await;
    drop(store);
    // Below the quota nothing goes, though the high mark is passed: it may be a whole model.
    let store = open_with(dir.path(), 100_000);
    assert_eq!((store.usage().used, store.usage().high), (100_000, 95_000));
    drop(store);
    let store = open_with(dir.path(), 99_000);
    assert_eq!(store.usage().used, 84_000);
    assert_eq!(bytes_in(&dir.path().join("chunks")), 84_000);
    let pinned = model(&[&chunks[16..]]);
    store.put_manifest(&pinned).await.unwrap();
    store.pin(pinned.id()).await.unwrap();
    drop(store);
    let store = open_with(dir.path(), 50_000);
    assert_eq!(store.usage().used, 84_000, "pinned chunks stay");
    assert!(matches!(store.put(chunk(500)).await, Err(StoreError::Full { .. })));
}

#[tokio::test]
async fn every_read_is_hashed_and_no_start_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(chunk(1)).await.unwrap();
    store.serve(chunk(1).id()).await.unwrap().unwrap();
    assert_eq!(store.usage().hashed, SIZE as u64);
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.usage().hashed, 0);
    for _ in 0..3 {
        store.serve(chunk(1).id()).await.unwrap().unwrap();
    }
    assert_eq!(store.usage().hashed, 3 * SIZE as u64);
}
