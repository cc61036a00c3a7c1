//! The families that run whole: how candle builds each, and what their configurations mean where they do
//! not say.

use std::fmt;

use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma, helium, olmo, olmo2, phi, starcoder2};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use surf_chunker::{Families, families::Architecture};

use super::{CONFIG_FAULT, Causal};
use crate::engine::{EngineError, fields::Fields};

/// Positions of a model that does not say.
pub(super) const CONTEXT: usize = 2048;

/// Positions for which candle may compute its rotary tables beforehand.
pub(super) const CONTEXT_MAX: usize = 1 << 17;

/// See the module.
pub(super) struct Family {
    /// Which it is.
    architecture: Architecture,
    /// What its configuration means where it does not say.
    defaults: fn() -> Value,
    /// From its configuration and its weights.
    pub(super) build: fn(Value, VarBuilder<'_>) -> Result<Box<dyn Causal>>,
}

/// All of them.
pub(super) const FAMILIES: [Family; 6] = [
    Family {
        architecture: Architecture::Gemma,
        defaults: || json!({"head_dim": 256, "rms_norm_eps": 1e-6, "attention_bias": false}),
        build: |config, weights| {
            causal(gemma::Model::new(false, &read(config)?, weights)?, |model, tokens, seen| {
                model.forward(tokens, seen)
            })
        },
    },
    Family {
        architecture: Architecture::Helium,
        defaults: || json!({"attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false}),
        build: |config, weights| {
            causal(helium::Model::new(&read(config)?, weights)?, |model, tokens, seen| {
                model.forward(tokens, seen)
            })
        },
    },
    Family {
        architecture: Architecture::Olmo,
        defaults: || json!({"attention_bias": false, "tie_word_embeddings": false}),
        build: |config, weights| {
            causal(olmo::Model::new(&read(config)?, weights)?, |model, tokens, seen| {
                model.forward(tokens, seen)
            })
        },
    },
    Family {
        architecture: Architecture::Olmo2,
        defaults: || json!({"attention_bias": false, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}),
        build: |config, weights| {
            causal(olmo2::Model::new(&read(config)?, weights)?, |model, tokens, seen| {
                model.forward(tokens, seen)
            })
        },
    },
    Family {
        architecture: Architecture::Phi,
        defaults: || json!({"qk_layernorm": false, "tie_word_embeddings": false, "layer_norm_eps": 1e-5}),
        build: |config, weights| {
            // Its mask knows nothing of what was seen before.
            causal(phi::Model::new(&read(config)?, weights)?, |model, tokens, seen| match seen {
                0 => model.forward(tokens),
                _ => one_by_one(tokens, |token| model.forward(token)),
            })
        },
    },
    Family {
        architecture: Architecture::Starcoder2,
        defaults: || json!({"use_bias": true, "norm_epsilon": 1e-5, "tie_word_embeddings": true}),
        build: |config, weights| {
            causal(starcoder2::Model::new(&read(config)?, weights)?, |model, tokens, seen| {
                model.forward(tokens, seen)
            })
        },
    },
];

/// The family that `model_type` names.
pub(super) fn find(model_type: &str) -> Option<&'static Family> {
    let architecture = Families::default().architecture(model_type)?;
    FAMILIES.iter().find(|family| family.architecture == architecture)
}

impl Family {
    /// What its models say that they are.
    pub(super) fn model_type(&self) -> &'static str {
        Families::default().model_type(self.architecture).unwrap_or_default()
    }

    /// Whether the size of its heads is configured, and not the hidden size over their number.
    pub(super) fn takes_head_dim(&self) -> bool {
        matches!(self.architecture, Architecture::Gemma | Architecture::Helium)
    }

    /// The configuration in the words that candle knows, for `context` positions.
    pub(super) fn config(
        &self,
        fields: &Fields<'_>,
        config: &Map<String, Value>,
        context: usize,
    ) -> std::result::Result<Value, EngineError> {
        let mut known = (self.defaults)().as_object().cloned().unwrap_or_default();
        known
            .extend(config.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())));
        for name in ["rope_parameters", "rope_scaling"] {
            let Some(rotary) = fields.object(name)? else { continue };
            match rotary.text("rope_type")?.or(rotary.text("type")?).unwrap_or("default") {
                "default" => (),
                other => {
                    let reason = format!("is {other:?}, which is not supported for {:?}", self.model_type());
                    return Err(rotary.invalid("rope_type", reason));
                }
            }
            for (name, value) in [
                ("rope_theta", rotary.real("rope_theta")?),
                ("partial_rotary_factor", rotary.real("partial_rotary_factor")?),
            ] {
                known.extend(value.map(|value| (name.to_owned(), json!(value))));
            }
        }
        known.insert("max_position_embeddings".to_owned(), json!(context));
        known.entry("rope_theta").or_insert(json!(10_000.0));
        known.entry("partial_rotary_factor").or_insert(json!(0.5));
        if !known["partial_rotary_factor"].as_f64().is_some_and(|factor| 0.0 < factor && factor <= 1.0) {
            return Err(fields.invalid("partial_rotary_factor", "must be above 0 and at most 1"));
        }
        if !known.contains_key("num_key_value_heads") {
            known.extend(
                config
                    .get("num_attention_heads")
                    .map(|heads| ("num_key_value_heads".to_owned(), heads.clone())),
            );
        }
        if self.architecture == Architecture::Starcoder2 && known["tie_word_embeddings"] != json!(true) {
            return Err(fields.invalid("tie_word_embeddings", "must be true for \"starcoder2\""));
        }
        if self.architecture == Architecture::Gemma {
            // Those that name another were saved before the mistake was seen; the weights are made for this one.
            known.remove("hidden_act");
            known.entry("hidden_activation").or_insert(json!("gelu_pytorch_tanh"));
        }
        // Candle's windows are one token off; within a window they do not show.
        known.remove("sliding_window");
        Ok(Value::Object(known))
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Family").field(&self.model_type()).finish()
    }
}

fn read<C: DeserializeOwned>(config: Value) -> Result<C> {
    serde_json::from_value(config).map_err(|error| Error::Msg(format!("{CONFIG_FAULT}{error}")))
}

fn one_by_one(tokens: &Tensor, mut run: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let mut last = Err(Error::Msg("there are no tokens".to_owned()));
    for at in 0..tokens.dim(1)? {
        last = Ok(run(&tokens.narrow(1, at, 1)?)?);
    }
    last
}

/// A model of candle's, and how it is run.
struct Model<M> {
    model: M,
    run: fn(&mut M, &Tensor, usize) -> Result<Tensor>,
}

fn causal<M: Clone + Send + Sync + 'static>(
    model: M,
    run: fn(&mut M, &Tensor, usize) -> Result<Tensor>,
) -> Result<Box<dyn Causal>> {
    Ok(Box::new(Model { model, run }))
}

impl<M: Clone + Send + Sync + 'static> Causal for Model<M> {
    fn forward(&mut self, tokens: &Tensor, seen: usize) -> Result<Tensor> {
        (self.run)(&mut self.model, tokens, seen)
    }

    fn fresh(&self) -> Box<dyn Causal> {
        // Weights are shared between clones.
        Box::new(Self { model: self.model.clone(), run: self.run })
    }
}

impl<M> fmt::Debug for Model<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").finish_non_exhaustive()
    }
}
