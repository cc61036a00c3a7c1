//! BERT. What is trained on top of it (a pooler, a head for masked words or for classes) is left out:
//! its result is the last hidden state.

use surf_chunker::Checkpoint;

use super::{
    Architecture,
    encoder::{Encoder, Names, Positions, Sizes},
    options,
};
use crate::engine::{EngineError, fields::Fields};

const NAMES: Names = names(&["bert.", ""]);

pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    Encoder::boxed(sizes(fields)?, &NAMES, Positions::Places, manifest)
}

/// BERT's names, below one of `roots`.
pub(super) const fn names(roots: &'static [&'static str]) -> Names {
    Names {
        roots,
        types: true,
        block: "encoder.layer",
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        attended: "attention.output.dense",
        after_attention: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        after_mlp: "output.LayerNorm",
    }
}

/// BERT's words for sizes.
pub(super) fn sizes(fields: &Fields<'_>) -> Result<Sizes, EngineError> {
    for field in ["is_decoder", "add_cross_attention"] {
        if fields.flag(field)?.unwrap_or(false) {
            return Err(fields.invalid(field, "is true; only encoders of this kind are supported"));
        }
    }
    if let Some(kind) = fields.text("position_embedding_type")?.filter(|kind| *kind != "absolute") {
        return Err(
            fields.invalid("position_embedding_type", format!("is {kind:?}; only absolute is supported"))
        );
    }
    let (hidden, heads) =
        (fields.count("hidden_size", 1..=1 << 16)?, fields.count("num_attention_heads", 1..=1024)?);
    options::head_dim(fields, "num_attention_heads", hidden, heads)?;
    Ok(Sizes {
        vocab: fields.count("vocab_size", 1..=1 << 22)?,
        positions: fields.limit_if("max_position_embeddings", 1..=1 << 20)?.unwrap_or(512),
        hidden,
        intermediate: fields.count("intermediate_size", 1..=1 << 20)?,
        heads,
        blocks: fields.count("num_hidden_layers", 1..=1024)?,
        eps: options::eps(fields, "layer_norm_eps", 1e-12)?,
        activation: options::activation(fields, "hidden_act", "gelu")?,
    })
}
