//! Models that are not streamed: families that candle-transformers can run, each from all its weights
//! at once.
//!
//! To the rest of the engine such a model is an architecture of two steps that need no weights: it took
//! them all before the first pass, in f32. What candle keeps of a sequence hangs on that sequence's
//! cache.

mod families;
mod weights;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde_json::Value;
use surf_chunker::{Checkpoint, Group};

use self::{families::Family, weights::AllWeights};
use super::{
    EngineError,
    arch::{Architecture, Kind, Layer, Shape, Step, Tables},
    cache::CacheShape,
    caught::caught,
    fields::Fields,
    files::Files,
    host,
    model::TRIES_MAX,
    parts::Parts,
    pass::Pass,
    widths::{Stage, Widths},
};
use crate::weights::{Weights, WeightsError};

/// A model of candle's with what it has seen of one sequence.
pub(crate) trait Causal: fmt::Debug + Send + Sync {
    /// Reads `tokens`, `[1, tokens]`, that follow the `seen` ones before them. Returns logits, the last
    /// token's last.
    fn forward(&mut self, tokens: &Tensor, seen: usize) -> candle_core::Result<Tensor>;

    /// The same model, if it has seen nothing yet.
    fn fresh(&self) -> Box<dyn Causal>;
}

/// One sequence as candle has seen it.
#[derive(Debug)]
pub(crate) struct Seen {
    model: Box<dyn Causal>,
    tokens: usize,
}

/// Whether the model that `files` describe runs from all its weights at once, if at all.
pub fn is_whole(files: &Files) -> bool {
    let config = files.object("config.json").unwrap_or_default();
    Fields::new(&config).text("model_type").ok().flatten().and_then(families::find).is_some()
}

/// The names of all families that run whole.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    families::FAMILIES.iter().map(|family| family.model_type())
}

/// What a model of a family that runs whole is, before its weights are asked for.
#[derive(Debug)]
pub(crate) struct Described {
    family: &'static Family,
    pub(crate) shape: Shape,
    pub(crate) widths: Widths,
    /// Bytes of its weights as f32.
    pub(crate) weights: u64,
    config: Value,
}

/// The model that `files` describe, if it is of a family that runs whole. Fails if its weights as f32
/// have more than `memory` bytes.
pub(crate) fn read(
    files: &Files,
    weights: &Arc<dyn Weights>,
    memory: u64,
    device: &Device,
) -> Result<Option<Box<dyn Architecture>>, EngineError> {
    let Some(described) = describe(files, weights.checkpoint(), memory)? else { return Ok(None) };
    let groups = weights.checkpoint().groups();
    let (Some(first), Some(last)) = (groups.first(), groups.last()) else {
        return Err(EngineError::file("the model", "has no weights"));
    };
    Ok(Some(Box::new(Whole {
        steps: [first.group.clone(), last.group.clone()],
        described,
        weights: Arc::clone(weights),
        device: device.clone(),
        running: Mutex::default(),
    })))
}

/// What [`read`] makes a model of.
pub(crate) fn describe(
    files: &Files,
    manifest: &Checkpoint,
    memory: u64,
) -> Result<Option<Described>, EngineError> {
    let config = files.object("config.json")?;
    let fields = Fields::new(&config);
    let Some(family) = fields.text("model_type")?.and_then(families::find) else { return Ok(None) };
    let elements = |shape: &[u64]| shape.iter().fold(1u64, |all, &size| all.saturating_mul(size));
    let tensors = manifest.tensors().iter();
    let needed = tensors.map(|tensor| elements(&tensor.shape)).fold(0, u64::saturating_add).saturating_mul(4);
    if memory < needed {
        let reason = format!(
            "is {:?}, which is not streamed: its weights take {needed} bytes as f32, and memory is {memory}",
            family.model_type()
        );
        return Err(fields.invalid("model_type", reason));
    }
    let blocks = fields.count("num_hidden_layers", 1..=1024)?;
    let hidden = fields.count("hidden_size", 1..=1 << 16)?;
    let heads = fields.count("num_attention_heads", 1..=1024)?;
    let kv_heads = fields.count_if("num_key_value_heads", 1..=1024)?.unwrap_or(heads);
    let head_dim = match fields.count_if("head_dim", 1..=1024)? {
        Some(head_dim) if !family.takes_head_dim() && head_dim * heads != hidden => {
            let reason = format!("is {head_dim}; heads of {:?} divide hidden_size", family.model_type());
            return Err(fields.invalid("head_dim", reason));
        }
        Some(head_dim) => head_dim,
        None => hidden / heads,
    };
    for (name, fits) in [
        ("num_attention_heads", 0 < head_dim && (fields.has("head_dim") || hidden.is_multiple_of(heads))),
        ("num_key_value_heads", heads.is_multiple_of(kv_heads)),
    ] {
        if !fits {
            return Err(fields.invalid(name, "does not divide what it should"));
        }
    }
    let inner = fields.count("intermediate_size", 1..=1 << 20)?;
    let positions = fields.limit_if("max_position_embeddings", 1..=1 << 24)?.unwrap_or(families::CONTEXT);
    let window = fields.limit_if("sliding_window", 1..=1 << 24)?.unwrap_or(positions);
    let context = positions.min(window).min(families::CONTEXT_MAX);
    let mut config = family.config(&fields, &config, context)?;
    if manifest.tensor("lm_head.weight").is_some() {
        // A head that is there is used, whatever the configuration says of the embedding.
        config["tie_word_embeddings"] = Value::Bool(false);
    }
    let vocab = fields.count("vocab_size", 1..=1 << 22)?;
    let cache = CacheShape { blocks, heads: kv_heads, elements: 2 * head_dim };
    let stage = Stage {
        cause: format!(
            "num_attention_heads is {heads}, head_dim {head_dim}, intermediate_size {inner}, and vocab_size {vocab}"
        ),
        // Logits are there for all tokens of a pass that need them.
        row: (8 * heads * head_dim + 6 * inner + 4 * hidden + 2 * vocab) as u64,
        // Keys and values of each query head, and scores, a mask and what comes of them.
        keys: [4 * (heads * head_dim) as u64, 4 * heads as u64],
        ..Stage::default()
    };
    // Cosines and sines of all positions, and what they are made of.
    let tables = 4 * (context * head_dim * size_of::<f32>()) as u64;
    Ok(Some(Described {
        family,
        shape: Shape { vocab, context, cache, kind: Kind::Causal },
        widths: Widths::new(hidden, vocab, vec![stage]).with_fixed(tables),
        weights: needed,
        config,
    }))
}

/// See the module.
#[derive(Debug)]
struct Whole {
    described: Described,
    /// By whose names the two steps go: the first group and the last.
    steps: [Group; 2],
    weights: Arc<dyn Weights>,
    device: Device,
    running: Mutex<Option<Arc<Running>>>,
}

/// The model, once it has its weights.
#[derive(Debug)]
struct Running {
    model: Box<dyn Causal>,
    vocab: usize,
    device: Device,
    /// What the first step of a pass computed, for the second to give.
    logits: Mutex<Option<Tensor>>,
}

impl Whole {
    fn running(&self) -> Result<Arc<Running>, EngineError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return Ok(Arc::clone(running));
        }
        for _ in 0..TRIES_MAX {
            let built = self.build();
            // Copies of weights that changed meanwhile on the disk do not count.
            if self.weights.settle(true) {
                return Ok(Arc::clone(running.insert(Arc::new(built?))));
            }
        }
        Err(WeightsError::Unsettled.into())
    }

    fn build(&self) -> Result<Running, EngineError> {
        let all = AllWeights::new(Arc::clone(&self.weights));
        let failed = all.failed();
        let tensors = VarBuilder::from_backend(Box::new(all), DType::F32, self.device.clone());
        let model = guarded(|| (self.described.family.build)(self.described.config.clone(), tensors));
        // Why weights did not come is lost on the way through candle.
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let (vocab, device) = (self.described.shape.vocab, self.device.clone());
        Ok(Running { model: model?, vocab, device, logits: Mutex::default() })
    }
}

impl Architecture for Whole {
    fn shape(&self) -> Shape {
        self.described.shape
    }

    fn widths(&self) -> Widths {
        self.described.widths.clone()
    }

    fn steps(&self) -> Vec<Step> {
        let [first, last] = self.steps.clone();
        vec![Step { group: first, head: false }, Step { group: last, head: true }]
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn embed(&self, _: &mut dyn Tables, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        // The tokens are in the pass.
        host::tensor(vec![0.0; pass.tokens.len()], pass.tokens.len(), 1)
    }

    fn layer(&self, step: &Step, _: &Parts<'_>) -> Result<Box<dyn Layer>, EngineError> {
        let running = self.running()?;
        Ok(if step.head { Box::new(Logits(running)) } else { Box::new(Reading(running)) })
    }
}

/// All of a pass.
#[derive(Debug)]
struct Reading(Arc<Running>);

/// The logits that are wanted of it.
#[derive(Debug)]
struct Logits(Arc<Running>);

impl Layer for Reading {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let Running { model, vocab, device, logits } = &*self.0;
        let mut all = Vec::with_capacity(pass.wanted.len() * vocab);
        for span in &mut pass.spans {
            if span.start == 0 {
                span.cache.whole = Some(Seen { model: model.fresh(), tokens: 0 });
            }
            let Some(seen) = span.cache.whole.as_mut().filter(|seen| seen.tokens == span.start) else {
                return Err(EngineError::Request("an earlier pass over this sequence failed".to_owned()));
            };
            let mut from = span.rows.start;
            // Candle gives the logits of the last token only, so each that is wanted ends a run.
            let inside = pass.wanted.iter().map(|&row| row as usize).filter(|row| span.rows.contains(row));
            let mut ends: Vec<(usize, bool)> = inside.map(|row| (row + 1, true)).collect();
            if ends.last().is_none_or(|&(end, _)| end < span.rows.end) {
                ends.push((span.rows.end, false));
            }
            for (end, wanted) in ends {
                let tokens = Tensor::new(&pass.tokens[from..end], device)?.unsqueeze(0)?;
                let y = guarded(|| seen.model.forward(&tokens, seen.tokens))?;
                seen.tokens += end - from;
                from = end;
                if wanted {
                    all.extend(last_row(&y, *vocab)?);
                }
            }
        }
        let rows = pass.wanted.len();
        let made = if rows == 0 { None } else { Some(host::tensor(all, rows, *vocab)?) };
        *logits.lock().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(x.clone())
    }
}

impl Layer for Logits {
    fn forward(&self, _: &Tensor, _: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let logits = self.0.logits.lock().unwrap_or_else(PoisonError::into_inner).take();
        logits.ok_or_else(|| EngineError::Request("no logits were computed".to_owned()))
    }
}

/// The last `vocab` numbers of `y`.
fn last_row(y: &Tensor, vocab: usize) -> Result<Vec<f32>, EngineError> {
    let y = y.to_dtype(DType::F32)?.flatten_all()?;
    let start = y.elem_count().checked_sub(vocab);
    let start =
        start.ok_or_else(|| EngineError::config("vocab_size", "is more than the model's head has"))?;
    Ok(y.narrow(0, start, vocab)?.to_vec1()?)
}

/// What candle's error begins with when it is one of the configuration.
const CONFIG_FAULT: &str = "config.json: ";

/// Runs candle's code, which may panic on configurations that it was not made for.
fn guarded<R>(with: impl FnOnce() -> candle_core::Result<R>) -> Result<R, EngineError> {
    match caught("computing", || Ok(with()?)) {
        Err(EngineError::Panicked(_)) => {
            Err(EngineError::file("config.json", "describes a model that cannot be computed"))
        }
        Err(EngineError::Compute(error)) => match &*error {
            candle_core::Error::Msg(message) if message.starts_with(CONFIG_FAULT) => {
                Err(EngineError::file("config.json", &message[CONFIG_FAULT.len()..]))
            }
            _ => Err(EngineError::Compute(error)),
        },
        other => other,
    }
}
