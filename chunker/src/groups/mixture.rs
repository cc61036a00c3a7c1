//! Decoders with routed experts: like Llama, but each expert of a block is a group of its own.

use surf_protocol::Stack;

use super::{Family, Part};

pub(super) const FAMILY: Family = Family {
    model_types: &["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"],
    architectures: &[
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
        ("layers.#", Part::Block(Stack::Decoder)),
        ("norm", Part::Head),
    ],
    beside: &[("lm_head", Part::Head)],
};
