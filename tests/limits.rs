//! Limits that a user sets, at the start and while the node runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Duration;

use surf_node::api::{LimitsRequest, PublishRequest};
use surf_tests::{Process, TestNode, start};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

const MIB: u64 = 1 << 20;

/// Publishes `mib` MiB of which no two are alike.
async fn publish(seed: &TestNode, mib: u64) -> String {
    let folder = seed.dir.path().join("published");
    std::fs::create_dir(&folder).unwrap();
    let bytes: Vec<u8> =
        (0..mib * MIB / 4).flat_map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(folder.join("weights.bin"), bytes).unwrap();
    let path = folder.to_str().unwrap().to_owned();
    let request = PublishRequest { path, ..PublishRequest::default() };
    seed.node.publish(request, mpsc::channel(1).0).await.unwrap().model
}

fn limit(node: &TestNode, up: Option<&str>, down: Option<&str>) {
    let request = LimitsRequest { up: up.map(str::to_owned), down: down.map(str::to_owned), origin: None };
    node.node.limit(&request).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_as_fast_as_the_limits_of_both_sides_allow() {
    let seed = start(&[], 0).await;
    let model = publish(&seed, 8).await;
    limit(&seed, Some("4MiB"), None);
    let first = start(seed.node.listen(), 0).await;
    let pulled = first.node.pull(&model, mpsc::channel(1).0).await.unwrap();
    // 8 MiB at 4 MiB/s, less a burst; nothing is fetched twice because it is slow.
    assert!((1.7..20.).contains(&pulled.seconds), "{} s", pulled.seconds);
    assert_eq!((pulled.fetched_bytes, pulled.wasted_bytes), (pulled.bytes, 0));

    // Held back on this side; what would take minutes is over soon when the limit goes.
    limit(&seed, Some("none"), None);
    let second = start(seed.node.listen(), 0).await;
    limit(&second, None, Some("64KiB"));
    let pulling = second.node.clone();
    let slow = tokio::spawn(async move { pulling.pull(&model, mpsc::channel(1).0).await.unwrap() });
    let reason = async || second.node.status().await.transfers.pop()?.progress.reason;
    let held = async {
        while reason().await.as_deref() != Some("own_limit") {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(30), held).await.expect("it says why it is slow");
    // For longer than what counts as a stall.
    let received = async || second.node.peers().await.iter().map(|peer| peer.received).sum::<u64>();
    let before = received().await;
    while received().await < before + 4 * 64 * 1024 {
        sleep(Duration::from_millis(100)).await;
        assert!(!slow.is_finished());
    }
    assert_eq!(reason().await.as_deref(), Some("own_limit"));
    limit(&second, None, Some("none"));
    let pulled = timeout(Duration::from_secs(30), slow).await.expect("in time").unwrap();
    // It was longer than what counts as a stall, and still nobody was given up.
    assert_eq!((pulled.fetched_bytes, pulled.wasted_bytes), (pulled.bytes, 0));
}

#[test]
fn limits_are_shown_and_changed() {
    let node = Process::join(&[], &["--up", "20Mbit", "--max-connections", "16"]);
    let limits = node.done(&["limit"]);
    assert_eq!(limits, serde_json::json!({"up": 2_500_000, "down": null, "origin": null, "connections": 16}));
    let limits = node.done(&["limit", "--up", "none", "--down", "4MiB", "--origin", "1MB/s"]);
    let expected = serde_json::json!({"up": null, "down": 4 * MIB, "origin": 1_000_000, "connections": 16});
    assert_eq!(limits, expected);
    assert_eq!(node.done(&["status"])["limits"], expected);
    assert_eq!(node.run(&["limit", "--up", "fast"]).status.code(), Some(2));
}

/// Who removes a model ends its pull: what comes then would belong to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_when_its_model_is_removed() {
    let seed = start(&[], 0).await;
    let model = publish(&seed, 8).await;
    let node = start(seed.node.listen(), 0).await;
    limit(&node, None, Some("64KiB"));
    let (pulling, id) = (node.node.clone(), model.clone());
    let pull = tokio::spawn(async move { pulling.pull(&id, mpsc::channel(1).0).await });
    while node.node.status().await.transfers.is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    node.node.remove(&model).await.unwrap();
    let ended = timeout(Duration::from_secs(30), pull).await.expect("it ends").unwrap();
    assert!(ended.unwrap_err().to_string().contains("was removed"));
}
