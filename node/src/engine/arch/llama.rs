//! Llama, and what was saved as it.

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading::default())?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = fields.flag("mlp_bias")?.unwrap_or(false);
    Ok(decoder.boxed(Variant { qkv_bias: bias, output_bias: bias, mlp_bias, ..Variant::default() }))
}
