//! A node killed in the middle of a pull, many times, loses at most what was under way, and keeps
//! nothing that is not whole.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use surf_tests::{Process, program};

#[test]
#[allow(clippy::disallowed_methods, reason = "the sleep blocks nobody: this test has a thread of its own")]
fn killed_many_times_a_pull_still_ends_and_every_byte_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let mut noise = blake3::Hasher::new().update(b"crash").finalize_xof();
    let mut bytes = vec![0; 256 << 20];
    noise.fill(&mut bytes);
    fs::write(folder.path().join("weights.bin"), &bytes).unwrap();
    let seed = Process::join(&[], &[]);
    let published = seed.done(&["publish", folder.path().to_str().unwrap()]);
    let model = published["model"].as_str().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let mut held_before = 0;
    for round in 0..12u64 {
        let mut node = Process::join_in(dir.path(), &[seed.addr()], &[]);
        let held = held_bytes(&node, model);
        assert!(held_before <= held, "round {round}: {held} bytes are left of {held_before}");
        let mut pull = Command::new(program())
            .args(["--json", "--rpc", node.rpc(), "pull", model])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
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

fn held_bytes(node: &Process, model: &str) -> u64 {
    let output = node.run(&["models"]);
    let models: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let models = models.as_array().unwrap();
    let ours = models.iter().find(|entry| entry["model"] == model);
    ours.map_or(0, |entry| entry["held_bytes"].as_u64().unwrap())
}
