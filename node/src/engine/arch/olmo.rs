//! OLMo: Llama with norms that have nothing learned; queries, keys and values may be clipped.

use super::{
    Architecture,
    block::NormKind,
    decoder::{Decoder, Reading, Variant},
    options,
};
use crate::engine::{EngineError, fields::Fields};

/// What keeps a norm from dividing by zero, in every OLMo.
const EPS: f64 = 1e-5;

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading::default())?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    Ok(decoder.boxed(Variant {
        qkv_bias: bias,
        output_bias: bias,
        norm: Some(NormKind::Plain(EPS)),
        clip: options::positive(fields, "clip_qkv", None)?.map(|clip| clip as f32),
        ..Variant::default()
    }))
}
