//! StarCoder 2: Llama with biases, norms by mean and variance, and an MLP without a gate; every block may see a window.

use super::{
    Architecture,
    block::NormKind,
    decoder::{Decoder, Reading, Variant},
    options,
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let reading = Reading {
        context: 4096,
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        tied: true,
        ..Reading::default()
    };
    let decoder = Decoder::read(fields, &reading)?;
    let windows = vec![options::window(fields, None)?; decoder.blocks()];
    let bias = fields.flag("use_bias")?.unwrap_or(true);
    Ok(decoder.boxed(Variant {
        windows,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        norm: Some(NormKind::Layer(options::eps(fields, "norm_epsilon", 1e-5)?)),
        plain_mlp: Some(["c_fc", "c_proj"]),
        ..Variant::default()
    }))
}
