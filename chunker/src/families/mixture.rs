//! Decoders with routed experts: like Llama, but each expert of a layer is a group of its own.

use super::{Architecture, Family, Part, Stack};

pub(super) const FAMILY: Family = Family {
    model_types: &[
        ("mixtral", Architecture::Mixtral),
        ("qwen2_moe", Architecture::Qwen2Moe),
        ("qwen3_moe", Architecture::Qwen3Moe),
        ("deepseek_v2", Architecture::DeepseekV2),
        ("deepseek_v3", Architecture::DeepseekV3),
    ],
    classes: &[
        "MixtralForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
    ],
    roots: &["model.", ""],
    rules: &[
        ("embed_tokens", Part::Embed),
        ("layers.#.mlp.experts.#", Part::Expert(Stack::Decoder)),
        ("layers.#.block_sparse_moe.experts.#", Part::Expert(Stack::Decoder)),
        ("layers.#", Part::Layer(Stack::Decoder)),
        ("norm", Part::Head),
    ],
    beside: &[("lm_head", Part::Head)],
};
