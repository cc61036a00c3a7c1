//! The only node that has a model sleeps in the middle of a pull. The pull says so, waits, and goes on by itself; and
//! whatever else is pulled then comes too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::disallowed_methods, reason = "the sleeps block nobody: each test has a thread of its own")]

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use surf_tests::{Process, program};

/// How long the seed sleeps: longer than connections live and holders are listened to in silence. Longer outages are
/// played in the simulator.
const OUTAGE: Duration = Duration::from_secs(20);

/// How long what should happen within seconds may take on a machine that does other things.
const SOON: Duration = Duration::from_secs(100);

fn noise(name: &str, size: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    fs::write(folder.path().join("weights.bin"), &bytes).unwrap();
    folder
}

fn publish(seed: &Process, folder: &tempfile::TempDir) -> String {
    let published = seed.done(&["publish", folder.path().to_str().unwrap()]);
    published["model"].as_str().unwrap().to_owned()
}

#[test]
fn a_pull_goes_on_when_its_only_seed_wakes_up() {
    let seed = Process::join(&[], &["--up", "4MB/s"]);
    let (large, small) = (noise("large", 48 << 20), noise("small", 1 << 20));
    let (model, other) = (publish(&seed, &large), publish(&seed, &small));
    let node = Process::join(&[seed.addr()], &[]);
    let mut pull = Command::new(program())
        .args(["--json", "--rpc", node.rpc(), "pull", &model])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(pull.stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    events.find(|event| event["fetched_bytes"].as_u64() > Some(4 << 20)).expect("it begins");

    seed.sleep();
    let begun = Instant::now();
    let nobody = |event: &Value| event["reason"] == "nobody_has_it" || event["event"] == "done";
    let why = events.find(nobody).unwrap();
    assert_ne!(why["event"], "done", "all came although its only holder sleeps");
    sleep(OUTAGE.saturating_sub(begun.elapsed()));
    seed.wake();
    let woken = Instant::now();
    let came = why["fetched_bytes"].as_u64();
    let next = events.find(|event| came < event["fetched_bytes"].as_u64()).unwrap();
    println!("it went on after {:?}: {next}", woken.elapsed());
    let done = events.last().unwrap_or(next);
    assert!(pull.wait().unwrap().success(), "{done}");
    assert_eq!((&done["event"], &done["fetched_bytes"]), (&"done".into(), &done["bytes"]));
    assert!(woken.elapsed() < SOON, "{:?}", woken.elapsed());

    // Another model of the same seed, right after another nap.
    seed.sleep();
    sleep(OUTAGE);
    seed.wake();
    let woken = Instant::now();
    while !node.run(&["pull", &other]).status.success() {
        assert!(woken.elapsed() < SOON, "nothing comes of {other}");
    }
    println!("another model came {:?} after a nap", woken.elapsed());
}
