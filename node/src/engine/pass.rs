//! What one pass over the model is about: some tokens of some sequences.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use super::{
    EngineError,
    arch::Layer,
    cache::KvCache,
    rotary::{Rotary, Turns},
};
use crate::weights::Weights;

/// The tokens of all sequences, one below the other, and whose they are.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    /// Sequences, in the order of their rows.
    pub(crate) spans: Vec<Span<'a>>,
    /// Every token, by rows.
    pub(crate) tokens: Vec<u32>,
    /// Where each token stands in its sequence.
    pub(crate) positions: Vec<u32>,
    /// Where experts come from, of which only the tokens tell which they need.
    pub(crate) weights: &'a dyn Weights,
    /// The layer that comes next, if its weights are here already.
    pub(crate) next: Option<Arc<dyn Layer>>,
    /// Turned once, used by every block.
    turns: Vec<(Arc<Rotary>, Arc<Turns>)>,
}

/// One sequence's part in a pass.
#[derive(Debug)]
pub(crate) struct Span<'a> {
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Position of its first token in this pass.
    pub(crate) start: usize,
    /// What it has seen before.
    pub(crate) cache: &'a mut KvCache,
}

impl<'a> Pass<'a> {
    /// For each sequence its new tokens, at least one, and its cache.
    pub(crate) fn new(sequences: Vec<(&[u32], &'a mut KvCache)>, weights: &'a dyn Weights) -> Self {
        let (spans, tokens, positions, turns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut pass = Self { spans, tokens, positions, weights, next: None, turns };
        for (tokens, cache) in sequences {
            let (first, start) = (pass.tokens.len(), cache.len());
            pass.tokens.extend_from_slice(tokens);
            pass.positions.extend((start..start + tokens.len()).map(|at| at as u32));
            pass.spans.push(Span { rows: first..pass.tokens.len(), start, cache });
        }
        pass
    }

    /// What `rotary` does to the tokens of this pass.
    pub(crate) fn turns(&mut self, rotary: &Arc<Rotary>) -> Arc<Turns> {
        if let Some((_, turns)) = self.turns.iter().find(|(known, _)| Arc::ptr_eq(known, rotary)) {
            return Arc::clone(turns);
        }
        let runs = self.spans.iter().map(|span| {
            let end = span.start + span.rows.len();
            (span.start..end, end)
        });
        let turns = Arc::new(rotary.turns(runs));
        self.turns.push((Arc::clone(rotary), Arc::clone(&turns)));
        turns
    }

    /// Has the experts fetched that the next layer will probably choose, told from what this one has of the
    /// tokens after its attention.
    pub(crate) fn guess(&self, x: &Tensor) -> Result<(), EngineError> {
        if let Some(next) = &self.next {
            let likely = next.likely(x)?;
            if !likely.is_empty() {
                self.weights.guess(&likely);
            }
        }
        Ok(())
    }
}
