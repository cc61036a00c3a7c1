//! Gemma 3, alone or beside the part that sees images. What sees images has no table: its groups go by
//! their names.

use super::{Architecture, Family, Part, Stack};

pub(super) const FAMILY: Family = Family {
    model_types: &[("gemma3", Architecture::Gemma3), ("gemma3_text", Architecture::Gemma3Text)],
    classes: &["Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"],
    // Beside images, as transformers has written it since version 5, and up to 4; alone.
    roots: &["model.language_model.", "language_model.model.", "model.", ""],
    rules: &[("embed_tokens", Part::Embed), ("layers.#", Part::Layer(Stack::Decoder)), ("norm", Part::Head)],
    beside: &[("lm_head", Part::Head), ("language_model.lm_head", Part::Head)],
};
