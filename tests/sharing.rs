//! A fine-tune shares with its base what did not change: publishing it adds the difference, and whoever
//! has the base pulls no more than that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use surf_tests::Process;

const HIDDEN: usize = 512;
const INNER: usize = 1376;
const BLOCKS: usize = 6;
const VOCABULARY: usize = 4100;

/// How much may be fetched beyond what differs.
const OVERHEAD: f64 = 1.02;

/// A shape, and half floats.
type Tensor = (Vec<usize>, Vec<u8>);

/// A Llama, as tensors by name: some 45 MB of noise.
type Tensors = BTreeMap<String, Tensor>;

fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn put(tensors: &mut Tensors, name: &str, shape: &[usize], seed: &str) {
    let bytes = noise(&format!("{seed}{name}"), 2 * shape.iter().product::<usize>());
    tensors.insert(name.to_owned(), (shape.to_vec(), bytes));
}

fn base() -> Tensors {
    let mut tensors = Tensors::new();
    put(&mut tensors, "model.embed_tokens.weight", &[VOCABULARY, HIDDEN], "base");
    put(&mut tensors, "lm_head.weight", &[VOCABULARY, HIDDEN], "base");
    put(&mut tensors, "model.norm.weight", &[HIDDEN], "base");
    for block in 0..BLOCKS {
        let mut part = |name: &str, shape: &[usize]| {
            put(&mut tensors, &format!("model.layers.{block}.{name}.weight"), shape, "base");
        };
        part("input_layernorm", &[HIDDEN]);
        part("post_attention_layernorm", &[HIDDEN]);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            part(&format!("self_attn.{name}"), &[HIDDEN, HIDDEN]);
        }
        for name in ["gate_proj", "up_proj"] {
            part(&format!("mlp.{name}"), &[INNER, HIDDEN]);
        }
        part("mlp.down_proj", &[HIDDEN, INNER]);
    }
    tensors
}

/// Writes a file, and returns the size of its header.
fn write(path: &Path, tensors: &[(&String, &Tensor)]) -> u64 {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, (shape, bytes)) in tensors {
        let offsets = [end, end + bytes.len()];
        end = offsets[1];
        header.insert((*name).clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": offsets}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(&header);
    tensors.iter().for_each(|(_, (_, bytes))| file.extend(bytes));
    fs::write(path, file).unwrap();
    8 + header.len() as u64
}

/// Writes a folder in so many files. Returns the bytes that are not tensors.
fn folder(dir: &Path, tensors: &Tensors, files: usize, note: &str) -> u64 {
    let rows = tensors.iter().find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap().1.0[0];
    let config = json!({"model_type": "llama", "vocab_size": rows, "note": note}).to_string();
    fs::write(dir.join("config.json"), &config).unwrap();
    let all: Vec<_> = tensors.iter().collect();
    let mut other = config.len() as u64;
    if files == 1 {
        return other + write(&dir.join("model.safetensors"), &all);
    }
    let mut places = serde_json::Map::new();
    for (at, some) in all.chunks(all.len().div_ceil(files)).enumerate() {
        let name = format!("model-{:05}-of-{files:05}.safetensors", at + 1);
        other += write(&dir.join(&name), some);
        places.extend(some.iter().map(|(tensor, _)| ((*tensor).clone(), json!(name))));
    }
    let index = json!({"metadata": {}, "weight_map": places}).to_string();
    fs::write(dir.join("model.safetensors.index.json"), &index).unwrap();
    other + index.len() as u64
}

/// Bytes of `tuned`'s tensors that `base` does not have, where rows that were added count and those before
/// them do not.
fn differing(base: &Tensors, tuned: &Tensors) -> u64 {
    let has: std::collections::HashSet<&[u8]> = base.values().map(|(_, bytes)| &bytes[..]).collect();
    let new = |(name, (_, bytes)): (&String, &Tensor)| match base.get(name) {
        _ if has.contains(&bytes[..]) => 0,
        Some((_, before)) if bytes.starts_with(before) => bytes.len() - before.len(),
        _ => bytes.len(),
    };
    tuned.iter().map(new).sum::<usize>() as u64
}

/// A merged LoRA: two projections of every block.
fn merged(base: &Tensors) -> Tensors {
    let mut tuned = base.clone();
    for block in 0..BLOCKS {
        for name in ["q_proj", "v_proj"] {
            put(
                &mut tuned,
                &format!("model.layers.{block}.self_attn.{name}.weight"),
                &[HIDDEN, HIDDEN],
                "lora",
            );
        }
    }
    tuned
}

/// Trained with the lower half frozen.
fn half_frozen(base: &Tensors) -> Tensors {
    let lower = |name: &str| {
        let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        name.starts_with("model.embed")
            || block.is_some_and(|block| block.parse::<usize>().unwrap() < BLOCKS / 2)
    };
    let mut tuned = base.clone();
    for (name, (_, bytes)) in tuned.iter_mut().filter(|(name, _)| !lower(name)) {
        *bytes = noise(&format!("tuned{name}"), bytes.len());
    }
    tuned
}

/// More tokens at the end: up to the next multiple of 64, and 192 besides.
fn extended(base: &Tensors) -> Tensors {
    let (mut tuned, rows) = (base.clone(), VOCABULARY.next_multiple_of(64) + 192);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let (shape, bytes) = tuned.get_mut(name).unwrap();
        shape[0] = rows;
        bytes.extend(noise(&format!("new{name}"), 2 * rows * HIDDEN - bytes.len()));
    }
    tuned
}

/// The same under other names.
fn renamed(base: &Tensors) -> Tensors {
    let rename = |name: &String| name.replace("model.", "").replace("lm_head", "output");
    base.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
}

#[test]
fn only_the_difference_moves() {
    let base = base();
    let (seed, other) = (Process::join(&[], &[]), tempfile::tempdir().unwrap());
    folder(other.path(), &base, 1, "base");
    let base_id = seed.done(&["publish", other.path().to_str().unwrap()])["model"].clone();
    let node = Process::join(&[seed.addr()], &[]);
    node.done(&["pull", base_id.as_str().unwrap()]);
    let mut dirs = Vec::new();
    for (what, tuned, files) in [
        ("a merged LoRA", merged(&base), 1),
        ("a frozen half", half_frozen(&base), 1),
        ("a longer vocabulary", extended(&base), 1),
        ("other shards", base.clone(), 3),
        ("other names", renamed(&base), 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let differs = folder(dir.path(), &tuned, files, what) + differing(&base, &tuned);
        let published = seed.done(&["publish", dir.path().to_str().unwrap()]);
        let pulled = node.done(&["pull", published["model"].as_str().unwrap()]);
        for (does, bytes) in [("adds", &published["new_bytes"]), ("fetches", &pulled["fetched_bytes"])] {
            let ratio = bytes.as_f64().unwrap() / differs as f64;
            println!("{what} {does} {bytes} bytes; {differs} differ: {ratio:.4}");
            assert!(ratio <= OVERHEAD, "{what} {does} {bytes} bytes; {differs} differ");
        }
        let id = &published["model"];
        let models = node.done(&["models"]);
        let listed = models.as_array().unwrap().iter().find(|model| model["model"] == *id).unwrap();
        let shared = published["bytes"].as_u64().unwrap() - published["new_bytes"].as_u64().unwrap();
        assert_eq!(listed["shared_bytes"].as_u64().unwrap(), shared, "{what}");
        node.run(&["rm", id.as_str().unwrap()]);
        dirs.push(dir);
    }
}
