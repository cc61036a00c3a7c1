//! A node that is killed in the middle of a pull loses at most what was under way, and keeps nothing
//! that is not whole; one whose disk is full says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use surf_tests::{Process, program};

/// What a killed node may have to fetch again.
const LOST_MAX: u64 = 16 << 20;

#[test]
#[allow(clippy::disallowed_methods, reason = "the sleep blocks nobody: this test has a thread of its own")]
fn killed_many_times_a_pull_still_ends_and_every_byte_is_right() {
    let (folder, bytes) = noise(256 << 20);
    let seed = Process::join(&[], &[]);
    let published = seed.done(&["publish", folder.path().to_str().unwrap()]);
    let model = published["model"].as_str().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let mut held_before = 0;
    for round in 0..12u64 {
        let mut node = Process::join_in(dir.path(), &[seed.addr()], &[]);
        let held = held_bytes(&node, model);
        assert!(held_before <= held, "round {round}: {held} bytes are left of {held_before}");
        let mut pull = pulling(&node, model, Stdio::null());
        std::thread::sleep(Duration::from_millis(60 + 37 * round % 200));
        held_before = held_bytes(&node, model);
        node.kill();
        pull.wait().unwrap();
    }
    let node = Process::join_in(dir.path(), &[seed.addr()], &[]);
    node.done(&["pull", model]);
    let verified = node.done(&["verify"]);
    assert_eq!((&verified["bad"], &verified["checked"]), (&0.into(), &published["chunks"]));
    let out = tempfile::tempdir().unwrap();
    node.done(&["export", model, out.path().to_str().unwrap()]);
    assert!(fs::read(out.path().join("weights.bin")).unwrap() == bytes);
    drop(node);

    // Without its index, a node has what it had.
    let index = dir.path().join("store/index");
    assert!(index.exists(), "the index is where this test thinks it is");
    fs::remove_dir_all(&index).unwrap();
    let node = Process::join_in(dir.path(), &[], &[]);
    assert_eq!(held_bytes(&node, model), published["bytes"].as_u64().unwrap());
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the sleep blocks nobody: this test has a thread of its own")]
fn killed_half_way_a_pull_costs_little_again_however_many_send() {
    const SIZE: u64 = 384 << 20;
    let (folder, _) = noise(SIZE as usize);
    let mut seeds: Vec<Process> = Vec::new();
    let mut published = Value::Null;
    for _ in 0..6 {
        let bootstrap: Vec<_> = seeds.first().map(|seed| seed.addr().to_owned()).into_iter().collect();
        let bootstrap: Vec<_> = bootstrap.iter().map(String::as_str).collect();
        let seed = Process::join(&bootstrap, &[]);
        published = seed.done(&["publish", folder.path().to_str().unwrap()]);
        seeds.push(seed);
    }
    let model = published["model"].as_str().unwrap();
    let addrs: Vec<_> = seeds.iter().map(Process::addr).collect();

    let dir = tempfile::tempdir().unwrap();
    let mut node = Process::join_in(dir.path(), &addrs, &[]);
    let mut pull = pulling(&node, model, Stdio::null());
    let chunks = dir.path().join("store/chunks");
    // At every moment: what has come, and then what is kept. Looking takes a while in which more is kept; so no more is
    // counted as lost than would be. (The other way around, megabytes that come meanwhile would be.)
    let mut moments = Vec::new();
    while moments.last().is_none_or(|&(held, _)| held < SIZE / 2) {
        assert!(pull.try_wait().unwrap().is_none(), "it ended before it was half done");
        let came = metric(&node, "surf_received_bytes_total");
        moments.push((bytes_in(&chunks), came));
        std::thread::sleep(Duration::from_millis(2));
    }
    node.kill();
    pull.wait().unwrap();
    let held = bytes_in(&chunks);
    assert!(held < SIZE, "it ended before it was killed");

    let started = SystemTime::now();
    let mut node = Process::join_in(dir.path(), &addrs, &[]);
    println!("ready again after {:?}", started.elapsed().unwrap());
    let store = &node.done(&["status"])["store"];
    assert_eq!((&store["used"], &store["hashed"]), (&held.into(), &0.into()), "nothing is hashed again");
    only_known_files(&node, dir.path());
    let started = SystemTime::now();
    let mut pull = pulling(&node, model, Stdio::piped());
    let mut lines = BufReader::new(pull.stdout.take().unwrap()).lines();
    let mut events =
        std::iter::from_fn(|| Some(serde_json::from_str::<Value>(&lines.next()?.unwrap()).unwrap()));
    let first = events.find(|event| event["fetched_bytes"].as_u64() > Some(0)).unwrap();
    println!("the first new bytes came within {:?}", started.elapsed().unwrap());
    let done = events.last().unwrap_or(first);
    assert!(pull.wait().unwrap().success());
    assert_eq!((&done["event"], &done["bytes"]), (&"done".into(), &SIZE.into()));
    let again = done["fetched_bytes"].as_u64().unwrap();
    assert_eq!(again, SIZE - held, "only what is missing is fetched");
    // Packets hold more than chunks: as much more as in this second pull, in which nothing was lost.
    let packets = metric(&node, "surf_received_bytes_total") as f64 / again as f64;
    let lost = |moment: &(u64, u64)| ((moment.1 as f64 / packets) as u64).saturating_sub(moment.0);
    let (most, last) = (moments.iter().map(lost).max().unwrap(), lost(moments.last().unwrap()));
    println!(
        "{held} bytes were kept; {last} would have come again, {most} at the worst of {} moments; packets: {packets:.3}",
        moments.len()
    );
    assert!(most <= LOST_MAX, "a kill costs up to {most} bytes");
    assert_eq!(node.done(&["status"])["store"]["hashed"], 0);
    only_known_files(&node, dir.path());
    node.kill();
}

#[test]
fn a_pull_onto_a_full_disk_fails_with_a_sentence_and_keeps_what_it_has() {
    let disk = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(disk.path());
    if !mount.status().is_ok_and(|status| status.success()) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    let _unmounted = Unmount(disk.path());
    let (folder, _) = noise(96 << 20);
    let seed = Process::join(&[], &[]);
    let published = seed.done(&["publish", folder.path().to_str().unwrap()]);
    let model = published["model"].as_str().unwrap();
    let node = Process::join_in(disk.path(), &[seed.addr()], &["--cache-size", "1GB"]);
    for _ in 0..2 {
        let pulled = node.run(&["pull", model]);
        assert_eq!(pulled.status.code(), Some(1));
        let said = String::from_utf8_lossy(&pulled.stderr).into_owned();
        assert!(said.contains("nearly full") && said.lines().count() <= 2, "{said}");
    }
    let held = held_bytes(&node, model);
    assert!((24 << 20..48 << 20).contains(&held), "{held}");
    let store = &node.done(&["status"])["store"];
    assert!(2 << 20 <= store["free"].as_u64().unwrap(), "{store}");
    let verified = node.done(&["verify"]);
    assert_eq!(verified["bad"], 0);
}

/// A file of noise in a folder.
fn noise(size: usize) -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let mut noise = blake3::Hasher::new().update(b"crash").finalize_xof();
    let mut bytes = vec![0; size];
    noise.fill(&mut bytes);
    fs::write(folder.path().join("weights.bin"), &bytes).unwrap();
    (folder, bytes)
}

fn pulling(node: &Process, model: &str, stdout: Stdio) -> Child {
    let mut pull = Command::new(program());
    pull.args(["--json", "--rpc", node.rpc(), "pull", model]);
    pull.stdout(stdout).stderr(Stdio::null()).spawn().unwrap()
}

/// Every file of a data folder is one that the node knows and counts.
fn only_known_files(node: &Process, dir: &Path) {
    let store = &node.done(&["status"])["store"];
    let chunks = dir.join("store/chunks");
    assert_eq!(store["used"], bytes_in(&chunks));
    assert_eq!(store["chunks"], files_in(&chunks));
    assert_eq!(files_in(&dir.join("store/incoming")), 0);
    assert_eq!((files_in(&dir.join("store/manifests")), files_in(&dir.join("store/notes"))), (1, 0));
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir), ["identity.key", "store"]);
    assert_eq!(
        names(&dir.join("store")),
        ["chunks", "incoming", "index", "lock", "manifests", "notes", "scrub.json"]
    );
}

fn files(dir: &Path) -> Vec<fs::Metadata> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)));
    found.flat_map(|(path, what)| if what.is_dir() { files(&path) } else { vec![what] }).collect()
}

fn files_in(dir: &Path) -> usize {
    files(dir).len()
}

fn bytes_in(dir: &Path) -> u64 {
    files(dir).iter().map(fs::Metadata::len).sum()
}

/// A number that the node tells Prometheus.
fn metric(node: &Process, name: &str) -> u64 {
    let addr = node.rpc().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap().parse().unwrap()
}

/// Unmounts when dropped.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0).output());
    }
}

fn held_bytes(node: &Process, model: &str) -> u64 {
    let output = node.run(&["models"]);
    let models: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let models = models.as_array().unwrap();
    let ours = models.iter().find(|entry| entry["model"] == model);
    ours.map_or(0, |entry| entry["held_bytes"].as_u64().unwrap())
}
