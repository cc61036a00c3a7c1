//! How a model reads a text: what it holds likely at every place. Two readings of one text say how far apart
//! two models are.

use super::{Engine, EngineError, Row, arch::Kind, memory::PASS_TOKENS_MAX};

/// Likelihoods that a reading may hold. With a vocabulary of 150,000 tokens, those of 436 places.
const BYTES_MAX: usize = 256 << 20;

/// What one model makes of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    tokens: Vec<u32>,
    /// Of each place, the logarithm of how likely each token is to follow.
    logs: Vec<f32>,
}

impl Engine {
    /// Reads `text`, or as much of its beginning as goes into one pass. For models that continue a text.
    pub async fn read(&self, text: &str) -> Result<Reading, EngineError> {
        if self.shape.kind != Kind::Causal {
            let reason = "only a model that continues a text holds what follows likely or not";
            return Err(EngineError::Request(reason.to_owned()));
        }
        let mut tokens = self.text.encode(text.to_owned(), usize::MAX).await?;
        let bytes = usize::try_from(self.limits.bytes / 4).map_or(BYTES_MAX, |bytes| bytes.min(BYTES_MAX));
        let places = bytes / (size_of::<f32>() * self.shape.vocab.max(1));
        tokens.truncate(places.min(PASS_TOKENS_MAX).min(self.context()));
        if tokens.len() < 2 {
            return Err(EngineError::Request("the text is too short to be judged by".to_owned()));
        }
        let output = self.forward(vec![Row::from(tokens.clone())]).await?.remove(0);
        Reading::new(tokens, output.values, output.width)
    }
}

impl Reading {
    fn new(tokens: Vec<u32>, mut logits: Vec<f32>, width: usize) -> Result<Self, EngineError> {
        for place in logits.chunks_exact_mut(width) {
            let max = place.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = place.iter().map(|&logit| f64::from(logit - max).exp()).sum();
            let log = max + sum.ln() as f32;
            if !log.is_finite() {
                return Err(EngineError::NotFinite);
            }
            place.iter_mut().for_each(|logit| *logit -= log);
        }
        Ok(Self { tokens, logs: logits })
    }

    /// Tokens that were read.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// How many tokens the model was as good as undecided between, at each place: e to the mean of how
    /// unlikely it held what followed.
    pub fn perplexity(&self) -> f64 {
        let places = self.logs.chunks_exact(self.width());
        let logs: f64 =
            places.zip(&self.tokens[1..]).map(|(place, &next)| f64::from(place[next as usize])).sum();
        (-logs / (self.tokens.len() - 1) as f64).exp()
    }

    /// The mean Kullback-Leibler divergence of `other` from this, over the places: what is lost by taking its word
    /// for this one's, in nats. `None` if it is not a reading of the same tokens.
    pub fn divergence(&self, other: &Self) -> Option<f64> {
        if self.tokens != other.tokens || self.logs.len() != other.logs.len() {
            return None;
        }
        let lost = |(&mine, &others): (&f32, &f32)| match f64::from(mine).exp() {
            // What is not believed in at all costs nothing.
            0.0 => 0.0,
            likely => likely * (f64::from(mine) - f64::from(others)),
        };
        let all: f64 = self.logs.iter().zip(&other.logs).map(lost).sum();
        Some(all / self.tokens.len() as f64)
    }

    fn width(&self) -> usize {
        self.logs.len() / self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(logits: &[f32]) -> Reading {
        Reading::new(vec![1, 0, 1], logits.to_vec(), 2).unwrap()
    }

    #[test]
    fn numbers_are_those_of_the_formulas() {
        let ln = |x: f32| x.ln();
        // Three places with one to three, one to one, four to one; the last is not looked at.
        let first = reading(&[ln(1.0), ln(3.0), 7.0, 7.0, ln(4.0), ln(1.0)]);
        assert!((first.perplexity() - (4.0f64 * 2.0).sqrt()).abs() < 1e-6);
        assert!(first.divergence(&first).unwrap().abs() < 1e-9);
        let second = reading(&[0.0; 6]);
        assert!((second.perplexity() - 2.0).abs() < 1e-6);
        let of = |p: f64| p * (p * 2.0).ln();
        let expected = (of(0.25) + of(0.75) + of(0.8) + of(0.2)) / 3.0;
        assert!((first.divergence(&second).unwrap() - expected).abs() < 1e-6);
        // It is not the same the other way round.
        assert!((second.divergence(&first).unwrap() - expected).abs() > 1e-3);
        let other = Reading::new(vec![1, 1, 1], vec![0.0; 6], 2).unwrap();
        assert_eq!(first.divergence(&other), None);
    }

    #[test]
    fn what_is_impossible_costs_nothing_and_what_is_no_number_is_refused() {
        let sure = reading(&[0.0, f32::NEG_INFINITY, 0.0, 0.0, 0.0, 0.0]);
        assert!(sure.divergence(&reading(&[0.0; 6])).unwrap().is_finite());
        let refused = Reading::new(vec![1, 0], vec![f32::NAN, 0.0, 0.0, 0.0], 2);
        assert!(matches!(refused, Err(EngineError::NotFinite)));
    }
}
