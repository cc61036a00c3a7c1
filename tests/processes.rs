//! Three processes: what one publishes, another runs without ever having had it, and goes on when the
//! publisher is gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use surf_tests::{Process, text, tiny_surfer};

const PROMPT: &[&str] = &["-p", "Once upon a time", "--max-tokens", "24", "--temperature", "0"];

fn generate(node: &Process, model: &str) -> String {
    let lines = node.lines(&[&["generate", model], PROMPT].concat());
    assert_eq!(lines.last().unwrap()["event"], "done");
    text(&lines)
}

#[test]
fn a_model_runs_where_it_never_was() {
    let mut a = Process::join(&[], &[]);
    let b = Process::join(&[a.addr()], &[]);
    let c = Process::join(&[b.addr()], &["--memory", "2MiB"]);
    let folder = tiny_surfer();
    let published = a.done(&["publish", folder.to_str().unwrap(), "--name", "surfer"]);
    let model = published["model"].as_str().unwrap();
    assert!(published["chunks"].as_u64().unwrap() > 8);

    let there = generate(&a, "surfer");
    assert!(there.len() > 20, "{there:?}");
    assert_eq!(generate(&c, model), there, "C has no address of A but through the DHT");

    let pulled = b.done(&["pull", model]);
    assert_eq!(pulled["event"], "done");
    assert_eq!(pulled["fetched_bytes"], pulled["bytes"]);
    a.kill();
    let d = Process::join(&[b.addr()], &[]);
    assert_eq!(generate(&c, model), there, "A is gone");
    assert_eq!(generate(&d, model), there, "A is gone, and D has nothing");
}

#[test]
fn what_is_not_there_is_said_in_one_sentence() {
    let a = Process::join(&[], &[]);
    let missing = format!("surf:{}", "ab".repeat(32));
    let output = a.run(&["pull", &missing]);
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&missing) && stderr.lines().count() <= 2, "{stderr}");

    let taken = a.ready["rpc"].as_str().unwrap().strip_prefix("http://").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let second = std::process::Command::new(surf_tests::program())
        .args(["join", "--no-mdns", "--listen", "127.0.0.1:0", "--transfer", "127.0.0.1:0", "--rpc", taken])
        .arg("--data-dir")
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains(taken));

    let same_folder = std::process::Command::new(surf_tests::program())
        .args(["join", "--no-mdns", "--listen", "127.0.0.1:0", "--transfer", "127.0.0.1:0"])
        .args(["--rpc", "127.0.0.1:0", "--data-dir"])
        .arg(a.dir())
        .output()
        .unwrap();
    assert_eq!(same_folder.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&same_folder.stderr).contains(a.dir().to_str().unwrap()));
}

#[test]
fn no_node_is_exit_status_4() {
    let output = std::process::Command::new(surf_tests::program())
        .args(["--rpc", "http://127.0.0.1:9", "status"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_device_that_is_not_there_is_said_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(surf_tests::program())
        .args(["join", "--no-mdns", "--rpc", "127.0.0.1:0", "--device", "cuda:0", "--data-dir"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cuda:0"));
    assert!(!dir.path().join("data").exists());
}
