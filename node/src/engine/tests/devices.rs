//! Whole models with their products computed by candle, on a CPU, and on a GPU where this is built for one:
//! every fixture against what transformers recorded, wherever the weights are.

use std::path::{Path, PathBuf};

use super::{swarm::Published, *};
use crate::engine::compute::devices;

/// Folders of models with a record, under `folder`.
fn models(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    let all = folders.iter().flat_map(|folder| match folder.join("expected.safetensors").exists() {
        true => vec![folder.clone()],
        false => models(folder),
    });
    all.collect()
}

/// What was recorded of the model in `folder`.
fn record(folder: &str) -> Vec<u8> {
    // See `llama_in_bf16_with_tied_heads_agrees_with_transformers`.
    let record = match folder.ends_with("/llama-bf16-sharded") {
        true => format!("{FIXTURES}/../llama-bf16-sharded.f32.expected.safetensors"),
        false => format!("{folder}/expected.safetensors"),
    };
    std::fs::read(record).unwrap()
}

/// Checks the model in `folder` on `device`, which has room for so many bytes of those weights that stay.
async fn report(
    folder: &str,
    device: &candle_core::Device,
    dtype: Precision,
    room: Option<u64>,
    tolerance: f32,
) -> Report {
    let weights = FileWeights::open(folder);
    let weights = if room.is_some() { weights.all_resident() } else { weights };
    let compute = Compute::on("test".to_owned(), device.clone(), dtype, room.unwrap_or(0));
    let engine =
        Engine::load_on(compute, u64::MAX, &files(folder), Arc::new(weights), Arc::default()).unwrap();
    assert_eq!(engine.device(), "test");
    engine.check(&record(folder), tolerance).await.unwrap()
}

#[tokio::test]
async fn every_model_agrees_with_transformers() {
    let mut wrong = Vec::new();
    let models = models(Path::new(FIXTURES));
    assert!(13 <= models.len(), "{models:?}");
    for device in devices() {
        for folder in &models {
            let folder = folder.to_str().unwrap();
            // Streamed, resident with room for some of it, and with room for all.
            for room in [None, Some(50_000), Some(u64::MAX)] {
                let report = report(folder, &device, Precision::Auto, room, 1e-3).await;
                let same = [report.argmax_agree, report.greedy_agree];
                if !report.pass || report.compared == 0 || same.iter().flatten().any(|share| *share != 1.0) {
                    wrong.push(format!("{folder} on {device:?} with room {room:?}: {report:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn in_bfloat16_a_model_is_near() {
    let folder = fixture("llama-bf16-sharded");
    for device in devices() {
        let report = report(&folder, &device, Precision::Bf16, Some(u64::MAX), 5e-2).await;
        assert!(report.pass && 1e-3 < report.max_rel_err, "{device:?}: {report:?}");
    }
}

/// Experts come into host memory and leave it, and their copies on the device with them.
#[tokio::test(flavor = "multi_thread")]
async fn experts_that_come_and_go_agree_with_transformers() {
    for name in ["mixtral", "deepseek-v3-fp8"] {
        let folder = fixture(name);
        let published = Published::open(&folder);
        for memory in [0, 2 * published.two_blocks(), u64::MAX] {
            let cpu = candle_core::Device::Cpu;
            let compute = Compute::on("test".to_owned(), cpu, Precision::Auto, memory);
            let weights = published.weights(memory);
            let engine =
                Engine::load_on(compute, u64::MAX, &files(&folder), weights, Arc::default()).unwrap();
            let report = engine.check(&record(&folder), 1e-3).await.unwrap();
            assert!(report.pass && report.greedy_agree == Some(1.0), "{name} in {memory}: {report:?}");
        }
    }
}
