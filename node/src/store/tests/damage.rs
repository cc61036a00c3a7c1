//! A disk that cannot be relied on: bits flip, files shrink, and the node finds out before anybody else.

use std::{collections::BTreeSet, io::Write};

use tokio::time::timeout;

use super::{
    references::{Published, joined, published},
    *,
};

/// Long enough on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

async fn lost(store: &Store) -> BTreeSet<ChunkId> {
    timeout(SOON, store.lost()).await.expect("something is lost").into_iter().collect()
}

/// Flips a bit of the file at `path`, and sees to it that its times change.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    let before = fs::metadata(path).unwrap().modified().unwrap();
    while fs::metadata(path).unwrap().modified().unwrap() == before {
        fs::File::options().write(true).open(path).unwrap().write_all(&bytes).unwrap();
    }
}

#[tokio::test]
async fn changed_and_shrunk_chunks_are_never_handed_out_and_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunks: Vec<_> = (0..6).map(chunk).collect();
    put_all(&store, &chunks).await;
    for chunk in &chunks {
        // Read before: nothing is taken on trust for having been right once.
        assert_eq!(store.serve(chunk.id()).await.unwrap().unwrap(), chunk.bytes());
    }
    let file = |at: usize| chunk_file(dir.path(), &chunks[at]);
    flip(&file(0), 7);
    flip(&file(1), SIZE - 1);
    fs::File::options().write(true).open(file(2)).unwrap().set_len(3).unwrap();
    fs::File::options().append(true).open(file(3)).unwrap().write_all(b"x").unwrap();
    fs::remove_file(file(4)).unwrap();
    assert_eq!(store.serve(chunks[0].id()).await.unwrap(), None);
    assert_eq!(read(&store, &chunks[1]).await, None);
    assert_eq!(store.get_in_place(entry(&chunks[2])).await.unwrap(), None);
    assert_eq!(store.serve(chunks[3].id()).await.unwrap(), None);
    assert_eq!(store.serve(chunks[4].id()).await.unwrap(), None);
    assert_eq!(held(&store, &chunks), [false, false, false, false, false, true]);
    assert_eq!(lost(&store).await, chunks[..5].iter().map(Chunk::id).collect());
    assert_eq!(store.usage().damaged, 5);
    // They can be put again.
    put_all(&store, &chunks).await;
    assert_eq!(read(&store, &chunks[0]).await.as_ref(), Some(&chunks[0]));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_is_computed_with_in_place_tells_when_it_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let large = sized(1, 300_000);
    store.put(large.clone()).await.unwrap();
    let mapped = loop {
        let got = store.get_in_place(entry(&large)).await.unwrap().unwrap();
        assert_eq!(got, large);
        // A file that was written just now is read.
        if got.is_in_file() {
            break got;
        }
        tokio::task::yield_now().await;
    };
    let copied = read(&store, &large).await.unwrap();
    assert!(!copied.is_in_file() && mapped.is_unchanged());
    fs::File::options().write(true).open(chunk_file(dir.path(), &large)).unwrap().set_len(5000).unwrap();
    assert_eq!(mapped.bytes()[299_999], 0, "and the process lives");
    assert!(!mapped.is_unchanged() && copied.is_unchanged());
    assert_eq!(copied, large);
    assert_eq!(store.get_in_place(entry(&large)).await.unwrap(), None);
    assert_eq!(lost(&store).await, BTreeSet::from([large.id()]));
}

#[tokio::test]
async fn of_a_changed_file_only_what_differs_is_lost() {
    let Published { dir, path, chunks, store, .. } = published().await;
    flip(&path, SIZE + 5);
    assert_eq!(store.serve(chunks[0].id()).await.unwrap(), None, "nothing is trusted until it was looked at");
    assert_eq!(lost(&store).await, BTreeSet::from([chunks[1].id()]));
    for chunk in [&chunks[0], &chunks[2], &chunks[3]] {
        assert_eq!(store.serve(chunk.id()).await.unwrap().unwrap(), chunk.bytes());
    }
    drop(store);
    let store = open(&dir.path().join("store"));
    assert_eq!(held(&store, &chunks), [true, false, true, true], "this is known after a restart");

    // The end is cut off while nobody looks.
    drop(store);
    fs::write(&path, &joined(&chunks)[..3 * SIZE + 10]).unwrap();
    let store = open(&dir.path().join("store"));
    assert_eq!(store.usage().chunks, 0);
    assert_eq!(lost(&store).await, BTreeSet::from([chunks[3].id()]));
    assert_eq!(held(&store, &chunks), [true, true, true, false]);
}

#[tokio::test]
async fn another_date_loses_nothing_and_another_file_is_not_fetched_back() {
    let Published { dir: _dir, path, chunks, manifest, store } = published().await;
    let settled = async |expected: [bool; 4]| {
        let looking = async {
            loop {
                let _looks = timeout(Duration::from_millis(20), store.lost()).await;
                if held(&store, &chunks) == expected {
                    return;
                }
            }
        };
        timeout(SOON, looking).await.expect("it settles");
    };
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(store.serve(chunks[0].id()).await.unwrap(), None);
    settled([true; 4]).await;
    assert_eq!(store.serve(chunks[0].id()).await.unwrap().unwrap(), chunks[0].bytes());

    fs::write(&path, vec![9; 4 * SIZE]).unwrap();
    assert_eq!(store.serve(chunks[0].id()).await.unwrap(), None);
    settled([false; 4]).await;
    assert!(timeout(Duration::from_millis(20), store.lost()).await.is_err(), "its owner wanted it so");
    assert_eq!(store.verify(Some(manifest.id()), |_, _| ()).await.unwrap().missing, 4);
}

#[tokio::test]
async fn the_scrubber_finds_what_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunks: Vec<_> = (0..20).map(chunk).collect();
    put_all(&store, &chunks).await;
    let scrubbing = tokio::spawn({
        let store = store.clone();
        async move { store.scrub(Duration::from_secs(1)).await }
    });
    let bad: BTreeSet<_> = [3, 8, 15].map(|at: usize| chunks[at].id()).into();
    for at in [3, 8, 15] {
        flip(&chunk_file(dir.path(), &chunks[at]), 9);
    }
    let mut found = BTreeSet::new();
    while found != bad {
        found.extend(lost(&store).await);
    }
    let rounds = async {
        while store.scrubbing().is_none_or(|state| state.finished.is_none()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, rounds).await.expect("a round ends");
    let state = store.scrubbing().unwrap();
    assert_eq!(state.bad, 3);
    assert!(17 * SIZE as u64 <= state.bytes);
    scrubbing.abort();
    // What was written down is read again.
    assert!(dir.path().join("scrub.json").exists());
}

#[tokio::test]
async fn a_damaged_manifest_is_asked_for_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (chunks, manifest) = filled(dir.path()).await;
    let path = dir.path().join("manifests").join(manifest.id().to_hex());
    for damage in [&b""[..], b"garbage", &manifest.encode()[1..]] {
        fs::write(&path, damage).unwrap();
        let store = open(dir.path());
        assert!(store.models().is_empty());
        assert_eq!(store.lost_manifests(), [manifest.id()]);
        assert!(held(&store, &chunks).iter().all(|here| *here), "chunks stay");
        store.put_manifest(&manifest).await.unwrap();
        assert!(store.lost_manifests().is_empty());
        drop(store);
        assert_eq!(open(dir.path()).models().len(), 1);
    }
    fs::write(&path, b"").unwrap();
    let store = open(dir.path());
    store.gc().await.unwrap();
    assert!(store.lost_manifests().is_empty() && !path.exists());
}
