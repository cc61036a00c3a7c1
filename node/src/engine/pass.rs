//! What one pass over the model is about: some tokens of some sequences.

use std::{ops::Range, sync::Arc};

use super::{
    cache::KvCache,
    rotary::{Rotary, Turns},
};

/// The tokens of all sequences, one below the other, and whose they are.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    /// Sequences, in the order of their rows.
    pub(crate) spans: Vec<Span<'a>>,
    /// Every token, by rows.
    pub(crate) tokens: Vec<u32>,
    /// Where each token stands in its sequence.
    pub(crate) positions: Vec<u32>,
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
    pub(crate) fn new(sequences: Vec<(&[u32], &'a mut KvCache)>) -> Self {
        let mut pass =
            Self { spans: Vec::new(), tokens: Vec::new(), positions: Vec::new(), turns: Vec::new() };
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
        let turns = Arc::new(rotary.turns(&self.positions));
        self.turns.push((Arc::clone(rotary), Arc::clone(&turns)));
        turns
    }
}
