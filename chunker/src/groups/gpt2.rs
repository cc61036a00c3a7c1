//! GPT-2: two tables, of tokens and of positions, and blocks called `h`.

use surf_protocol::Stack;

use super::{Family, Part};

pub(super) const FAMILY: Family = Family {
    model_types: &["gpt2"],
    architectures: &["GPT2LMHeadModel"],
    // The first ones have no prefix.
    roots: &["transformer.", ""],
    rules: &[
        ("wte", Part::Embed),
        ("wpe", Part::Embed),
        ("h.#", Part::Block(Stack::Decoder)),
        ("ln_f", Part::Head),
    ],
    beside: &[("lm_head", Part::Head)],
};
