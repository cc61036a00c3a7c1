//! Gemma 3: Gemma 2 with norms over each head of queries and keys instead of caps on scores, more blocks
//! with windows, and a rotary of their own in these. Alone, or beside the part that sees images, which is
//! not run.

use std::sync::Arc;

use surf_chunker::Checkpoint;

use super::{
    Architecture,
    decoder::{Decoder, Gemma, Reading, Together, Variant},
    gemma2, options, root,
};
use crate::engine::{
    EngineError,
    fields::Fields,
    rotary::{Rotary, Spelling},
};

/// What stands before the names: of a text model; of one beside images, as transformers wrote it up to
/// version 4, and as it writes it since; of a decoder saved alone.
const ROOTS: [&str; 4] = ["model.", "language_model.model.", "model.language_model.", ""];

/// `gemma3_text`.
pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    let logit_cap = options::positive(fields, "final_logit_softcapping", None)?.map(|cap| cap as f32);
    text(fields, true, logit_cap, manifest)
}

/// `gemma3`, whose text model is described in `text_config`.
pub(super) fn read_beside_images(
    fields: &Fields<'_>,
    manifest: &Checkpoint,
) -> Result<Box<dyn Architecture>, EngineError> {
    let config = fields.object("text_config")?;
    let config = config.ok_or_else(|| fields.invalid("text_config", "is missing"))?;
    text(&config, fields.flag("tie_word_embeddings")?.unwrap_or(true), None, manifest)
}

fn text(
    fields: &Fields<'_>,
    tied: bool,
    logit_cap: Option<f32>,
    manifest: &Checkpoint,
) -> Result<Box<dyn Architecture>, EngineError> {
    let full =
        Spelling { theta: ("rope_theta", 1e6), layer_type: Some("full_attention"), ..Spelling::DEFAULT };
    let decoder =
        Decoder::read(fields, &Reading { context: 1 << 17, tied, rotary: full, ..gemma2::READING })?;
    let local = Spelling {
        theta: ("rope_local_base_freq", 1e4),
        layer_type: Some("sliding_attention"),
        scaled: false,
        ..Spelling::DEFAULT
    };
    let local = Arc::new(Rotary::read(fields, decoder.head_dim(), &local)?);
    let pattern = fields.count_if("sliding_window_pattern", 1..=1 << 16)?.unwrap_or(6);
    let sliding = options::sliding(fields, decoder.blocks(), |index| !(index + 1).is_multiple_of(pattern))?;
    let variant = gemma2::variant(fields, &sliding)?;
    let gemma = variant.gemma.map(|gemma| Gemma { logit_cap, ..gemma });
    let root = root(manifest, &ROOTS, "embed_tokens.weight")?;
    Ok(decoder.boxed_under(
        root,
        Variant { qk_norm: Some(Together::Head), local: Some((sliding, local)), gemma, ..variant },
    ))
}
