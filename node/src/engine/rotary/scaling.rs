//! From a configuration to speeds: what transformers calls `rope_type`, in its own formulas
//! (`modeling_rope_utils.py`).

use std::f64::consts::PI;

use super::{EngineError, Fields, Speeds, Spelling, narrow};

/// What a configuration says, found where it says it.
pub(super) struct Settings<'a> {
    /// `rope_parameters` or `rope_scaling`.
    scaling: Option<Fields<'a>>,
    kind: &'a str,
    theta: f64,
    /// Elements of a head that are turned.
    size: usize,
    /// `max_position_embeddings`.
    context: Option<f64>,
    /// `original_max_position_embeddings`, where it stands beside it.
    original: Option<f64>,
}

/// What comes of it.
pub(super) struct Scaled {
    pub(super) speeds: Speeds,
    /// On cosines and sines.
    pub(super) scale: f64,
    /// Tokens up to which the scaling is to go, where it says so itself.
    pub(super) reach: Option<f64>,
}

impl<'a> Settings<'a> {
    pub(super) fn read(
        fields: &Fields<'a>,
        head_dim: usize,
        spelling: &Spelling<'_>,
    ) -> Result<Self, EngineError> {
        let parameters = fields.object("rope_parameters")?;
        let parameters = match (&parameters, spelling.layer_type) {
            (Some(parameters), Some(layer_type)) => parameters.object(layer_type)?,
            _ => parameters,
        };
        let scaling = match spelling.scaled {
            true => fields.object("rope_scaling")?.filter(|scaling| !scaling.is_empty()),
            false => None,
        };
        let found: Vec<&Fields<'a>> = scaling.iter().chain(&parameters).collect();
        let first = |inner: &str, (outer, default): (&str, f64)| -> Result<f64, EngineError> {
            for fields in &found {
                if let Some(value) = fields.real(inner)? {
                    return Ok(value);
                }
            }
            Ok(fields.real(outer)?.unwrap_or(default))
        };
        let theta = first("rope_theta", spelling.theta)?;
        if !(1.0..=1e12).contains(&theta) {
            let reason = format!("is {theta}; it must be from 1 to 1e12");
            return Err(fields.invalid(spelling.theta.0, reason));
        }
        let share = first("partial_rotary_factor", spelling.share)?;
        if !(0.0..=1.0).contains(&share) {
            return Err(fields.invalid(spelling.share.0, "must be from 0 to 1"));
        }
        let size = (head_dim as f64 * share) as usize;
        if head_dim < size.next_multiple_of(2) {
            let name = if fields.has("head_dim") { "head_dim" } else { "num_attention_heads" };
            return Err(
                fields.invalid(name, format!("makes heads of {head_dim}; all of it is turned, by pairs"))
            );
        }
        let count = |name: &str| Ok::<_, EngineError>(fields.limit_if(name, 1..=1 << 24)?.map(|n| n as f64));
        let original = count("original_max_position_embeddings")?.or(spelling.original);
        let context = count("max_position_embeddings")?;
        let scaling = scaling.or(parameters);
        let kind = match &scaling {
            Some(scaling) => scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default"),
            None => "default",
        };
        let kind = if spelling.longrope.contains(&kind) { "longrope" } else { kind };
        Ok(Self { scaling, kind, theta, size, context, original })
    }

    /// What is to be done with the pairs of a head.
    pub(super) fn scaled(&self) -> Result<Scaled, EngineError> {
        let speeds = geometric(self.theta, self.size);
        let Some(scaling) = self.scaling.as_ref().filter(|_| self.kind != "default") else {
            return Ok(always(speeds.into_iter()));
        };
        match self.kind {
            "linear" => {
                let factor = positive(scaling, "factor")?;
                Ok(always(speeds.iter().map(|speed| speed / factor)))
            }
            "llama3" => self.llama3(scaling, &speeds),
            "dynamic" => self.dynamic(scaling),
            "yarn" => self.yarn(scaling, &speeds),
            "longrope" => self.longrope(scaling, &speeds),
            other => {
                let known = "default, linear, dynamic, llama3, yarn and longrope";
                Err(scaling.invalid("rope_type", format!("is {other:?}; supported are {known}")))
            }
        }
    }

    /// Pairs that turn many times within the original context keep their speed, those that do not
    /// even turn once are slowed by `factor`, and between the two it goes over smoothly.
    fn llama3(&self, scaling: &Fields<'_>, speeds: &[f64]) -> Result<Scaled, EngineError> {
        let factor = positive(scaling, "factor")?;
        let (low, high) = (positive(scaling, "low_freq_factor")?, positive(scaling, "high_freq_factor")?);
        let context = self.original(scaling)?;
        if high <= low {
            return Err(scaling.invalid("high_freq_factor", "must be above low_freq_factor"));
        }
        let one = |&speed: &f64| {
            let turns = context * speed / (2.0 * PI);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * speed / factor + kept * speed
        };
        Ok(always(speeds.iter().map(one)))
    }

    /// Sequences beyond the context turn more slowly, the longer they are.
    fn dynamic(&self, scaling: &Fields<'_>) -> Result<Scaled, EngineError> {
        let factor = at_least_one(scaling, "factor")?;
        let context =
            self.context.ok_or_else(|| EngineError::config("max_position_embeddings", "is missing"))?;
        if self.size <= 2 {
            return Err(scaling.invalid("rope_type", "is dynamic, which needs more than one pair"));
        }
        let speeds = Speeds::Falling { theta: self.theta, size: self.size, factor, context };
        Ok(Scaled { speeds, scale: 1.0, reach: Some(factor * context) })
    }

    /// Between two pairs, told by how often they turn within the original context, speeds go over
    /// from what they were to those slowed by `factor`.
    fn yarn(&self, scaling: &Fields<'_>, speeds: &[f64]) -> Result<Scaled, EngineError> {
        let original = self.original(scaling)?;
        let factor = self.factor(scaling, original)?;
        let or = |name: &str, default: f64| -> Result<f64, EngineError> {
            match scaling.real(name)?.filter(|value| *value != 0.0) {
                Some(value) if 0.0 < value && value.is_finite() => Ok(value),
                Some(_) => Err(scaling.invalid(name, "must be a number above 0")),
                None => Ok(default),
            }
        };
        let size = self.size as f64;
        let turning = |times: f64| {
            // A base of one turns all pairs alike; there is no pair to go by.
            size * (original / (times * 2.0 * PI)).ln() / (2.0 * self.theta.ln()).max(f64::MIN_POSITIVE)
        };
        let (mut first, mut last) = (turning(or("beta_fast", 32.0)?), turning(or("beta_slow", 1.0)?));
        if scaling.flag("truncate")?.unwrap_or(true) {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, mut last) = (first.max(0.0), last.min(size - 1.0));
        if first == last {
            last += 0.001;
        }
        let one = |(at, speed): (usize, &f64)| {
            let slowed = ((at as f64 - first) / (last - first)).clamp(0.0, 1.0);
            speed / factor * slowed + speed * (1.0 - slowed)
        };
        let scale = match self.attention_factor(scaling)? {
            Some(scale) => scale,
            None => match (scaling.real("mscale")?, scaling.real("mscale_all_dim")?) {
                (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                    yarn_scale(factor, mscale) / yarn_scale(factor, all)
                }
                _ => yarn_scale(factor, 1.0),
            },
        };
        Ok(Scaled { scale, reach: Some(factor * original), ..always(speeds.iter().enumerate().map(one)) })
    }

    /// Each pair is slowed by a factor of its own, of which there is one list for sequences within
    /// the original context and one for longer ones.
    fn longrope(&self, scaling: &Fields<'_>, speeds: &[f64]) -> Result<Scaled, EngineError> {
        let original = self.original(scaling)?;
        let factor = self.factor(scaling, original)?;
        let slowed = |name: &str| -> Result<Vec<f32>, EngineError> {
            let list = scaling.list(name)?.ok_or_else(|| scaling.invalid(name, "is missing"))?;
            if list.len() != speeds.len() {
                let reason = format!("has {} factors for {} pairs", list.len(), speeds.len());
                return Err(scaling.invalid(name, reason));
            }
            let one = |(factor, speed): (&serde_json::Value, &f64)| {
                let factor = factor.as_f64().filter(|factor| 0.0 < *factor && factor.is_finite());
                let factor = factor.ok_or_else(|| scaling.invalid(name, "must hold numbers above 0"))?;
                Ok((speed / factor) as f32)
            };
            list.iter().zip(speeds).map(one).collect()
        };
        let scale = match self.attention_factor(scaling)? {
            Some(scale) => scale,
            None if factor <= 1.0 => 1.0,
            None if original <= 1.0 => return Err(scaling.invalid("attention_factor", "is missing")),
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let speeds = Speeds::Beyond(slowed("short_factor")?, original as usize, slowed("long_factor")?);
        Ok(Scaled { speeds, scale, reach: None })
    }

    /// Tokens that the model was first made for.
    fn original(&self, scaling: &Fields<'_>) -> Result<f64, EngineError> {
        let name = "original_max_position_embeddings";
        let inner = scaling.count_if(name, 1..=1 << 24)?.map(|count| count as f64);
        self.original.or(inner).or(self.context).ok_or_else(|| scaling.invalid(name, "is missing"))
    }

    /// `factor`, else how much longer the context is than the original one.
    fn factor(&self, scaling: &Fields<'_>, original: f64) -> Result<f64, EngineError> {
        match (scaling.real("factor")?, self.context) {
            (None, Some(context)) => Ok(context / original),
            _ => positive(scaling, "factor"),
        }
    }

    fn attention_factor(&self, scaling: &Fields<'_>) -> Result<Option<f64>, EngineError> {
        match scaling.real("attention_factor")? {
            Some(factor) if !(0.0..=1e6).contains(&factor) => {
                Err(scaling.invalid("attention_factor", "must be from 0 to 1e6"))
            }
            factor => Ok(factor),
        }
    }
}

/// `theta^(-2i/size)` for each pair of `size` elements. Of an odd size, the last pair has an element more.
pub(super) fn geometric(theta: f64, size: usize) -> Vec<f64> {
    (0..size.div_ceil(2)).map(|i| theta.powf(-2.0 * i as f64 / size as f64)).collect()
}

/// By how much attention is sharpened in a context that is `factor` times as long.
fn yarn_scale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// The same speeds for every sequence.
fn always(speeds: impl Iterator<Item = f64>) -> Scaled {
    Scaled { speeds: Speeds::Always(narrow(speeds.collect())), scale: 1.0, reach: None }
}

fn positive(scaling: &Fields<'_>, field: &str) -> Result<f64, EngineError> {
    match scaling.real(field)? {
        Some(value) if 0.0 < value && value.is_finite() => Ok(value),
        _ => Err(scaling.invalid(field, "must be a number above 0")),
    }
}

fn at_least_one(scaling: &Fields<'_>, field: &str) -> Result<f64, EngineError> {
    match scaling.real(field)? {
        Some(value) if 1.0 <= value && value.is_finite() => Ok(value),
        _ => Err(scaling.invalid(field, "must be a number from 1 on")),
    }
}
