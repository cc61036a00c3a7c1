//! Mixtures of experts: right, and no more fetched than tokens chose.

use std::sync::atomic::Ordering;

use surf_chunker::Group;

use super::{swarm::Published, *};
use crate::engine::Row;

async fn agrees(name: &str) {
    let folder = fixture(name);
    let expected = std::fs::read(format!("{folder}/expected.safetensors")).unwrap();
    let published = Published::open(&folder);
    for memory in [0, published.two_blocks(), u64::MAX] {
        let (weights, journal) = (published.weights(memory), Arc::new(Journal::default()));
        let engine = Engine::load(&files(&folder), weights.clone(), &CONFIG, journal).unwrap();
        let report = engine.check(&expected, 1e-3).await.unwrap();
        assert!(report.pass && report.max_rel_err < 1e-5, "{name} in {memory}: {report:?}");
        assert_eq!(
            (report.argmax_agree, report.greedy_agree),
            (Some(1.0), Some(1.0)),
            "{name} in {memory}: {report:?}"
        );
        let stats = weights.stats();
        assert!(stats.experts.kept_bytes <= stats.experts.kept_bytes_max, "{stats:?}");
        if memory != u64::MAX {
            assert!(stats.resident_bytes + stats.ring_bytes_max + stats.experts.kept_bytes_max <= memory);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mixtral_agrees_with_transformers() {
    agrees("mixtral").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qwen3_moe_agrees_with_transformers() {
    agrees("qwen3-moe").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deepseek_v3_agrees_with_transformers() {
    agrees("deepseek-v3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn float8_experts_agree_with_transformers() {
    agrees("deepseek-v3-fp8").await;
}

/// One token: everything but the experts, and those that it chose in each block.
#[tokio::test(flavor = "multi_thread")]
async fn one_token_fetches_the_experts_it_chooses() {
    for (name, blocks, taken) in [("qwen3-moe", 4, 4), ("mixtral", 4, 2), ("deepseek-v3", 3, 2)] {
        let published = Published::open(&fixture(name));
        let (weights, journal) = (published.weights(u64::MAX), Arc::new(Journal::default()));
        let engine = Engine::load(&files(&fixture(name)), weights.clone(), &CONFIG, journal).unwrap();
        engine.forward(vec![Row { tokens: vec![17], ..Row::default() }]).await.unwrap();
        let groups = || published.manifest.groups().iter().map(|entry| &entry.group);
        let expert = groups().find(|group| matches!(group, Group::Expert { .. })).unwrap();
        // The record beside the weights has tensors too.
        let dense = groups().filter(|group| matches!(group, Group::Layer(..) | Group::Head));
        let dense: u64 = dense.map(|group| published.size(group)).sum();
        let chosen = blocks * taken * published.size(expert);
        let stats = weights.stats().experts;
        assert_eq!((stats.hits, stats.misses), (0, blocks * taken), "{name}: {stats:?}");
        let fetched = published.fetched.load(Ordering::Relaxed) - stats.guessed_wrong_bytes;
        let expected = (dense + chosen) as f64;
        assert!(
            (fetched as f64 - expected).abs() < 0.05 * expected,
            "{name}: {fetched} of {dense} + {chosen}, {stats:?}"
        );
        assert_ne!(stats.guessed, 0, "{name}");
        // Again: the same experts, all kept.
        engine.forward(vec![Row { tokens: vec![17], ..Row::default() }]).await.unwrap();
        assert_eq!(weights.stats().experts.hits, blocks * taken, "{name}");
    }
}
