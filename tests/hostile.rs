//! Peers that serve wrong bytes, stall, hang up or boast: the pull ends well from the others, the liar
//! is dropped, and memory stays bounded.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use surf_node::{Node, api::PublishRequest, node::NodeError};
use surf_protocol::{Chunk, FileEntry, Manifest, ModelId, NodeId, manifest};
use surf_sim::lab::{
    flood::{Flood, Manners, Wanted},
    rogue::{self, Manner, Rogue},
};
use surf_tests::{TestNode, config, start};
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
    while seed.node.peers().await.len() < manners.len() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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

/// A manifest that names the chunks of another with sizes that are wrong, and one chunk that is its own.
fn forged(honest: &Manifest, wrong: impl Fn(u32) -> u32) -> (Manifest, Chunk) {
    let own = Chunk::of(Bytes::from_static(b"here"));
    let mut chunks = vec![manifest::ChunkEntry { id: own.id(), size: 4 }];
    chunks.extend(
        honest.chunks().iter().map(|chunk| manifest::ChunkEntry { size: wrong(chunk.size), ..*chunk }),
    );
    let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    let file = FileEntry { path: "x.bin".into(), size, blake3: [1; 32], sha256: [2; 32], chunks };
    let parts = manifest::Parts { format: manifest::FORMAT, files: vec![file], ..manifest::Parts::default() };
    (Manifest::new(parts).unwrap(), own)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_wrong_about_sizes_is_refused_and_nobody_is_banned() {
    let (seed, model, _folder) = seed().await;
    let honest = seed.node.store().manifest_of(model).unwrap();
    let (evil, victim) = (start(seed.node.listen(), 0).await, start(seed.node.listen(), 0).await);
    for wrong in [|size| size - 1, |size| size + 1, |size| size / 2, |size| 2 * size] {
        let (forged, own) = forged(&honest, wrong);
        evil.node.store().put(own).await.unwrap();
        evil.node.store().put_manifest(&forged).await.unwrap();
        victim.node.store().put_manifest(&forged).await.unwrap();
        // The honest model is wanted at the same time, of the same holder.
        let (id, model) = (forged.id().to_string(), model.to_string());
        let pulls = async {
            tokio::join!(
                victim.node.pull(&id, mpsc::channel(1).0),
                victim.node.pull(&model, mpsc::channel(1).0)
            )
        };
        let (refused, pulled) = tokio::time::timeout(Duration::from_secs(100), pulls).await.expect("no hang");
        let Err(NodeError::Invalid(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains(&id) && why.contains("is wrong about chunk"), "{why}");
        pulled.unwrap();
        victim.node.remove(&model).await.unwrap();
        victim.node.remove(&id).await.unwrap();
        victim.node.gc().await.unwrap();
    }
    let pulled = victim.node.pull(&model.to_string(), mpsc::channel(1).0).await.unwrap();
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    assert!(pulled.sources.iter().any(|source| source.peer == seed.node.peer_id()), "{:?}", pulled.sources);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_wrong_about_sizes_is_refused_beside_an_origin_too() {
    let (seed, model, _folder) = seed().await;
    let honest = seed.node.store().manifest_of(model).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let origin = url::Url::from_directory_path(folder.path()).unwrap();
    seed.node.origin_sync(&model.to_string(), origin.as_str(), mpsc::channel(1).0).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path(), &[], 0);
    settings.fetch.origins = vec![origin];
    let victim = Node::start(settings).await.unwrap();
    let (forged, own) = forged(&honest, |size| size - 1);
    victim.store().put(own).await.unwrap();
    victim.store().put_manifest(&forged).await.unwrap();
    let refused = victim.pull(&forged.id().to_string(), mpsc::channel(1).0).await;
    let Err(NodeError::Invalid(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("is wrong about chunk"), "{why}");
}

/// Seconds that pulling `model` from `seed` takes.
async fn pulled_in(seed: &TestNode, model: ModelId) -> f64 {
    let node = start(seed.node.listen(), 0).await;
    let begun = tokio::time::Instant::now();
    let model = model.to_string();
    let pull = node.node.pull(&model, mpsc::channel(1).0);
    let pulled = tokio::time::timeout(Duration::from_secs(200), pull).await.expect("no hang").unwrap();
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_read_nothing_starve_nobody() {
    let (seed, model, _folder) = seed().await;
    let manifest = seed.node.store().manifest_of(model).unwrap();
    let chunks: Vec<_> = manifest.chunks().iter().map(|chunk| chunk.id).collect();
    let alone = pulled_in(&seed, model).await;
    let before = resident();
    // Few, because they share the cores of this test. `surf-sim lab flood` lets fifty loose on a process.
    let floods = [
        (8, 1, 0, Wanted::Chunks(chunks.clone())),
        (8, 2, 0, Wanted::Ranges(chunks.clone(), 2 << 20)),
        (8, 1, 0, Wanted::Ranges(chunks.clone(), 40 << 10)),
        (8, 1, 1, Wanted::Chunks(chunks)),
        (4, 1, 0, Wanted::Manifest(model)),
        (4, 1, 0, Wanted::Holdings(model)),
    ];
    for (strangers, connections, takes, wanted) in floods {
        let told = format!("{strangers} × {connections}, {takes} bytes/s, {wanted:?}");
        let told = &told[..told.len().min(80)];
        let manners = Manners { strangers, connections, takes, wanted };
        let peer = NodeId::from_peer_id(&seed.node.peer_id()).unwrap();
        let addr = seed.node.status().await.transfer.parse().unwrap();
        let flood = Flood::begin(peer, addr, &manners).await.unwrap();
        let took = pulled_in(&seed, model).await;
        let grown = resident().saturating_sub(before) >> 20;
        println!("{told}: {took:.1} s instead of {alone:.1}, {grown} MiB more");
        assert_eq!(flood.len(), strangers * connections, "they are still at it");
        // Strangers, seed and pullers share this process and its cores; starved, a pull took minutes.
        assert!(took < 60. + 4. * alone, "{told}: {took} s instead of {alone}");
        assert!(grown < 400, "{told}: {grown} MiB more in memory");
    }
}

/// Bytes of memory of this process, mapped files aside.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
