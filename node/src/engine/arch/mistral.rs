//! Mistral: Llama, in which every block sees a window.

use super::{
    Architecture,
    decoder::{Decoder, Defaults, Variant},
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, Defaults { context: 1 << 17, head_dim: None })?;
    // `null` is no window; a configuration that does not say means the first Mistral's.
    let window = match fields.has("sliding_window") {
        true => fields.count_if("sliding_window", 1..=1 << 24)?,
        false => Some(4096),
    };
    let windows = vec![window; decoder.blocks()];
    Ok(decoder.boxed(Variant { windows, ..Variant::default() }))
}
