//! Names of tensors in GGUF files, which are the same for all models: in which groups, and for what transformers has
//! other names.

use super::{Family, Part, Stack};

/// Chosen by the format, not by a configuration.
pub(super) const FAMILY: Family = Family {
    model_types: &[],
    classes: &[],
    roots: &[""],
    rules: &[
        ("token_embd", Part::Embed),
        ("token_embd_norm", Part::Embed),
        ("token_types", Part::Embed),
        ("position_embd", Part::Embed),
        ("blk.#", Part::Layer(Stack::Decoder)),
        ("output_norm", Part::Head),
        ("output", Part::Head),
    ],
    beside: &[],
};

/// What GGUF files call the modules of a layer. Where there are two names, the one that is there is
/// meant: Gemma has a norm behind attention, others before what follows.
const MODULES: [(&str, &[&str]); 33] = [
    ("input_layernorm", &["attn_norm"]),
    ("post_attention_layernorm", &["post_attention_norm", "ffn_norm"]),
    ("pre_feedforward_layernorm", &["ffn_norm"]),
    ("post_feedforward_layernorm", &["post_ffw_norm"]),
    ("self_attn.q_proj", &["attn_q"]),
    ("self_attn.k_proj", &["attn_k"]),
    ("self_attn.v_proj", &["attn_v"]),
    ("self_attn.qkv_proj", &["attn_qkv"]),
    ("self_attn.o_proj", &["attn_output"]),
    ("self_attn.q_norm", &["attn_q_norm"]),
    ("self_attn.k_norm", &["attn_k_norm"]),
    ("mlp.gate_proj", &["ffn_gate"]),
    ("mlp.up_proj", &["ffn_up"]),
    ("mlp.gate_up_proj", &["ffn_up"]),
    ("mlp.down_proj", &["ffn_down"]),
    ("mlp.gate", &["ffn_gate_inp"]),
    ("mlp.experts.gate_proj", &["ffn_gate_exps"]),
    ("mlp.experts.up_proj", &["ffn_up_exps"]),
    ("mlp.experts.down_proj", &["ffn_down_exps"]),
    ("mlp.shared_expert_gate", &["ffn_gate_inp_shexp"]),
    ("mlp.shared_expert.gate_proj", &["ffn_gate_shexp"]),
    ("mlp.shared_expert.up_proj", &["ffn_up_shexp"]),
    ("mlp.shared_expert.down_proj", &["ffn_down_shexp"]),
    ("block_sparse_moe.gate", &["ffn_gate_inp"]),
    ("block_sparse_moe.experts.w1", &["ffn_gate_exps"]),
    ("block_sparse_moe.experts.w3", &["ffn_up_exps"]),
    ("block_sparse_moe.experts.w2", &["ffn_down_exps"]),
    ("ln_1", &["attn_norm"]),
    ("attn.c_attn", &["attn_qkv"]),
    ("attn.c_proj", &["attn_output"]),
    ("ln_2", &["ffn_norm"]),
    ("mlp.c_fc", &["ffn_up"]),
    ("mlp.c_proj", &["ffn_down"]),
];

/// What they call the modules before and behind the layers.
const OUTER: [(&str, &str); 6] = [
    ("model.embed_tokens", "token_embd"),
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("model.norm", "output_norm"),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
];

/// What stands before the number of a layer.
const LAYERS: [&str; 2] = ["model.layers.", "transformer.h."];

/// What `look_up` knows under `name`, else under the name that GGUF files have for it.
pub fn under_either_name<T>(name: &str, look_up: impl Fn(&str) -> Option<T>) -> Option<T> {
    look_up(name).or_else(|| gguf_names(name).iter().find_map(|name| look_up(name)))
}

/// Names that a tensor called `name` by transformers may have in a GGUF file.
pub fn gguf_names(name: &str) -> Vec<String> {
    let Some((module, kind)) = name.rsplit_once('.') else { return Vec::new() };
    if let Some((_, outer)) = OUTER.iter().find(|(known, _)| *known == module) {
        return vec![format!("{outer}.{kind}")];
    }
    let inner = || {
        let below = LAYERS.iter().find_map(|layers| module.strip_prefix(layers));
        let (number, module) = below?.split_once('.')?;
        let (_, names) = MODULES.iter().find(|(known, _)| *known == module)?;
        Some(names.iter().map(|name| format!("blk.{number}.{name}.{kind}")).collect())
    };
    inner().unwrap_or_default()
}
