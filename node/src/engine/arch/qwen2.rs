//! Qwen 2 and 2.5: Llama with biases on queries, keys and values; later blocks may see a window.

use super::{
    Architecture,
    decoder::{Decoder, Defaults, Variant},
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, Defaults { context: 1 << 15, head_dim: None })?;
    let windows = windows(fields, decoder.blocks())?;
    Ok(decoder.boxed(Variant { qkv_bias: true, windows, ..Variant::default() }))
}

/// Which of `blocks` blocks see a window: those that `layer_types` names, else those from
/// `max_window_layers` on; none unless `use_sliding_window` is set.
pub(super) fn windows(fields: &Fields<'_>, blocks: usize) -> Result<Vec<Option<usize>>, EngineError> {
    let switched_on = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = fields.count_if("sliding_window", 1..=1 << 24)?.filter(|_| switched_on);
    if let Some(types) = fields.list("layer_types")? {
        if types.len() != blocks {
            let reason = format!("names {} blocks; there are {blocks}", types.len());
            return Err(fields.invalid("layer_types", reason));
        }
        let one = |kind: &serde_json::Value| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(window),
            _ => Err(fields.invalid("layer_types", format!("has {kind}, which is not known"))),
        };
        return types.iter().map(one).collect();
    }
    let full = fields.count_if("max_window_layers", 0..=1 << 16)?.unwrap_or(28);
    Ok((0..blocks).map(|index| window.filter(|_| full <= index)).collect())
}
