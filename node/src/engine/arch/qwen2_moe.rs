//! Qwen 2 with experts, and one more that every token takes as far as a gate says.

use std::sync::Arc;

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
    mixture::{MixtureShape, SharedShape},
    qwen2, qwen3_moe,
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading { context: 1 << 15, ..Reading::default() })?;
    let shared = SharedShape {
        name: "mlp.shared_expert",
        intermediate: fields.count("shared_expert_intermediate_size", 1..=1 << 20)?,
        gate: Some("mlp.shared_expert_gate"),
    };
    let mixture = MixtureShape { shared: Some(shared), ..qwen3_moe::mixture(fields, &decoder)? };
    let variant = Variant {
        qkv_bias: fields.flag("qkv_bias")?.unwrap_or(true),
        windows: windows(fields, decoder.blocks())?,
        mixture: Some(Arc::new(mixture)),
        ..Variant::default()
    };
    Ok(decoder.boxed(variant))
}

/// Which blocks see a window: those that `layer_types` names, else every second of the first
/// `max_window_layers`; none unless `use_sliding_window` is set.
fn windows(fields: &Fields<'_>, blocks: usize) -> Result<Vec<Option<usize>>, EngineError> {
    if fields.has("layer_types") || fields.flag("use_sliding_window")? != Some(true) {
        return qwen2::windows(fields, blocks);
    }
    let window = fields.limit_if("sliding_window", 1..=1 << 24)?;
    let below = fields.count_if("max_window_layers", 0..=1 << 16)?.unwrap_or(28);
    Ok((0..blocks).map(|index| window.filter(|_| index.is_multiple_of(2) && index < below)).collect())
}
