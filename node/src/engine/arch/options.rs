//! What configurations of most families say, each in its own words.

use crate::engine::{EngineError, fields::Fields, kernels::Activation};

/// What keeps a norm from dividing by zero.
pub(super) fn eps(fields: &Fields<'_>, name: &str, default: f64) -> Result<f64, EngineError> {
    match fields.real(name)?.unwrap_or(default) {
        eps if (0.0..1.0).contains(&eps) => Ok(eps),
        _ => Err(fields.invalid(name, "must be from 0 to 1")),
    }
}

/// The activation called `name`.
pub(super) fn activation(fields: &Fields<'_>, name: &str, default: &str) -> Result<Activation, EngineError> {
    let said = fields.text(name)?.unwrap_or(default);
    Activation::named(said).ok_or_else(|| fields.invalid(name, format!("is {said:?}, which is not known")))
}

/// Elements of one of `heads` heads, which `name` says how many there are of, in `hidden`.
pub(super) fn head_dim(
    fields: &Fields<'_>,
    name: &str,
    hidden: usize,
    heads: usize,
) -> Result<usize, EngineError> {
    match hidden.is_multiple_of(heads) && heads <= hidden {
        true => Ok(hidden / heads),
        false => Err(fields.invalid(name, format!("does not divide {hidden}"))),
    }
}

/// How many heads have keys and values, of `heads` that have queries: each of them is shared by as many.
pub(super) fn kv_heads(fields: &Fields<'_>, heads: usize) -> Result<usize, EngineError> {
    match fields.count_if("num_key_value_heads", 1..=1024)?.unwrap_or(heads) {
        kv_heads if heads.is_multiple_of(kv_heads) => Ok(kv_heads),
        _ => Err(fields.invalid("num_key_value_heads", format!("does not divide {heads} heads"))),
    }
}

/// A number above 0, or none where it is `null`.
pub(super) fn positive(
    fields: &Fields<'_>,
    name: &str,
    default: Option<f64>,
) -> Result<Option<f64>, EngineError> {
    match fields.real(name)? {
        None if fields.has(name) => Ok(None),
        None => Ok(default),
        Some(value) if 0.0 < value && value.is_finite() => Ok(Some(value)),
        Some(_) => Err(fields.invalid(name, "must be a number above 0")),
    }
}

/// How many tokens a window shows, or none where it is `null`.
pub(super) fn window(fields: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>, EngineError> {
    match fields.has("sliding_window") {
        true => fields.limit_if("sliding_window", 1..=1 << 24),
        false => Ok(default),
    }
}

/// Which of `blocks` blocks see a window: those that `layer_types` names, else those that `otherwise` says.
pub(super) fn sliding(
    fields: &Fields<'_>,
    blocks: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, EngineError> {
    let Some(types) = fields.list("layer_types")? else { return Ok((0..blocks).map(otherwise).collect()) };
    if types.len() != blocks {
        let reason = format!("names {} blocks; there are {blocks}", types.len());
        return Err(fields.invalid("layer_types", reason));
    }
    let one = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fields.invalid("layer_types", format!("has {kind}, which is not known"))),
    };
    types.iter().map(one).collect()
}

/// Refuses what would be computed in another way if `name` is set.
pub(super) fn unset(fields: &Fields<'_>, name: &str) -> Result<(), EngineError> {
    match fields.flag(name)?.unwrap_or(false) {
        true => Err(fields.invalid(name, "is set; that is not supported")),
        false => Ok(()),
    }
}
