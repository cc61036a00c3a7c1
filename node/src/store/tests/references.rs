//! Files of the user's: what is published from where it stands, and what is noticed when it changes.

use super::*;

pub(super) struct Published {
    /// The folder of the store, beside the user's.
    pub(super) dir: TempDir,
    pub(super) path: PathBuf,
    pub(super) chunks: Vec<Chunk>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) store: Store,
}

pub(super) async fn published() -> Published {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my model.bin");
    let chunks: Vec<_> = (0..4).map(chunk).collect();
    fs::write(&path, joined(&chunks)).unwrap();
    let manifest = model(&[&chunks]);
    let store = open(&dir.path().join("store"));
    store.put_manifest(&manifest).await.unwrap();
    let new = store.reference(&manifest, vec![(0, path.clone())]).await.unwrap();
    assert_eq!(new, Referenced { chunks: 4, bytes: 4 * SIZE as u64 });
    Published { dir, path, chunks, manifest, store }
}

pub(super) fn joined(chunks: &[Chunk]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| chunk.bytes().to_vec()).collect()
}

/// Puts the time of the last change back, as a careless or malicious program might.
fn keep_time(path: &Path, change: impl FnOnce()) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    change();
    fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

#[tokio::test]
async fn a_published_file_is_served_from_where_it_is() {
    let Published { dir, path, chunks, manifest, store } = published().await;
    let usage = store.usage();
    assert_eq!((usage.used, usage.quota, usage.referenced, usage.chunks), (0, u64::MAX / 2, 4000, 4));
    for chunk in &chunks {
        assert_eq!(read(&store, chunk).await.as_ref(), Some(chunk));
        assert_eq!(store.serve(chunk.id()).await.unwrap().unwrap(), chunk.bytes());
    }
    assert!(store.have(manifest.id()).await.unwrap().unwrap().is_full());
    let again = store.reference(&manifest, vec![(0, path.clone())]).await.unwrap();
    assert_eq!(again, Referenced::default());
    drop(store);
    fs::remove_dir_all(dir.path().join("store/index")).unwrap();
    let store = open(&dir.path().join("store"));
    assert_eq!(store.models()[0].held_chunks, 4);
    assert_eq!(read(&store, &chunks[3]).await.as_ref(), Some(&chunks[3]));
    store.remove(manifest.id()).await.unwrap();
    assert!(path.exists());
    assert_eq!(store.usage().chunks, 0);
}

/// Models that share a chunk come and go: the one file that is left is enough.
#[tokio::test]
async fn a_chunk_is_read_from_whichever_file_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let shared = chunk(0);
    let mut paths = Vec::new();
    for at in 1..8 {
        let chunks = [shared.clone(), chunk(at), shared.clone()];
        let (path, manifest) = (dir.path().join(at.to_string()), model(&[&chunks]));
        fs::write(&path, joined(&chunks)).unwrap();
        store.put_manifest(&manifest).await.unwrap();
        store.reference(&manifest, vec![(0, path.clone())]).await.unwrap();
        paths.push(path);
    }
    let left = paths.swap_remove(5);
    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    assert_eq!(read(&store, &shared).await.as_ref(), Some(&shared));
    fs::remove_file(left).unwrap();
    assert_eq!(read(&store, &shared).await, None);
}

#[tokio::test]
async fn every_change_of_a_published_file_is_noticed() {
    let changes: [fn(&Path); 5] = [
        |path| fs::write(path, b"short").unwrap(),
        |path| fs::remove_file(path).unwrap(),
        |path| fs::File::options().write(true).open(path).unwrap().set_len(3999).unwrap(),
        |path| {
            let bytes = fs::read(path).unwrap();
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::write(path, bytes).unwrap();
        },
        |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.set_modified(before + Duration::from_nanos(1)).unwrap();
        },
    ];
    for (at, change) in changes.iter().enumerate() {
        for restart in [false, true] {
            let Published { dir, path, chunks, store, .. } = published().await;
            assert!(store.serve(chunks[0].id()).await.unwrap().is_some());
            change(&path);
            let store = if restart {
                drop(store);
                open(&dir.path().join("store"))
            } else {
                store
            };
            assert_eq!(store.serve(chunks[0].id()).await.unwrap(), None, "change {at}");
            assert_eq!(read(&store, &chunks[3]).await, None, "change {at}");
            assert_eq!(store.usage().chunks, 0);
        }
    }
}

#[tokio::test]
async fn other_bytes_under_the_same_stamp_are_not_served() {
    let Published { dir, path, chunks, manifest, store } = published().await;
    let mut bytes = joined(&chunks);
    bytes[SIZE + 5] ^= 1;
    keep_time(&path, || fs::write(&path, &bytes).unwrap());
    assert_eq!(store.serve(chunks[1].id()).await.unwrap(), None);
    assert_eq!(read(&store, &chunks[1]).await, None);
    assert_eq!(held(&store, &chunks), [true, false, true, true]);
    drop(store);
    let store = open(&dir.path().join("store"));
    assert_eq!(held(&store, &chunks), [true, false, true, true], "this is known after a restart");
    // What is missing comes from elsewhere, or the file is put right and published again.
    assert!(store.put(chunks[1].clone()).await.unwrap());
    assert!(store.have(manifest.id()).await.unwrap().unwrap().is_full());
    store.remove(manifest.id()).await.unwrap();
    fs::write(&path, joined(&chunks)).unwrap();
    store.put_manifest(&manifest).await.unwrap();
    assert_eq!(store.reference(&manifest, vec![(0, path)]).await.unwrap().chunks, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_truncated_while_it_is_served_is_an_absence() {
    let Published { dir: _dir, path, chunks, store, .. } = published().await;
    let (begun, begin) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn({
        let (store, chunks) = (store.clone(), chunks.clone());
        let mut begun = Some(begun);
        async move {
            let mut served = 0;
            while let Some(bytes) = store.serve(chunks[served % 4].id()).await.unwrap() {
                assert_eq!(bytes, chunks[served % 4].bytes());
                served += 1;
                begun.take().into_iter().for_each(|begun| begun.send(()).unwrap());
            }
            served
        }
    });
    begin.await.unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert!(0 < serving.await.unwrap());
    assert_eq!(store.usage().chunks, 0);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_a_file_s_place_is_waited_for_by_nobody() {
    let Published { dir, path, chunks, manifest, store } = published().await;
    assert!(!store.put(chunks[3].clone()).await.unwrap());
    let pipe = |place: &Path| {
        fs::remove_file(place).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(place).status().unwrap().success());
    };
    pipe(&path);
    let copy = chunk_file(&dir.path().join("store"), &chunks[3]);
    pipe(&copy);
    let looking = async {
        for chunk in &chunks {
            assert_eq!(store.serve(chunk.id()).await.unwrap(), None);
            assert_eq!(read(&store, chunk).await, None);
        }
        store.verify(None, |_, _| ()).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.expect("nobody waits");
    drop(store);
    if copy.exists() {
        fs::remove_file(&copy).unwrap();
    }
    assert!(std::process::Command::new("mkfifo").arg(&copy).status().unwrap().success());
    let store = open(&dir.path().join("store"));
    assert_eq!(store.manifest_of(manifest.id()).map(|found| found.id()), Some(manifest.id()));
    assert_eq!(read(&store, &chunks[3]).await, None);
}

#[tokio::test]
async fn verify_reports_damage_in_published_files() {
    let Published { dir: _dir, path, chunks, store, .. } = published().await;
    keep_time(&path, || {
        let mut bytes = joined(&chunks);
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
    });
    let found = store.verify(None, |_, _| ()).await.unwrap();
    assert_eq!(found, Verified { checked: 4, bad: vec![chunks[0].id()], missing: 1 });
    fs::write(&path, b"").unwrap();
    assert_eq!(store.verify(None, |_, _| ()).await.unwrap().bad.len(), 3);
    assert_eq!(store.usage().chunks, 0);
}

#[tokio::test]
async fn verify_tells_at_once_what_is_left_of_a_file_that_changed() {
    let Published { dir: _dir, path, chunks, store, .. } = published().await;
    let mut bytes = joined(&chunks);
    bytes[0] ^= 1;
    fs::write(&path, bytes).unwrap();
    let found = store.verify(None, |_, _| ()).await.unwrap();
    assert_eq!(found, Verified { checked: 4, bad: vec![chunks[0].id()], missing: 1 });
    let found = store.verify(None, |_, _| ()).await.unwrap();
    assert_eq!(found, Verified { checked: 3, bad: vec![], missing: 1 });
}

#[tokio::test]
async fn verify_finds_nothing_bad_where_one_copy_is_good() {
    let Published { dir: _dir, path, chunks, store, .. } = published().await;
    for chunk in &chunks {
        store.put(chunk.clone()).await.unwrap();
    }
    fs::remove_file(&path).unwrap();
    let found = store.verify(None, |_, _| ()).await.unwrap();
    assert_eq!(found, Verified { checked: 4, bad: vec![], missing: 0 });
}

#[tokio::test]
async fn a_copy_helps_when_the_published_file_goes() {
    let Published { dir, path, chunks, store, .. } = published().await;
    assert!(!store.put(chunks[2].clone()).await.unwrap(), "it was here, though in no file of ours");
    assert!(chunk_file(&dir.path().join("store"), &chunks[2]).exists());
    fs::remove_file(&path).unwrap();
    assert_eq!(read(&store, &chunks[0]).await, None);
    assert_eq!(read(&store, &chunks[2]).await.as_ref(), Some(&chunks[2]));
}

#[tokio::test]
async fn gc_forgets_files_that_are_gone() {
    let Published { dir, path, chunks, manifest, store } = published().await;
    let (other, twin) = (dir.path().join("other.bin"), model(&[&chunks[..2], &chunks[2..]]));
    fs::write(&other, joined(&chunks[..2])).unwrap();
    store.put_manifest(&twin).await.unwrap();
    assert_eq!(store.reference(&twin, vec![(0, other)]).await.unwrap(), Referenced::default());
    fs::remove_file(&path).unwrap();
    assert_eq!(store.gc().await.unwrap(), Freed::default());
    assert_eq!(held(&store, &chunks), [true, true, false, false]);
    drop(store);
    fs::write(&path, joined(&chunks)).unwrap();
    let store = open(&dir.path().join("store"));
    assert_eq!(store.models().iter().filter(|model| model.id == manifest.id()).count(), 1);
    assert_eq!(held(&store, &chunks), [true, true, false, false]);
}

#[tokio::test]
async fn files_that_cannot_be_what_was_cut_are_refused() {
    let Published { dir, path, manifest, store, .. } = published().await;
    let refused = async |file, path: &Path| store.reference(&manifest, vec![(file, path.to_owned())]).await;
    let absent = dir.path().join("absent");
    assert!(matches!(refused(0, &absent).await, Err(StoreError::File { path, .. }) if path == absent));
    assert!(matches!(refused(1, &path).await, Err(StoreError::NoSuchFile { file: 1, .. })));
    fs::write(&path, b"short").unwrap();
    let changed = refused(0, &path).await;
    assert!(matches!(changed, Err(StoreError::Changed { expected: 4000, found: 5, .. })), "{changed:?}");
}
