//! Rotary position embeddings: each pair of a head's elements is turned by an angle that grows with
//! the position, fast for the first pairs and slowly for the last.
//!
//! The variants differ only in those speeds, so they are worked out once, from the configuration.
//! Element `i` is paired with element `i + size / 2`, as transformers does.

use std::f64::consts::PI;

use super::{EngineError, fields::Fields};

/// Angular speeds of a head's pairs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotary {
    speeds: Vec<f32>,
}

/// Cosines and sines for some positions.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Rotary {
    /// From `rope_parameters`, as transformers 5 writes it, else from `rope_theta` and
    /// `rope_scaling`, for heads of `head_dim`.
    pub(crate) fn read(fields: &Fields<'_>, head_dim: usize) -> Result<Self, EngineError> {
        let scaling = match fields.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => fields.object("rope_scaling")?,
        };
        let theta = match scaling.as_ref().map(|scaling| scaling.real("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => fields.real("rope_theta")?.unwrap_or(10_000.0),
        };
        if !(1.0..=1e12).contains(&theta) {
            return Err(EngineError::config("rope_theta", format!("is {theta}; it must be from 1 to 1e12")));
        }
        let share = match scaling.as_ref().map(|scaling| scaling.real("partial_rotary_factor")).transpose()? {
            Some(Some(share)) => share,
            _ => fields.real("partial_rotary_factor")?.unwrap_or(1.0),
        };
        if !(0.0..=1.0).contains(&share) {
            return Err(EngineError::config("partial_rotary_factor", "must be from 0 to 1"));
        }
        let pairs = (head_dim as f64 * share) as usize / 2;
        let speeds: Vec<f64> = (0..pairs).map(|i| theta.powf(-(i as f64) / pairs as f64)).collect();
        let speeds = match &scaling {
            Some(scaling) => scaled(scaling, speeds)?,
            None => speeds,
        };
        Ok(Self { speeds: speeds.into_iter().map(|speed| speed as f32).collect() })
    }

    /// Cosines and sines at `positions`.
    pub(crate) fn turns(&self, positions: &[u32]) -> Turns {
        let angles = positions.iter().flat_map(|&at| self.speeds.iter().map(move |speed| at as f32 * speed));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Turns { cos, sin, pairs: self.speeds.len() }
    }
}

impl Turns {
    /// Turns `x`, tokens by heads by `head_dim`, in place.
    pub(crate) fn apply(&self, x: &mut [f32], heads: usize, head_dim: usize) {
        if self.pairs == 0 {
            return;
        }
        let turns = self.cos.chunks_exact(self.pairs).zip(self.sin.chunks_exact(self.pairs));
        for (token, (cos, sin)) in x.chunks_exact_mut(heads * head_dim).zip(turns) {
            for head in token.chunks_exact_mut(head_dim) {
                let (first, rest) = head.split_at_mut(self.pairs);
                for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

fn scaled(scaling: &Fields<'_>, speeds: Vec<f64>) -> Result<Vec<f64>, EngineError> {
    let kind = match scaling.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.text("type")?,
    };
    let positive = |field: &str| match scaling.real(field)? {
        Some(value) if 0.0 < value && value.is_finite() => Ok(value),
        _ => Err(scaling.invalid(field, "must be a number above 0")),
    };
    match kind.unwrap_or("default") {
        "default" => Ok(speeds),
        "linear" => {
            let factor = positive("factor")?;
            Ok(speeds.into_iter().map(|speed| speed / factor).collect())
        }
        "llama3" => {
            let factor = positive("factor")?;
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            let context = positive("original_max_position_embeddings")?;
            if high <= low {
                return Err(scaling.invalid("high_freq_factor", "must be above low_freq_factor"));
            }
            Ok(speeds.into_iter().map(|speed| llama3(speed, factor, low, high, context)).collect())
        }
        other => {
            Err(scaling
                .invalid("rope_type", format!("is {other:?}; supported are default, linear and llama3")))
        }
    }
}

/// Pairs that turn many times within the original context keep their speed, those that do not even
/// turn once are slowed by `factor`, and between the two it goes over smoothly.
fn llama3(speed: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let turns = context * speed / (2.0 * PI);
    if turns < low {
        speed / factor
    } else if high < turns {
        speed
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * speed / factor + smooth * speed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rotary(config: &Value, head_dim: usize) -> Result<Rotary, EngineError> {
        Rotary::read(&Fields::new(config.as_object().unwrap()), head_dim)
    }

    fn assert_close(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() <= 1e-6 * expected, "{got} {expected}");
        }
    }

    #[test]
    fn default_speeds_fall_geometrically() {
        // 10000^(-2i/8)
        let expected = [1.0, 0.1, 0.01, 0.001];
        assert_close(&rotary(&json!({}), 8).unwrap().speeds, &expected);
        assert_close(
            &rotary(&json!({"rope_theta": 10000.0, "rope_scaling": null}), 8).unwrap().speeds,
            &expected,
        );
        let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 16.0}});
        assert_close(&rotary(&new, 8).unwrap().speeds, &[1.0, 0.5, 0.25, 0.125]);
    }

    #[test]
    fn linear_divides_every_speed() {
        let expected = [0.25, 0.025, 0.0025, 0.00025];
        for config in [
            json!({"rope_scaling": {"type": "linear", "factor": 4.0}}),
            json!({"rope_scaling": {"rope_type": "linear", "factor": 4}, "rope_theta": 10000}),
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ] {
            assert_close(&rotary(&config, 8).unwrap().speeds, &expected);
        }
    }

    /// `_compute_llama3_parameters` of transformers' `modeling_rope_utils.py`, written out in its own
    /// terms (wavelengths), for the parameters of Llama 3.1.
    #[test]
    fn llama3_is_the_published_formula() {
        let (factor, low, high, old_context) = (8.0, 1.0, 4.0, 8192.0);
        let config = json!({"rope_theta": 500000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": 8192}});
        let expected: Vec<f64> = (0..64)
            .map(|i| {
                let inv_freq = 1.0 / 500000.0f64.powf(2.0 * f64::from(i) / 128.0);
                let wavelen = 2.0 * PI / inv_freq;
                let (low_freq_wavelen, high_freq_wavelen) = (old_context / low, old_context / high);
                let slowed = if wavelen > low_freq_wavelen { inv_freq / factor } else { inv_freq };
                let smooth_factor = (old_context / wavelen - low) / (high - low);
                let smoothed = (1.0 - smooth_factor) * slowed / factor + smooth_factor * slowed;
                let is_medium = wavelen >= high_freq_wavelen && wavelen <= low_freq_wavelen;
                if is_medium { smoothed } else { slowed }
            })
            .collect();
        let got = rotary(&config, 128).unwrap().speeds;
        assert_close(&got, &expected);
        // All three ranges are there.
        assert_eq!(f64::from(got[0]), 1.0);
        assert!(got.iter().zip(0..).any(|(got, i)| {
            let ratio = f64::from(*got) * 500000.0f64.powf(f64::from(i) / 64.0);
            ratio < 0.99 && 0.13 < ratio
        }));
        assert!((f64::from(got[63]) * 500000.0f64.powf(63.0 / 64.0) - 0.125).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = rotary(&json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), 8).unwrap_err();
        assert!(error.to_string().contains("rope_scaling.rope_type is \"yarn\""), "{error}");
        let error = rotary(&json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), 8).unwrap_err();
        assert!(error.to_string().contains("rope_scaling.factor"), "{error}");
        assert!(rotary(&json!({"rope_theta": 0.0}), 8).is_err());
        assert!(rotary(&json!({"rope_theta": "many"}), 8).is_err());
    }

    #[test]
    fn pairs_are_turned_by_their_angle() {
        let rotary = rotary(&json!({"rope_theta": 100.0}), 4).unwrap();
        let mut x = [1.0, 0.0, 0.0, 2.0, 5.0, 6.0, 7.0, 8.0];
        rotary.turns(&[3, 0]).apply(&mut x, 1, 4);
        // Pair 0 is elements 0 and 2 at angle 3; pair 1 is elements 1 and 3 at angle 0.3.
        let expected = [3f64.cos(), -2.0 * 0.3f64.sin(), 3f64.sin(), 2.0 * 0.3f64.cos(), 5.0, 6.0, 7.0, 8.0];
        for (x, expected) in x.iter().zip(expected) {
            assert!((f64::from(*x) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn a_share_of_the_head_may_stay_as_it_is() {
        let rotary = rotary(&json!({"partial_rotary_factor": 0.5}), 8).unwrap();
        let mut x: Vec<f32> = (0..8).map(|x| x as f32).collect();
        rotary.turns(&[9]).apply(&mut x, 1, 8);
        assert_eq!(rotary.speeds.len(), 2);
        assert_eq!(x[4..], [4.0, 5.0, 6.0, 7.0]);
        assert_ne!(x[..4], [0.0, 1.0, 2.0, 3.0]);
    }
}
