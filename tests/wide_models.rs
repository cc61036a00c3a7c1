//! Models whose widths take far more memory than their weights: each gets a sentence, or runs in parts that fit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use surf_tests::Process;

/// A llama whose weights are zeros that take no room on the disk.
fn zeros(folder: &Path, changes: &[(&str, u64)]) {
    let mut config = json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 256,
        "max_position_embeddings": 1 << 20, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    });
    for (field, value) in changes {
        config[*field] = json!(value);
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let size = |field: &str| config[field].as_u64().unwrap();
    let (hidden, inner, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let [query, kv] =
        ["num_attention_heads", "num_key_value_heads"].map(|heads| size(heads) * size("head_dim"));
    let (mut tensors, mut at) = (serde_json::Map::new(), 0);
    let mut add = |name: String, shape: &[u64]| {
        let end = at + 2 * shape.iter().product::<u64>();
        tensors.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    };
    add("model.embed_tokens.weight".to_owned(), &[vocab, hidden]);
    for layer in 0..size("num_hidden_layers") {
        let mut add = |name: &str, shape: &[u64]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[query, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, query]);
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
    }
    add("model.norm.weight".to_owned(), &[hidden]);
    add("lm_head.weight".to_owned(), &[vocab, hidden]);
    let head = Value::Object(tensors).to_string();
    let head = format!("{head}{}", " ".repeat(head.len().next_multiple_of(8) - head.len()));
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(head.len() as u64).to_le_bytes()).unwrap();
    file.write_all(head.as_bytes()).unwrap();
    file.set_len(8 + head.len() as u64 + at).unwrap();
}

/// Bytes of memory of a process, mapped files aside.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_models_get_a_sentence_or_run_in_small_parts() {
    const GROWS_MAX: u64 = 256 << 20;
    let node = Process::join(&[], &["--memory", "64MiB"]);
    let client = reqwest::Client::new();
    let plain = json!({});
    let scored = json!({"echo": true, "logprobs": 1, "prompt": vec![5; 8]});
    let heads = ("num_attention_heads", 1024);
    for (changes, more, said) in [
        (&[("intermediate_size", 1 << 20)][..], &plain, Some("(--memory)")),
        (&[("vocab_size", 1 << 22)], &scored, Some("vocab_size is 4194304")),
        (&[("vocab_size", 1 << 18)], &scored, None),
        (&[heads, ("num_key_value_heads", 1024), ("head_dim", 1024)], &plain, Some("head_dim 1024")),
        (
            &[heads, ("num_hidden_layers", 64), ("num_key_value_heads", 1024)],
            &plain,
            Some("the prompt of 512"),
        ),
        (&[("max_position_embeddings", 1 << 31)], &plain, None),
        (&[("num_hidden_layers", 0)], &plain, Some("num_hidden_layers is 0")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        zeros(folder.path(), changes);
        let model = node.done(&["publish", folder.path().to_str().unwrap()]);
        let mut body =
            json!({"model": model["model"], "prompt": vec![5; 512], "max_tokens": 1, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let idle = resident(node.pid());
        let done = Arc::new(AtomicBool::new(false));
        let (pid, ended) = (node.pid(), Arc::clone(&done));
        let watching = tokio::spawn(async move {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(resident(pid));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            peak
        });
        let asked = client.post(format!("{}/v1/completions", node.rpc())).json(&body).send();
        let answer = tokio::time::timeout(Duration::from_secs(300), asked).await.expect("no hang").unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        done.store(true, Ordering::Relaxed);
        let grown = watching.await.unwrap().saturating_sub(idle);
        println!("{changes:?}: {status}, {} KiB more, {}", grown >> 10, &text[..text.len().min(300)]);
        assert!(grown < GROWS_MAX, "{changes:?}: {grown} bytes more");
        match said {
            Some(said) => assert!(status == 400 && text.contains(said), "{changes:?}: {status} {text}"),
            None => assert!(status.is_success(), "{changes:?}: {status} {text}"),
        }
        let healthy = client.get(format!("{}/healthz", node.rpc())).send().await.unwrap();
        assert!(healthy.status().is_success());
    }
}
