//! By what the rotary of a GGUF file is stretched, which is said in metadata, and partly in tensors.

use serde_json::{Value, json};

use super::{super::FACTORS, About, Fault};

/// What cosines and sines are multiplied by.
const ATTENTION: &str = "rope.scaling.attn_factor";

impl About<'_> {
    /// By what the rotary is stretched, in the words of transformers.
    pub(super) fn scaling(&self, head_dim: u64) -> Result<Option<Value>, Fault> {
        let original = self.count("rope.scaling.original_context_length")?;
        let factor = self.real("rope.scaling.factor")?.or(self.real("rope.scale_linear")?);
        let factor = factor.filter(|factor| *factor != 1.0);
        let attention = self.real(ATTENTION)?.unwrap_or(1.0);
        if let Some([short, long]) = self.factors(head_dim)? {
            let original = original.or(self.count("context_length")?);
            return Ok(Some(json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
                "factor": factor.unwrap_or(1.0), "original_max_position_embeddings": original,
                "attention_factor": attention})));
        }
        let kind = self.find("rope.scaling.type").and_then(|kind| kind.as_str());
        if let (Some("yarn"), Some(factor)) = (kind, factor) {
            let mut scaling =
                json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original});
            for field in ["beta_fast", "beta_slow"] {
                if let Some(beta) = self.real(&format!("rope.scaling.yarn_{field}"))? {
                    scaling[field] = json!(beta);
                }
            }
            if attention != 1.0 {
                // What transformers calls so includes what every stretched rotary has.
                scaling["attention_factor"] = json!(attention * (1.0 + 0.1 * factor.max(1.0).ln()));
            }
            return Ok(Some(scaling));
        }
        if attention != 1.0 {
            return Err(
                self.wrong(ATTENTION, format!("is {attention}; that is known of yarn and longrope alone"))
            );
        }
        match (kind, factor) {
            (None | Some("linear"), Some(factor)) => {
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            (None | Some("none" | "linear" | "yarn" | "longrope"), _) => Ok(None),
            (Some(other), _) => {
                let known = "none, linear, yarn and longrope";
                Err(self.wrong("rope.scaling.type", format!("is {other:?}; supported are {known}")))
            }
        }
    }

    /// Factors of speeds for sequences within the original context, and for longer ones.
    fn factors(&self, head_dim: u64) -> Result<Option<[Vec<f32>; 2]>, Fault> {
        let read = |name: &str| -> Result<Option<Vec<f32>>, Fault> {
            let Some((_, bytes)) = self.tensors.iter().find(|(tensor, _)| tensor == name) else {
                return Ok(None);
            };
            let values: Vec<f32> =
                bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            if head_dim < values.len() as u64 {
                return Err(format!("tensor {name:?} has {} factors for a head of {head_dim}", values.len()));
            }
            match values.iter().find(|value| !value.is_finite()) {
                Some(value) => Err(format!("tensor {name:?} has {value}, which is no factor")),
                None => Ok(Some(values)),
            }
        };
        let [all, short, long] = FACTORS;
        Ok(match (read(all)?, read(short)?, read(long)?) {
            (_, Some(short), Some(long)) => Some([short, long]),
            (Some(all), ..) => Some([all.clone(), all]),
            _ => None,
        })
    }
}
