//! Attention with grouped queries, for several sequences in one pass.
//!
//! Projections see the tokens of all sequences as one batch; scores are each sequence's own, against
//! its own cache. A window, where there is one, is how many tokens back a token sees, itself
//! included.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;
use surf_kernels::team;

use super::{
    EngineError,
    cache::HeadCache,
    host,
    kernels::{Block, View, product, soft_cap, softmax},
    linear::Linear,
    norm::Norm,
    pass::Pass,
    rotary::Rotary,
};

/// Scores held at once by one thread. With long contexts fewer queries are taken together.
pub(super) const SCORES_MAX: usize = 1 << 18;

/// Queries taken together at most: more would compute more scores of the future, only to mask them.
pub(super) const QUERIES_MAX: usize = 64;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    /// Between which numbers queries, keys and values are held, where they are.
    pub(crate) clip: Option<f32>,
    /// Norms over queries and keys, each head by itself or all together.
    pub(crate) norms: Option<(Norm, Norm)>,
    /// None where positions are in the embedding.
    pub(crate) rotary: Option<Arc<Rotary>>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    /// On scores.
    pub(crate) scale: f32,
    /// Between which scores are pressed, where they are.
    pub(crate) soft_cap: Option<f32>,
    /// Which block's part of the cache is its own.
    pub(crate) block: usize,
}

impl Attention {
    /// From `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let (tokens, _) = x.dims2()?;
        let (mut query, mut key) = (self.query.forward(x)?, self.key.forward(x)?);
        let mut value = self.value.forward(x)?;
        if let Some(clip) = self.clip {
            for x in [&mut query, &mut key, &mut value] {
                *x = x.clamp(-clip, clip)?;
            }
        }
        if let Some((query_norm, key_norm)) = &self.norms {
            (query, key) = (query_norm.forward(&query)?, key_norm.forward(&key)?);
        }
        let (mut query, mut key) = (host::copy(&query)?, host::copy(&key)?);
        if let Some(rotary) = &self.rotary {
            let turns = pass.turns(rotary);
            turns.apply(&mut query, self.heads, self.head_dim);
            turns.apply(&mut key, self.kv_heads, self.head_dim);
        }
        let attended = host::read(&value, |value| self.attend(&query, &key, value, pass))?;
        self.output.forward(&host::tensor(attended, tokens, self.heads * self.head_dim)?)
    }

    /// All sequences, all heads. Everything is by tokens, then by heads.
    fn attend(&self, query: &[f32], key: &[f32], value: &[f32], pass: &mut Pass<'_>) -> Vec<f32> {
        let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut out = vec![0.0; query.len()];
        let mut rest = out.as_mut_slice();
        let mut tasks = Vec::new();
        for span in &mut pass.spans {
            let (mine, after) = rest.split_at_mut(span.rows.len() * width);
            rest = after;
            let group = width / self.kv_heads;
            let blocks = Block::whole(mine, span.rows.len(), width).columns(&vec![group; self.kv_heads]);
            let heads = span.cache.heads(self.block).iter_mut().enumerate();
            for ((head, cache), to) in heads.zip(blocks) {
                tasks.push((span.rows.clone(), span.start, head, cache, to));
            }
        }
        team::for_each_of(tasks, |(rows, start, head, cache, to)| {
            let column = head * self.head_dim;
            for (at, row) in rows.clone().enumerate() {
                let place = row * kv_width + column..row * kv_width + column + self.head_dim;
                cache.write(start + at, &key[place.clone()], &value[place]);
            }
            self.head(&query[rows.start * width..rows.end * width], rows.len(), start, head, cache, to);
        });
        out
    }

    /// The query heads that share one key head, for `tokens` tokens of one sequence from position
    /// `start` on.
    fn head(
        &self,
        query: &[f32],
        tokens: usize,
        start: usize,
        head: usize,
        cache: &HeadCache,
        mut to: Block<'_>,
    ) {
        let (dim, width) = (self.head_dim, self.heads * self.head_dim);
        let group = self.heads / self.kv_heads;
        let column = head * group * dim;
        if tokens == 1 && group * (start + 1) <= SCORES_MAX {
            let query = View::new(&query[column..], group, dim, dim);
            return self.some(query, group, |_| start, cache, to.folded(dim));
        }
        let together = (SCORES_MAX / (start + tokens)).clamp(1, QUERIES_MAX);
        for first in (0..tokens).step_by(together) {
            let count = together.min(tokens - first);
            for member in 0..group {
                let query = &query[first * width + column + member * dim..];
                let query = View::new(query, count, dim, width);
                let to = to.part(first, count, member * dim, dim);
                self.some(query, count, |row| start + first + row, cache, to);
            }
        }
    }

    /// `rows` queries, of which the one in row `at` stands at `position(at)`, in rising order.
    fn some(
        &self,
        query: View<'_>,
        rows: usize,
        position: impl Fn(usize) -> usize,
        cache: &HeadCache,
        to: Block<'_>,
    ) {
        let dim = self.head_dim;
        let seen = |at: usize| -> Range<usize> {
            let end = position(at) + 1;
            self.window.map_or(0, |window| end.saturating_sub(window))..end
        };
        let keys = seen(0).start..seen(rows - 1).end;
        let count = keys.len();
        let mut scores = vec![0.0; rows * count];
        let key = View::new(&cache.keys()[keys.start * dim..], count, dim, dim);
        product(Block::whole(&mut scores, rows, count), query, key.transposed(), self.scale);
        for (at, scores) in scores.chunks_exact_mut(count).enumerate() {
            let seen = seen(at);
            let seen = seen.start - keys.start..seen.end - keys.start;
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            if let Some(cap) = self.soft_cap {
                soft_cap(&mut scores[seen.clone()], cap);
            }
            softmax(&mut scores[seen]);
        }
        let value = View::new(&cache.values()[keys.start * dim..], count, dim, dim);
        product(to, View::new(&scores, rows, count, count), value, 1.0);
    }
}
