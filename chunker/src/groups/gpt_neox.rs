//! GPT-NeoX and Pythia.

use surf_protocol::Stack;

use super::{Family, Part};

pub(super) const FAMILY: Family = Family {
    model_types: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM"],
    roots: &["gpt_neox.", ""],
    rules: &[
        ("embed_in", Part::Embed),
        ("layers.#", Part::Block(Stack::Decoder)),
        ("final_layer_norm", Part::Head),
    ],
    beside: &[("embed_out", Part::Head), ("lm_head", Part::Head)],
};
