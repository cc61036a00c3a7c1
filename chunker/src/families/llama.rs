//! Llama and the models built like it: one stack of decoder layers between an embedding and a head.
//!
//! OLMo's norms have nothing learned; Phi's last norm has a name of its own.

use super::{Architecture, Family, Part, Stack};

pub(super) const FAMILY: Family = Family {
    model_types: &[
        ("gemma", Architecture::Gemma),
        ("gemma2", Architecture::Gemma2),
        ("helium", Architecture::Helium),
        ("llama", Architecture::Llama),
        ("mistral", Architecture::Mistral),
        ("olmo", Architecture::Olmo),
        ("olmo2", Architecture::Olmo2),
        ("phi", Architecture::Phi),
        ("phi3", Architecture::Phi3),
        ("qwen2", Architecture::Qwen2),
        ("qwen3", Architecture::Qwen3),
        ("starcoder2", Architecture::Starcoder2),
    ],
    classes: &[
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "HeliumForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "OlmoForCausalLM",
        "Olmo2ForCausalLM",
        "PhiForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Starcoder2ForCausalLM",
    ],
    // Without a prefix where the model was saved without its head.
    roots: &["model.", ""],
    rules: &[
        ("embed_tokens", Part::Embed),
        ("layers.#", Part::Layer(Stack::Decoder)),
        ("norm", Part::Head),
        ("final_layernorm", Part::Head),
    ],
    beside: &[("lm_head", Part::Head)],
};
