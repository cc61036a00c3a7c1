//! Attention through a latent: keys and values of all heads are made from one short vector a token, and
//! only that is kept.
//!
//! The vector is not expanded again for every token that was seen. Its projection to keys is moved over
//! to the query, and that to values behind the sum, so scores and sums are taken in the latent itself:
//! `q · (Wₖ c) = (Wₖᵀ q) · c`. ("Absorption": DeepSeek-V2, <https://arxiv.org/abs/2405.04434>, §2.1.2.)
//! Beside the latent stands a part of the key that all heads share and that positions turn.

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;
use surf_kernels::team;

use super::{
    EngineError, host,
    kernels::{Block, Matrix, View, product, softmax},
    linear::Linear,
    norm::RmsNorm,
    pass::Pass,
    rotary::Rotary,
    widths::Stage,
};

/// Scores held at once by one thread. With many heads and long contexts fewer tokens are taken together.
const SCORES_MAX: usize = 1 << 18;

/// Sizes of the heads of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LatentShape {
    pub(crate) heads: usize,
    /// Elements of the latent.
    pub(crate) latent: usize,
    /// Elements of a head's query and key that positions do not turn.
    pub(crate) plain: usize,
    /// Elements that they do.
    pub(crate) turned: usize,
    /// Elements of a head's value.
    pub(crate) value: usize,
    /// On scores.
    pub(crate) scale: f32,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct LatentAttention {
    pub(crate) query: Query,
    /// To the latent, and the shared part of the key behind it.
    pub(crate) compress: Linear,
    /// Over the latent.
    pub(crate) norm: RmsNorm,
    /// From the latent to each head's key and value: `heads · (plain + value)` by `latent`.
    pub(crate) expand: Matrix,
    pub(crate) output: Linear,
    pub(crate) rotary: Arc<Rotary>,
    pub(crate) shape: LatentShape,
    /// Which block's part of the cache is its own.
    pub(crate) block: usize,
}

/// How queries are made.
#[derive(Clone, Debug)]
pub(crate) enum Query {
    Direct(Linear),
    /// Through a latent of their own.
    Through(Linear, RmsNorm, Linear),
}

impl LatentShape {
    /// Elements that are kept of every token, which are its key and, up to `latent`, its value.
    pub(crate) fn kept(&self) -> usize {
        self.latent + self.turned
    }

    /// Elements of a head's query.
    pub(crate) fn query(&self) -> usize {
        self.plain + self.turned
    }

    /// What it takes in a pass, where queries have a latent of `query_latent` elements.
    pub(crate) fn stage(&self, hidden: usize, query_latent: usize) -> Stage {
        let Self { heads, latent, plain, turned, value, .. } = *self;
        let cause = format!(
            "num_attention_heads is {heads}, kv_lora_rank {latent}, qk_nope_head_dim {plain} and v_head_dim {value}"
        );
        let of_heads = heads * (2 * self.query() + turned + self.kept() + latent + 3 * value);
        let widest = hidden.max(query_latent).max(heads * value).max(latent);
        Stage {
            cause,
            row: (of_heads + 3 * query_latent + 6 * self.kept() + 4 * hidden) as u64,
            // Each thread widens one head's rows of the expansion.
            thread: ((plain + value) * latent).max(4 * widest) as u64,
            heads: heads as u64,
        }
    }
}

impl LatentAttention {
    /// From `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let (tokens, _) = x.dims2()?;
        let shape = self.shape;
        let query = host::copy(&self.query.forward(x)?)?;
        let kept = self.kept(x, pass)?;
        let query = self.absorbed(&query, tokens, pass)?;
        let mut summed = vec![0.0; tokens * shape.heads * shape.latent];
        let (width, mut rest) = (shape.heads * shape.latent, summed.as_mut_slice());
        for span in &mut pass.spans {
            let (mine, after) = rest.split_at_mut(span.rows.len() * width);
            rest = after;
            let cache = &mut span.cache.heads(self.block)[0];
            for (at, row) in span.rows.clone().enumerate() {
                cache.write(span.start + at, &kept[row * shape.kept()..(row + 1) * shape.kept()], &[]);
            }
            let width = shape.heads * shape.kept();
            self.attend(
                &query[span.rows.start * width..span.rows.end * width],
                span.start,
                cache.keys(),
                mine,
            );
        }
        let values = self.values(&summed, tokens)?;
        self.output.forward(&host::tensor(values, tokens, shape.heads * shape.value)?)
    }

    /// What is kept of every token: its latent, normed, and the shared part of its key, turned.
    fn kept(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Vec<f32>, EngineError> {
        let shape = self.shape;
        let both = host::copy(&self.compress.forward(x)?)?;
        let tokens = both.len() / shape.kept();
        let halves = both.chunks_exact(shape.kept()).map(|token| token.split_at(shape.latent));
        let latents: Vec<f32> = halves.clone().flat_map(|(latent, _)| latent).copied().collect();
        let mut keys: Vec<f32> = halves.flat_map(|(_, key)| key).copied().collect();
        pass.turns(&self.rotary).apply(&mut keys, 1, shape.turned);
        let latents = self.norm.forward(&host::tensor(latents, tokens, shape.latent)?)?;
        host::read(&latents, |latents| {
            let rows = latents.chunks_exact(shape.latent).zip(keys.chunks_exact(shape.turned));
            rows.flat_map(|(latent, key)| latent.iter().chain(key)).copied().collect()
        })
    }

    /// Queries as they meet what is kept: by tokens, by heads, `kept` elements each.
    fn absorbed(&self, query: &[f32], tokens: usize, pass: &mut Pass<'_>) -> Result<Vec<f32>, EngineError> {
        let LatentShape { heads, latent, plain, turned, .. } = self.shape;
        let (size, kept) = (self.shape.query(), self.shape.kept());
        let parts = query.chunks_exact(size).map(|head| &head[plain..]);
        let mut keys: Vec<f32> = parts.flatten().copied().collect();
        pass.turns(&self.rotary).apply(&mut keys, heads, turned);
        let mut absorbed = vec![0.0; tokens * heads * kept];
        for (to, key) in absorbed.chunks_exact_mut(kept).zip(keys.chunks_exact(turned)) {
            to[latent..].copy_from_slice(key);
        }
        let blocks = Block::whole(&mut absorbed, tokens, heads * kept).columns(&vec![kept; heads]);
        self.each_head(blocks, |head, weight, mut to| {
            let query = View::new(&query[head * size..], tokens, plain, heads * size);
            product(to.part(0, tokens, 0, latent), query, View::new(weight, plain, latent, latent), 1.0);
        })?;
        Ok(absorbed)
    }

    /// Values of all heads from the sums over latents.
    fn values(&self, summed: &[f32], tokens: usize) -> Result<Vec<f32>, EngineError> {
        let LatentShape { heads, latent, plain, value, .. } = self.shape;
        let mut values = vec![0.0; tokens * heads * value];
        let blocks = Block::whole(&mut values, tokens, heads * value).columns(&vec![value; heads]);
        self.each_head(blocks, |head, weight, to| {
            let summed = View::new(&summed[head * latent..], tokens, latent, heads * latent);
            let weight = View::new(&weight[plain * latent..], value, latent, latent);
            product(to, summed, weight.transposed(), 1.0);
        })?;
        Ok(values)
    }

    /// Calls `with` for each head with its rows of the expansion, widened, and its place in `blocks`.
    fn each_head(
        &self,
        blocks: Vec<Block<'_>>,
        with: impl Fn(usize, &[f32], Block<'_>) + Sync,
    ) -> Result<(), EngineError> {
        let rows = self.shape.plain + self.shape.value;
        let matrix = &self.expand;
        let missing = OnceLock::new();
        team::for_each_of(blocks.into_iter().enumerate().collect(), |(head, to)| {
            let mut weight = Vec::with_capacity(rows * self.shape.latent);
            let mut all = head * rows..(head + 1) * rows;
            match all.find(|row| matrix.read_row(*row, &mut weight).is_none()) {
                Some(row) => _ = missing.set(row),
                None => with(head, &weight, to),
            }
        });
        match missing.into_inner() {
            Some(row) => Err(EngineError::tensor("kv_b_proj", format!("has no row {row}"))),
            None => Ok(()),
        }
    }

    /// Sums over what was kept, of one sequence whose first token of this pass stands at `start`.
    fn attend(&self, query: &[f32], start: usize, kept: &[f32], to: &mut [f32]) {
        let LatentShape { heads, latent, scale, .. } = self.shape;
        let size = self.shape.kept();
        let seen_max = start + query.len() / (heads * size);
        // Rows are the heads of a token, then those of the next: whole tokens, unless one has too many.
        let together = match SCORES_MAX / seen_max / heads * heads {
            0 => (SCORES_MAX / seen_max).max(1),
            whole => whole,
        };
        team::for_each_chunk(to, together * latent, |at, to| {
            let query = &query[at * together * size..][..to.len() / latent * size];
            let rows = query.len() / size;
            let seen = |row: usize| start + (at * together + row) / heads + 1;
            let count = seen(rows - 1);
            let mut scores = vec![0.0; rows * count];
            let keys = View::new(kept, count, size, size);
            let query = View::new(query, rows, size, size);
            product(Block::whole(&mut scores, rows, count), query, keys.transposed(), scale);
            for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
                let (seen, unseen) = scores.split_at_mut(seen(row));
                softmax(seen);
                unseen.fill(0.0);
            }
            let values = View::new(kept, count, latent, size);
            product(Block::whole(to, rows, latent), View::new(&scores, rows, count, count), values, 1.0);
        });
    }
}

impl Query {
    fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        match self {
            Self::Direct(all) => all.forward(x),
            Self::Through(down, norm, up) => up.forward(&norm.forward(&down.forward(x)?)?),
        }
    }
}
