//! Phi 3 and 4: Llama with its projections stored as one matrix for attention and one for the MLP. Long
//! contexts turn positions by other factors than short ones.

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
    options,
};
use crate::engine::{EngineError, fields::Fields, rotary::Spelling};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    // Early configurations have other names for what became `longrope`.
    let rotary =
        Spelling { original: Some(4096.0), longrope: &["longrope", "su", "yarn"], ..Spelling::default() };
    let reading = Reading { context: 4096, eps: 1e-5, rotary, ..Reading::default() };
    let decoder = Decoder::read(fields, &reading)?;
    let windows = vec![options::window(fields, None)?; decoder.blocks()];
    Ok(decoder.boxed(Variant { fused: true, windows, ..Variant::default() }))
}
