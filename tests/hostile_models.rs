//! Models whose templates and tokenizers mean harm, and prompts that are too long: each gets a sentence, and the
//! node goes on beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde_json::{Value, json};
use surf_tests::{Process, fixture};
use tempfile::TempDir;

/// How long anything may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a hostile model may take beside an idle node, its child processes included.
const MEMORY_MAX_KIB: u64 = 256 << 10;

const NESTED: &str = "{% set ns = namespace(x=[]) %}{% for a in range(700) %}{% for b in range(700) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x }}";
const DOUBLING: &str = "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
const SLOW: &str =
    "{% set s = ('x' * 8000000) %}{% for i in range(100000) %}{% if ('y' ~ i) in s %}{% endif %}{% endfor %}";
const BROKEN: &str = "{% if %}";

/// The fixture with another template, or with a tokenizer that `change` has changed.
fn model(template: Option<&str>, change: impl Fn(&mut Value)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let from = fixture("llama").join(name);
        if from.exists() {
            fs::copy(from, folder.path().join(name)).unwrap();
        }
    }
    if let Some(template) = template {
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    fs::write(path, tokenizer.to_string()).unwrap();
    folder
}

fn published(node: &Process, folder: &Path) -> String {
    node.done(&["publish", folder.to_str().unwrap()])["model"].as_str().unwrap().to_owned()
}

async fn ask(node: &Process, route: &str, body: Value) -> (u16, Value) {
    let request = reqwest::Client::new().post(format!("{}/v1/{route}", node.rpc())).timeout(PATIENCE);
    let answer = request.body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
}

fn completion(model: &str, prompt: &str) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": 2})
}

/// Anonymous memory of the node and of its children, in KiB.
fn memory(node: &Process) -> u64 {
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |status: &str, name: &str| -> u64 {
        let value = status.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let own = node.pid();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let all =
        pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).map(|pid| (status(&pid), pid));
    all.filter(|(status, pid)| *pid == own.to_string() || field(status, "PPid:") == u64::from(own))
        .map(|(status, _)| field(&status, "RssAnon:"))
        .sum()
}

/// Runs `work`, while `/healthz` is asked all along. Returns the most memory seen.
async fn watched<T>(node: &Process, work: impl Future<Output = T>) -> (T, u64) {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let watching = async {
        let client = reqwest::Client::new();
        while !done.load(Relaxed) {
            let health = client.get(format!("{}/healthz", node.rpc())).timeout(PATIENCE).send().await;
            assert_eq!(health.unwrap().status(), 200);
            most.fetch_max(memory(node), Relaxed);
        }
    };
    let working = async {
        let result = work.await;
        done.store(true, Relaxed);
        result
    };
    let (result, ()) = tokio::join!(working, watching);
    (result, most.load(Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_models_get_a_sentence_and_the_node_goes_on() {
    let node = Process::join(&[], &["--memory", "256MiB"]);
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"});
    let grow = json!({"type": "Sequence", "normalizers": vec![grow; 12]});
    let regex =
        json!({"type": "Split", "pattern": {"Regex": "(a+)+$b"}, "behavior": "Isolated", "invert": false});
    let models = [
        ("chat/completions", model(Some(NESTED), |_| ())),
        ("chat/completions", model(Some(DOUBLING), |_| ())),
        ("chat/completions", model(Some(SLOW), |_| ())),
        ("chat/completions", model(Some(BROKEN), |_| ())),
        ("completions", model(None, |tokenizer| tokenizer["normalizer"] = grow.clone())),
        ("completions", model(None, |tokenizer| tokenizer["pre_tokenizer"] = regex.clone())),
        ("completions", model(None, |tokenizer| tokenizer["model"]["merges"] = json!(["no body"]))),
    ];
    let models: Vec<(&str, String)> =
        models.iter().map(|(route, folder)| (*route, published(&node, folder.path()))).collect();
    let idle = memory(&node);
    for (route, model) in &models {
        let is_chat = *route == "chat/completions";
        let body = if is_chat { chat(model) } else { completion(model, &"a".repeat(2000)) };
        let ((status, answer), most) = watched(&node, ask(&node, route, body)).await;
        // A regex that gives up is no error; everything else is one.
        assert!(status == 400 || (status == 200 && !is_chat), "{status} {answer}");
        if status == 400 {
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.len() < 4096 && !message.contains('\n'), "{message}");
        }
        assert!(most.saturating_sub(idle) < MEMORY_MAX_KIB, "{most} KiB after {idle} KiB: {answer}");
        // What is wrong with a template concerns chats alone.
        if is_chat {
            let (status, answer) = ask(&node, "completions", completion(model, "The node")).await;
            assert_eq!(status, 200, "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_left_keep_nobody_waiting_and_the_second_signal_ends_the_node() {
    let mut node = Process::join(&[], &["--memory", "256MiB"]);
    let template = format!("{{% if messages[0].content == 'slow' %}}{SLOW}{{% endif %}}<|user|>");
    let folder = model(Some(&template), |_| ());
    let model = published(&node, folder.path());
    for _ in 0..4 {
        let mut body = chat(&model);
        body["messages"][0]["content"] = json!("slow");
        let left =
            tokio::time::timeout(Duration::from_millis(300), ask(&node, "chat/completions", body)).await;
        drop(left);
    }
    let ((status, answer), _) = watched(&node, ask(&node, "chat/completions", chat(&model))).await;
    assert_eq!(status, 200, "{answer}");
    for _ in 0..2 {
        let pid = node.pid().to_string();
        // It may have ended after the first.
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().is_ok());
    }
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || node.ended())).await.unwrap().unwrap();
}

/// Three at once, each more than the context holds, also as several answers.
#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_are_refused_beside_everything_else() {
    let node = Process::join(&[], &["--memory", "256MiB"]);
    let model = published(&node, &fixture("llama"));
    for (text, n) in
        [("once upon a time ".repeat(240_000), 1), ("a".repeat(4_000_000), 4), ("机".repeat(1_300_000), 1)]
    {
        let mut body = completion(&model, &text);
        body["n"] = json!(n);
        let asks = futures::future::join_all((0..3).map(|_| ask(&node, "completions", body.clone())));
        for (status, answer) in watched(&node, asks).await.0 {
            let message = answer["error"]["message"].as_str().unwrap();
            assert_eq!(
                (status, message),
                (400, "the prompt has more than 512 tokens; the context holds 512")
            );
        }
    }
}
