//! Memory beside weights: what a pass takes is what was worked out for it, and a model made to take more than
//! there is gets a sentence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use surf_chunker::{Options, Sink, cut};
use surf_node::{
    config::{self, Device, Precision},
    engine::{Engine, Event, Files, Prompt, Request},
    journal::Journal,
    source::Memory,
    weights::Streamed,
};
use surf_protocol::Chunk;
use surf_tests::{Process, fixture};

/// Counts the bytes that are allocated, and the most that they have been.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed on to the system's allocator as it came.
#[allow(unsafe_code, reason = "an allocator is unsafe by its nature")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// One measurement at a time: all threads count together.
static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Keep<'a>(&'a Memory);

impl Sink for Keep<'_> {
    fn chunk(&self, chunk: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.put(chunk.clone());
        Ok(())
    }
}

/// The model in `folder`, with all its weights in memory.
fn load(folder: &Path) -> Engine {
    let memory = Memory::default();
    let manifest = Arc::new(cut(folder, &Options::default(), &Keep(&memory)).unwrap());
    let read = |name: &&str| Some((name.to_string(), std::fs::read(folder.join(name)).ok()?.into()));
    let files = Files(Files::WANTED.iter().filter_map(read).collect());
    let config = config::Engine { memory: u64::MAX, device: Device::Cpu, dtype: Precision::Auto };
    let (runtime, journal) = (tokio::runtime::Handle::current(), Arc::<Journal>::default());
    let weights = Streamed::new(manifest, Arc::new(memory), u64::MAX, runtime, Arc::clone(&journal));
    Engine::load(&files, Arc::new(weights), &config, journal).unwrap()
}

/// Has `tokens` computed: to the next token, or to a vector.
async fn compute(engine: &Engine, tokens: Vec<u32>, embeds: bool) {
    if embeds {
        drop(engine.embed(&[Prompt::Tokens(tokens)]).await.unwrap());
        return;
    }
    let request = Request { max_tokens: Some(1), ignore_eos: true, ..Request::new(Prompt::Tokens(tokens)) };
    let mut events = engine.generate(request).unwrap();
    while let Some(event) = events.recv().await {
        assert!(!matches!(event, Event::Failed(_)), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_takes_no_more_than_was_worked_out() {
    /// For what is neither weights nor a pass: messages, names, tasks.
    const BESIDE: u64 = 512 << 10;
    let _measuring = MEASURING.lock().await;
    let mut wrong = Vec::new();
    for name in [
        "llama",
        "llama-bf16-sharded",
        "mistral",
        "qwen2",
        "qwen3",
        "gpt2",
        "mixtral",
        "qwen3-moe",
        "deepseek-v3",
        "t5",
        "t5-v1.1",
        "bert",
        "variants/gemma2",
        "variants/gemma3-text",
        "variants/gpt-neox",
        "variants/phi3",
        "variants/phi",
        "variants/gemma",
    ] {
        let folder = fixture(name);
        let engine = load(&folder);
        let count = engine.context().min(384);
        let tokens: Vec<u32> = (0..count as u32).map(|at| 5 + at % 40).collect();
        let embeds = name == "bert";
        // What is made once, and stays.
        compute(&engine, tokens.clone(), embeds).await;
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        compute(&engine, tokens, embeds).await;
        let measured = (PEAK.load(Ordering::Relaxed) - before) as u64;
        let bound = engine.prompt_bytes(count);
        println!("{name}: {count} tokens, {measured} bytes measured, {bound} worked out");
        if bound + BESIDE < measured || measured + BESIDE < bound / 12 {
            wrong.push(format!("{name}: {measured} bytes where {bound} were worked out"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

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
    let _measuring = MEASURING.lock().await;
    let node = Process::join(&[], &["--memory", "64MiB"]);
    let client = reqwest::Client::new();
    let plain = json!({});
    let scored = json!({"echo": true, "logprobs": 1});
    let heads = ("num_attention_heads", 1024);
    for (changes, more, said) in [
        (&[("intermediate_size", 1 << 20)][..], &plain, None),
        (&[("vocab_size", 1 << 22)], &scored, Some("vocab_size is 4194304")),
        (&[("vocab_size", 1 << 18)], &scored, None),
        (&[heads, ("num_key_value_heads", 1024), ("head_dim", 1024)], &plain, Some("head_dim 1024")),
        (&[heads, ("num_hidden_layers", 64), ("num_key_value_heads", 1024)], &plain, None),
        (&[("max_position_embeddings", 1 << 31)], &plain, Some("max_position_embeddings is 2147483648")),
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
