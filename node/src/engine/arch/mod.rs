//! Which models can be run, and what each is made of.
//!
//! An [`Architecture`] is a configuration that has been read: it says which groups a pass visits, in
//! what order, and makes a [`Layer`] of each. It neither holds nor fetches weights. Adding one means
//! describing it in a file here and naming it in [`SUPPORTED`].

mod decoder;
mod deepseek;
mod llama;
mod mistral;
mod mixtral;
mod mixture;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;

#[cfg(test)]
mod tests;

use std::fmt;

use candle_core::Tensor;
use surf_protocol::Group;

use super::{EngineError, cache::CacheShape, fields::Fields, files::Files, parts::Parts, pass::Pass};

/// A way to read a configuration.
type Read = fn(&Fields<'_>) -> Result<Box<dyn Architecture>, EngineError>;

/// By `model_type`.
const SUPPORTED: [(&str, Read); 9] = [
    ("deepseek_v2", deepseek::read_v2),
    ("deepseek_v3", deepseek::read_v3),
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("mixtral", mixtral::read),
    ("qwen2", qwen2::read),
    ("qwen2_moe", qwen2_moe::read),
    ("qwen3", qwen3::read),
    ("qwen3_moe", qwen3_moe::read),
];

/// A model's structure.
pub(crate) trait Architecture: fmt::Debug + Send + Sync {
    /// Sizes that others need to know.
    fn shape(&self) -> Shape;

    /// What one pass visits after the embedding, in order.
    fn steps(&self) -> Vec<Step>;

    /// The first activations, `[tokens, hidden]`.
    fn embed(&self, tables: &mut dyn Tables, pass: &Pass<'_>) -> Result<Tensor, EngineError>;

    /// The layer that the group of `step` is.
    fn layer(&self, step: &Step, parts: &Parts<'_>) -> Result<Box<dyn Layer>, EngineError>;
}

/// A group with its weights, ready to compute.
pub(crate) trait Layer: fmt::Debug + Send + Sync {
    /// From `[tokens, …]` to `[tokens, …]`.
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError>;

    /// The routed experts that this block would choose, told from what the block before has of the tokens
    /// after its attention; empty where there are none.
    fn likely(&self, x: &Tensor) -> Result<Vec<Group>, EngineError>;
}

/// Tables of which a pass needs some rows.
pub(crate) trait Tables {
    /// Rows of `tensor`, each of `cols` elements, as `[rows.len(), cols]`.
    fn rows(&mut self, tensor: &str, rows: &[u32], cols: usize) -> Result<Tensor, EngineError>;
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Distinct tokens, and logits for each position.
    pub(crate) vocab: usize,
    /// Positions that the model was made for.
    pub(crate) context: usize,
    /// What is kept for every token.
    pub(crate) cache: CacheShape,
}

/// One stop of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Whose weights are needed.
    pub(crate) group: Group,
    /// Whether this is past the blocks, where only tokens whose logits are wanted go on.
    pub(crate) head: bool,
}

/// The architecture that `config.json` describes.
pub(crate) fn read(files: &Files) -> Result<Box<dyn Architecture>, EngineError> {
    files.required("config.json")?;
    let config = files.object("config.json")?;
    let fields = Fields::new(&config);
    let model_type = fields.text("model_type")?.ok_or_else(|| fields.invalid("model_type", "is missing"))?;
    if fields.object("quantization_config")?.is_some() {
        return Err(fields.invalid("quantization_config", "is set; quantised weights are not supported"));
    }
    match SUPPORTED.iter().find(|(name, _)| *name == model_type) {
        Some((_, read)) => read(&fields),
        None => Err(EngineError::Unsupported {
            model_type: model_type.to_owned(),
            supported: SUPPORTED.map(|(name, _)| name).join(", "),
        }),
    }
}
