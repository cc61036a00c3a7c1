//! Llama and the models built like it: one stack of decoder layers between an embedding and a head.

use super::{Architecture, Family, Part, Stack};

pub(super) const FAMILY: Family = Family {
    model_types: &[
        ("gemma2", Architecture::Gemma2),
        ("llama", Architecture::Llama),
        ("mistral", Architecture::Mistral),
        ("phi3", Architecture::Phi3),
        ("qwen2", Architecture::Qwen2),
        ("qwen3", Architecture::Qwen3),
    ],
    classes: &[
        "Gemma2ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ],
    // Without a prefix where the model was saved without its head.
    roots: &["model.", ""],
    rules: &[("embed_tokens", Part::Embed), ("layers.#", Part::Layer(Stack::Decoder)), ("norm", Part::Head)],
    beside: &[("lm_head", Part::Head)],
};
