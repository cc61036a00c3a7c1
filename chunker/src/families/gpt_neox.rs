//! GPT-NeoX and Pythia.

use super::{Architecture, Family, Part, Stack};

pub(super) const FAMILY: Family = Family {
    model_types: &[("gpt_neox", Architecture::GptNeox)],
    classes: &["GPTNeoXForCausalLM"],
    roots: &["gpt_neox.", ""],
    rules: &[
        ("embed_in", Part::Embed),
        ("layers.#", Part::Layer(Stack::Decoder)),
        ("final_layer_norm", Part::Head),
    ],
    beside: &[("embed_out", Part::Head), ("lm_head", Part::Head)],
};
