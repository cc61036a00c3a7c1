//! Models as somebody else has saved them: without a root, with a head that the configuration does not
//! speak of, with numbers that only Python writes.

use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

/// A copy of `model`, with its tensors renamed and its configuration changed.
fn copy(model: &str, rename: impl Fn(&str) -> String, change: impl Fn(String) -> String) -> TempDir {
    let (from, to) = (fixture(model), tempfile::tempdir().unwrap());
    let read = |name: &str| std::fs::read(Path::new(&from).join(name)).unwrap();
    let config = change(String::from_utf8(read("config.json")).unwrap());
    std::fs::write(to.path().join("config.json"), config).unwrap();
    let bytes = read("model.safetensors");
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..end]).unwrap();
    let header: Map<String, Value> = header.into_iter().map(|(name, entry)| (rename(&name), entry)).collect();
    let header = serde_json::to_vec(&header).unwrap();
    let parts = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[end..]].concat();
    std::fs::write(to.path().join("model.safetensors"), parts).unwrap();
    to
}

fn same(name: &str) -> String {
    name.to_owned()
}

fn alone(name: &str) -> String {
    name.strip_prefix("model.").unwrap_or(name).to_owned()
}

fn with(field: &str, value: Value) -> impl Fn(String) -> String {
    move |config| {
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config[field] = value.clone();
        config.to_string()
    }
}

async fn agrees(model: &str, copy: &TempDir) {
    let expected = format!("{}/expected.safetensors", fixture(model));
    assert_eq!(wrong(copy.path().to_str().unwrap(), &expected, false).await, None, "{model}");
}

/// As `AutoModel` saves them. The names of GPT-2 and GPT-NeoX are among the variants.
#[tokio::test]
async fn decoders_without_a_root_agree_with_transformers() {
    for model in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "mixtral",
        "qwen3-moe",
        "deepseek-v3",
        "variants/qwen2-moe",
        "variants/deepseek-v2",
        "variants/phi3",
        "variants/gemma2",
        "variants/gemma3-text",
        "variants/gemma",
        "variants/helium",
        "variants/olmo",
        "variants/olmo2",
        "variants/phi",
        "variants/starcoder2",
    ] {
        agrees(model, &copy(model, alone, |config| config)).await;
    }
}

#[tokio::test]
async fn a_decoder_without_a_head_says_so() {
    let headless = |name: &str| alone(name).replace("lm_head", "other");
    let folder = copy("llama", headless, |config| config);
    let folder = folder.path().to_str().unwrap();
    let weights = Arc::new(FileWeights::open(folder));
    let error = Engine::load(&files(folder), weights, &CONFIG, Arc::default()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("tie_word_embeddings"), "{error}");
}

/// As transformers does since version 5: the recorded logits are those of the head.
#[tokio::test]
async fn a_head_that_is_there_is_used_whatever_the_configuration_says() {
    for model in ["llama", "mixtral", "variants/gpt2-untied", "variants/olmo2"] {
        agrees(model, &copy(model, same, with("tie_word_embeddings", json!(true)))).await;
    }
}

#[tokio::test]
async fn numbers_that_python_writes_are_read() {
    let change = |config: String| {
        let rest = config.trim_end().strip_suffix('}').unwrap().to_owned();
        let rest = rest.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": Infinity");
        rest + r#", "initializer_range": NaN, "time_step_limit": [0.0, Infinity, -Infinity], "sliding_window": 1e999}"#
    };
    for model in ["llama", "variants/mistral-no-window"] {
        agrees(model, &copy(model, same, change)).await;
    }
}
