//! What metadata becomes, and what is refused. Whole models are in `engine/tests`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use surf_protocol::{
    Manifest,
    manifest::{FORMAT, Parts},
};
use tokenizers::Tokenizer;
use tokio::time::Instant;

use super::*;
use crate::engine::arch;

/// Entries of metadata, as they stand in a file.
#[derive(Default)]
struct Head(Vec<Vec<u8>>);

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Head {
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.0.push([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn number(self, key: &str, number: u32) -> Self {
        self.entry(key, 4, &number.to_le_bytes())
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &text(value))
    }

    fn texts(self, key: &str, values: &[&str]) -> Self {
        let values: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        let count = text_count(&values);
        self.entry(key, 9, &[&8u32.to_le_bytes()[..], &count.to_le_bytes(), &values].concat())
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [0, self.0.len() as u64].map(u64::to_le_bytes).concat();
        [b"GGUF", &3u32.to_le_bytes()[..], &counts, &self.0.concat()].concat()
    }

    fn llama() -> Self {
        Self::default()
            .text("general.architecture", "llama")
            .number("llama.embedding_length", 64)
            .number("llama.block_count", 2)
            .number("llama.feed_forward_length", 96)
            .number("llama.attention.head_count", 4)
    }
}

/// How many texts `bytes` are.
fn text_count(mut bytes: &[u8]) -> u64 {
    let mut count = 0;
    while let Some((length, rest)) = bytes.split_first_chunk() {
        bytes = &rest[u64::from_le_bytes(*length) as usize..];
        count += 1;
    }
    count
}

fn nothing() -> Checkpoint {
    let manifest = Manifest::new(Parts { format: FORMAT, ..Parts::default() }).unwrap();
    Checkpoint::chosen(Arc::new(manifest), Vec::new(), Vec::new())
}

fn files(head: &Head, tensors: &[(String, Vec<u8>)]) -> Result<Files, String> {
    let mut files = Files::default();
    let added = files.add_gguf(&nothing(), 0, &head.bytes(), tensors);
    added.map(|()| files).map_err(|error| error.to_string())
}

fn config(head: &Head) -> Value {
    serde_json::from_slice(&files(head, &[]).unwrap().0["config.json"]).unwrap()
}

fn refused(head: &Head) -> String {
    files(head, &[]).unwrap_err()
}

#[test]
fn metadata_becomes_a_configuration() {
    let list = [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[2, 0, 0, 0, 2, 0, 0, 0]].concat();
    let head =
        Head::llama().number("llama.context_length", 256).entry("llama.attention.head_count_kv", 9, &list);
    let config = config(&head);
    for (field, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(64)),
        ("num_hidden_layers", json!(2)),
        // The same for each block.
        ("num_key_value_heads", json!(2)),
        ("max_position_embeddings", json!(256)),
        ("head_dim", json!(16)),
        ("rope_interleave", json!(true)),
        ("tie_word_embeddings", json!(true)),
        ("rope_scaling", Value::Null),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
}

#[test]
fn a_rotary_may_be_stretched_in_several_ways() {
    let factor = 4f32.to_le_bytes();
    let linear = config(&Head::llama().entry("llama.rope.scale_linear", 6, &factor));
    assert_eq!(linear["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    let yarn = Head::llama()
        .text("llama.rope.scaling.type", "yarn")
        .entry("llama.rope.scaling.factor", 6, &factor)
        .number("llama.rope.scaling.original_context_length", 64);
    let expected = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    assert_eq!(config(&yarn)["rope_scaling"], expected);
    let attention = |head: Head| head.entry("llama.rope.scaling.attn_factor", 6, &2f32.to_le_bytes());
    let told = config(&attention(yarn))["rope_scaling"]["attention_factor"].as_f64().unwrap();
    assert!((told - 2.0 * (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12, "{told}");
    assert!(refused(&attention(Head::llama())).contains("llama.rope.scaling.attn_factor is 2"));
    // Six of sixteen elements.
    let part = config(&Head::llama().number("llama.rope.dimension_count", 6));
    assert_eq!((part["partial_rotary_factor"].as_f64().unwrap() * 16.0) as usize, 6);
    let all = config(&Head::llama().number("llama.rope.dimension_count", 16));
    assert_eq!(all["partial_rotary_factor"], Value::Null);
    let none =
        Head::llama().text("llama.rope.scaling.type", "none").entry("llama.rope.scaling.factor", 6, &factor);
    assert_eq!(config(&none)["rope_scaling"], Value::Null);
    let factors = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let files = files(&Head::llama(), &[("rope_freqs.weight".to_owned(), factors)]).unwrap();
    let config: Value = serde_json::from_slice(&files.0["config.json"]).unwrap();
    assert_eq!(config["rope_scaling"]["long_factor"], json!([1.0, 2.0, 3.0, 4.0]));
    for bytes in [vec![0; 4 * 99], f32::NAN.to_le_bytes().to_vec()] {
        let factors = [("rope_freqs.weight".to_owned(), bytes)];
        let error = self::files(&Head::llama(), &factors).unwrap_err();
        assert!(error.contains("tensor \"rope_freqs.weight\" has "), "{error}");
    }
}

#[test]
fn blocks_of_gemma_see_windows_as_told() {
    let gemma = |name: &str| {
        let key = |field: &str| format!("{name}.{field}");
        Head::default()
            .text("general.architecture", name)
            .number(&key("embedding_length"), 96)
            .number(&key("block_count"), 3)
            .number(&key("attention.head_count"), 4)
            .number(&key("attention.key_length"), 32)
            .entry(&key("final_logit_softcapping"), 6, &10f32.to_le_bytes())
    };
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    let told = config(&gemma("gemma2").number("gemma2.attention.sliding_window_pattern", 2));
    assert_eq!((&told["layer_types"], &told["final_logit_softcapping"]), (&types, &json!(10.0)));
    assert_eq!((&told["model_type"], &told["query_pre_attn_scalar"]), (&json!("gemma2"), &json!(32)));
    let flags = [&7u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[1, 0, 1]].concat();
    let told = config(&gemma("gemma3").entry("gemma3.attention.sliding_window_pattern", 9, &flags));
    assert_eq!((&told["layer_types"], &told["model_type"]), (&types, &json!("gemma3_text")));
    assert_eq!(config(&gemma("gemma3"))["layer_types"], Value::Null);
    // The largest ones.
    let large = gemma("gemma2").number("gemma2.none", 0);
    assert_eq!(config(&large)["query_pre_attn_scalar"], 32);
    let large = Head(large.0.into_iter().filter(|entry| !entry.ends_with(&[3, 0, 0, 0])).collect());
    assert_eq!(config(&large.number("gemma2.block_count", 46))["query_pre_attn_scalar"], 24);
}

#[test]
fn what_is_not_supported_is_named() {
    let tokens = |head: Head| head.texts("tokenizer.ggml.tokens", &["a", "b", "ab"]);
    let qwen3 = || {
        Head::default()
            .text("general.architecture", "qwen3")
            .number("qwen3.embedding_length", 64)
            .number("qwen3.attention.head_count", 4)
    };
    let gpt2 = || tokens(Head::llama()).text("tokenizer.ggml.model", "gpt2");
    for (head, named) in [
        (Head::default(), "general.architecture is missing"),
        (
            qwen3().number("qwen3.expert_count", 8),
            "qwen3.expert_count is 8; no qwen3 is known to have experts",
        ),
        (
            Head::default().text("general.architecture", "mamba"),
            "general.architecture is \"mamba\"; supported are",
        ),
        (Head::default().text("general.architecture", "llama"), "llama.attention.head_count is missing"),
        (Head::llama().text("llama.rope.scaling.type", "odd"), "llama.rope.scaling.type is \"odd\""),
        (Head::llama().text("llama.context_length", "long"), "llama.context_length must be one number"),
        (Head::llama().number("split.count", 3), "split.count is 3; its name says nothing of it"),
        (Head::llama().number("split.count", 1 << 20), "split.count must be a number up to 99999"),
        (tokens(Head::llama()), "tokenizer.ggml.model is missing"),
        (tokens(Head::llama()).text("tokenizer.ggml.model", "bert"), "is \"bert\"; supported are"),
        (tokens(Head::llama()).text("tokenizer.ggml.model", "llama"), "tokenizer.ggml.scores does not have"),
        (gpt2(), "tokenizer.ggml.merges must be a list"),
        (gpt2().texts("tokenizer.ggml.token_type", &["a"]), "tokenizer.ggml.token_type does not have"),
        (gpt2().text("tokenizer.ggml.pre", "new"), "tokenizer.ggml.pre is \"new\""),
        (gpt2().texts("tokenizer.ggml.merges", &["ab"]), "tokenizer.ggml.merges must be pairs"),
        (Head::llama().number("tokenizer.ggml.tokens", 1), "tokenizer.ggml.tokens must be a list"),
    ] {
        let error = refused(&head);
        assert!(error.starts_with("the GGUF file: ") && error.contains(named), "{error}: {named}");
    }
}

/// What a configuration sizes something by is bounded by whoever reads it.
#[test]
fn absurd_sizes_are_refused() {
    let field = |field: &str, number| {
        let llama = Head::llama();
        let key = text(&format!("llama.{field}"));
        Head(llama.0.into_iter().filter(|entry| !entry.starts_with(&key)).collect())
            .number(&format!("llama.{field}"), number)
    };
    for (key, number, named) in [
        ("block_count", 1_000_000, "num_hidden_layers is 1000000"),
        ("block_count", 0, "num_hidden_layers is 0"),
        ("embedding_length", u32::MAX, "hidden_size is 4294967295"),
        ("feed_forward_length", u32::MAX, "intermediate_size is 4294967295"),
        ("attention.head_count_kv", 0, "num_key_value_heads is 0"),
        ("attention.key_length", 1 << 30, "head_dim is 1073741824"),
    ] {
        let mut config = config(&field(key, number));
        // As many as the embedding has rows.
        config["vocab_size"] = json!(100);
        let files = Files([("config.json".to_owned(), config.to_string().into())].into());
        let error = arch::read(&files, &nothing()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}: {named}");
    }
    assert!(refused(&field("attention.head_count", 0)).contains("llama.attention.head_count is missing"));
}

/// A header may be a hundred million bytes; what it says must not take many times that.
#[test]
fn absurd_vocabularies_are_refused_at_once() {
    let begun = Instant::now();
    let repeated = |what: &[u8], count: usize| {
        let values = what.repeat(count);
        [&8u32.to_le_bytes()[..], &(count as u64).to_le_bytes(), &values].concat()
    };
    let tokens = |list: &[u8]| {
        Head::llama().text("tokenizer.ggml.model", "gpt2").entry("tokenizer.ggml.tokens", 9, list)
    };
    let many = tokens(&repeated(&text(""), (1 << 20) + 1));
    assert!(refused(&many).contains("tokenizer.ggml.tokens has 1048577 texts; at most 1048576 are read"));
    let long = tokens(&repeated(&text(&"a".repeat(1 << 20)), 17));
    assert!(refused(&long).contains("tokenizer.ggml.tokens has 17825792 bytes"));
    let merges = tokens(&repeated(&text("a"), 1)).entry(
        "tokenizer.ggml.merges",
        9,
        &repeated(&text("a a"), (1 << 20) + 1),
    );
    assert!(refused(&merges).contains("tokenizer.ggml.merges has 1048577 texts"));
    let template = "x".repeat((1 << 20) + 1);
    let template = tokens(&repeated(&text("a"), 1))
        .entry("tokenizer.ggml.merges", 9, &repeated(&text("a a"), 0))
        .text("tokenizer.chat_template", &template);
    assert!(refused(&template).contains("tokenizer.chat_template has 1048577 bytes"));
    let list = [&0u32.to_le_bytes()[..], &(1u64 << 24).to_le_bytes(), &[2; 1 << 24]].concat();
    let blocks = Head::llama().entry("llama.attention.head_count_kv", 9, &list);
    assert!(refused(&blocks).contains("llama.attention.head_count_kv must be one number"));
    // Runs of one letter are made of shorter ones in as many ways as they are long.
    let letters: Vec<u8> = (0..40_000).flat_map(|at| text(&"a".repeat(at % 120 + 1))).collect();
    let list = [&8u32.to_le_bytes()[..], &40_000u64.to_le_bytes(), &letters].concat();
    let scores = [&6u32.to_le_bytes()[..], &40_000u64.to_le_bytes(), &[0; 160_000]].concat();
    let runs = Head::llama()
        .text("tokenizer.ggml.model", "llama")
        .entry("tokenizer.ggml.tokens", 9, &list)
        .entry("tokenizer.ggml.scores", 9, &scores);
    assert!(refused(&runs).contains("in over 1048576 ways"));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A byte-level tokenizer with these tokens and merges.
fn byte_level(kind: &str, tokens: &[&str], merges: &[&str]) -> Tokenizer {
    let head = Head::llama()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", kind)
        .texts("tokenizer.ggml.tokens", tokens)
        .texts("tokenizer.ggml.merges", merges);
    Tokenizer::from_bytes(&files(&head, &[]).unwrap().0["tokenizer.json"]).unwrap()
}

#[test]
fn text_is_split_as_transformers_splits_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/splits.json");
    let known: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let texts = |name: &str| -> Vec<&str> {
        known[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
    };
    let (tokens, merges) = (texts("tokens"), texts("merges"));
    for (kind, ids) in known["ids"].as_object().unwrap() {
        let tokenizer = byte_level(kind, &tokens, &merges);
        for (text, ids) in texts("texts").iter().zip(ids.as_array().unwrap()) {
            let encoded = tokenizer.encode_fast(*text, true).unwrap();
            assert_eq!(json!(encoded.get_ids()), *ids, "{kind}: {text:?}");
            assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), *text, "{kind}");
        }
    }
}

#[test]
fn every_way_to_split_is_one_that_the_tokenizer_knows() {
    for kind in ["default", "deepseek-v3", "deepseek-coder", "starcoder", "falcon3", "stablelm2"] {
        let tokenizer = byte_level(kind, &["a", "b", "ab", "1"], &["a b"]);
        assert_eq!(tokenizer.encode_fast("ab11", false).unwrap().get_ids(), [2, 3, 3], "{kind}");
    }
}
