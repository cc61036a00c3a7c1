//! Models that are not streamed: what they compute is compared with transformers among the variants.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{swarm::Published, *};
use crate::engine::{
    arch::Tables,
    cache::KvCache,
    host,
    model::NO_TENSORS,
    parts::Parts,
    pass::{Entry, Pass},
    whole,
};

fn config(memory: u64) -> config::Engine {
    config::Engine { memory, ..CONFIG }
}

/// As a node has them: in chunks, in hardly any memory.
#[tokio::test(flavor = "multi_thread")]
async fn streamed_weights_are_taken_as_they_come() {
    for model_type in whole::names() {
        let folder = fixture(&format!("variants/{model_type}"));
        let expected = std::fs::read(format!("{folder}/expected.safetensors")).unwrap();
        let weights = Published::open(&folder).weights(0);
        let engine = Engine::load(&files(&folder), weights, &CONFIG, Arc::default()).unwrap();
        let report = engine.check(&expected, 1e-3).await.unwrap();
        assert!(report.pass && report.greedy_agree == Some(1.0), "{model_type}: {report:?}");
    }
}

/// What follows does not depend on where a sequence is cut into passes.
#[tokio::test]
async fn a_sequence_may_come_in_pieces() {
    for model_type in whole::names() {
        let folder = fixture(&format!("variants/{model_type}"));
        let weights: Arc<dyn Weights> = Arc::new(FileWeights::open(&folder));
        let model =
            whole::read(&files(&folder), &weights, u64::MAX, &candle_core::Device::Cpu).unwrap().unwrap();
        let compute = Compute::on_host(false);
        let parts = Parts::new(&NO_TENSORS, &compute);
        let [reading, logits] = [0, 1].map(|at| model.layer(&model.steps()[at], &parts).unwrap());
        let tokens: Vec<u32> = (3..23).collect();
        let run = |pieces: &[usize]| {
            let mut cache = KvCache::new(model.shape().cache);
            let (mut from, mut last) = (0, Vec::new());
            for &piece in pieces {
                let (tokens, cache) = (&tokens[from..from + piece], &mut cache);
                let entry = Entry { tokens, positions: None, cache, source: None };
                let mut pass = Pass::new([entry], &*weights);
                pass.wanted = vec![piece as u32 - 1];
                let x = model.embed(&mut NoTables, &pass).unwrap();
                let x = reading.forward(&x, &mut pass).unwrap();
                last = host::copy(&logits.forward(&x, &mut pass).unwrap()).unwrap();
                pass.spans[0].cache.advance(piece);
                from += piece;
            }
            last
        };
        let at_once = run(&[20]);
        for pieces in [&[7, 13][..], &[1; 20], &[19, 1]] {
            let close = at_once.iter().zip(run(pieces)).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(close, "{model_type} in {pieces:?}");
        }
    }
}

struct NoTables;

impl Tables for NoTables {
    fn rows(&mut self, tensor: &str, _: &[u32], _: usize) -> Result<Tensor, EngineError> {
        unreachable!("{tensor} was asked for by row")
    }
}

#[tokio::test]
async fn what_does_not_fit_is_said_before_anything_is_fetched() {
    let folder = fixture("variants/gemma");
    let load = |files: &Files, memory| {
        let weights = Arc::new(FileWeights::open(&folder));
        Engine::load(files, weights, &config(memory), Arc::new(Journal::default()))
    };
    let files = files(&folder);
    let error = load(&files, 10_000).unwrap_err().to_string();
    assert!(error.contains("\"gemma\", which is not streamed") && error.contains("10000"), "{error}");
    for (field, value, said) in [
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_key_value_heads", json!(7), "num_key_value_heads"),
        ("num_hidden_layers", json!(1_000_000), "num_hidden_layers"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}), "rope_type"),
        // Candle makes tables of these sizes before anything else.
        ("partial_rotary_factor", json!(1e5), "partial_rotary_factor must be above 0 and at most 1"),
        ("partial_rotary_factor", json!(-1), "partial_rotary_factor must be above 0 and at most 1"),
        ("rope_parameters", json!({"partial_rotary_factor": 2e5}), "partial_rotary_factor must be"),
    ] {
        let mut object = files.object("config.json").unwrap();
        object.insert(field.to_owned(), value);
        let mut files = files.clone();
        files.0.insert("config.json".to_owned(), Value::Object(object).to_string().into());
        let error = load(&files, u64::MAX).unwrap_err().to_string();
        assert!(error.contains(said), "{field}: {error}");
    }
    // Some divide their width by the heads, whatever is said of their size.
    for family in ["olmo", "olmo2", "phi", "starcoder2"] {
        let mut files = self::files(&fixture(&format!("variants/{family}")));
        let mut object = files.object("config.json").unwrap();
        object.insert("head_dim".to_owned(), json!(1));
        files.0.insert("config.json".to_owned(), Value::Object(object).to_string().into());
        let error = load(&files, u64::MAX).unwrap_err().to_string();
        assert_eq!(error, format!("config.json: head_dim is 1; heads of {family:?} divide hidden_size"));
    }
    // Sizes that the tensors do not have show when they come.
    let mut object = files.object("config.json").unwrap();
    object.insert("intermediate_size".to_owned(), json!(28));
    let mut files = files.clone();
    files.0.insert("config.json".to_owned(), Value::Object(object).to_string().into());
    let engine = load(&files, u64::MAX).unwrap();
    let row = || Row { tokens: vec![5, 6], ..Row::default() };
    let error = engine.forward(vec![row()]).await.unwrap_err().to_string();
    assert!(error.contains("mlp.") && error.contains("not [28, 20]"), "{error}");
}
