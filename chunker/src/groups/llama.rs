//! Llama and the models built like it: one stack of decoder blocks between an embedding and a head.

use surf_protocol::Stack;

use super::{Family, Part};

pub(super) const FAMILY: Family = Family {
    model_types: &["gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"],
    architectures: &[
        "Gemma2ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ],
    // Without a prefix where the model was saved without its head.
    roots: &["model.", ""],
    rules: &[("embed_tokens", Part::Embed), ("layers.#", Part::Block(Stack::Decoder)), ("norm", Part::Head)],
    beside: &[("lm_head", Part::Head)],
};
