//! Which tensors go together, in what order.

use proptest::prelude::*;

use super::{
    Stack::{Decoder, Encoder},
    *,
};

const LLAMA: &[u8] = br#"{"model_type": "llama"}"#;

fn groups(config: Option<&[u8]>, names: &[&str]) -> Vec<Group> {
    let grouping = Grouping::new(&Families::default(), config, names.iter().copied());
    names.iter().map(|name| grouping.map_or_else(|| by_name(name), |grouping| grouping.of(name))).collect()
}

fn named(name: &str) -> Group {
    Group::Named(name.to_owned())
}

#[test]
fn llama_has_embedding_layers_and_head() {
    let names = [
        "model.embed_tokens.weight",
        "model.layers.11.mlp.up_proj.weight",
        "model.layers.2.self_attn.q_proj.bias",
        "model.norm.weight",
        "lm_head.weight",
    ];
    let expected =
        [Group::Embed, Group::Layer(Decoder, 11), Group::Layer(Decoder, 2), Group::Head, Group::Head];
    assert_eq!(groups(Some(LLAMA), &names), expected);
    // Models that were saved without their head have no prefix.
    let bare = names.map(|name| name.strip_prefix("model.").unwrap_or(name));
    assert_eq!(groups(Some(LLAMA), &bare), expected);
}

#[test]
fn routed_experts_are_groups_of_their_own() {
    let expert = |layer, expert| Group::Expert { stack: Decoder, layer, expert };
    let names = [
        "model.layers.3.mlp.experts.12.up_proj.weight",
        "model.layers.3.mlp.experts.2.down_proj.weight_scale_inv",
        "model.layers.0.block_sparse_moe.experts.7.w1.weight",
        "model.layers.3.mlp.gate.weight",
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.3.mlp.shared_experts.up_proj.weight",
        "model.layers.3.mlp.experts.gate_up_proj",
    ];
    let block = Group::Layer(Decoder, 3);
    let expected =
        [expert(3, 12), expert(3, 2), expert(0, 7), block.clone(), block.clone(), block.clone(), block];
    assert_eq!(groups(Some(br#"{"model_type": "deepseek_v3"}"#), &names), expected);
}

#[test]
fn blocks_that_no_pass_visits_go_by_their_names() {
    let config = br#"{"model_type": "deepseek_v3", "num_hidden_layers": 61}"#;
    let names = ["model.layers.60.mlp.gate.weight", "model.layers.61.mlp.experts.3.up_proj.weight"];
    assert_eq!(groups(Some(config), &names), [Group::Layer(Decoder, 60), named("model.layers.61")]);
}

#[test]
fn an_encoder_has_blocks_and_tables_and_what_no_pass_needs() {
    let names = [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.11.output.dense.bias",
        "pooler.dense.weight",
    ];
    let expected = [
        Group::Embed,
        Group::Layer(Encoder, 0),
        Group::Layer(Encoder, 0),
        Group::Layer(Encoder, 11),
        named("pooler.dense"),
    ];
    let bert = br#"{"model_type": "bert"}"#;
    assert_eq!(groups(Some(bert), &names), expected);
    let within = |root: &str| names[..4].iter().map(|name| format!("{root}.{name}")).collect::<Vec<_>>();
    for root in ["bert", "roberta"] {
        let config = format!(r#"{{"model_type": "{root}"}}"#);
        let names = within(root);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(groups(Some(config.as_bytes()), &names), expected[..4]);
    }
    let distilbert =
        ["distilbert.embeddings.LayerNorm.weight", "distilbert.transformer.layer.3.ffn.lin1.bias"];
    let config = br#"{"model_type": "distilbert"}"#;
    assert_eq!(groups(Some(config), &distilbert), [Group::Layer(Encoder, 0), Group::Layer(Encoder, 3)]);
}

#[test]
fn t5_has_two_stacks_over_one_embedding() {
    let names = [
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.final_layer_norm.weight",
        "decoder.block.2.layer.1.EncDecAttention.k.weight",
        "decoder.final_layer_norm.weight",
        "lm_head.weight",
        "decoder.embed_tokens.weight",
    ];
    let expected = [
        Group::Embed,
        Group::Layer(Encoder, 0),
        Group::Norm(Encoder),
        Group::Layer(Decoder, 2),
        Group::Head,
        Group::Head,
        Group::Embed,
    ];
    assert_eq!(groups(Some(br#"{"model_type": "t5"}"#), &names), expected);
}

#[test]
fn gguf_files_have_names_of_their_own() {
    let grouping = Grouping::gguf();
    for (name, group) in [
        ("token_embd.weight", Group::Embed),
        ("blk.11.attn_q.weight", Group::Layer(Decoder, 11)),
        ("output_norm.weight", Group::Head),
        ("output.weight", Group::Head),
        ("rope_freqs.weight", named("rope_freqs")),
    ] {
        assert_eq!(grouping.of(name), group, "{name}");
    }
}

#[test]
fn other_decoders_have_other_names_for_the_same() {
    let (embed, block, head) = (Group::Embed, Group::Layer(Decoder, 3), Group::Head);
    let gpt2 = ["wte.weight", "wpe.weight", "h.3.attn.bias", "ln_f.bias"];
    let neox = ["embed_in.weight", "layers.3.attention.dense.bias", "final_layer_norm.bias"];
    let gemma3 = ["embed_tokens.weight", "layers.3.self_attn.q_norm.weight", "norm.weight"];
    let check = |model_type: &str, root: &str, names: &[&str], beside: &[&str], expected: &[&Group]| {
        let names = names.iter().map(|name| format!("{root}{name}"));
        let names: Vec<String> = names.chain(beside.iter().map(|name| name.to_string())).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let config = format!(r#"{{"model_type": "{model_type}"}}"#);
        let got = groups(Some(config.as_bytes()), &names);
        assert_eq!(got.iter().collect::<Vec<_>>(), expected, "{root}");
    };
    for root in ["transformer.", ""] {
        check("gpt2", root, &gpt2, &["lm_head.weight"], &[&embed, &embed, &block, &head, &head]);
    }
    check("gpt_neox", "gpt_neox.", &neox, &["embed_out.weight"], &[&embed, &block, &head, &head]);
    check("gemma3_text", "model.", &gemma3, &["lm_head.weight"], &[&embed, &block, &head, &head]);
    // Beside what sees images, which is left to its names.
    let (tower, new) = ("vision_tower.vision_model.encoder.layers.3", "model.vision_tower.encoder.layers.3");
    for (root, tower, lm_head) in [
        ("language_model.model.", tower, "language_model.lm_head.weight"),
        ("model.language_model.", new, "lm_head.weight"),
    ] {
        let seen = named(tower);
        let tower = format!("{tower}.norm.weight");
        check("gemma3", root, &gemma3, &[lm_head, &tower], &[&embed, &block, &head, &head, &seen]);
    }
}

#[test]
fn a_second_copy_under_other_names_is_not_mixed_in() {
    // As in Mistral's repositories, which hold the original checkpoint too.
    let names = ["layers.0.attention.wq.weight", "model.layers.0.self_attn.q_proj.weight", "norm.weight"];
    assert_eq!(groups(Some(LLAMA), &names), [named("layers.0"), Group::Layer(Decoder, 0), named("norm")]);
}

#[test]
fn the_family_is_told_by_type_then_architecture() {
    let block = "model.layers.0.mlp.up_proj.weight";
    for known in [
        r#"{"model_type": "mistral"}"#,
        r#"{"model_type": "qwen3", "architectures": ["Odd"]}"#,
        r#"{"architectures": ["Qwen2ForCausalLM"]}"#,
    ] {
        assert_eq!(groups(Some(known.as_bytes()), &[block]), [Group::Layer(Decoder, 0)], "{known}");
    }
    for unknown in ["", "{", "[]", "null", r#"{"model_type": 3}"#, r#"{"model_type": "mamba"}"#] {
        assert_eq!(groups(Some(unknown.as_bytes()), &[block]), [named("model.layers.0")], "{unknown}");
    }
}

#[test]
fn without_a_configuration_the_family_is_told_by_the_names() {
    let (layer, encoder) = (Group::Layer(Decoder, 0), Group::Layer(Encoder, 0));
    for (names, expected) in [
        (&["model.layers.0.mlp.up_proj.weight", "lm_head.weight"][..], &[&layer, &Group::Head][..]),
        (&["layers.0.mlp.dense.weight", "embed_in.weight"], &[&layer, &Group::Embed]),
        (&["h.0.ln_1.weight", "wte.weight"], &[&layer, &Group::Embed]),
        (&["bert.encoder.layer.0.x.weight", "cls.predictions.bias"], &[&encoder, &named("cls.predictions")]),
        (&["transformer.layer.0.x.weight", "embeddings.word.weight"], &[&encoder, &Group::Embed]),
        (&["encoder.block.0.layer.0.x.weight", "shared.weight"], &[&encoder, &Group::Embed]),
        (&["model.language_model.layers.0.x.weight"], &[&layer]),
        // Without a layer it is none.
        (&["norm.weight", "conv.3.weight"], &[&named("norm"), &named("conv.3")]),
    ] {
        assert_eq!(groups(None, names).iter().collect::<Vec<_>>(), expected, "{names:?}");
    }
    let expert = "model.layers.0.mlp.experts.7.up_proj.weight";
    assert_eq!(groups(None, &[expert]), [Group::Expert { stack: Decoder, layer: 0, expert: 7 }]);
}

#[test]
fn every_model_type_is_in_one_family() {
    let names = Families::default().model_types();
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    assert_eq!(Families::default().architecture("xlm-roberta"), Some(Architecture::Roberta));
    assert_eq!(Families::default().architecture("mamba"), None);
}

#[test]
fn a_tensor_is_found_under_either_name() {
    let there = ["token_embd.weight", "blk.3.ffn_norm.weight", "model.norm.weight", "output_norm.weight"];
    let stored = |name: &str| under_either_name(name, |name| there.contains(&name).then(|| name.to_owned()));
    assert_eq!(stored("model.embed_tokens.weight").unwrap(), "token_embd.weight");
    assert_eq!(stored("model.layers.3.post_attention_layernorm.weight").unwrap(), "blk.3.ffn_norm.weight");
    assert_eq!(stored("model.norm.weight").unwrap(), "model.norm.weight");
    assert_eq!((stored("model.layers.3.mlp.up_proj.bias"), stored("odd")), (None, None));
}

#[test]
fn the_fallback_goes_by_the_first_number_or_the_module() {
    for (name, group) in [
        ("bert.encoder.layer.3.attention.self.query.weight", "bert.encoder.layer.3"),
        ("down_blocks.0.resnets.1.conv1.weight", "down_blocks.0"),
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm"),
        ("logits", "logits"),
        ("7", "7"),
        ("", ""),
        ("a..1.b", "a..1"),
    ] {
        assert_eq!(groups(Some(b"{}"), &[name]), [named(group)], "{name}");
    }
}

#[test]
fn odd_numbers_are_no_blocks() {
    for (name, group) in [
        ("layers.007.w", "layers.007"),
        ("layers.4294967296.w", "layers.4294967296"),
        ("layers.+1.w", "layers.+1"),
        ("layers.1", "layers.1"),
    ] {
        assert_eq!(groups(Some(LLAMA), &["norm.weight", name])[1], named(group), "{name}");
    }
}

#[test]
fn groups_are_in_order_of_use() {
    let expert = Group::Expert { stack: Decoder, layer: 2, expert: 0 };
    let in_order = [
        Group::Embed,
        Group::Layer(Encoder, 0),
        Group::Layer(Encoder, 11),
        Group::Norm(Encoder),
        Group::Layer(Decoder, 2),
        expert,
        Group::Layer(Decoder, 10),
        Group::Norm(Decoder),
        Group::Head,
        named("a.02"),
        named("a.2"),
        named("a.10"),
        named("a.1a"),
        named("b"),
    ];
    let uses: Vec<Use> = in_order.iter().map(Use::of).collect();
    assert!(uses.is_sorted_by(|a, b| a < b), "{uses:?}");
}

proptest! {
    #[test]
    fn names_sort_by_their_parts(one in "(a{16,18})?[a1.0]{0,8}", two in "(a{16,18})?[a1.0]{0,8}") {
        let parts = |name: &str| -> Vec<(u8, u64, String)> {
            let part = |part: &str| match part.parse() {
                Ok(number) => (0, number, part.to_owned()),
                Err(_) => (1, 0, part.to_owned()),
            };
            name.split('.').map(part).collect()
        };
        let [a, b] = [named(&one), named(&two)];
        prop_assert_eq!(Use::of(&a).cmp(&Use::of(&b)), parts(&one).cmp(&parts(&two)));
    }
}
