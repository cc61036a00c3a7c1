//! Which models can be run, and what each is made of.
//!
//! An [`Architecture`] is a configuration that has been read: it says which groups a pass visits, in
//! what order, and makes a [`Layer`] of each. It neither holds nor fetches weights. Adding one means
//! describing it in a file here, and naming it in the table of families (`surf_chunker::families`) and in [`read_as`].

mod bert;
mod block;
mod decoder;
mod deepseek;
mod distilbert;
mod encoder;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod helium;
mod llama;
mod mistral;
mod mixtral;
mod mixture;
mod olmo;
mod olmo2;
mod options;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod stack;
mod starcoder2;
mod t5;

#[cfg(test)]
mod tests;

use std::fmt;

use candle_core::Tensor;
use surf_chunker::{Checkpoint, Families, Group, Stack, families::Architecture as Known};

use super::{
    EngineError, cache::CacheShape, fields::Fields, files::Files, gguf, parts::Parts, pass::Pass,
    widths::Widths,
};

/// A model's structure.
pub(crate) trait Architecture: fmt::Debug + Send + Sync {
    /// Sizes that others need to know.
    fn shape(&self) -> Shape;

    /// What a pass takes beside weights, keys and values.
    fn widths(&self) -> Widths;

    /// What passes visit after the embedding, in order. A pass visits the steps of one stage.
    fn steps(&self) -> Vec<Step>;

    /// Where the tokens of a row stand when it is run whole. `mask` says which of them count; the
    /// others are left out of the pass, but may push those after them on.
    fn positions(&self, tokens: &[u32], _mask: &[bool]) -> Vec<u32> {
        (0..tokens.len() as u32).collect()
    }

    /// Takes from the tensors that are there what the configuration leaves open, or says otherwise.
    fn settle(&mut self, _manifest: &Checkpoint) -> Result<(), EngineError> {
        Ok(())
    }

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
    /// after its attention. Most layers have none.
    fn likely(&self, _x: &Tensor) -> Result<Vec<Group>, EngineError> {
        Ok(Vec::new())
    }
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
    /// What it does with its input.
    pub(crate) kind: Kind,
}

/// What a model does with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Continues it.
    Causal,
    /// Makes a vector of each token, of `width` elements.
    Encoder {
        /// Elements of a vector.
        width: usize,
    },
    /// Encodes it, and generates with the result before its eyes.
    Seq2Seq {
        /// The token before the first one generated.
        start: u32,
        /// Elements of what the encoder says of a token.
        width: usize,
    },
}

/// One stop of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Whose weights are needed.
    pub(crate) group: Group,
    /// Whether this is past the blocks, where only tokens whose logits are wanted go on.
    pub(crate) head: bool,
}

impl Step {
    /// The stack that a pass is of, if it visits this step. Whatever is in no stack is the decoder's.
    pub(crate) fn stage(&self) -> Stack {
        match &self.group {
            Group::Layer(stack, _) | Group::Expert { stack, .. } | Group::Norm(stack) => *stack,
            Group::Embed | Group::Head | Group::Named(_) => Stack::Decoder,
        }
    }
}

/// The architecture that `config.json` describes, of a model with the tensors of `manifest`.
pub(crate) fn read(files: &Files, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    files.required("config.json")?;
    let config = files.object("config.json")?;
    let fields = Fields::new(&config);
    let model_type = fields.text("model_type")?.ok_or_else(|| fields.invalid("model_type", "is missing"))?;
    let families = Families::default();
    let architecture = families.architecture(model_type);
    let read = architecture.map(|architecture| read_as(architecture, &fields, manifest));
    let mut architecture = read.unwrap_or_else(|| {
        let supported = families.model_types().join(", ");
        Err(EngineError::Unsupported { model_type: model_type.to_owned(), supported })
    })?;
    architecture.settle(manifest)?;
    Ok(architecture)
}

/// The configuration as that of `architecture`.
fn read_as(
    architecture: Known,
    fields: &Fields<'_>,
    manifest: &Checkpoint,
) -> Result<Box<dyn Architecture>, EngineError> {
    match architecture {
        Known::Bert => bert::read(fields, manifest),
        Known::DeepseekV2 => deepseek::read_v2(fields),
        Known::DeepseekV3 => deepseek::read_v3(fields),
        Known::DistilBert => distilbert::read(fields, manifest),
        Known::Gemma => gemma::read(fields),
        Known::Gemma2 => gemma2::read(fields),
        Known::Gemma3 => gemma3::read_beside_images(fields, manifest),
        Known::Gemma3Text => gemma3::read(fields, manifest),
        Known::Gpt2 => gpt2::read(fields, manifest),
        Known::GptNeox => gpt_neox::read(fields, manifest),
        Known::Helium => helium::read(fields),
        Known::Llama => llama::read(fields),
        Known::Mistral => mistral::read(fields),
        Known::Mixtral => mixtral::read(fields),
        Known::Olmo => olmo::read(fields),
        Known::Olmo2 => olmo2::read(fields),
        Known::Phi => phi::read(fields),
        Known::Phi3 => phi3::read(fields),
        Known::Qwen2 => qwen2::read(fields),
        Known::Qwen2Moe => qwen2_moe::read(fields),
        Known::Qwen3 => qwen3::read(fields),
        Known::Qwen3Moe => qwen3_moe::read(fields),
        Known::Roberta => roberta::read(fields, manifest),
        Known::Starcoder2 => starcoder2::read(fields),
        Known::T5 => t5::read(fields, manifest),
    }
}

/// The first of `roots` before which `name` is the name of a tensor.
fn root(manifest: &Checkpoint, roots: &[&'static str], name: &str) -> Result<&'static str, EngineError> {
    let is_there =
        |root: &&&str| gguf::find(&format!("{root}{name}"), |name| manifest.tensor(name)).is_some();
    let found = roots.iter().find(is_there);
    found.copied().ok_or_else(|| EngineError::tensor(name, "is missing from the model"))
}
