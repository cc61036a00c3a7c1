//! Other programs drive a node over HTTP: OpenAI's API, and the routes for those who watch it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use serde_json::{Value, json};
use surf_tests::{Process, fixture, tiny_surfer};

struct Served {
    node: Process,
    client: reqwest::Client,
}

impl Served {
    /// A node that has the bundled model, under the name `surfer`.
    fn start() -> Self {
        let node = Process::join(&[], &[]);
        node.done(&["publish", tiny_surfer().to_str().unwrap(), "--name", "surfer"]);
        Self { node, client: reqwest::Client::new() }
    }

    async fn post(&self, route: &str, body: &Value) -> reqwest::Response {
        let url = format!("{}{route}", self.node.rpc());
        self.client.post(url).json(body).send().await.unwrap()
    }

    async fn get(&self, route: &str) -> reqwest::Response {
        self.client.get(format!("{}{route}", self.node.rpc())).send().await.unwrap()
    }
}

fn story(stream: bool) -> Value {
    json!({
        "model": "surfer", "temperature": 0, "max_tokens": 60, "stream": stream,
        "messages": [{"role": "user", "content": "Tell me a story about a seal."}],
    })
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_streamed() {
    let served = Served::start();
    let whole: Value = served.post("/v1/chat/completions", &story(false)).await.json().await.unwrap();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("seal"), "{text}");
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["usage"]["completion_tokens"], 60);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");

    let streamed = served.post("/v1/chat/completions", &story(true)).await.text().await.unwrap();
    let events: Vec<&str> = streamed.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let joined: String = chunks
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(joined, text);
}

#[tokio::test]
async fn completions_take_tokens_and_several_prompts_and_refuse_nonsense() {
    let served = Served::start();
    let ask = async |body: Value| served.post("/v1/completions", &body).await;
    let body = json!({"model": "surfer", "prompt": ["Once upon a time", "The seal"], "temperature": 0,
        "max_tokens": 8});
    let answer: Value = ask(body).await.json().await.unwrap();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_ne!(answer["choices"][0]["text"], answer["choices"][1]["text"]);

    let refused = ask(json!({"model": "surfer", "prompt": [99_999], "max_tokens": 1})).await;
    assert_eq!(refused.status(), 400);
    let error: Value = refused.json().await.unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("99999"), "{error}");
    let unknown = ask(json!({"model": "no-such-model", "prompt": "x"})).await;
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn logits_are_those_that_were_recorded() {
    let served = Served::start();
    let folder = fixture("llama");
    let published = served.node.done(&["publish", folder.to_str().unwrap()]);
    let recorded = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&recorded).unwrap();
    let ids = recorded.tensor("input_ids").unwrap();
    let ids: Vec<i64> =
        ids.data().chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap())).collect();
    let rows: Vec<&[i64]> = ids.chunks(33).collect();
    let body = json!({"model": published["model"], "input_ids": rows});
    let answer = served.post("/surf/v1/forward", &body).await.bytes().await.unwrap();
    let answer = safetensors::SafeTensors::deserialize(&answer).unwrap();
    let (got, expected) = (answer.tensor("logits").unwrap(), recorded.tensor("logits").unwrap());
    assert_eq!(got.shape(), expected.shape());
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|float| f32::from_le_bytes(float.try_into().unwrap())).collect()
    };
    let (got, expected) = (floats(got.data()), floats(expected.data()));
    let largest = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= 1e-3 * largest, "{worst} of {largest}");
}

#[tokio::test]
async fn those_who_watch_are_told() {
    let served = Served::start();
    assert_eq!(served.get("/healthz").await.status(), 200);
    assert_eq!(served.get("/readyz").await.status(), 200);
    let models: Value = served.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["object"], "list");
    let metrics = served.get("/metrics").await.text().await.unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("surf_")), "{metrics}");
    let foreign = served.client.get(format!("{}/v1/models", served.node.rpc()));
    let foreign = foreign.header("Origin", "http://evil.example").send().await.unwrap();
    assert_eq!(foreign.status(), 403);
}
