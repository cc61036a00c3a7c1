//! OLMo 2: Llama with norms behind attention and MLP instead of before them, and over all queries and all keys of a
//! token.

use super::{
    Architecture,
    decoder::{Decoder, NormPlaces, Reading, Together, Variant},
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading { eps: 1e-5, ..Reading::default() })?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    Ok(decoder.boxed(Variant {
        qkv_bias: bias,
        output_bias: bias,
        norms: NormPlaces::Behind,
        qk_norm: Some(Together::All),
        ..Variant::default()
    }))
}
