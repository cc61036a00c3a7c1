//! GPT-2: two tables, of tokens and of positions, and layers called `h`.

use super::{Architecture, Family, Part, Stack};

pub(super) const FAMILY: Family = Family {
    model_types: &[("gpt2", Architecture::Gpt2)],
    classes: &["GPT2LMHeadModel"],
    // The first ones have no prefix.
    roots: &["transformer.", ""],
    rules: &[
        ("wte", Part::Embed),
        ("wpe", Part::Embed),
        ("h.#", Part::Layer(Stack::Decoder)),
        ("ln_f", Part::Head),
    ],
    beside: &[("lm_head", Part::Head)],
};
