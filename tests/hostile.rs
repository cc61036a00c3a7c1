//! Peers that serve wrong bytes, stall, hang up or boast: the pull ends well from the others, the liar
//! is dropped, and memory stays bounded.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use surf_node::api::PublishRequest;
use surf_protocol::{Manifest, ModelId};
use surf_sim::lab::rogue::{self, Manner, Rogue};
use surf_tests::{TestNode, start};
use tokio::sync::mpsc;

async fn hostile(manner: Manner, bootstrap: &[String], manifest: Arc<Manifest>) -> Rogue {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let place = rogue::Place { listen: any, transfer: any, bootstrap: bootstrap.to_vec() };
    rogue::start(manner, &place, manifest).await.unwrap()
}

/// A node with a model of 96 MiB of noise.
async fn seed() -> (TestNode, ModelId, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 96 << 20];
    blake3::Hasher::new().update(b"hostile").finalize_xof().fill(&mut bytes);
    std::fs::write(folder.path().join("weights.bin"), bytes).unwrap();
    let seed = start(&[], 0).await;
    let path = folder.path().to_str().unwrap().to_owned();
    let request = PublishRequest { path, ..PublishRequest::default() };
    let published = seed.node.publish(request, mpsc::channel(1).0).await.unwrap();
    (seed, published.model.parse().unwrap(), folder)
}

async fn pulled_beside(manners: &[Manner]) -> (u64, u64) {
    let (seed, model, _folder) = seed().await;
    let manifest = seed.node.store().manifest_of(model).unwrap();
    let mut enemies = Vec::new();
    for &manner in manners {
        enemies.push(hostile(manner, seed.node.listen(), Arc::clone(&manifest)).await);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let node = start(seed.node.listen(), 0).await;
    let model = model.to_string();
    let pull = node.node.pull(&model, mpsc::channel(1).0);
    let pulled = tokio::time::timeout(Duration::from_secs(100), pull).await.expect("no hang").unwrap();
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    let seed_id = seed.node.peer_id();
    assert!(pulled.sources.iter().all(|source| source.peer == seed_id), "{:?}", pulled.sources);
    let verified = node.node.verify(None, false, mpsc::channel(1).0).await.unwrap();
    assert_eq!(verified.bad, 0);
    (pulled.wasted_bytes, pulled.bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_wastes_one_chunk() {
    let (wasted, _) = pulled_beside(&[Manner::Lies]).await;
    assert!(0 < wasted && wasted <= 2 << 20, "{wasted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staller_is_left_for_others() {
    let (wasted, _) = pulled_beside(&[Manner::Stalls]).await;
    assert!(0 < wasted && wasted <= 24 << 20, "{wasted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_up_is_left_for_others() {
    let (wasted, _) = pulled_beside(&[Manner::HangsUp]).await;
    assert!(0 < wasted && wasted <= 24 << 20, "{wasted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn boasts_make_no_room() {
    let before = resident();
    let (wasted, _) = pulled_beside(&[Manner::Boasts, Manner::Boasts]).await;
    assert_eq!(wasted, 0, "nothing of it was read");
    let grown = resident().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown} bytes more in memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_together_do_not_stop_a_pull() {
    pulled_beside(&[Manner::Lies, Manner::Stalls, Manner::HangsUp, Manner::Boasts]).await;
}

/// Bytes of memory of this process, mapped files aside.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
