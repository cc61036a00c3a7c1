//! Helium: Llama, in which neighbouring elements are turned together.

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
};
use crate::engine::{
    EngineError,
    fields::Fields,
    rotary::{Pairing, Spelling},
};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let rotary =
        Spelling { theta: ("rope_theta", 100_000.0), pairing: Pairing::Neighbours, ..Spelling::default() };
    let reading = Reading { context: 4096, head_dim: Some(128), eps: 1e-8, rotary, ..Reading::default() };
    let decoder = Decoder::read(fields, &reading)?;
    let qkv_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = fields.flag("mlp_bias")?.unwrap_or(false);
    Ok(decoder.boxed(Variant { qkv_bias, mlp_bias, ..Variant::default() }))
}
