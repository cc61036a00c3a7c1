//! The first Gemma: Llama with Gemma's norms and embedding.

use super::{
    Architecture,
    decoder::{Decoder, Gemma, Variant},
    gemma2, options,
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    options::unset(fields, "use_bidirectional_attention")?;
    // Those that name an activation as `hidden_act` were saved before the mistake was seen.
    let decoder = Decoder::read(fields, &gemma2::READING)?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    let query_scalar = decoder.head_dim() as f64;
    Ok(decoder.boxed(Variant {
        qkv_bias: bias,
        output_bias: bias,
        gemma: Some(Gemma { query_scalar, score_cap: None, logit_cap: None }),
        ..Variant::default()
    }))
}
