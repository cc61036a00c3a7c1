//! RoBERTa and XLM-RoBERTa: BERT, whose positions are counted from the padding token's number on and
//! skip padding.

use surf_chunker::Checkpoint;

use super::{
    Architecture, bert,
    encoder::{Encoder, Names, Positions},
};
use crate::engine::{EngineError, fields::Fields};

const NAMES: Names = bert::names(&["roberta.", ""]);

pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    let pad = fields.count_if("pad_token_id", 0..=1 << 20)?.unwrap_or(1);
    let sizes = bert::sizes(fields)?;
    if sizes.positions <= pad + 1 {
        let reason = format!("is {}, which leaves no position after padding's {pad}", sizes.positions);
        return Err(fields.invalid("max_position_embeddings", reason));
    }
    Encoder::boxed(sizes, &NAMES, Positions::After { pad: pad as u32 }, manifest)
}
