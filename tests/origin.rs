//! What no peer has comes from an origin, and only then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;

use surf_node::{
    Node,
    api::{PublishRequest, Pulled},
};
use surf_tests::{TestNode, config, fixture, start};
use tokio::sync::mpsc;

/// A node that joins through `seed` and may ask `origin`.
async fn with_origin(seed: &Node, origin: &std::path::Path) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), seed.listen(), 0);
    config.fetch.origins = vec![url::Url::from_directory_path(origin).unwrap()];
    TestNode { node: Node::start(config).await.unwrap(), dir }
}

async fn pull(node: &Node, model: &str) -> Pulled {
    node.pull(model, mpsc::channel(1).0).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_go_before_the_origin_and_the_origin_before_giving_up() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    fs::copy(fixture("llama").join("model.safetensors"), &weights).unwrap();
    let seed = start(&[], 0).await;
    let path = folder.path().to_str().unwrap().to_owned();
    let request = PublishRequest { path, ..PublishRequest::default() };
    let model = seed.node.publish(request, mpsc::channel(1).0).await.unwrap().model;
    let origin = tempfile::tempdir().unwrap();
    let manifest = seed.node.store().manifest_of(model.parse().unwrap()).unwrap();
    for chunk in manifest.chunks() {
        let bytes = seed.node.chunk(chunk.id).await.unwrap().unwrap();
        fs::write(origin.path().join(chunk.id.to_hex()), bytes).unwrap();
    }

    let first = with_origin(&seed.node, origin.path()).await;
    let pulled = pull(&first.node, &model).await;
    assert!(pulled.sources.iter().all(|source| source.path == "local"), "{:?}", pulled.sources);
    drop(first);

    // The seed still has the manifest; the bytes are gone with the file.
    fs::write(&weights, b"").unwrap();
    let second = with_origin(&seed.node, origin.path()).await;
    let pulled = pull(&second.node, &model).await;
    assert_eq!(pulled.fetched_bytes, pulled.bytes);
    assert!(pulled.sources.iter().any(|source| source.path == "origin"), "{:?}", pulled.sources);

    let lonely = start(seed.node.listen(), 0).await;
    drop(second);
    let gone = lonely.node.pull(&model, mpsc::channel(1).0).await;
    assert!(matches!(gone, Err(surf_node::node::NodeError::NotFound(_))), "{gone:?}");
}
