//! Folders that are written to, some of them hostile.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, sync::Mutex};

use surf_chunker::{Options, PARTIAL_PREFIX};
use surf_protocol::Chunk;

use super::*;
use crate::source::Memory;

/// A model of these files.
fn model(files: &[(&str, &[u8])]) -> (Memory, Arc<Manifest>) {
    struct Keep<'a>(&'a Memory);
    impl surf_chunker::Sink for Keep<'_> {
        fn chunk(
            &self,
            chunk: &Chunk,
            _: &Path,
            _: u64,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            self.0.put(chunk.clone());
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let memory = Memory::default();
    let manifest = surf_chunker::cut(folder.path(), &Options::default(), &Keep(&memory)).unwrap();
    (memory, Arc::new(manifest))
}

async fn run((memory, manifest): &(Memory, Arc<Manifest>), dir: &Path) -> Result<Exported, ExportError> {
    export(memory, manifest, dir, |_| ()).await
}

/// Every file below `dir`, links not followed.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                all.insert(name, fs::read(path).unwrap());
            }
        }
    }
    all
}

const PLAIN: &[(&str, &[u8])] = &[("a", b"one"), ("empty", b""), ("sub/deep/b", b"two")];

fn plain() -> BTreeMap<String, Vec<u8>> {
    PLAIN.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect()
}

#[tokio::test]
async fn files_are_written_once_and_kept() {
    let model = model(PLAIN);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("not/there/yet");
    let told = Mutex::new(Vec::new());
    let done = export(&model.0, &model.1, &dir, |amount| told.lock().unwrap().push(amount)).await.unwrap();
    assert_eq!((done.files, done.bytes, files(&dir)), (3, 6, plain()));
    assert_eq!(told.lock().unwrap().last(), Some(&Amount { bytes: 6, total: 6 }));
    let written = |name: &str| fs::metadata(dir.join(name)).unwrap().modified().unwrap();
    let before = written("a");
    fs::remove_file(dir.join("sub/deep/b")).unwrap();
    run(&model, &dir).await.unwrap();
    assert_eq!((written("a"), files(&dir)), (before, plain()));
}

#[tokio::test]
async fn what_is_in_the_way_is_found_before_anything_is_written() {
    let model = model(PLAIN);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("sub/deep")).unwrap();
    fs::write(dir.path().join("sub/deep/b"), "mine").unwrap();
    let error = run(&model, dir.path()).await.unwrap_err();
    assert!(matches!(&error, ExportError::InTheWay(path) if path.ends_with("sub/deep/b")), "{error}");
    assert_eq!(files(dir.path()).len(), 1);
    for make in [
        |path: &Path| fs::create_dir(path).unwrap(),
        |path: &Path| {
            let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
            assert!(made.success());
        },
    ] {
        let dir = tempfile::tempdir().unwrap();
        make(&dir.path().join("a"));
        let error = run(&model, dir.path()).await.unwrap_err();
        assert!(matches!(&error, ExportError::InTheWay(_)), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sub"), "a file where a folder is to be").unwrap();
    let error = run(&model, dir.path()).await.unwrap_err();
    assert!(matches!(&error, ExportError::InTheWay(path) if path.ends_with("sub")), "{error}");
}

#[tokio::test]
async fn links_inside_the_target_are_not_followed() {
    let model = model(PLAIN);
    for name in ["sub", "sub/deep", "a", "sub/deep/b"] {
        for target in ["elsewhere", "nowhere"] {
            let home = tempfile::tempdir().unwrap();
            let (dir, elsewhere) = (home.path().join("out"), home.path().join("elsewhere"));
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            match PLAIN.iter().any(|(file, _)| *file == name) {
                true => fs::write(&elsewhere, "").unwrap(),
                false => fs::create_dir(&elsewhere).unwrap(),
            }
            symlink(home.path().join(target), dir.join(name)).unwrap();
            let error = run(&model, &dir).await.unwrap_err();
            assert!(matches!(&error, ExportError::Link(path) if path.ends_with(name)), "{name}: {error}");
            assert!(elsewhere.is_file() || fs::read_dir(&elsewhere).unwrap().next().is_none());
            assert!(!home.path().join("nowhere").exists());
            assert!(files(&dir).is_empty());
        }
    }
    // The folder that the user names may be a link.
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("real")).unwrap();
    symlink(home.path().join("real"), home.path().join("link")).unwrap();
    run(&model, &home.path().join("link")).await.unwrap();
    assert_eq!(files(&home.path().join("real")), plain());
}

#[tokio::test]
async fn what_a_killed_node_left_goes_with_the_next_export() {
    let model = model(PLAIN);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("sub/deep")).unwrap();
    for folder in ["", "sub/deep"] {
        fs::write(dir.path().join(folder).join(format!("{PARTIAL_PREFIX}0123")), "half").unwrap();
    }
    run(&model, dir.path()).await.unwrap();
    assert_eq!(files(dir.path()), plain());
}

#[tokio::test]
async fn harmful_names_are_refused_and_shown_without_harm() {
    let model = model(&[("a", b"one"), ("b\u{1b}[2J", b"two")]);
    let dir = tempfile::tempdir().unwrap();
    let error = run(&model, dir.path()).await.unwrap_err();
    assert!(matches!(&error, ExportError::Name { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(r"b\u{1b}[2J") && !text.contains('\u{1b}'), "{text:?}");
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn a_chunk_that_is_missing_leaves_nothing_half_written() {
    let (memory, manifest) = model(PLAIN);
    drop(memory);
    let dir = tempfile::tempdir().unwrap();
    let error = run(&(Memory::default(), manifest), dir.path()).await.unwrap_err();
    assert!(matches!(error, ExportError::Source(SourceError::Missing(_))), "{error}");
    assert!(files(dir.path()).is_empty());
}

#[test]
fn the_room_on_the_disk_is_looked_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    check_room(&target, dir.path(), 1).unwrap();
    let error = check_room(&target, dir.path(), u64::MAX).unwrap_err();
    assert!(matches!(&error, ExportError::NoRoom { needed: u64::MAX, room: 1.., .. }), "{error}");
    assert!(error.to_string().contains("out"), "{error}");
}
