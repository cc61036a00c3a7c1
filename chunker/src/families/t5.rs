//! T5: an encoder and a decoder that share one embedding. Saved without its decoder, it is an encoder.

use super::{
    Architecture, Family, Part,
    Stack::{Decoder, Encoder},
};

pub(super) const FAMILY: Family = Family {
    model_types: &[("t5", Architecture::T5)],
    classes: &["T5ForConditionalGeneration", "T5Model", "T5EncoderModel"],
    roots: &["", "transformer."],
    rules: &[
        ("shared", Part::Embed),
        ("encoder.embed_tokens", Part::Embed),
        ("encoder.block.#", Part::Layer(Encoder)),
        ("encoder.final_layer_norm", Part::Norm(Encoder)),
        ("decoder.embed_tokens", Part::Embed),
        ("decoder.block.#", Part::Layer(Decoder)),
        ("decoder.final_layer_norm", Part::Head),
    ],
    beside: &[("lm_head", Part::Head)],
};
