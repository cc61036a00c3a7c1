//! Is it right? Compares with what another implementation has computed from the same weights.

use candle_core::{DType, Device, Tensor};

use super::{Engine, EngineError, Event, Prompt, Request, sampling::argmax};

/// How far the engine is from what was recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Logits compared.
    pub compared: usize,
    /// Largest difference between a logit and its record.
    pub max_abs_err: f32,
    /// That, by the largest recorded logit.
    pub max_rel_err: f32,
    /// Share of positions at which the likeliest token is the recorded one.
    pub argmax_agree: f64,
    /// Share of generated tokens that are the recorded ones; 1 if none were recorded.
    pub greedy_agree: f64,
    /// Whether `max_rel_err` is within the tolerance.
    pub pass: bool,
}

/// What was recorded.
struct Expected {
    input_ids: Vec<Vec<u32>>,
    /// By sequences and positions.
    logits: Vec<f32>,
    greedy_ids: Vec<Vec<u32>>,
}

pub(super) async fn check(engine: &Engine, expected: &[u8], tolerance: f32) -> Result<Report, EngineError> {
    let expected = Expected::read(expected)?;
    let mut got = Vec::with_capacity(expected.logits.len());
    for sequence in &expected.input_ids {
        got.extend(engine.forward(vec![sequence.clone()]).await?.into_iter().flat_map(|one| one.values));
    }
    if got.len() != expected.logits.len() {
        return Err(wrong("logits", "do not have the shape of the model's"));
    }
    let mut same = 0;
    let mut all = 0;
    for (sequence, greedy) in expected.input_ids.iter().zip(&expected.greedy_ids) {
        let generated = greedily(engine, sequence, greedy.len()).await?;
        same += generated.iter().zip(greedy).filter(|(got, expected)| got == expected).count();
        all += greedy.len();
    }
    let vocab = engine.shape.vocab;
    Ok(compare(&got, &expected.logits, vocab, share(same, all), tolerance))
}

fn compare(got: &[f32], expected: &[f32], vocab: usize, greedy_agree: f64, tolerance: f32) -> Report {
    // Written so that a NaN is the worst error, not none.
    let worst = |max: f32, value: f32| if max.is_nan() || value <= max { max } else { value };
    let errors = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
    let max_abs_err = errors.fold(0.0, worst);
    let scale = expected.iter().map(|value| value.abs()).fold(f32::MIN_POSITIVE, worst);
    let rows = got.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
    let agreed = rows.filter(|(got, expected)| argmax(got).is_some() && argmax(got) == argmax(expected));
    let max_rel_err = max_abs_err / scale;
    Report {
        compared: got.len(),
        max_abs_err,
        max_rel_err,
        argmax_agree: share(agreed.count(), got.len() / vocab),
        greedy_agree,
        pass: max_rel_err <= tolerance,
    }
}

/// The likeliest `count` tokens after `prompt`, one by one.
async fn greedily(engine: &Engine, prompt: &[u32], count: usize) -> Result<Vec<u32>, EngineError> {
    let mut ids = Vec::with_capacity(count);
    if count == 0 {
        return Ok(ids);
    }
    let request = Request {
        max_tokens: Some(count),
        ignore_eos: true,
        ..Request::new(Prompt::Tokens(prompt.to_vec()))
    };
    let mut events = engine.generate(request)?;
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
        let tensor = |name: &str| tensors.get(name).ok_or_else(|| wrong(name, "is missing"));
        let logits = tensor("logits")?;
        let logits = logits.to_dtype(DType::F32).and_then(|logits| logits.flatten_all()?.to_vec1());
        let greedy_ids = match tensors.get("greedy_ids") {
            Some(recorded) => ids("greedy_ids", recorded)?,
            None => Vec::new(),
        };
        Ok(Self {
            input_ids: ids("input_ids", tensor("input_ids")?)?,
            logits: logits.map_err(|error| wrong("logits", error))?,
            greedy_ids,
        })
    }
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

fn share(some: usize, all: usize) -> f64 {
    if all == 0 { 1.0 } else { some as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_by_the_largest_logit() {
        let report = compare(&[1.0, 2.0, 3.0, -4.5], &[1.0, 2.0, 3.5, -5.0], 2, 1.0, 0.1);
        assert_eq!((report.compared, report.max_abs_err, report.max_rel_err), (4, 0.5, 0.1));
        assert_eq!((report.argmax_agree, report.pass), (1.0, true));
        let report = compare(&[2.0, 1.0, 3.0, 0.0], &[1.0, 2.0, 3.0, 0.0], 2, 1.0, 0.1);
        assert_eq!((report.argmax_agree, report.pass), (0.5, false));
    }

    #[test]
    fn what_is_not_a_number_does_not_pass() {
        assert!(!compare(&[f32::NAN, 1.0], &[1.0, 1.0], 2, 1.0, 0.1).pass);
        assert!(!compare(&[1.0, 1.0], &[f32::NAN, 1.0], 2, 1.0, 0.1).pass);
    }
}
