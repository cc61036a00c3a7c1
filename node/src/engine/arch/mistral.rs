//! Mistral: Llama, in which every block sees a window.

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
    options,
};
use crate::engine::{EngineError, fields::Fields};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading { context: 1 << 17, ..Reading::default() })?;
    // `null` is no window; a configuration that does not say means the first Mistral's.
    let windows = vec![options::window(fields, Some(4096))?; decoder.blocks()];
    Ok(decoder.boxed(Variant { windows, ..Variant::default() }))
}
