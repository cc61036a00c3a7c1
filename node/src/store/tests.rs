//! What is kept, what is evicted, and what survives a kill.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use surf_protocol::manifest::{FORMAT, FileEntry, Parts};
use tempfile::TempDir;

use super::disk::Look;
use super::*;
use crate::source::conformance;

mod cost;
mod crash;
mod damage;
mod full;
mod older;
mod references;
mod room;

const SIZE: usize = 1000;

fn open(dir: &Path) -> Store {
    open_with(dir, u64::MAX / 2)
}

fn open_with(dir: &Path, quota: u64) -> Store {
    Store::open(&config::Store { dir: dir.to_owned(), quota, scrub: None }).unwrap()
}

/// A chunk of `SIZE` bytes that depends on `seed`.
fn chunk(seed: u64) -> Chunk {
    sized(seed, SIZE)
}

fn sized(seed: u64, size: usize) -> Chunk {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Chunk::of(bytes.into())
}

fn entry(chunk: &Chunk) -> ChunkEntry {
    ChunkEntry { id: chunk.id(), size: chunk.bytes().len() as u32 }
}

/// A model of one file for each list of chunks.
fn model(files: &[&[Chunk]]) -> Arc<Manifest> {
    let entries = files.iter().enumerate().map(|(at, chunks)| FileEntry {
        path: format!("file-{at}"),
        size: chunks.iter().map(|chunk| chunk.bytes().len() as u64).sum(),
        blake3: [0; 32],
        sha256: [0; 32],
        chunks: chunks.iter().map(entry).collect(),
    });
    let parts = Parts { format: FORMAT, files: entries.collect(), ..Parts::default() };
    Arc::new(Manifest::new(parts).unwrap())
}

async fn put_all(store: &Store, chunks: &[Chunk]) {
    for chunk in chunks {
        store.put(chunk.clone()).await.unwrap();
    }
}

fn chunk_file(dir: &Path, chunk: &Chunk) -> PathBuf {
    let hex = chunk.id().to_hex();
    dir.join("chunks").join(&hex[..2]).join(hex)
}

fn held(store: &Store, chunks: &[Chunk]) -> Vec<bool> {
    chunks.iter().map(|chunk| store.contains(chunk.id())).collect()
}

async fn read(store: &Store, chunk: &Chunk) -> Option<Chunk> {
    store.get(entry(chunk)).await.unwrap()
}

#[tokio::test]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let put = async |chunk| assert!(store.put(chunk).await.unwrap());
    conformance::chunk_source(&store, put).await;
}

#[tokio::test]
async fn a_chunk_is_new_once_and_changes_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut changes = store.changes();
    assert!(!changes.has_changed().unwrap());
    assert!(store.put(chunk(1)).await.unwrap());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(!store.put(chunk(1)).await.unwrap());
    assert!(!changes.has_changed().unwrap());
    let usage = store.usage();
    assert_eq!((usage.used, usage.chunks, usage.referenced), (SIZE as u64, 1, 0));
    assert_eq!(store.serve(chunk(1).id()).await.unwrap().unwrap(), chunk(1).bytes());
    assert_eq!(store.serve(chunk(2).id()).await.unwrap(), None);
}

#[tokio::test]
async fn the_empty_chunk_is_a_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let empty = Chunk::of(Bytes::new());
    store.put(empty.clone()).await.unwrap();
    assert_eq!(read(&store, &empty).await, Some(empty));
}

#[tokio::test]
async fn the_wrong_size_is_not_here() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(chunk(1)).await.unwrap();
    let asked = ChunkEntry { id: chunk(1).id(), size: 7 };
    assert_eq!(store.get(asked).await.unwrap(), None);
    assert!(store.contains(chunk(1).id()));
}

#[tokio::test]
async fn a_damaged_chunk_is_absent_and_can_be_put_again() {
    let damages: [fn(&Path); 4] = [
        |path| fs::write(path, vec![7; SIZE]).unwrap(),
        |path| fs::write(path, b"torn").unwrap(),
        |path| fs::write(path, b"").unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let chunk = chunk(1);
        store.put(chunk.clone()).await.unwrap();
        damage(&chunk_file(dir.path(), &chunk));
        assert_eq!(read(&store, &chunk).await, None);
        assert_eq!((store.contains(chunk.id()), store.usage().used), (false, 0));
        assert!(!chunk_file(dir.path(), &chunk).exists());
        assert!(store.put(chunk.clone()).await.unwrap());
        assert_eq!(read(&store, &chunk).await, Some(chunk));
    }
}

#[tokio::test]
async fn a_chunk_damaged_while_the_store_was_closed_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(chunk(1)).await.unwrap();
    drop(store);
    fs::write(chunk_file(dir.path(), &chunk(1)), vec![7; SIZE]).unwrap();
    let store = open(dir.path());
    assert_eq!(store.serve(chunk(1).id()).await.unwrap(), None);
    assert!(!store.contains(chunk(1).id()));
}

#[tokio::test]
async fn bytes_that_were_handed_out_outlive_the_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), SIZE as u64);
    store.put(chunk(1)).await.unwrap();
    let bytes = store.serve(chunk(1).id()).await.unwrap().unwrap();
    store.put(chunk(2)).await.unwrap();
    assert!(!store.contains(chunk(1).id()));
    assert_eq!(bytes, chunk(1).bytes());
}

#[tokio::test]
async fn leased_and_pinned_chunks_stay() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 2 * SIZE as u64;
    let store = open_with(dir.path(), quota);
    let chunks: Vec<_> = (0..4).map(chunk).collect();
    let pinned = model(&[&chunks[..1]]);
    store.put_manifest(&pinned).await.unwrap();
    store.pin(pinned.id()).await.unwrap();
    let lease = store.lease([chunks[1].id()]);
    put_all(&store, &chunks[..2]).await;
    let full = store.put(chunks[2].clone()).await.unwrap_err();
    assert!(
        matches!(full, StoreError::Full { need, quota: of } if need == SIZE as u64 && of == quota),
        "{full}"
    );
    assert_eq!(held(&store, &chunks), [true, true, false, false]);

    drop(lease);
    put_all(&store, &chunks[2..]).await;
    assert_eq!(held(&store, &chunks), [true, false, false, true]);
    drop(store);
    let store = open_with(dir.path(), quota);
    assert!(store.models()[0].pinned);
    put_all(&store, &chunks[1..3]).await;
    assert_eq!(held(&store, &chunks), [true, false, true, false]);
    store.unpin(pinned.id()).await.unwrap();
    put_all(&store, &chunks[3..]).await;
    assert_eq!(held(&store, &chunks), [false, false, true, true]);
    let larger = store.put(sized(9, 3 * SIZE)).await.unwrap_err();
    assert!(matches!(larger, StoreError::Full { .. }));
    assert_eq!(store.usage().used, quota, "nothing goes for what can never fit");
}

#[tokio::test]
async fn two_leases_on_a_chunk_are_two() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), SIZE as u64);
    let (one, two) = (store.lease([chunk(1).id()]), store.lease([chunk(1).id(), chunk(7).id()]));
    store.put(chunk(1)).await.unwrap();
    drop(one);
    assert!(store.put(chunk(2)).await.is_err());
    drop(two);
    assert!(store.put(chunk(2)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_at_once_do_not_overshoot_the_quota() {
    const AT_ONCE: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let quota = 7 * SIZE as u64 + 1;
    let store = open_with(dir.path(), quota);
    let folder = dir.path().join("chunks");
    // Chunks that come, go and come again: the same names are written and removed at once.
    let puts = (0..AT_ONCE).map(|seed| store.put(chunk(seed % 17)));
    let most = AtomicU64::new(0);
    let mut puts = std::pin::pin!(futures::future::join_all(puts));
    let results = loop {
        tokio::select! {
            results = &mut puts => break results,
            () = tokio::time::sleep(Duration::from_millis(1)) => {
                most.fetch_max(bytes_in(&folder), Ordering::Relaxed);
            }
        }
    };
    let refused = results.iter().filter(|result| matches!(result, Err(StoreError::Full { .. }))).count();
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), refused);
    assert!(most.into_inner() <= quota);
    let (usage, on_disk) = (store.usage(), bytes_in(&folder));
    assert_eq!((usage.used, usage.chunks as u64 * SIZE as u64), (on_disk, on_disk));
    assert!(0 < on_disk && on_disk <= quota);
    assert_eq!(store.verify(None, |_, _| ()).await.unwrap().bad, []);
}

fn bytes_in(folder: &Path) -> u64 {
    let sizes = fs::read_dir(folder).unwrap().flatten().map(|entry| match entry.path().is_dir() {
        true => bytes_in(&entry.path()),
        false => entry.metadata().map_or(0, |metadata| metadata.len()),
    });
    sizes.sum()
}

async fn filled(dir: &Path) -> (Vec<Chunk>, Arc<Manifest>) {
    let store = open(dir);
    let chunks: Vec<_> = (0..20).map(chunk).collect();
    put_all(&store, &chunks).await;
    let manifest = model(&[&chunks[..10], &chunks[5..]]);
    store.put_manifest(&manifest).await.unwrap();
    store.set_alias("org/tiny", manifest.id()).await.unwrap();
    store.pin(manifest.id()).await.unwrap();
    (chunks, manifest)
}

async fn expect_all(dir: &Path, chunks: &[Chunk], manifest: &Manifest) {
    let store = open(dir);
    for chunk in chunks {
        assert_eq!(read(&store, chunk).await.as_ref(), Some(chunk));
    }
    let summary = &store.models()[0];
    assert_eq!((summary.id, summary.pinned, summary.held_chunks), (manifest.id(), true, 20));
    assert_eq!((summary.files, summary.bytes, summary.held_bytes), (2, 20_000, 20_000));
    assert_eq!(summary.aliases, ["org/tiny"]);
    assert_eq!(store.resolve("org/tiny"), Ok(manifest.id()));
    assert!(store.have(manifest.id()).await.unwrap().unwrap().is_full());
    assert_eq!(store.manifest(manifest.id()).await.unwrap().unwrap(), manifest.encode());
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (chunks, manifest) = filled(dir.path()).await;
    expect_all(dir.path(), &chunks, &manifest).await;
}

#[tokio::test]
async fn a_lost_or_damaged_index_costs_nothing_but_time() {
    let damages: [fn(&Path); 5] = [
        |index| fs::remove_dir_all(index).unwrap(),
        |index| overwrite(index, |bytes| bytes.truncate(bytes.len() / 2)),
        |index| overwrite(index, |bytes| bytes.fill(0xa5)),
        |index| overwrite(index, |bytes| bytes.clear()),
        |index| overwrite(index, |bytes| bytes.iter_mut().skip(20).step_by(7).for_each(|byte| *byte ^= 0x55)),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let (chunks, manifest) = filled(dir.path()).await;
        damage(&dir.path().join("index"));
        // The manifest knows them: they need not be hashed to be known again.
        assert_eq!(open(dir.path()).usage().hashed, 0);
        expect_all(dir.path(), &chunks, &manifest).await;
        let left = fs::read_dir(dir.path()).unwrap().flatten();
        assert!(left.filter(|entry| entry.file_name().to_string_lossy().contains("damaged")).count() == 0);
    }
}

fn overwrite(index: &Path, damage: impl Fn(&mut Vec<u8>) + Copy) {
    for entry in fs::read_dir(index).unwrap().flatten() {
        if entry.path().is_dir() {
            overwrite(&entry.path(), damage);
        } else {
            let mut bytes = fs::read(entry.path()).unwrap();
            damage(&mut bytes);
            fs::write(entry.path(), bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn an_index_that_knows_too_much_or_too_little_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let (mut chunks, manifest) = filled(dir.path()).await;
    fs::remove_file(chunk_file(dir.path(), &chunks[3])).unwrap();
    fs::write(chunk_file(dir.path(), &chunks[4]), b"short").unwrap();
    // Written by a process that was killed before it could tell the index.
    let late = chunk(99);
    fs::create_dir_all(chunk_file(dir.path(), &late).parent().unwrap()).unwrap();
    fs::write(chunk_file(dir.path(), &late), late.bytes()).unwrap();
    let store = open(dir.path());
    assert_eq!(store.usage().hashed, (SIZE + b"short".len()) as u64);
    assert_eq!(held(&store, &chunks[2..6]), [true, false, false, true]);
    assert_eq!(read(&store, &late).await, Some(late));
    assert_eq!(store.usage().used, 19_000);
    let have = store.have(manifest.id()).await.unwrap().unwrap();
    assert_eq!((have.count(), have.contains(3), have.contains(4)), (18, false, false));
    put_all(&store, &chunks.drain(3..5).collect::<Vec<_>>()).await;
    assert!(store.have(manifest.id()).await.unwrap().unwrap().is_full());
}

#[tokio::test]
async fn strays_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (chunks, manifest) = filled(dir.path()).await;
    let whole = chunk_file(dir.path(), &chunks[0]);
    let strays = [
        dir.path().join("incoming").join(".tmpXYZ"),
        dir.path().join("chunks").join("note.txt"),
        whole.with_extension("part"),
        // A whole chunk's name, with other bytes; in another folder; with too many bytes.
        chunk_file(dir.path(), &chunk(50)),
        dir.path().join("chunks").join(whole.file_name().unwrap()),
        chunk_file(dir.path(), &chunk(51)),
        dir.path().join("manifests").join("00".repeat(31)),
    ];
    for stray in &strays {
        fs::create_dir_all(stray.parent().unwrap()).unwrap();
        fs::write(stray, b"stray").unwrap();
    }
    fs::File::create(&strays[5]).unwrap().set_len(1 << 40).unwrap();
    expect_all(dir.path(), &chunks, &manifest).await;
    for stray in &strays {
        assert!(!stray.exists(), "{}", stray.display());
    }
}

#[tokio::test]
async fn unreadable_notes_are_set_aside_and_chunks_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (chunks, manifest) = filled(dir.path()).await;
    fs::write(dir.path().join("aliases.json"), b"{").unwrap();
    let note = dir.path().join("notes").join(format!("{}.json", manifest.id().to_hex()));
    fs::write(&note, b"\xff").unwrap();
    for _ in 0..2 {
        let store = open(dir.path());
        let summary = &store.models()[0];
        assert_eq!((summary.held_chunks, summary.pinned, summary.aliases.len()), (chunks.len(), false, 0));
        assert!(note.with_extension("damaged").exists());
        assert!(dir.path().join("aliases.damaged").exists());
    }
}

#[tokio::test]
async fn a_folder_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let config = config::Store { dir: dir.path().to_owned(), quota: 1, scrub: None };
    let error = Store::open(&config).unwrap_err();
    assert!(matches!(&error, StoreError::InUse { dir: named } if named == dir.path()));
    assert!(error.to_string().contains("another surf-node uses"));
    drop(store);
    open(dir.path());
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Store::open(&config::Store { dir: file.join("store"), quota: 1, scrub: None }).unwrap_err();
    assert!(matches!(error, StoreError::Folder { .. }));
    assert!(error.to_string().contains(&file.display().to_string()));
}

#[tokio::test]
async fn removing_a_model_leaves_what_others_need() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunks: Vec<_> = (0..6).map(chunk).collect();
    put_all(&store, &chunks).await;
    let (one, two) = (model(&[&chunks[..3]]), model(&[&chunks[2..5]]));
    for (manifest, name) in [(&one, "one"), (&two, "two")] {
        store.put_manifest(manifest).await.unwrap();
        store.set_alias(name, manifest.id()).await.unwrap();
        store.pin(manifest.id()).await.unwrap();
    }
    let lease = store.lease([chunks[1].id()]);
    assert_eq!(store.remove(one.id()).await.unwrap(), Freed { chunks: 1, bytes: SIZE as u64 });
    assert_eq!(held(&store, &chunks), [false, true, true, true, true, true]);
    assert!(matches!(store.remove(one.id()).await, Err(StoreError::NoSuchModel(id)) if id == one.id()));
    assert!(matches!(store.pin(one.id()).await, Err(StoreError::NoSuchModel(_))));
    assert!(store.manifest_of(one.id()).is_none());
    assert_eq!(store.resolve("one"), Err(ResolveError::Unknown("one".to_owned())));

    // Chunk 5 belongs to no model, chunk 1 to none any more.
    assert_eq!(store.gc().await.unwrap(), Freed { chunks: 1, bytes: SIZE as u64 });
    drop(lease);
    assert_eq!(store.gc().await.unwrap().chunks, 1);
    drop(store);
    let store = open(dir.path());
    assert_eq!(held(&store, &chunks), [false, false, true, true, true, false]);
    assert_eq!(store.models().iter().map(|model| model.id).collect::<Vec<_>>(), [two.id()]);
    assert_eq!(store.resolve("two"), Ok(two.id()));
}

#[tokio::test]
async fn names_move_and_bad_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (one, two) = (model(&[&[chunk(1)]]), model(&[&[chunk(2)]]));
    store.put_manifest(&one).await.unwrap();
    store.set_alias("tiny", one.id()).await.unwrap();
    store.set_alias("tiny", two.id()).await.unwrap();
    assert_eq!(store.resolve("tiny"), Ok(two.id()));
    assert!(store.models()[0].aliases.is_empty());
    assert_eq!(store.resolve(&one.id().to_hex()[..10]), Ok(one.id()));
    assert!(matches!(store.set_alias("deadbeef", one.id()).await, Err(StoreError::BadAlias(_))));
}

/// Eviction does not wait for whoever reads, and a file that went on purpose is not a damaged one.
#[tokio::test]
async fn what_was_evicted_meanwhile_is_not_bad() {
    let dir = tempfile::tempdir().unwrap();
    let (chunks, _) = filled(dir.path()).await;
    let store = open(dir.path());
    let look = |id, place| store.disk.read_checked(id, place, Manner::Copied).unwrap();
    let places = |id| store.disk.holdings().places(id);
    let (evicted, removed) = (chunks[3].id(), chunks[4].id());
    let before = (places(evicted), places(removed));
    store.disk.holdings().take_own(evicted, None).unwrap();
    store.disk.discard(&[evicted]);
    fs::remove_file(chunk_file(dir.path(), &chunks[4])).unwrap();
    assert!(matches!(look(evicted, &before.0[0]), Look::Gone));
    assert!(matches!(look(removed, &before.1[0]), Look::Bad));
}

#[tokio::test]
async fn verify_finds_and_drops_what_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let (chunks, manifest) = filled(dir.path()).await;
    let store = open(dir.path());
    let other = chunk(77);
    store.put(other.clone()).await.unwrap();
    for bad in [&chunks[3], &chunks[8], &other] {
        fs::write(chunk_file(dir.path(), bad), vec![1; SIZE]).unwrap();
    }
    let seen = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&seen);
    let progress = move |done, total| {
        assert!(done <= total && total == 20_000);
        told.fetch_max(done, Ordering::Relaxed);
    };
    let mut bad = vec![chunks[3].id(), chunks[8].id()];
    bad.sort();
    let found = store.verify(Some(manifest.id()), progress).await.unwrap();
    assert_eq!(found, Verified { checked: 20, bad, missing: 2 });
    assert_eq!(seen.load(Ordering::Relaxed), 20_000);
    assert!(!store.contains(chunks[3].id()) && !chunk_file(dir.path(), &chunks[3]).exists());
    let found = store.verify(None, |_, _| ()).await.unwrap();
    assert_eq!(found, Verified { checked: 19, bad: vec![other.id()], missing: 2 });
    // What is not here is told each time, not only when it goes.
    for of in [None, Some(manifest.id())] {
        let found = store.verify(of, |_, _| ()).await.unwrap();
        assert_eq!(found, Verified { checked: 18, bad: vec![], missing: 2 });
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_failure_that_says_nothing_about_the_chunk_does_not_cost_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(chunk(1)).await.unwrap();
    let file = chunk_file(dir.path(), &chunk(1));
    let away = file.with_extension("away");
    fs::rename(&file, &away).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let error = store.get(entry(&chunk(1))).await.unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    assert!(store.contains(chunk(1).id()));
    fs::rename(&away, &file).unwrap();
    assert_eq!(read(&store, &chunk(1)).await, Some(chunk(1)));
}
