//! What one pass over the model is about: some tokens of some sequences.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use super::{
    EngineError,
    arch::Layer,
    cache::KvCache,
    distances::Distances,
    experts::KeptExperts,
    rotary::{Rotary, Turns},
    source::Source,
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
    /// The rows whose logits are wanted, in rising order.
    pub(crate) wanted: Vec<u32>,
    /// Where experts come from, of which only the tokens tell which they need.
    pub(crate) weights: &'a dyn Weights,
    /// What was made of those that stay.
    pub(crate) experts: Arc<KeptExperts>,
    /// The layer that comes next, if its weights are here already.
    pub(crate) next: Option<Arc<dyn Layer>>,
    /// Biases by distance, from the block that has them for those after it.
    pub(crate) distances: Option<Arc<Distances>>,
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
    /// What an encoder said of its prompt, if one did.
    pub(crate) source: Option<&'a mut Source>,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// At least one.
    pub(crate) tokens: &'a [u32],
    /// Where they stand; where they are not said to, after what the cache holds.
    pub(crate) positions: Option<&'a [u32]>,
    /// What it has seen before.
    pub(crate) cache: &'a mut KvCache,
    /// What an encoder said of its prompt, if one did.
    pub(crate) source: Option<&'a mut Source>,
}

impl<'a> Pass<'a> {
    /// The new tokens of these sequences.
    pub(crate) fn new(entries: impl IntoIterator<Item = Entry<'a>>, weights: &'a dyn Weights) -> Self {
        let (spans, tokens, positions, turns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (wanted, experts, next, distances) = (Vec::new(), Arc::default(), None, None);
        let mut pass = Self { spans, tokens, positions, wanted, weights, experts, next, distances, turns };
        for Entry { tokens, positions, cache, source } in entries {
            let (first, start) = (pass.tokens.len(), cache.len());
            pass.tokens.extend_from_slice(tokens);
            match positions {
                Some(positions) => pass.positions.extend_from_slice(positions),
                None => pass.positions.extend((start..start + tokens.len()).map(|at| at as u32)),
            }
            pass.spans.push(Span { rows: first..pass.tokens.len(), start, cache, source });
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
