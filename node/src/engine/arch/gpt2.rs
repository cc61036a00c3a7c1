//! GPT-2: learned positions, norms with biases, a plain MLP, and projections stored the other way round,
//! as `[inputs, outputs]`, with queries, keys and values side by side.

use surf_chunker::Checkpoint;

use super::{
    Architecture,
    block::{Attending, Block, FeedForward, NormKind},
    options, root,
    stack::{Blocks, Frame, Names, Stack},
};
use crate::engine::{
    EngineError, attention::Attention, cache::CacheShape, fields::Fields, kernels::Activation, mlp::Mlp,
    parts::Parts, widths::Stage,
};

const NAMES: Names = Names {
    table: "wte",
    positions: Some("wpe"),
    blocks: "h",
    norm: "ln_f",
    heads: &["lm_head"],
    head_bias: false,
};

#[derive(Debug)]
struct Gpt2 {
    hidden: usize,
    inner: usize,
    heads: usize,
    norm: NormKind,
    activation: Activation,
    /// Whether scores are divided by the root of a head's size.
    scaled: bool,
    /// Whether they are divided by the number of the block.
    by_block: bool,
}

pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    options::unset(fields, "add_cross_attention")?;
    let hidden = fields.count("n_embd", 1..=1 << 16)?;
    let heads = fields.count("n_head", 1..=1024)?;
    let head_dim = options::head_dim(fields, "n_head", hidden, heads)?;
    let norm = NormKind::Layer(options::eps(fields, "layer_norm_epsilon", 1e-5)?);
    let frame = Frame {
        vocab: fields.count("vocab_size", 1..=1 << 22)?,
        context: fields.limit_if("n_positions", 1..=1 << 24)?.unwrap_or(1024),
        hidden,
        cache: CacheShape { blocks: fields.count("n_layer", 1..=1024)?, heads, elements: 2 * head_dim },
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        norm,
        scale: None,
        soft_cap: None,
        names: &NAMES,
        // The first ones were saved without their head, and so without a root.
        root: root(manifest, &["transformer.", ""], "wte.weight")?,
    };
    let blocks = Gpt2 {
        hidden,
        inner: fields.count_if("n_inner", 1..=1 << 20)?.unwrap_or(4 * hidden),
        heads,
        norm,
        activation: options::activation(fields, "activation_function", "gelu_new")?,
        scaled: fields.flag("scale_attn_weights")?.unwrap_or(true),
        by_block: fields.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false),
    };
    Ok(Box::new(Stack { frame, blocks: Box::new(blocks) }))
}

impl Blocks for Gpt2 {
    fn stages(&self) -> Vec<Stage> {
        let Self { hidden, inner, heads, .. } = *self;
        let attention =
            Stage::attention(format!("n_embd is {hidden}"), hidden, [hidden, hidden], hidden / heads, 1);
        let feed_forward = Stage::feed_forward(format!("n_inner is {inner}"), hidden, inner);
        vec![attention.by_columns(hidden), feed_forward.by_columns(hidden.max(inner))]
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let (hidden, inner, head_dim) = (self.hidden, self.inner, self.hidden / self.heads);
        let (attention, mlp) = (parts.under("attn"), parts.under("mlp"));
        let third = |at: usize| {
            attention.linear_along_columns("c_attn", hidden, 3 * hidden, at * hidden..(at + 1) * hidden)
        };
        let scale = if self.scaled { 1.0 / (head_dim as f64).sqrt() } else { 1.0 };
        let scale = if self.by_block { scale / (index + 1) as f64 } else { scale };
        Ok(Block {
            before_attention: Some(self.norm.read(parts, "ln_1", hidden)?),
            attention: Attending::Here(Attention {
                query: third(0)?,
                key: third(1)?,
                value: third(2)?,
                output: attention.linear_along_columns("c_proj", hidden, hidden, 0..hidden)?,
                clip: None,
                norms: None,
                rotary: None,
                heads: self.heads,
                kv_heads: self.heads,
                head_dim,
                window: None,
                scale: scale as f32,
                soft_cap: None,
                block: index,
            }),
            after_attention: None,
            before_mlp: Some(self.norm.read(parts, "ln_2", hidden)?),
            mlp: FeedForward::Plain(Mlp {
                up: mlp.linear_along_columns("c_fc", hidden, inner, 0..inner)?,
                down: mlp.linear_along_columns("c_proj", inner, hidden, 0..hidden)?,
                activation: self.activation,
            }),
            after_mlp: None,
            parallel: false,
        })
    }
}
