//! DistilBERT: BERT without token types, in words of its own.

use surf_chunker::Checkpoint;

use super::{
    Architecture,
    encoder::{Encoder, Names, Positions, Sizes},
    options,
};
use crate::engine::{EngineError, fields::Fields};

const NAMES: Names = Names {
    roots: &["distilbert.", ""],
    types: false,
    block: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attended: "attention.out_lin",
    after_attention: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    after_mlp: "output_layer_norm",
};

pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    let count = |field: &str, most: usize, default: usize| -> Result<usize, EngineError> {
        Ok(fields.count_if(field, 1..=most)?.unwrap_or(default))
    };
    let (hidden, heads) = (count("dim", 1 << 16, 768)?, count("n_heads", 1024, 12)?);
    options::head_dim(fields, "n_heads", hidden, heads)?;
    // Positions made of sines are saved as a table like those that were learned.
    let sizes = Sizes {
        vocab: count("vocab_size", 1 << 22, 30_522)?,
        positions: count("max_position_embeddings", 1 << 20, 512)?,
        hidden,
        intermediate: count("hidden_dim", 1 << 20, 3072)?,
        heads,
        blocks: count("n_layers", 1024, 6)?,
        eps: 1e-12,
        activation: options::activation(fields, "activation", "gelu")?,
    };
    Encoder::boxed(sizes, &NAMES, Positions::Places, manifest)
}
