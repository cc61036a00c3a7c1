//! Heads over large vocabularies, multiplied in runs of rows that are never in memory together.

use std::{collections::HashMap, path::Path, sync::atomic::Ordering};

use candle_core::Tensor;
use surf_chunker::Group;

use super::{swarm::Published, *};
use crate::engine::Row;

/// Bytes in a chunk of a large tensor, which is much more than a block of the model below.
const CHUNK: u64 = 2 << 20;

const VOCAB: usize = 256_000;

async fn values(engine: &Engine, row: Row) -> Vec<f32> {
    engine.forward(vec![row]).await.unwrap().remove(0).values
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1.0))
}

#[tokio::test]
async fn in_runs_the_logits_are_the_same() {
    for (name, table, decoder) in [
        ("llama", "lm_head.weight", None),
        ("llama-bf16-sharded", "model.embed_tokens.weight", None),
        ("variants/gemma2", "model.embed_tokens.weight", None),
        ("t5-untied", "lm_head.weight", Some(vec![0, 7, 3])),
        ("t5-tied-gated", "shared.weight", Some(vec![0, 7, 3])),
    ] {
        let folder = fixture(name);
        let row = Row { tokens: (3..23).collect(), decoder, ..Row::default() };
        let whole = values(&load(&folder), row.clone()).await;
        for resident in [false, true] {
            let weights = FileWeights::open(&folder);
            let weights = if resident { weights.all_resident() } else { weights };
            let (engine, weights, _) = load_with(&folder, weights.in_runs(table, 7));
            for _ in 0..2 {
                assert!(same(&values(&engine, row.clone()).await, &whole), "{name}, resident: {resident}");
            }
            let runs = weights.asked().into_iter().filter(|asked| asked.starts_with(table));
            assert_eq!(runs.count(), 2 * engine.shape.vocab.div_ceil(7), "{name}");
        }
    }
}

#[tokio::test]
async fn runs_that_are_not_the_vocabulary_are_an_error() {
    let folder = fixture("llama");
    let mut files = files(&folder);
    let config = String::from_utf8(files.0["config.json"].to_vec()).unwrap();
    let config = config.replace("\"vocab_size\": 512", "\"vocab_size\": 500");
    files.0.insert("config.json".to_owned(), config.into());
    let weights = Arc::new(FileWeights::open(&folder).in_runs("lm_head.weight", 100));
    let engine = Engine::load(&files, weights, &CONFIG, Arc::default()).unwrap();
    let error = engine.forward(vec![vec![5].into()]).await.unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("has 512 rows, not 500"), "{error}");
}

/// A llama of two small blocks between large tables.
fn publish_large(folder: &Path, tied: bool) {
    let llama = fixture("llama");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("{llama}/{name}"), folder.join(name)).unwrap();
    }
    let mut config = std::fs::read_to_string(format!("{llama}/config.json")).unwrap();
    for (field, from, to) in [
        ("hidden_size", "64", "32"),
        ("head_dim", "16", "8"),
        ("intermediate_size", "160", "48"),
        ("num_hidden_layers", "4", "2"),
        ("vocab_size", "512", "256000"),
        ("tie_word_embeddings", "false", if tied { "true" } else { "false" }),
    ] {
        let line = format!("\"{field}\": {from}");
        assert!(config.contains(&line), "{line}");
        config = config.replace(&line, &format!("\"{field}\": {to}"));
    }
    std::fs::write(folder.join("config.json"), config).unwrap();
    let mut tensors = HashMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let seed = name.bytes().fold(7, |seed: usize, byte| seed * 31 % 65_521 + usize::from(byte));
        let value = |at: usize| ((at + seed) * 2_654_435_761 % 2003) as f32 / 2002.0 - 0.5;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        let tensor = Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap();
        tensors.insert(format!("{name}.weight"), tensor);
    };
    add("model.embed_tokens", &[VOCAB, 32]);
    for block in ["model.layers.0", "model.layers.1"] {
        add(&format!("{block}.input_layernorm"), &[32]);
        add(&format!("{block}.post_attention_layernorm"), &[32]);
        for (name, rows, cols) in [
            ("self_attn.q_proj", 32, 32),
            ("self_attn.k_proj", 16, 32),
            ("self_attn.v_proj", 16, 32),
            ("self_attn.o_proj", 32, 32),
            ("mlp.gate_proj", 48, 32),
            ("mlp.up_proj", 48, 32),
            ("mlp.down_proj", 32, 48),
        ] {
            add(&format!("{block}.{name}"), &[rows, cols]);
        }
    }
    add("model.norm", &[32]);
    if !tied {
        add("lm_head", &[VOCAB, 32]);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_over_a_large_vocabulary_needs_room_for_two_runs() {
    for (tied, group) in [(false, Group::Head), (true, Group::Embed)] {
        let folder = tempfile::tempdir().unwrap();
        publish_large(folder.path(), tied);
        let path = folder.path().to_str().unwrap();
        let tokens: Vec<u32> = (0..10).map(|at| 3 + at * 28_000).collect();
        let whole = values(&load(path), tokens.clone().into()).await;
        // In memory for the logits of a few tokens at a time.
        let (weights, files_of_it) = (Arc::new(FileWeights::open(path)), files(path));
        let architecture = arch::read(&files_of_it, weights.checkpoint()).unwrap();
        let working = Working::new(&architecture.shape(), architecture.widths(), 32 << 20, 2).unwrap();
        assert!((1..10).contains(&working.logits_together(10)), "{}", working.logits_together(10));
        let compute = Compute::on_host(true);
        let scant = Engine::load_in(compute, working, &files_of_it, weights, Arc::default()).unwrap();
        assert!(same(&values(&scant, tokens.clone().into()).await, &whole), "tied: {tied}");
        let request = Request { echo: true, logprobs: Some(1), ..super::tokens(tokens.clone(), 2) };
        let (some, all) = (ask(&scant, request.clone()).await, ask(&load(path), request).await);
        assert!(some.prompt == all.prompt && some.ids() == all.ids(), "tied: {tied}");

        let published = Published::open(path);
        let memory = published.two_blocks() + 2 * CHUNK;
        let weights = published.weights(memory);
        let engine = Engine::load(&files(path), weights.clone(), &CONFIG, Arc::default()).unwrap();
        for pass in 1..=2 {
            assert!(same(&values(&engine, tokens.clone().into()).await, &whole), "tied: {tied}");
            let stats = weights.stats();
            assert!(stats.resident_bytes_max + stats.ring_bytes_peak <= memory, "{stats:?}");
            let runs: Vec<_> = stats.groups.iter().filter(|group| group.group.contains("rows")).collect();
            let sizes = || runs.iter().map(|run| run.bytes);
            assert_eq!((sizes().max(), sizes().sum()), (Some(CHUNK), VOCAB as u64 * 32 * 4));
            assert!(runs.iter().all(|run| run.hits + run.ready + run.misses == pass), "{runs:?}");
        }
        let table = published.manifest.group_chunks(&group);
        assert!(table.iter().all(|chunk| published.seen.lock().unwrap().contains(&chunk.id)));
        let ranged = published.ranged.load(Ordering::Relaxed);
        if tied {
            assert_eq!(ranged, 0, "the table comes whole, so no row of it comes twice");
        } else {
            assert_eq!(ranged, 10 * 32 * 4, "only the rows of the prompt, and those once");
            let embedding = published.manifest.group_chunks(&Group::Embed);
            assert!(embedding.iter().all(|chunk| !published.seen.lock().unwrap().contains(&chunk.id)));
        }
    }
}
