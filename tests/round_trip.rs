//! What is exported is what was published, byte for byte, whatever the folder holds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use surf_tests::{Process, fixture};

/// What coreutils' `sha256sum` says of every file below `dir`, by relative path.
fn sha256sums(dir: &Path) -> String {
    let script = "find -L . -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// 100 MB that do not compress, repeat or resemble anything.
fn noise() -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(b"noise").finalize_xof();
    let mut bytes = vec![0; 100_000_000];
    reader.fill(&mut bytes);
    bytes
}

fn odd_folder(dir: &Path) {
    copy_folder(&fixture("llama"), dir);
    fs::write(dir.join("empty"), b"").unwrap();
    fs::create_dir_all(dir.join("a folder/in a folder")).unwrap();
    fs::write(dir.join("a folder/in a folder/Größe und 波.txt"), "水\n").unwrap();
    fs::write(dir.join("noise.bin"), noise()).unwrap();
    symlink("a folder/in a folder", dir.join("link to a folder")).unwrap();
    symlink("noise.bin", dir.join("link to noise")).unwrap();
}

#[test]
fn an_odd_folder_comes_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    odd_folder(folder.path());
    let a = Process::join(&[], &[]);
    let b = Process::join(&[a.addr()], &[]);
    let published = a.done(&["publish", folder.path().to_str().unwrap()]);
    let model = published["model"].as_str().unwrap();
    b.done(&["pull", model]);
    let out = tempfile::tempdir().unwrap();
    let exported = b.done(&["export", model, out.path().to_str().unwrap()]);
    assert_eq!(exported["files"], published["files"]);
    assert_eq!(sha256sums(out.path()), sha256sums(folder.path()));

    // Once more into the same folder changes nothing; over another file it refuses.
    b.done(&["export", model, out.path().to_str().unwrap()]);
    fs::write(out.path().join("config.json"), b"mine").unwrap();
    let refused = b.run(&["export", model, out.path().to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(fs::read(out.path().join("config.json")).unwrap(), b"mine");
}

#[test]
fn a_link_that_leaves_the_folder_needs_permission() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    symlink(outside.path().join("secret"), folder.path().join("link")).unwrap();
    let a = Process::join(&[], &[]);
    let path = folder.path().to_str().unwrap();
    let refused = a.run(&["publish", path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("link"));
    assert_eq!(a.done(&["publish", path, "--follow-links"])["files"], 1);
}

#[test]
fn a_snapshot_in_a_hugging_face_cache_is_recognised() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--someone--llama");
    let snapshot = repository.join("snapshots/0123abcd");
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (at, entry) in fs::read_dir(fixture("llama")).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), repository.join(format!("blobs/{at}"))).unwrap();
        symlink(format!("../../blobs/{at}"), snapshot.join(entry.file_name())).unwrap();
    }
    let a = Process::join(&[], &[]);
    let linked = a.done(&["publish", snapshot.to_str().unwrap()]);
    let plain = a.done(&["publish", fixture("llama").to_str().unwrap()]);
    assert_eq!(linked["model"], plain["model"]);
}
