//! Configurations that are read, and those that are refused.

use std::sync::Arc;

use serde_json::{Value, json};
use surf_chunker::Stack;
use surf_protocol::{
    Manifest,
    manifest::{FORMAT, Parts},
};

use super::*;

fn read_json(config: &Value) -> Result<Box<dyn Architecture>, EngineError> {
    let config = serde_json::to_vec(config).unwrap();
    read(&Files([("config.json".to_owned(), config.into())].into()), &nothing())
}

/// The manifest of a model without tensors.
fn nothing() -> Checkpoint {
    let manifest = Manifest::new(Parts { format: FORMAT, ..Parts::default() }).unwrap();
    Checkpoint::chosen(Arc::new(manifest), Vec::new(), Vec::new())
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut config = llama();
    config[field] = value;
    config
}

#[test]
fn a_pass_goes_from_block_to_block_to_head() {
    let step = |group, head| Step { group, head };
    let block = |index| step(Group::Layer(Stack::Decoder, index), false);
    let architecture = read_json(&llama()).unwrap();
    assert_eq!(architecture.steps(), [block(0), block(1), step(Group::Head, true)]);
    let tied = read_json(&with("tie_word_embeddings", json!(true))).unwrap();
    let expected = [block(0), block(1), step(Group::Head, true), step(Group::Embed, true)];
    assert_eq!(tied.steps(), expected);
    let shape = architecture.shape();
    assert_eq!((shape.vocab, shape.context), (100, 2048));
    assert_eq!(shape.cache, CacheShape { blocks: 2, heads: 2, elements: 16 });
}

#[test]
fn other_models_are_refused_by_name() {
    let error = read_json(&with("model_type", json!("mamba"))).unwrap_err().to_string();
    assert!(error.contains("\"mamba\"") && error.contains("llama, mistral, mixtral, olmo"), "{error}");
    let error = read(&Files::default(), &nothing()).unwrap_err().to_string();
    assert!(error.starts_with("config.json"), "{error}");
}

#[test]
fn hostile_numbers_are_refused_by_field() {
    for (field, value) in [
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(-4)),
        ("num_attention_heads", json!(32)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("num_hidden_layers", json!("four")),
        ("hidden_size", json!(1e30)),
        ("hidden_size", Value::Null),
        ("vocab_size", json!(0)),
        ("intermediate_size", json!(u64::MAX)),
        ("head_dim", json!(7)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1)),
        ("hidden_act", json!("gelu_of_the_future")),
        ("tie_word_embeddings", json!("yes")),
    ] {
        let error = read_json(&with(field, value.clone())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: {field} ")), "{field} {value}: {error}");
    }
}

#[test]
fn a_share_of_a_head_is_at_most_all_of_it() {
    for field in ["partial_rotary_factor", "rope_parameters"] {
        for share in [json!(1e5), json!(-1), json!(1.01)] {
            let mut config = with("model_type", json!("phi"));
            config[field] = match field {
                "rope_parameters" => json!({"partial_rotary_factor": share}),
                _ => share,
            };
            let error = read_json(&config).unwrap_err().to_string();
            assert_eq!(error, "config.json: partial_rotary_factor must be from 0 to 1", "{config}");
        }
    }
}

/// There is no group for the norm of an OLMo, which has no weights.
#[test]
fn a_tied_model_whose_norm_has_nothing_learned_ends_in_its_embedding() {
    let mut olmo = with("model_type", json!("olmo"));
    let last = |config: &Value| read_json(config).unwrap().steps().split_off(2);
    assert_eq!(last(&olmo), [Step { group: Group::Head, head: true }]);
    olmo["tie_word_embeddings"] = json!(true);
    assert_eq!(last(&olmo), [Step { group: Group::Embed, head: true }]);
}

#[test]
fn qwen_windows_only_where_they_are_switched_on() {
    let windows = |config: Value| {
        let config = config.as_object().unwrap().clone();
        qwen2::windows(&Fields::new(&config), 4)
    };
    let some = Some(8);
    assert_eq!(windows(json!({"sliding_window": 8})).unwrap(), [None; 4]);
    assert_eq!(windows(json!({"sliding_window": 8, "use_sliding_window": false})).unwrap(), [None; 4]);
    let on = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 3});
    assert_eq!(windows(on).unwrap(), [None, None, None, some]);
    let named = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 0, "layer_types":
        ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]});
    assert_eq!(windows(named).unwrap(), [None, some, None, some]);
    let short = windows(json!({"layer_types": ["full_attention"]})).unwrap_err();
    assert!(short.to_string().contains("layer_types"), "{short}");
}
