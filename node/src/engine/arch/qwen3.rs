//! Qwen 3: Llama with norms over each head of queries and keys; later blocks may see a window.

use super::{
    Architecture,
    decoder::{Decoder, Reading, Together, Variant},
    qwen2,
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let reading = Reading { context: 1 << 15, head_dim: Some(128), ..Reading::default() };
    let decoder = Decoder::read(fields, &reading)?;
    let windows = qwen2::windows(fields, decoder.blocks())?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    Ok(decoder.boxed(Variant {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(Together::Head),
        windows,
        ..Variant::default()
    }))
}
