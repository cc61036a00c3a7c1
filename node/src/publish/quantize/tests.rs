//! Folders that are quantised, and what the models that come of it compute.

use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};
use surf_protocol::Dtype;
use tempfile::tempdir;

use super::*;
use crate::{
    api::Quality,
    config::{Device, Precision},
    engine::Report,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models");
const SURFER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-surfer");

fn engine(memory: u64) -> config::Engine {
    config::Engine { memory, device: Device::Auto, dtype: Precision::Auto }
}

/// A store, and what publishing into it needs.
struct Node {
    dir: TempDir,
    store: Store,
}

impl Node {
    fn new() -> Self {
        Self::with_quota(1 << 30)
    }

    fn with_quota(quota: u64) -> Self {
        let dir = tempdir().unwrap();
        let store =
            Store::open(&config::Store { dir: dir.path().join("store"), quota, scrub: None }).unwrap();
        Self { dir, store }
    }

    fn making(&self, path: &Path) -> Making {
        let (path, data_dir) = (path.to_owned(), self.dir.path().to_owned());
        Making { store: self.store.clone(), data_dir, path, options: Options::default() }
    }

    fn make(&self, path: &Path, kind: Kind) -> Result<Made, QuantizeError> {
        self.making(path).make(kind, &AtomicBool::new(false), &|_| ())
    }

    async fn publish(&self, path: &Path, kind: &str) -> Result<(Arc<Manifest>, Published), QuantizeError> {
        let request = PublishRequest {
            path: path.to_string_lossy().into_owned(),
            quantize: Some(kind.to_owned()),
            ..PublishRequest::default()
        };
        let quantizing =
            Quantizing { data_dir: self.dir.path().to_owned(), engine: engine(1 << 30), host: None };
        quantized(&self.store, &request, &quantizing, |_| ()).await
    }

    /// What of quantising is left in the data folder.
    fn left(&self) -> usize {
        fs::read_dir(self.dir.path().join(FOLDER)).map_or(0, Iterator::count)
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// What is loaded of a model, by the names of its tensors.
fn loaded(manifest: &Arc<Manifest>) -> surf_chunker::Checkpoint {
    surf_chunker::Checkpoint::by_names(Arc::clone(manifest), &surf_chunker::Families::default())
}

async fn check(folder: &Path, expected: &Path) -> Report {
    let engine = measure::load(folder, &engine(1 << 30)).await.unwrap();
    engine.check(&fs::read(expected).unwrap(), 1e-3).await.unwrap()
}

#[tokio::test]
async fn models_in_eight_bits_compute_nearly_what_transformers_recorded() {
    let node = Node::new();
    // Weights drawn by chance make models that are sensitive, those with routers most of all. Dequantised to the same
    // blocks, transformers' own are 0.12, 0.12, 0.36 and 0.28 off, with 0.89, 1, 0.86 and 0.83 of the best tokens.
    for (name, most) in [("llama", 0.2), ("qwen2", 0.2), ("qwen3-moe", 0.8), ("deepseek-v3", 0.8)] {
        let made = node.make(&fixture(name), Kind::Q8_0).unwrap();
        let after = made.folder.path().join(AFTER);
        let report = check(&after, &fixture(name).join("expected.safetensors")).await;
        assert!(report.max_rel_err < most && 1e-4 < report.max_rel_err, "{name}: {report:?}");
        assert!(0.75 < report.argmax_agree.unwrap(), "{name}: {report:?}");
    }
    let made = node.make(Path::new(SURFER), Kind::Q8_0).unwrap();
    let expected = fixture("../tiny-surfer.expected.safetensors");
    let report = check(&made.folder.path().join(AFTER), &expected).await;
    assert!(report.max_rel_err < 0.15 && 0.9 < report.argmax_agree.unwrap(), "{report:?}");
}

#[tokio::test]
async fn a_page_of_english_says_what_it_cost() {
    let node = Node::new();
    let (manifest, published) = node.publish(Path::new(SURFER), "q8_0").await.unwrap();
    let quantized = published.quantized.unwrap();
    assert_eq!((quantized.kind.as_str(), quantized.unmeasured), ("q8_0", None));
    assert_eq!(quantized.bytes_after, published.bytes);
    assert!(quantized.bytes_after < quantized.bytes_before * 4 / 5, "{}", quantized.bytes_after);
    let quality = quantized.quality.unwrap();
    assert!(0.0 < quality.kl_divergence && quality.kl_divergence < 0.01, "{quality:?}");
    assert!((quality.perplexity / quality.perplexity_before - 1.0).abs() < 0.02, "{quality:?}");
    assert!(1.0 < quality.perplexity && 100 < quality.tokens, "{quality:?}");
    // All of it is in the store, under the names that it had.
    assert!(manifest.chunks().iter().all(|chunk| node.store.contains(chunk.id)));
    let original = surf_chunker::contents(Path::new(SURFER), &Options::default()).unwrap();
    let names = |tensors: &[surf_chunker::Parameter]| -> Vec<(String, Vec<u64>)> {
        tensors.iter().map(|tensor| (tensor.name.to_string(), tensor.shape.clone())).collect()
    };
    assert_eq!(names(loaded(&manifest).tensors()), names(&original.tensors));
    let paths: Vec<&str> = manifest.files().iter().map(|file| &*file.path).collect();
    assert_eq!(paths, original.files.iter().map(|file| &*file.path).collect::<Vec<_>>());
    // Tied, so it is the head too.
    assert_eq!(loaded(&manifest).tensor("model.embed_tokens.weight").unwrap().dtype, Dtype::Q8_0);
    assert_eq!(node.left(), 0);
}

/// A Llama that is wide enough for blocks of 256, with a tokenizer of 512 tokens.
fn wide(dir: &Path) {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("llama").join(name), dir.join(name)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture("llama").join("config.json")).unwrap()).unwrap();
    for (field, value) in
        [("hidden_size", 256), ("intermediate_size", 512), ("num_hidden_layers", 3), ("head_dim", 64)]
    {
        config[field] = json!(value);
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<u64>)> = [
        ("model.embed_tokens.weight", vec![512, 256]),
        ("model.norm.weight", vec![256]),
        ("lm_head.weight", vec![512, 256]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .to_vec();
    for block in 0..3 {
        for (name, shape) in [
            ("input_layernorm", vec![256]),
            ("post_attention_layernorm", vec![256]),
            ("self_attn.q_proj", vec![256, 256]),
            ("self_attn.k_proj", vec![128, 256]),
            ("self_attn.v_proj", vec![128, 256]),
            ("self_attn.o_proj", vec![256, 256]),
            ("mlp.gate_proj", vec![512, 256]),
            ("mlp.up_proj", vec![512, 256]),
            ("mlp.down_proj", vec![256, 512]),
        ] {
            tensors.push((format!("model.layers.{block}.{name}.weight"), shape));
        }
    }
    let entries = tensors.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice()));
    let mut file = surf_chunker::header(entries).unwrap();
    for (name, shape) in &tensors {
        file.extend(weights(name, shape));
    }
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// About one in vectors, and of a variance that keeps activations about one in matrices.
fn weights(name: &str, shape: &[u64]) -> Vec<u8> {
    let count = shape.iter().product::<u64>() as usize;
    let mut noise = vec![0; 4 * count];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut noise);
    let (middle, spread) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.1) };
    let value = |bytes: &[u8; 4]| {
        // Four bytes together are about as normally distributed as weights are.
        let sum: f32 = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).sum();
        middle + spread * sum
    };
    noise.as_chunks().0.iter().flat_map(|bytes| value(bytes).to_le_bytes()).collect()
}

#[tokio::test]
async fn fewer_bits_are_fewer_bytes_and_farther_away() {
    let (node, folder) = (Node::new(), tempdir().unwrap());
    wide(folder.path());
    let mut before = (u64::MAX, 0.0);
    for kind in Kind::names() {
        let (manifest, published) = node.publish(folder.path(), kind).await.unwrap();
        let quantized = published.quantized.unwrap();
        let quality = quantized.quality.unwrap_or_else(|| panic!("{:?}", quantized.unmeasured));
        let now = (quantized.bytes_after, quality.kl_divergence);
        assert!(now.0 < before.0 && before.1 < now.1, "{kind}: {now:?} after {before:?}");
        assert_eq!(quality.tokens, 512);
        before = now;
        // Most of it is what was asked for.
        let loaded = loaded(&manifest);
        let up = loaded.tensor("model.layers.1.mlp.up_proj.weight").unwrap();
        assert_eq!(format!("{:?}", up.dtype).to_lowercase(), kind.replace("_k", "k"));
    }
}

#[tokio::test]
async fn a_measurement_fits_into_the_memory_of_two_blocks() {
    let (node, folder) = (Node::new(), tempdir().unwrap());
    wide(folder.path());
    let made = node.make(folder.path(), Kind::Q4K).unwrap();
    let (before, after) = (made.folder.path().join(BEFORE), made.folder.path().join(AFTER));
    let ample = measure::measure(&before, &after, &engine(1 << 30), || ()).await.unwrap();
    let contents = surf_chunker::contents(folder.path(), &Options::default()).unwrap();
    let of_block = contents.tensors.iter().filter(|tensor| tensor.name.starts_with("model.layers.0."));
    let block: u64 = of_block.map(|tensor| tensor.size).sum();
    let scant = measure::measure(&before, &after, &engine(2 * block), || ()).await.unwrap();
    // The same but for the order of sums.
    let same = |quality: &Quality| {
        let change = (quality.kl_divergence / ample.kl_divergence - 1.0).abs();
        change < 1e-2 && (quality.perplexity / ample.perplexity - 1.0).abs() < 1e-3
    };
    assert!(same(&scant), "{ample:?} {scant:?}");
    let halves = AtomicUsize::new(0);
    let read = || _ = halves.fetch_add(1, Ordering::Relaxed);
    let least = measure::measure(&before, &after, &engine(0), read).await.unwrap();
    assert!(same(&least) && halves.into_inner() == 1, "{ample:?} {least:?}");
}

#[tokio::test]
async fn what_cannot_be_measured_says_why() {
    let node = Node::new();
    for (name, why) in [("bert", "continues a text"), ("t5", "continues a text")] {
        let (_, published) = node.publish(&fixture(name), "q8_0").await.unwrap();
        let quantized = published.quantized.unwrap();
        assert!(quantized.bytes_after < quantized.bytes_before && quantized.quality.is_none());
        assert!(quantized.unmeasured.as_ref().unwrap().contains(why), "{quantized:?}");
    }
    let folder = tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("llama").join(name), folder.path().join(name)).unwrap();
    }
    let (_, published) = node.publish(folder.path(), "q4_0").await.unwrap();
    assert!(published.quantized.unwrap().unmeasured.unwrap().contains("tokenizer"));
}

#[test]
fn shards_keep_their_index_and_copies_of_weights_are_left_out() {
    let (node, folder) = (Node::new(), tempdir().unwrap());
    for entry in fs::read_dir(fixture("llama-bf16-sharded")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let mut shard =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let shard = shard.find(|name| name.ends_with(".safetensors") && name.contains("00001")).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::copy(folder.path().join(&shard), folder.path().join("sub/model.safetensors")).unwrap();
    let index = json!({"weight_map": {"model.norm.weight": "pytorch_model.bin"}}).to_string();
    for (name, bytes) in [
        ("pytorch_model.bin", "weights"),
        ("pytorch_model.bin.index.json", index.as_str()),
        ("sub/notes.txt", "words"),
        ("sub/tf_model.h5", "weights"),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let made = node.make(folder.path(), Kind::Q4_0).unwrap();
    let after = made.folder.path().join(AFTER);
    let listed = surf_chunker::contents(&after, &Options { follow_links: true }).unwrap();
    let original = surf_chunker::contents(&fixture("llama-bf16-sharded"), &Options::default()).unwrap();
    let mut paths: Vec<&str> = original.files.iter().map(|file| &*file.path).collect();
    paths.push("sub/notes.txt");
    paths.sort_unstable();
    assert_eq!(listed.files.iter().map(|file| &*file.path).collect::<Vec<_>>(), paths);
    assert_eq!(fs::read(after.join("sub/notes.txt")).unwrap(), b"words");
    for path in ["config.json", "model.safetensors.index.json"] {
        assert_eq!(fs::read(after.join(path)).unwrap(), fs::read(folder.path().join(path)).unwrap());
    }
    assert_eq!(listed.tensors.len(), original.tensors.len());
    for (now, before) in listed.tensors.iter().zip(&original.tensors) {
        assert_eq!((&now.name, &now.shape), (&before.name, &before.shape));
        let stays = before.shape.len() == 1 || !before.name.starts_with("model.");
        let expected = if stays { before.dtype } else { Dtype::Q4_0 };
        let expected = if before.name.contains("embed") { Dtype::Q8_0 } else { expected };
        assert_eq!(now.dtype, expected, "{}", now.name);
    }
    let size = |contents: &surf_chunker::Contents| contents.files.iter().map(|file| file.size).sum::<u64>();
    assert_eq!(made.plan.bytes_after(), size(&listed));
    assert_eq!(made.plan.bytes_before, size(&original) + 5);
}

#[tokio::test]
async fn what_cannot_be_quantised_is_refused_in_a_sentence_and_leaves_nothing() {
    let (node, folder) = (Node::new(), tempdir().unwrap());
    let model = folder.path().join("model.safetensors");
    let refused = async |path: &Path, kind: &str| node.publish(path, kind).await.unwrap_err().to_string();
    assert!(
        refused(&fixture("llama"), "iq1_s").await.starts_with("cannot quantise to \"iq1_s\"; known are q8_0")
    );
    let error = refused(&fixture("llama-fp8"), "q8_0").await;
    assert!(error.contains("quantised already (quantization_config of config.json says \"fp8\")"), "{error}");
    assert!(refused(folder.path(), "q8_0").await.contains("no weights in safetensors files"));
    assert!(refused(&folder.path().join("nowhere"), "q8_0").await.contains("nowhere"));

    let write = |dtype: Dtype, name: &str, shape: &[u64], bytes: &[u8]| {
        let header = surf_chunker::header([(name, dtype, shape)]).unwrap();
        fs::write(&model, [&header, bytes].concat()).unwrap();
    };
    write(Dtype::Q4_0, "up.weight", &[2, 32], &[0; 36]);
    assert!(refused(folder.path(), "q8_0").await.contains("quantised already (\"up.weight\" is Q4_0)"));
    write(Dtype::F32, "norm.weight", &[2, 32], &[0; 256]);
    assert!(refused(folder.path(), "q8_0").await.ends_with("no tensor would become smaller by q8_0"));
    write(Dtype::F32, "up.weight", &[2, 32], &[255; 256]);
    let error = refused(folder.path(), "q8_0").await;
    assert!(
        error.contains("tensor \"up.weight\"") && error.ends_with("has values that are not finite"),
        "{error}"
    );
    assert_eq!(node.left(), 0);

    let small = Node::with_quota(100_000);
    let error = small.publish(&fixture("llama"), "q8_0").await.unwrap_err();
    assert!(matches!(error, QuantizeError::NoRoom { place: "in the store (--cache-size)", .. }), "{error}");
    let stopped = node.making(&fixture("llama")).make(Kind::Q8_0, &AtomicBool::new(true), &|_| ());
    assert!(matches!(stopped, Err(QuantizeError::Write(WriteError::Stopped))));
    assert_eq!((node.left(), small.left()), (0, 0));
}

#[test]
fn what_a_crash_left_is_swept() {
    let node = Node::new();
    let made = node.make(&fixture("llama"), Kind::Q8_0).unwrap();
    let kept = made.folder.keep();
    assert_eq!(node.left(), 1);
    sweep(node.dir.path()).unwrap();
    assert!(!kept.exists());
    // What was only linked to is still there, and a folder that is clean is no error.
    assert!(fixture("llama").join("config.json").exists());
    sweep(node.dir.path()).unwrap();
}
