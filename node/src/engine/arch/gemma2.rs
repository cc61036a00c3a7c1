//! Gemma 2: norms behind as well as before, capped scores and logits, and a window in every other block.

use super::{
    Architecture,
    decoder::{Decoder, Gemma, NormPlaces, Reading, Variant},
    options,
};
use crate::engine::{EngineError, fields::Fields};

/// What a Gemma that does not say means.
pub(super) const READING: Reading<'static> = Reading {
    context: 8192,
    head_dim: Some(256),
    eps: 1e-6,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    tied: true,
    rotary: crate::engine::rotary::Spelling::DEFAULT,
};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &READING)?;
    let sliding = options::sliding(fields, decoder.blocks(), |index| index % 2 == 0)?;
    let variant = variant(fields, &sliding)?;
    let cap = |name, default| options::positive(fields, name, Some(default));
    let gemma = variant.gemma.map(|gemma| -> Result<Gemma, EngineError> {
        Ok(Gemma {
            score_cap: cap("attn_logit_softcapping", 50.0)?.map(|cap| cap as f32),
            logit_cap: cap("final_logit_softcapping", 30.0)?.map(|cap| cap as f32),
            ..gemma
        })
    });
    Ok(decoder.boxed(Variant { gemma: gemma.transpose()?, ..variant }))
}

/// What all Gemmas since the second share; nothing is capped.
pub(super) fn variant(fields: &Fields<'_>, sliding: &[bool]) -> Result<Variant, EngineError> {
    options::unset(fields, "use_bidirectional_attention")?;
    let window = options::window(fields, Some(4096))?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    let query_scalar = options::positive(fields, "query_pre_attn_scalar", Some(256.0))?;
    let query_scalar = query_scalar.ok_or_else(|| fields.invalid("query_pre_attn_scalar", "is null"))?;
    Ok(Variant {
        windows: sliding.iter().map(|sliding| window.filter(|_| *sliding)).collect(),
        qkv_bias: bias,
        output_bias: bias,
        norms: NormPlaces::Around,
        gemma: Some(Gemma { query_scalar, score_cap: None, logit_cap: None }),
        ..Variant::default()
    })
}
