//! A model is quantised where it is published, and streams and runs like any other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;

use surf_tests::{Process, fixture, text, tiny_surfer};

#[test]
fn a_quantised_model_streams_and_runs_elsewhere() {
    let a = Process::join(&[], &[]);
    let b = Process::join(&[a.addr()], &["--memory", "1MiB"]);
    let folder = tiny_surfer();
    let published = a.done(&["publish", folder.to_str().unwrap(), "--quantize", "q8_0", "--name", "small"]);
    let quantized = &published["quantized"];
    assert_eq!((quantized["kind"].as_str(), &quantized["bytes_after"]), (Some("q8_0"), &published["bytes"]));
    assert!(quantized["bytes_after"].as_u64() < quantized["bytes_before"].as_u64());
    let divergence = quantized["quality"]["kl_divergence"].as_f64().unwrap();
    assert!(0.0 < divergence && divergence < 0.01, "{quantized}");
    // Nothing of the work is left, and the model is whole without its folder.
    assert_eq!(fs::read_dir(a.dir().join("quantizing")).unwrap().count(), 0);
    let model = published["model"].as_str().unwrap();
    let said = b.lines(&["generate", model, "-p", "Once upon a time", "--max-tokens", "24"]);
    let expected = a.lines(&["generate", "small", "-p", "Once upon a time", "--max-tokens", "24"]);
    assert_eq!(text(&said), text(&expected));
    assert!(!text(&said).is_empty());
    let record = fixture("../tiny-surfer.expected.safetensors");
    let checked = b.done(&["check", model, record.to_str().unwrap(), "--tolerance", "0.2"]);
    assert_eq!(checked["pass"], true, "{checked}");
}

#[test]
fn what_cannot_be_quantised_is_refused_in_a_sentence() {
    let a = Process::join(&[], &[]);
    let refused = a.run(&["publish", fixture("llama-fp8").to_str().unwrap(), "--quantize", "q4_k"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.starts_with("error: ") && said.contains("quantised already"), "{said}");
    let usage = a.run(&["publish", fixture("llama").to_str().unwrap(), "--quantize", "q1"]);
    assert_eq!(usage.status.code(), Some(2));
}
