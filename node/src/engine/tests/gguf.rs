//! Models in GGUF files: logits against those of the dequantised weights, and tokens against those of the
//! tokenizers that the files were made from.

use std::path::Path;

use serde_json::Value;
use surf_chunker::Checkpoint;

use super::{swarm::Published, *};
use crate::{engine::compute::devices, weights::Weights};

const GGUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf");

/// The small files of the model at `path`, with what its GGUF file says.
fn told(path: &str, manifest: &Checkpoint) -> Result<Files, EngineError> {
    let mut files = files(path);
    let Some(wanted) = Files::wanted_of_gguf(manifest) else { return Ok(files) };
    let folder = if Path::new(path).is_dir() { Path::new(path) } else { Path::new(path).parent().unwrap() };
    let read = |file: u32, start: u64, size: u64| {
        let bytes = std::fs::read(folder.join(&manifest.files()[file as usize].path)).unwrap();
        bytes[start as usize..(start + size) as usize].to_vec()
    };
    let head = read(wanted.file, 0, wanted.head);
    let tensor = |name: String| {
        let tensor = manifest.tensor(&name).unwrap();
        let bytes = read(tensor.file, tensor.offset, tensor.size);
        (name, bytes)
    };
    let tensors: Vec<_> = wanted.tensors.into_iter().map(tensor).collect();
    files.add_gguf(manifest, wanted.file, &head, &tensors)?;
    Ok(files)
}

fn load(path: &str) -> Result<Engine, EngineError> {
    let weights = FileWeights::open(path);
    let files = told(path, weights.checkpoint())?;
    Engine::load(&files, Arc::new(weights), &CONFIG, Arc::default())
}

/// The same, published, and streamed in the memory of two blocks.
fn load_streamed(path: &str) -> Engine {
    let published = Published::open(path);
    let files = told(path, &published.manifest).unwrap();
    let weights = published.weights(published.two_blocks());
    Engine::load(&files, weights, &CONFIG, Arc::default()).unwrap()
}

async fn check(engine: &Engine, name: &str, tolerance: f32) {
    let expected = std::fs::read(format!("{GGUF}/{name}.expected.safetensors")).unwrap();
    let report = engine.check(&expected, tolerance).await.unwrap();
    assert!(report.pass, "{name}: {report:?}");
    assert_eq!((report.argmax_agree, report.greedy_agree), (Some(1.0), Some(1.0)), "{name}: {report:?}");
    eprintln!("{name}: {:e}", report.max_rel_err);
}

/// Models of one file each.
const MODELS: [&str; 17] = [
    "gemma2",
    "gemma3",
    "gpt2",
    "llama-f16",
    "llama-q8_0",
    "llama-q4_0",
    "llama-iq",
    "llama-k",
    "llama-biased",
    "llama-inner",
    "llama3",
    "mixtral",
    "phi3",
    "phi3-long",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
];

#[tokio::test]
async fn logits_are_those_of_the_dequantised_weights() {
    for name in MODELS {
        check(&load(&format!("{GGUF}/{name}.gguf")).unwrap(), name, 1e-4).await;
    }
}

/// The same with products computed by candle, exactly and fast.
#[tokio::test]
async fn a_device_multiplies_blocks_as_they_are_stored() {
    for device in devices() {
        let on = |path: &str, dtype| {
            let weights = FileWeights::open(path).all_resident();
            let files = told(path, weights.checkpoint()).unwrap();
            let compute = Compute::on("test".to_owned(), device.clone(), dtype, u64::MAX);
            Engine::load_on(compute, u64::MAX, &files, Arc::new(weights), Arc::default()).unwrap()
        };
        for name in MODELS {
            check(&on(&format!("{GGUF}/{name}.gguf"), Precision::Auto), name, 1e-4).await;
        }
        for name in ["llama-f16", "llama-q8_0", "llama-q4_0", "llama-k"] {
            let expected = std::fs::read(format!("{GGUF}/{name}.expected.safetensors")).unwrap();
            let engine = on(&format!("{GGUF}/{name}.gguf"), Precision::Bf16);
            // Activations of eight bits are felt in models this small.
            let report = engine.check(&expected, 0.2).await.unwrap();
            assert!(report.pass && 1e-4 < report.max_rel_err, "{name}: {report:?}");
            assert!(report.argmax_agree.is_some_and(|share| 0.9 < share), "{name}: {report:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_streamed_like_any_other() {
    for name in MODELS {
        check(&load_streamed(&format!("{GGUF}/{name}.gguf")), name, 1e-4).await;
    }
}

#[tokio::test]
async fn a_model_in_several_files_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let name = |number| format!("qwen2-0000{number}-of-00003.gguf");
    for number in 1..=3 {
        std::fs::copy(format!("{GGUF}/{}", name(number)), folder.path().join(name(number))).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    check(&load(path).unwrap(), "qwen2", 1e-4).await;
    std::fs::remove_file(folder.path().join(name(3))).unwrap();
    let error = load(path).unwrap_err().to_string();
    assert_eq!(
        error,
        "qwen2-00001-of-00003.gguf: is one of 3 files, of which qwen2-00003-of-00003.gguf is missing"
    );
}

/// What bytes make of these, other tokenizers do.
#[tokio::test]
async fn a_byte_level_tokenizer_is_the_one_that_it_was_made_from() {
    let text = load(&format!("{GGUF}/llama-f16.gguf")).unwrap().text;
    let original = super::load(&fixture("llama")).text;
    for given in ["The node announces", "Zwölf Boxkämpfer 机器学习 🌊🏄!", "  two  spaces\n", "it's <|user|>"]
    {
        let ids = text.encode(given.to_owned(), usize::MAX).await.unwrap();
        assert_eq!(ids, original.encode(given.to_owned(), usize::MAX).await.unwrap());
        let mut decoder = text.decoder(&[], false);
        let shown: String = ids.iter().map(|&id| decoder.push(id).text).collect();
        let mut decoder = original.decoder(&[], false);
        assert_eq!(shown, ids.iter().map(|&id| decoder.push(id).text).collect::<String>());
    }
    let chat = [Message { role: "user".into(), content: "Hello".into() }];
    assert_eq!(
        text.encode_chat(&chat, usize::MAX).await.unwrap(),
        original.encode_chat(&chat, usize::MAX).await.unwrap()
    );
    // What ends a turn ends a text, too.
    assert_eq!(text.eos(), [2, 6]);
}

#[tokio::test]
async fn a_vocabulary_of_pieces_gives_what_sentence_piece_does() {
    let text = load(&format!("{GGUF}/llama3.gguf")).unwrap().text;
    let known = std::fs::read(format!("{GGUF}/pieces.json")).unwrap();
    let known: Value = serde_json::from_slice(&known).unwrap();
    for (given, ids) in known["texts"].as_array().unwrap().iter().zip(known["ids"].as_array().unwrap()) {
        let given = given.as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
        assert_eq!(text.encode(given.to_owned(), usize::MAX).await.unwrap(), expected, "{given:?}");
        let mut decoder = text.decoder(&[1], false);
        let shown: String = expected[1..].iter().map(|&id| decoder.push(id).text).collect();
        assert_eq!(shown + &decoder.finish(true), given);
    }
}

/// Beside other files, the configuration is that of the weights; all else is the folder's.
#[tokio::test]
async fn a_folder_keeps_its_tokenizer_and_takes_the_configuration_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(format!("{GGUF}/llama-f16.gguf"), folder.path().join("model.gguf")).unwrap();
    std::fs::copy(fixture("llama/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": 3}"#).unwrap();
    let engine = load(folder.path().to_str().unwrap()).unwrap();
    check(&engine, "llama-f16", 1e-4).await;
    assert_eq!(engine.text.eos(), [3]);
    // It has no template, so the metadata's is used.
    let chat = [Message { role: "user".into(), content: "Hello".into() }];
    assert!(engine.text.encode_chat(&chat, usize::MAX).await.is_ok());
}

#[tokio::test]
async fn a_model_of_which_nothing_is_understood_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("llama/config.json"), folder.path().join("config.json")).unwrap();
    let refused = || load(folder.path().to_str().unwrap()).unwrap_err().to_string();
    assert_eq!(refused(), "it has no weights");
    std::fs::create_dir(folder.path().join("onnx")).unwrap();
    std::fs::write(folder.path().join("onnx/model.onnx"), b"\x08\x07").unwrap();
    assert_eq!(
        refused(),
        "the weights in onnx/model.onnx are in a \
         format that this program does not compute with"
    );
}
