//! Against what llama.cpp's `llama-quantize` says of models of these shapes.

use serde_json::json;

use super::*;

fn tensor(name: &str, shape: &[u64]) -> Parameter {
    let size = Dtype::Bf16.size_of(shape).unwrap();
    Parameter { name: name.into(), dtype: Dtype::Bf16, shape: shape.to_vec(), file: 0, offset: 0, size }
}

/// Like Llama 3 8B, but for its widths: 32 blocks, four heads to a key.
fn llama() -> Model {
    let config = json!({"num_attention_heads": 32, "num_key_value_heads": 8});
    let last = tensor("model.layers.31.mlp.down_proj.weight", &[512, 1024]);
    Model::new(&config, &[last, tensor("lm_head.weight", &[1000, 512])])
}

fn chosen(model: &Model, kind: Kind, name: &str) -> Option<Dtype> {
    model.choose(kind, &tensor(name, &[512, 512]))
}

fn in_block(model: &Model, kind: Kind, name: &str) -> Vec<Dtype> {
    let name = |block| format!("model.layers.{block}.{name}.weight");
    (0..32).map(|block| chosen(model, kind, &name(block)).unwrap()).collect()
}

#[test]
fn some_blocks_keep_more_bits_of_what_matters_most() {
    let model = llama();
    // Those that a Q4_K_M of Llama 3 8B has in Q6_K.
    let more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
    for name in ["self_attn.v_proj", "mlp.down_proj"] {
        for (kind, base) in [(Kind::Q4K, Dtype::Q4K), (Kind::Q5K, Dtype::Q5K)] {
            for (block, dtype) in in_block(&model, kind, name).into_iter().enumerate() {
                let expected = if more.contains(&block) { Dtype::Q6K } else { base };
                assert_eq!(dtype, expected, "{name} of block {block}");
            }
        }
    }
    let thirds = in_block(&model, Kind::Q3K, "mlp.down_proj");
    assert_eq!((&thirds[..2], &thirds[2..]), (&[Dtype::Q5K; 2][..], &[Dtype::Q4K; 30][..]));
    let thirds = in_block(&model, Kind::Q3K, "self_attn.v_proj");
    assert_eq!((&thirds[..2], &thirds[2..]), (&[Dtype::Q5K; 2][..], &[Dtype::Q4K; 30][..]));
    assert_eq!(in_block(&model, Kind::Q3K, "self_attn.o_proj"), [Dtype::Q4K; 32]);
    assert_eq!(in_block(&model, Kind::Q2K, "self_attn.v_proj"), [Dtype::Q4K; 32]);
    assert_eq!(in_block(&model, Kind::Q2K, "mlp.down_proj"), [Dtype::Q3K; 32]);
    for (name, kind) in NAMES {
        assert_eq!((kind.name(), name.parse()), (name, Ok(kind)));
        assert_eq!(in_block(&model, kind, "mlp.up_proj"), [kind.dtype(); 32]);
        assert_eq!(in_block(&model, kind, "self_attn.q_proj"), [kind.dtype(); 32]);
    }
}

#[test]
fn the_embedding_and_the_head_keep_more() {
    let (untied, tied) = (llama(), Model::new(&json!({}), &[]));
    for kind in NAMES.map(|(_, kind)| kind).into_iter().filter(|&kind| kind != Kind::Q8_0) {
        assert_eq!(chosen(&untied, kind, "lm_head.weight"), Some(Dtype::Q6K));
        assert_eq!(chosen(&untied, kind, "model.embed_tokens.weight"), Some(Dtype::Q6K));
        assert_eq!(chosen(&tied, kind, "model.embed_tokens.weight"), Some(Dtype::Q8_0));
        assert_eq!(untied.choose(kind, &tensor("lm_head.weight", &[100, 96])), Some(Dtype::Q8_0));
    }
    assert_eq!(chosen(&untied, Kind::Q8_0, "lm_head.weight"), Some(Dtype::Q8_0));
}

#[test]
fn eight_experts_share_an_attention_that_keeps_more() {
    let model = Model::new(&json!({"num_local_experts": 8}), &[]);
    let attention =
        |name: &str| chosen(&model, Kind::Q4K, &format!("model.layers.5.self_attn.{name}.weight"));
    assert_eq!(
        ["q_proj", "k_proj", "v_proj", "o_proj"].map(attention),
        [Dtype::Q4K, Dtype::Q8_0, Dtype::Q8_0, Dtype::Q5K].map(Some)
    );
    let expert = "model.layers.3.block_sparse_moe.experts.7.";
    assert_eq!(chosen(&model, Kind::Q2K, &format!("{expert}w2.weight")), Some(Dtype::Q3K));
    assert_eq!(chosen(&model, Kind::Q2K, &format!("{expert}w1.weight")), Some(Dtype::Q2K));
    assert_eq!(chosen(&model, Kind::Q4K, "model.layers.3.block_sparse_moe.gate.weight"), None);
}

#[test]
fn what_is_no_large_matrix_of_floats_stays() {
    let model = llama();
    for name in [
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.gate.e_score_correction_bias",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "transformer.h.0.attn.c_attn.weight",
        "wpe.weight",
        "logits",
    ] {
        assert_eq!(chosen(&model, Kind::Q4K, name), None, "{name}");
    }
    let up = |shape: &[u64]| model.choose(Kind::Q4K, &tensor("model.layers.0.mlp.up_proj.weight", shape));
    assert_eq!(up(&[512]), None);
    assert_eq!(up(&[1, 512]), None);
    assert_eq!(up(&[2, 2, 2, 512]), None);
    assert_eq!(up(&[512, 0]), None);
    assert_eq!(up(&[8, 512, 512]), Some(Dtype::Q4K));
    let integers =
        Parameter { dtype: Dtype::I16, ..tensor("model.layers.0.mlp.up_proj.weight", &[512, 512]) };
    assert_eq!(model.choose(Kind::Q4K, &integers), None);
    // Of a byte each already, they would grow.
    let bytes = Parameter { dtype: Dtype::F8E4M3, size: 512 * 512, ..integers };
    assert_eq!(model.choose(Kind::Q8_0, &bytes), None);
    assert_eq!(model.choose(Kind::Q4K, &bytes), Some(Dtype::Q4K));
}

#[test]
fn odd_widths_get_shorter_blocks_or_none() {
    let model = llama();
    let up = |kind, cols| model.choose(kind, &tensor("model.layers.0.mlp.up_proj.weight", &[64, cols]));
    let shorter = [
        (Kind::Q2K, Dtype::Q4_0),
        (Kind::Q3K, Dtype::Q4_0),
        (Kind::Q4K, Dtype::Q5_0),
        (Kind::Q5K, Dtype::Q5_1),
        (Kind::Q6K, Dtype::Q8_0),
        (Kind::Q4_0, Dtype::Q4_0),
        (Kind::Q8_0, Dtype::Q8_0),
    ];
    for (kind, dtype) in shorter {
        assert_eq!((up(kind, 160), up(kind, 100)), (Some(dtype), None), "{kind:?}");
    }
}

#[test]
fn encoders_are_told_by_their_names_too() {
    let model = Model::new(&json!({}), &[tensor("encoder.layer.11.output.dense.weight", &[64, 256])]);
    let role = |name: &str| super::role(&format!("encoder.layer.0.{name}.weight"));
    assert_eq!(role("output.dense"), Some(Role::Down));
    assert_eq!(role("attention.output.dense"), Some(Role::Attended));
    assert_eq!(role("attention.self.value"), Some(Role::Value));
    assert_eq!(role("intermediate.dense"), Some(Role::Other));
    assert_eq!(super::role("decoder.block.0.layer.2.DenseReluDense.wo.weight"), Some(Role::Down));
    assert_eq!(super::role("layers.0.attention.wo.weight"), Some(Role::Attended));
    assert_eq!(model.stacks["encoder.layer."], 12);
    assert_eq!(block("model.layers.12.mlp.experts.3.up_proj.weight"), Some(("model.layers.", 12)));
    assert_eq!(block("lm_head.weight"), None);
}

#[test]
fn other_kinds_are_refused_by_name() {
    let error = "iq2_xs".parse::<Kind>().unwrap_err();
    assert_eq!(error, "cannot quantise to \"iq2_xs\"; known are q8_0, q6_k, q5_k, q4_k, q4_0, q3_k, q2_k");
    assert_eq!("Q4_K".parse(), Ok(Kind::Q4K));
}
