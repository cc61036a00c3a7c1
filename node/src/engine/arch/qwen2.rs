//! Qwen 2 and 2.5: Llama with biases on queries, keys and values; later blocks may see a window.

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
    options,
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading { context: 1 << 15, ..Reading::default() })?;
    let windows = windows(fields, decoder.blocks())?;
    Ok(decoder.boxed(Variant { qkv_bias: true, windows, ..Variant::default() }))
}

/// Which of `blocks` blocks see a window: those that `layer_types` names, else those from
/// `max_window_layers` on; none unless `use_sliding_window` is set.
pub(super) fn windows(fields: &Fields<'_>, blocks: usize) -> Result<Vec<Option<usize>>, EngineError> {
    // Where it is switched off, the window may be anything.
    let window = match fields.flag("use_sliding_window")? {
        Some(true) => options::window(fields, Some(4096))?,
        Some(false) | None => None,
    };
    let full = fields.count_if("max_window_layers", 0..=1 << 16)?.unwrap_or(28);
    let sliding = options::sliding(fields, blocks, |index| full <= index)?;
    Ok(sliding.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}
