//! From logits to a token. Pure: the dice are part of the state, and a seed gives the same tokens
//! on every machine.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::EngineError;

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token, 1 samples as the model says, more is more random.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities add up to this; `None` for all.
    pub top_p: Option<f32>,
    /// Same seed, same tokens. `None` throws the dice.
    pub seed: Option<u64>,
}

/// A token and how likely it was, as natural logarithms of probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Of the token itself.
    pub logprob: f32,
    /// The likeliest tokens at its place, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    dice: ChaCha8Rng,
}

impl Sampling {
    /// Fails for numbers that mean nothing.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let wrong = |what: &str| Err(EngineError::Request(what.to_owned()));
        if !(0.0..=100.0).contains(&self.temperature) {
            return wrong("temperature must be from 0 to 100");
        }
        if self.top_p.is_some_and(|top_p| !(0.0 < top_p && top_p <= 1.0)) {
            return wrong("top_p must be above 0 and at most 1");
        }
        Ok(())
    }
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self { sampling, dice: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next token. Of equally likely ones, greedy takes the first.
    pub(crate) fn next(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        let best = argmax(logits).ok_or(EngineError::NotFinite)?;
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let (top_k, top_p) = (self.sampling.top_k, self.sampling.top_p.unwrap_or(1.0));
        let max = logits[best as usize];
        let weight = |logit: f32| f64::from((logit - max) / self.sampling.temperature).exp();
        let mut candidates: Vec<(u32, f64)> =
            logits.iter().zip(0..).map(|(&logit, id)| (id, weight(logit))).collect();
        // Likeliest first; ties by id, so that the order is the same everywhere.
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if 0 < top_k && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            candidates.sort_unstable_by(order);
            let enough = candidates.iter().map(|(_, weight)| weight).sum::<f64>() * f64::from(top_p);
            let mut sum = 0.0;
            let needed = candidates.iter().position(|(_, weight)| {
                sum += weight;
                enough <= sum
            });
            candidates.truncate(needed.map_or(candidates.len(), |last| last + 1));
        } else {
            candidates.sort_unstable_by_key(|&(id, _)| id);
        }
        let sum: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut thrown = self.dice.random::<f64>() * sum;
        for &(id, weight) in &candidates {
            thrown -= weight;
            if thrown < 0.0 {
                return Ok(id);
            }
        }
        Ok(best)
    }
}

/// The position of the largest, the first of equals; `None` if any is not finite above.
pub(crate) fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = 0;
    for (at, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return None;
        }
        if logits[best] < logit {
            best = at;
        }
    }
    logits.get(best).filter(|best| best.is_finite())?;
    u32::try_from(best).ok()
}

/// How likely `id` was, and the `top` likeliest tokens. Temperature does not count.
pub(crate) fn logprob(logits: &[f32], id: u32, top: usize) -> Logprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let of = |logit: f32| (f64::from(logit - max) - sum.ln()) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    if 0 < top && top < ids.len() {
        ids.select_nth_unstable_by(top - 1, order);
    }
    ids.truncate(top);
    ids.sort_unstable_by(order);
    let top = ids.into_iter().map(|id| (id, of(logits[id as usize]))).collect();
    Logprob { logprob: logits.get(id as usize).map_or(f32::NEG_INFINITY, |&logit| of(logit)), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..times).map(|_| sampler.next(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draw(Sampling::default(), &[0.0, 3.0, -1.0, 3.0], 3), [1, 1, 1]);
    }

    #[test]
    fn shares_are_those_of_the_softmax() {
        let logits = [1.0f32.ln(), 2.0f32.ln(), 5.0f32.ln(), f32::NEG_INFINITY];
        let sampling = Sampling { temperature: 1.0, seed: Some(1), ..Sampling::default() };
        let drawn = draw(sampling, &logits, 8000);
        for (id, share) in [(0, 0.125), (1, 0.25), (2, 0.625), (3, 0.0)] {
            let got = drawn.iter().filter(|&&drawn| drawn == id).count() as f64 / 8000.0;
            assert!((got - share).abs() < 0.02, "{id}: {got}");
        }
        // At half the temperature shares are squared: 1, 4, 25 of 30.
        let cold = draw(Sampling { temperature: 0.5, ..sampling }, &logits, 8000);
        let got = cold.iter().filter(|&&drawn| drawn == 2).count() as f64 / 8000.0;
        assert!((got - 25.0 / 30.0).abs() < 0.02, "{got}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [1.0f32.ln(), 2.0f32.ln(), 5.0f32.ln(), 2.0f32.ln()];
        let sampling = Sampling { temperature: 1.0, seed: Some(2), ..Sampling::default() };
        let set = |sampling| {
            let mut drawn = draw(sampling, &logits, 500);
            drawn.sort_unstable();
            drawn.dedup();
            drawn
        };
        assert_eq!(set(sampling), [0, 1, 2, 3]);
        assert_eq!(set(Sampling { top_k: 1, ..sampling }), [2]);
        assert_eq!(set(Sampling { top_k: 2, ..sampling }), [1, 2]);
        assert_eq!(set(Sampling { top_k: 9, ..sampling }), [0, 1, 2, 3]);
        assert_eq!(set(Sampling { top_p: Some(0.5), ..sampling }), [2]);
        assert_eq!(set(Sampling { top_p: Some(0.6), ..sampling }), [1, 2]);
        assert_eq!(set(Sampling { top_p: Some(0.8), ..sampling }), [1, 2, 3]);
        assert_eq!(set(Sampling { top_p: Some(1e-9), ..sampling }), [2]);
        assert_eq!(set(Sampling { top_k: 3, top_p: Some(0.7), ..sampling }), [1, 2]);
    }

    #[test]
    fn a_seed_is_a_sequence() {
        let logits = [0.0; 1000];
        let seeded = |seed| Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::default() };
        assert_eq!(draw(seeded(7), &logits, 20), draw(seeded(7), &logits, 20));
        assert_ne!(draw(seeded(7), &logits, 20), draw(seeded(8), &logits, 20));
        let unseeded = Sampling { seed: None, ..seeded(0) };
        assert_ne!(draw(unseeded, &logits, 20), draw(unseeded, &logits, 20));
    }

    #[test]
    fn what_is_not_a_number_is_an_error() {
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]] {
            assert!(Sampler::new(Sampling::default()).next(logits).is_err(), "{logits:?}");
        }
        for sampling in [
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { top_p: Some(0.0), ..Sampling::default() },
            Sampling { top_p: Some(f32::NAN), ..Sampling::default() },
        ] {
            assert!(sampling.check().is_err(), "{sampling:?}");
        }
        assert!(Sampling { temperature: 1.0, top_p: Some(1.0), ..Sampling::default() }.check().is_ok());
    }

    #[test]
    fn logprobs_are_natural_logarithms() {
        let logits = [1.0f32.ln(), 2.0f32.ln(), 5.0f32.ln()];
        let got = logprob(&logits, 0, 2);
        assert!((got.logprob - 0.125f32.ln()).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
        assert!((got.top[0].1 - 0.625f32.ln()).abs() < 1e-6);
        assert!(logprob(&logits, 1, 0).top.is_empty());
        assert_eq!(logprob(&logits, 1, 9).top.len(), 3);
    }
}
