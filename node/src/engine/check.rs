//! Is it right? Compares with what another implementation has computed from the same weights.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::{
    Engine, EngineError, Event, Prompt, Request, Row, What,
    arch::Kind,
    sampling::argmax,
    sentence::{self, Pooling},
};

/// How far the engine is from what was recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Numbers compared.
    pub compared: usize,
    /// Largest difference between a number and its record.
    pub max_abs_err: f32,
    /// That, by the largest number recorded of its kind.
    pub max_rel_err: f32,
    /// Share of positions at which the likeliest token is the recorded one; `None` if no logits were
    /// recorded.
    pub argmax_agree: Option<f64>,
    /// Share of generated tokens that are the recorded ones; `None` if none were recorded.
    pub greedy_agree: Option<f64>,
    /// Whether `max_rel_err` is within the tolerance.
    pub pass: bool,
}

/// What was recorded.
struct Expected {
    rows: Vec<Row>,
    what: What,
    /// By rows and positions.
    values: Vec<f32>,
    greedy_ids: Vec<Vec<u32>>,
    /// A vector of each row: the mean of its tokens, of length one.
    mean_pooled: Option<Vec<f32>>,
}

/// Numbers of one kind, those computed beside those recorded.
#[derive(Default)]
struct Pairs {
    got: Vec<f32>,
    expected: Vec<f32>,
}

pub(super) async fn check(engine: &Engine, expected: &[u8], tolerance: f32) -> Result<Report, EngineError> {
    // Each number is there as it came, as a tensor, and beside what is computed.
    let (needed, allowed) = ((3 * expected.len()) as u64, engine.limits.bytes);
    if allowed < needed {
        return Err(EngineError::no_memory("what was recorded", needed, allowed));
    }
    let expected = Expected::read(expected)?;
    if matches!(engine.shape.kind, Kind::Encoder { .. }) != (expected.what == What::HiddenState) {
        let name = expected.what.name();
        return Err(EngineError::Request(format!(
            "the record is of {name}, which this model does not compute"
        )));
    }
    let (mut pairs, mut pooled, mut width) = (Pairs::default(), Pairs::default(), 0);
    let mut recorded = expected.values.as_slice();
    for row in &expected.rows {
        let output = engine.forward(vec![row.clone()]).await?.remove(0);
        width = output.width;
        let (mine, rest) = recorded
            .split_at_checked(output.values.len())
            .ok_or_else(|| wrong(expected.what.name(), "do not have the shape of the model's"))?;
        recorded = rest;
        // What is computed of padding is nobody's business, but in a decoder there is none.
        let mask = row.mask.as_ref().filter(|_| row.decoder.is_none());
        let counts = |at: usize| mask.is_none_or(|mask| mask[at]);
        let positions = output.values.chunks_exact(width).zip(mine.chunks_exact(width)).enumerate();
        let first = pairs.got.len();
        for (_, (got, expected)) in positions.filter(|(at, _)| counts(*at)) {
            pairs.got.extend(got);
            pairs.expected.extend(expected);
        }
        if expected.mean_pooled.is_some() {
            let mut mean = Pooling::Mean.of(&pairs.got[first..], width);
            sentence::normalize(&mut mean);
            pooled.got.extend(mean);
        }
    }
    pooled.expected = expected.mean_pooled.unwrap_or_default();
    if !recorded.is_empty() || pooled.got.len() != pooled.expected.len() {
        return Err(wrong(expected.what.name(), "do not have the shape of the model's"));
    }
    let mut same = Vec::new();
    for (row, greedy) in expected.rows.iter().zip(&expected.greedy_ids) {
        let generated = greedily(engine, row, greedy.len()).await?;
        same.extend((0..greedy.len()).map(|at| generated.get(at) == greedy.get(at)));
    }
    let greedy_agree = share(same.iter().filter(|same| **same).count(), same.len());
    let argmax_agree = match expected.what {
        What::Logits => pairs.argmax_agree(width),
        What::HiddenState => None,
    };
    Ok(report(&[pairs, pooled], argmax_agree, greedy_agree, tolerance))
}

fn report(pairs: &[Pairs], argmax_agree: Option<f64>, greedy_agree: Option<f64>, tolerance: f32) -> Report {
    let errors: Vec<(f32, f32)> = pairs.iter().map(Pairs::errors).collect();
    let max_rel_err = errors.iter().map(|error| error.1).fold(0.0, worst);
    Report {
        compared: pairs.iter().map(|pairs| pairs.got.len()).sum(),
        max_abs_err: errors.iter().map(|error| error.0).fold(0.0, worst),
        max_rel_err,
        argmax_agree,
        greedy_agree,
        pass: max_rel_err <= tolerance,
    }
}

impl Pairs {
    /// The largest difference, and that by the largest number recorded.
    fn errors(&self) -> (f32, f32) {
        let errors = self.got.iter().zip(&self.expected).map(|(got, expected)| (got - expected).abs());
        let absolute = errors.fold(0.0, worst);
        let scale = self.expected.iter().map(|value| value.abs()).fold(f32::MIN_POSITIVE, worst);
        (absolute, absolute / scale)
    }

    /// Share of positions, each of `width` logits, whose likeliest token is the recorded one.
    fn argmax_agree(&self, width: usize) -> Option<f64> {
        let width = width.max(1);
        let positions = self.got.chunks_exact(width).zip(self.expected.chunks_exact(width));
        let agreed =
            positions.filter(|(got, expected)| argmax(got).is_some() && argmax(got) == argmax(expected));
        share(agreed.count(), self.got.len() / width)
    }
}

/// The larger; a NaN is the worst error, not none.
fn worst(max: f32, value: f32) -> f32 {
    if max.is_nan() || value <= max { max } else { value }
}

/// The likeliest `count` tokens after those of `row` that count, one by one.
async fn greedily(engine: &Engine, row: &Row, count: usize) -> Result<Vec<u32>, EngineError> {
    let mut ids = Vec::with_capacity(count);
    if count == 0 {
        return Ok(ids);
    }
    let counts = |at: usize| row.mask.as_ref().is_none_or(|mask| mask[at]);
    let prompt = (0..row.tokens.len()).filter(|&at| counts(at)).map(|at| row.tokens[at]).collect();
    let request =
        Request { max_tokens: Some(count), ignore_eos: true, ..Request::new(Prompt::Tokens(prompt)) };
    let mut events = engine.generate(request).await?;
    while let Some(event) = events.recv().await {
        match event {
            Event::Token(token) => ids.push(token.id),
            Event::Prompt(_) => (),
            Event::Done(_) => return Ok(ids),
            Event::Failed(error) => return Err(error),
        }
    }
    Err(EngineError::Stopped)
}

impl Expected {
    fn read(bytes: &[u8]) -> Result<Self, EngineError> {
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu);
        let tensors = tensors.map_err(|error| wrong("expected", error))?;
        let (what, values) = match (tensors.get("logits"), tensors.get("last_hidden_state")) {
            (Some(logits), _) => (What::Logits, numbers("logits", logits)?),
            (None, Some(hidden)) => (What::HiddenState, numbers("last_hidden_state", hidden)?),
            (None, None) => return Err(wrong("logits", "are missing")),
        };
        let rows_of = |name: &str| tensors.get(name).map(|tensor| ids(name, tensor)).transpose();
        let mean_pooled = tensors.get("mean_pooled").map(|pooled| numbers("mean_pooled", pooled));
        Ok(Self {
            rows: rows(&tensors)?,
            what,
            values,
            greedy_ids: rows_of("greedy_ids")?.unwrap_or_default(),
            mean_pooled: mean_pooled.transpose()?,
        })
    }
}

fn rows(tensors: &HashMap<String, Tensor>) -> Result<Vec<Row>, EngineError> {
    let of = |name: &str| tensors.get(name).map(|tensor| ids(name, tensor)).transpose();
    let tokens = of("input_ids")?.ok_or_else(|| wrong("input_ids", "are missing"))?;
    let (masks, decoders) = (of("attention_mask")?, of("decoder_input_ids")?);
    for (name, rows) in [("attention_mask", &masks), ("decoder_input_ids", &decoders)] {
        if rows.as_ref().is_some_and(|rows| rows.len() != tokens.len()) {
            return Err(wrong(name, "have not as many rows as input_ids"));
        }
    }
    let row = |(at, tokens): (usize, Vec<u32>)| {
        let mask = masks.as_ref().map(|masks| masks[at].iter().map(|&counts| counts != 0).collect());
        Row { tokens, mask, decoder: decoders.as_ref().map(|decoders| decoders[at].clone()) }
    };
    Ok(tokens.into_iter().enumerate().map(row).collect())
}

fn numbers(name: &str, tensor: &Tensor) -> Result<Vec<f32>, EngineError> {
    let numbers = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1());
    numbers.map_err(|error| wrong(name, error))
}

fn ids(name: &str, tensor: &Tensor) -> Result<Vec<Vec<u32>>, EngineError> {
    let rows = tensor.to_dtype(DType::I64).and_then(|ids| ids.to_vec2::<i64>());
    let rows = rows.map_err(|error| wrong(name, error))?;
    let row = |row: Vec<i64>| row.into_iter().map(|id| u32::try_from(id).ok()).collect::<Option<_>>();
    let rows: Option<_> = rows.into_iter().map(row).collect();
    rows.ok_or_else(|| wrong(name, "has numbers that are no tokens"))
}

fn wrong(name: &str, reason: impl ToString) -> EngineError {
    EngineError::Request(format!("the record's {name}: {}", reason.to_string()))
}

fn share(some: usize, all: usize) -> Option<f64> {
    (0 < all).then(|| some as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(got: &[f32], expected: &[f32]) -> Report {
        let pairs = Pairs { got: got.to_vec(), expected: expected.to_vec() };
        let agree = pairs.argmax_agree(2);
        report(&[pairs, Pairs::default()], agree, None, 0.1)
    }

    #[test]
    fn errors_are_by_the_largest_number() {
        let report = compare(&[1.0, 2.0, 3.0, -4.5], &[1.0, 2.0, 3.5, -5.0]);
        assert_eq!((report.compared, report.max_abs_err, report.max_rel_err), (4, 0.5, 0.1));
        assert_eq!((report.argmax_agree, report.pass), (Some(1.0), true));
        let report = compare(&[2.0, 1.0, 3.0, 0.0], &[1.0, 2.0, 3.0, 0.0]);
        assert_eq!((report.argmax_agree, report.greedy_agree, report.pass), (Some(0.5), None, false));
    }

    #[test]
    fn what_is_not_a_number_does_not_pass() {
        assert!(!compare(&[f32::NAN, 1.0], &[1.0, 1.0]).pass);
        assert!(!compare(&[1.0, 1.0], &[f32::NAN, 1.0]).pass);
    }
}
