//! Attention without rotary positions, windows or shared keys: of a sequence over itself, both ways,
//! as encoders do; over what an encoder has said; or over its own past with a bias by distance.
//!
//! Padding is not seen because it is not there: only tokens that count are in a pass.

use candle_core::Tensor;
use surf_kernels::team;

use super::{
    EngineError,
    attention::{QUERIES_MAX, SCORES_MAX},
    cache::HeadCache,
    distances::Distances,
    host,
    kernels::{Block, View, product, softmax},
    linear::Linear,
    pass::{Pass, Span},
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct PlainAttention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// What scores are multiplied with.
    pub(crate) scale: f32,
    pub(crate) sees: Sees,
}

/// What a query sees. Where tokens see their own sequence, scores have the bias that the pass says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sees {
    /// Its sequence, before it and after it.
    Sequence,
    /// Its sequence up to itself, in the cache of `block`.
    Past {
        /// Which block's part of the cache is its own.
        block: usize,
    },
    /// What the encoder said of the prompt, as `block` keeps it.
    Source {
        /// Which block's part of it is its own.
        block: usize,
    },
}

/// One sequence's queries and keys.
struct Scene<'a> {
    query: &'a [f32],
    tokens: usize,
    keys: Keys<'a>,
    count: usize,
    /// The position of the first query, if each sees only what is not after it.
    start: Option<usize>,
    /// The positions of queries and keys alike, where they are not their numbers.
    places: Option<&'a [u32]>,
    distances: Option<&'a Distances>,
}

enum Keys<'a> {
    /// By tokens, then by heads.
    Rows {
        key: &'a [f32],
        value: &'a [f32],
    },
    Heads(&'a [HeadCache]),
}

impl PlainAttention {
    /// From `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let (tokens, _) = x.dims2()?;
        let width = self.heads * self.head_dim;
        let query = host::copy(&self.query.forward(x)?)?;
        let distances = pass.distances.clone();
        let distances = distances.as_deref();
        let (positions, spans) = (&pass.positions, &mut pass.spans);
        let part = |span: &Span<'_>| span.rows.start * width..span.rows.end * width;
        let attended = match self.sees {
            Sees::Sequence => {
                let (key, value) = (host::copy(&self.key.forward(x)?)?, host::copy(&self.value.forward(x)?)?);
                let scene = |span: &Span<'_>| Scene {
                    query: &query[part(span)],
                    tokens: span.rows.len(),
                    keys: Keys::Rows { key: &key[part(span)], value: &value[part(span)] },
                    count: span.rows.len(),
                    start: None,
                    places: Some(&positions[span.rows.clone()]),
                    distances,
                };
                self.attend(spans.iter().map(scene).collect(), tokens)
            }
            Sees::Past { block } => {
                let (key, value) = (self.key.forward(x)?, self.value.forward(x)?);
                let mut scenes = Vec::with_capacity(spans.len());
                for span in spans {
                    let (query, tokens, start) = (&query[part(span)], span.rows.len(), span.start);
                    let heads = span.cache.heads(block);
                    let mine = |all: &Tensor| all.narrow(0, span.rows.start, tokens);
                    write(heads, start, &mine(&key)?, &mine(&value)?)?;
                    let (keys, count) = (Keys::Heads(heads), start + tokens);
                    scenes.push(Scene {
                        query,
                        tokens,
                        keys,
                        count,
                        start: Some(start),
                        places: None,
                        distances,
                    });
                }
                self.attend(scenes, tokens)
            }
            Sees::Source { block } => {
                let mut scenes = Vec::with_capacity(spans.len());
                for span in spans {
                    let (query, tokens) = (&query[part(span)], span.rows.len());
                    let source = span.source.as_mut().ok_or_else(no_source)?;
                    let count = source.tokens();
                    let keys = Keys::Heads(source.heads(block, &self.key, &self.value)?);
                    scenes.push(Scene {
                        query,
                        tokens,
                        keys,
                        count,
                        start: None,
                        places: None,
                        distances: None,
                    });
                }
                self.attend(scenes, tokens)
            }
        };
        self.output.forward(&host::tensor(attended, tokens, width)?)
    }

    /// All sequences, all heads, by tokens, then by heads.
    fn attend(&self, scenes: Vec<Scene<'_>>, tokens: usize) -> Vec<f32> {
        let width = self.heads * self.head_dim;
        let mut out = vec![0.0; tokens * width];
        let mut rest = out.as_mut_slice();
        let mut tasks = Vec::new();
        for scene in &scenes {
            let (mine, after) = rest.split_at_mut(scene.tokens * width);
            rest = after;
            let columns = Block::whole(mine, scene.tokens, width).columns(&vec![self.head_dim; self.heads]);
            tasks.extend(columns.into_iter().enumerate().map(|(head, to)| (scene, head, to)));
        }
        team::for_each_of(tasks, |(scene, head, to)| self.head(scene, head, to));
        out
    }

    fn head(&self, scene: &Scene<'_>, head: usize, mut to: Block<'_>) {
        let (dim, width) = (self.head_dim, self.heads * self.head_dim);
        let biases = scene.distances.map(|distances| distances.head(head));
        let together = (SCORES_MAX / scene.count.max(1)).clamp(1, QUERIES_MAX);
        for first in (0..scene.tokens).step_by(together) {
            let rows = together.min(scene.tokens - first);
            let end = |row: usize| scene.start.map_or(scene.count, |start| start + first + row + 1);
            let count = end(rows - 1);
            let (key, value) = scene.keys.views(head, dim, width, count);
            let query = View::new(&scene.query[first * width + head * dim..], rows, dim, width);
            let mut scores = vec![0.0; rows * count];
            product(Block::whole(&mut scores, rows, count), query, key.transposed(), self.scale);
            for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
                let (seen, unseen) = scores.split_at_mut(end(row));
                if let Some(biases) = biases {
                    let query = scene.place(scene.start.unwrap_or(0) + first + row);
                    let keys = (0..).map(|key| biases.of(query, scene.place(key)));
                    seen.iter_mut().zip(keys).for_each(|(score, bias)| *score += bias);
                }
                softmax(seen);
                unseen.fill(0.0);
            }
            product(to.part(first, rows, 0, dim), View::new(&scores, rows, count, count), value, 1.0);
        }
    }
}

impl Scene<'_> {
    /// The position of the token with this number.
    fn place(&self, number: usize) -> usize {
        self.places.map_or(number, |places| places[number] as usize)
    }
}

impl<'a> Keys<'a> {
    /// The first `count` keys and values of one head.
    fn views(&self, head: usize, dim: usize, width: usize, count: usize) -> (View<'a>, View<'a>) {
        match *self {
            Self::Rows { key, value } => {
                let view = |all: &'a [f32]| View::new(&all[head * dim..], count, dim, width);
                (view(key), view(value))
            }
            Self::Heads(heads) => {
                let view = |all: &'a [f32]| View::new(all, count, dim, dim);
                (view(heads[head].keys()), view(heads[head].values()))
            }
        }
    }
}

/// Writes keys and values, by tokens and then by heads, from position `start` on.
pub(crate) fn write(
    heads: &mut [HeadCache],
    start: usize,
    key: &Tensor,
    value: &Tensor,
) -> Result<(), EngineError> {
    let (tokens, width) = key.dims2()?;
    let dim = width / heads.len().max(1);
    host::read(key, |key| {
        host::read(value, |value| {
            for (head, cache) in heads.iter_mut().enumerate() {
                for at in 0..tokens {
                    let place = at * width + head * dim..at * width + (head + 1) * dim;
                    cache.write(start + at, &key[place.clone()], &value[place]);
                }
            }
        })
    })?
}

fn no_source() -> EngineError {
    candle_core::Error::Msg("a decoder has nothing to look back at".to_owned()).into()
}
