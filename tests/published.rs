//! Any folder can be published; what cannot be run says so, to the publisher and to who asks for text. And a large
//! manifest from a stranger costs little.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::{Value, json};
use surf_protocol::{
    ChunkId, FileEntry, Manifest,
    manifest::{ChunkEntry, FORMAT, Parts},
};
use surf_tests::{Process, fixture};

const INDEX: &str = "model.safetensors.index.json";

/// A copy of a fixture, without its recorded outputs.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "expected.safetensors" {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// Tensors of a safetensors file: names, entries of the header, bytes.
fn tensors(path: &Path) -> Vec<(String, Value, Vec<u8>)> {
    let file = fs::read(path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let data = &file[8 + length..];
    let named = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let of = |entry: &Value, at: usize| entry["data_offsets"][at].as_u64().unwrap() as usize;
    named.map(|(name, entry)| (name, entry.clone(), data[of(&entry, 0)..of(&entry, 1)].to_vec())).collect()
}

fn write(path: &Path, tensors: &[(String, Value, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, entry, bytes) in tensors {
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        header.insert(name.clone(), entry);
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
}

fn greedy(node: &Process, model: &str) -> Vec<Value> {
    node.lines(&["generate", model, "-p", "The sea", "--max-tokens", "8"])
}

/// What is copied first must not make room for what is copied last.
#[test]
fn a_copy_that_does_not_fit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 24 << 20];
    blake3::Hasher::new().update(b"copied").finalize_xof().fill(&mut bytes);
    fs::write(folder.path().join("weights.bin"), bytes).unwrap();
    let node = Process::join(&[], &["--cache-size", "8MiB"]);
    let output = node.run(&["publish", "--copy", folder.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cache"), "{said}");
    assert_eq!(node.done(&["models"]), json!([]));
}

/// What is done to a folder before it is published.
type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn any_folder_is_published_and_says_why_it_does_not_run() {
    let node = Process::join(&[], &[]);
    let legacy = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pickles/legacy.pt")).unwrap();
    let whole = fs::read(fixture("llama").join("model.safetensors")).unwrap();
    let cases: [(&str, Damage); 5] = [
        ("after 0 bytes", &|dir| fs::write(dir.join("model.safetensors"), b"").unwrap()),
        ("bytes of data", &|dir| {
            fs::write(dir.join("model.safetensors"), &whole[..whole.len() - 1]).unwrap()
        }),
        ("which does not have it", &|dir| {
            fs::rename(dir.join("model.safetensors"), dir.join("a.safetensors")).unwrap();
            fs::write(dir.join(INDEX), r#"{"weight_map": {"nowhere": "a.safetensors"}}"#).unwrap();
        }),
        ("before 1.6", &|dir| {
            fs::remove_file(dir.join("model.safetensors")).unwrap();
            fs::write(dir.join("pytorch_model.bin"), &legacy).unwrap();
        }),
        ("is of type F4", &|dir| {
            let mut all = tensors(&dir.join("model.safetensors"));
            all[0].1["dtype"] = "F4".into();
            write(&dir.join("model.safetensors"), &all);
        }),
    ];
    for (why, change) in cases {
        let folder = copy("llama");
        change(folder.path());
        let published = node.run(&["publish", folder.path().to_str().unwrap()]);
        let told = String::from_utf8_lossy(&published.stderr).into_owned();
        assert!(published.status.success(), "{told}");
        let last = String::from_utf8(published.stdout).unwrap();
        let done: Value = serde_json::from_str(last.trim().lines().last().unwrap()).unwrap();
        let notice = done["notices"][0].as_str().unwrap();
        assert!(notice.contains(why) && told.contains(notice), "{notice}\n{told}");
        let asked = node.run(&["generate", done["model"].as_str().unwrap(), "-p", "x"]);
        let error = String::from_utf8_lossy(&asked.stderr).replace("\\\"", "\"");
        // It names the model.
        let reason = notice.strip_prefix("the model ").unwrap();
        assert!(!asked.status.success() && error.contains(reason), "{error}");
    }
}

/// A pull fetches what a published file no longer holds, though nobody has looked at the file since.
#[test]
fn a_pull_makes_up_for_a_published_file_that_is_gone() {
    let (seed, folders) = (Process::join(&[], &[]), [copy("llama"), copy("llama")]);
    let model = seed.done(&["publish", folders[0].path().to_str().unwrap()])["model"].clone();
    let (model, folder) = (model.as_str().unwrap(), &folders[1]);
    let node = Process::join(&[seed.addr()], &[]);
    assert_eq!(node.done(&["publish", folder.path().to_str().unwrap()])["model"], model);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let pulled = node.done(&["pull", model]);
    assert!(0 < pulled["fetched_bytes"].as_u64().unwrap(), "{pulled}");
    let verified = node.done(&["verify", model]);
    assert_eq!((&verified["bad"], &verified["missing"]), (&json!(0), &json!(0)), "{verified}");
}

#[test]
fn of_duplicates_the_one_that_the_index_names_is_run() {
    let node = Process::join(&[], &[]);
    let good =
        node.done(&["publish", fixture("llama").to_str().unwrap()])["model"].as_str().unwrap().to_owned();
    let expected = surf_tests::text(&greedy(&node, &good));
    let all = tensors(&fixture("llama").join("model.safetensors"));
    let zeros: Vec<_> =
        all.iter().map(|(name, entry, bytes)| (name.clone(), entry.clone(), vec![0; bytes.len()])).collect();
    let map = |shard: &str| -> serde_json::Map<String, Value> {
        all.iter().map(|(name, ..)| (name.clone(), shard.into())).collect()
    };
    // An overlay over shards of zeros, and a stale index beside the whole.
    let overlay = copy("llama");
    fs::remove_file(overlay.path().join("model.safetensors")).unwrap();
    write(&overlay.path().join("model-00001-of-00002.safetensors"), &zeros);
    write(&overlay.path().join("model-00002-of-00002.safetensors"), &zeros[..3]);
    write(&overlay.path().join("model-overlay.safetensors"), &all);
    let index = json!({"metadata": {}, "weight_map": map("model-overlay.safetensors")});
    fs::write(overlay.path().join(INDEX), index.to_string()).unwrap();
    let stale = copy("llama");
    let index = json!({"weight_map": map("model-00001-of-00030.safetensors")});
    fs::write(stale.path().join(INDEX), index.to_string()).unwrap();
    for folder in [overlay, stale] {
        let published = node.done(&["publish", folder.path().to_str().unwrap()]);
        assert_eq!(published["notices"], Value::Null);
        assert_eq!(surf_tests::text(&greedy(&node, published["model"].as_str().unwrap())), expected);
    }
}

/// Kilobytes of memory of its own that a process has now.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_large_manifest_costs_four_times_its_size_and_is_checked_once() {
    // Paths of five hundred folders each.
    let chunk = ChunkEntry { id: ChunkId::of(b"here"), size: 4 };
    let file = |path: String, chunks: Vec<ChunkEntry>| FileEntry {
        size: chunks.iter().map(|chunk| u64::from(chunk.size)).sum(),
        path,
        blake3: [0; 32],
        sha256: [0; 32],
        chunks,
    };
    let mut files: Vec<_> =
        (0..57_000).map(|at| file(format!("{at:06}{}", "/a".repeat(505)), vec![])).collect();
    files.push(file("x".to_owned(), vec![chunk]));
    let manifest = Manifest::new(Parts { format: FORMAT, files, tensors: vec![] }).unwrap();
    let bytes = manifest.encode();
    let dir = tempfile::tempdir().unwrap();
    let write = |path: String, bytes: &[u8]| {
        let path = dir.path().join("store").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    write(format!("manifests/{}", manifest.id().to_hex()), &bytes);
    let hex = chunk.id.to_hex();
    write(format!("chunks/{}/{hex}", &hex[..2]), b"here");
    let id = manifest.id().to_string();
    drop(manifest);
    let hostile = Process::join_in(dir.path(), &[], &[]);
    let victim = Process::join(&[hostile.addr()], &[]);
    let (before, peak, done) = (memory(victim.pid()), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(memory(victim.pid()), Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        // Several ask at once; it is read once.
        let asking = [(); 3].map(|()| scope.spawn(|| victim.run(&["pull", &id])));
        let pulled = asking.map(|asking| asking.join().unwrap().status.success());
        done.store(true, Ordering::Relaxed);
        assert_eq!(pulled, [true; 3]);
    });
    let grown = 1024 * peak.into_inner().saturating_sub(before);
    println!("{} bytes of manifest, {grown} bytes more at the most", bytes.len());
    // A page or two of everything else that a first pull takes.
    assert!(grown <= 4 * bytes.len() as u64 + (24 << 20), "{grown} bytes for {}", bytes.len());
}
