//! GPT-NeoX and Pythia: norms with biases and a plain MLP, which mostly sees what attention sees; a part
//! of each head is turned. Queries, keys and values are one matrix, head by head.

use std::{ops::Range, sync::Arc};

use surf_chunker::Checkpoint;

use super::{
    Architecture,
    block::{Attending, Block, FeedForward, NormKind},
    options, root,
    stack::{Blocks, Frame, Names, Stack},
};
use crate::engine::{
    EngineError,
    attention::Attention,
    cache::CacheShape,
    fields::Fields,
    kernels::Activation,
    mlp::Mlp,
    parts::Parts,
    rotary::{Rotary, Spelling},
    widths::Stage,
};

const NAMES: Names = Names {
    table: "embed_in",
    positions: None,
    blocks: "layers",
    norm: "final_layer_norm",
    heads: &["embed_out", "lm_head"],
    head_bias: false,
};

#[derive(Debug)]
struct GptNeox {
    hidden: usize,
    inner: usize,
    heads: usize,
    norm: NormKind,
    activation: Activation,
    rotary: Arc<Rotary>,
    bias: bool,
    parallel: bool,
}

pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    let hidden = fields.count("hidden_size", 1..=1 << 16)?;
    let heads = fields.count("num_attention_heads", 1..=1024)?;
    let head_dim = options::head_dim(fields, "num_attention_heads", hidden, heads)?;
    let norm = NormKind::Layer(options::eps(fields, "layer_norm_eps", 1e-5)?);
    let spelling =
        Spelling { theta: ("rotary_emb_base", 10_000.0), share: ("rotary_pct", 0.25), ..Spelling::DEFAULT };
    let rotary = Arc::new(Rotary::read(fields, head_dim, &spelling)?);
    let context = fields.limit_if("max_position_embeddings", 1..=1 << 24)?.unwrap_or(2048);
    let frame = Frame {
        vocab: fields.count("vocab_size", 1..=1 << 22)?,
        context: rotary.context(context),
        hidden,
        cache: CacheShape {
            blocks: fields.count("num_hidden_layers", 1..=1024)?,
            heads,
            elements: 2 * head_dim,
        },
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        norm,
        scale: None,
        soft_cap: None,
        names: &NAMES,
        root: root(manifest, &["gpt_neox.", ""], "embed_in.weight")?,
    };
    let blocks = GptNeox {
        hidden,
        inner: fields.count("intermediate_size", 1..=1 << 20)?,
        heads,
        norm,
        activation: options::activation(fields, "hidden_act", "gelu")?,
        rotary,
        bias: fields.flag("attention_bias")?.unwrap_or(true),
        parallel: fields.flag("use_parallel_residual")?.unwrap_or(true),
    };
    Ok(Box::new(Stack { frame, blocks: Box::new(blocks) }))
}

impl Blocks for GptNeox {
    fn stages(&self) -> Vec<Stage> {
        let Self { hidden, inner, heads, .. } = *self;
        let cause = format!("hidden_size is {hidden}");
        vec![
            Stage::attention(cause, hidden, [hidden, hidden], hidden / heads, 1),
            Stage::feed_forward(format!("intermediate_size is {inner}"), hidden, inner),
        ]
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let (hidden, inner, head_dim) = (self.hidden, self.inner, self.hidden / self.heads);
        let (attention, mlp) = (parts.under("attention"), parts.under("mlp"));
        let of_each_head = |at: usize| {
            let rows = |head: usize| (3 * head + at) * head_dim..(3 * head + at + 1) * head_dim;
            let rows: Vec<Range<usize>> = (0..self.heads).map(rows).collect();
            attention.linear_of("query_key_value", hidden, 3 * hidden, &rows, self.bias)
        };
        Ok(Block {
            before_attention: Some(self.norm.read(parts, "input_layernorm", hidden)?),
            attention: Attending::Here(Attention {
                query: of_each_head(0)?,
                key: of_each_head(1)?,
                value: of_each_head(2)?,
                output: attention.linear("dense", hidden, hidden, self.bias)?,
                clip: None,
                norms: None,
                rotary: Some(Arc::clone(&self.rotary)),
                heads: self.heads,
                kv_heads: self.heads,
                head_dim,
                window: None,
                scale: 1.0 / (head_dim as f32).sqrt(),
                soft_cap: None,
                block: index,
            }),
            after_attention: None,
            before_mlp: Some(self.norm.read(parts, "post_attention_layernorm", hidden)?),
            mlp: FeedForward::Plain(Mlp {
                up: mlp.linear("dense_h_to_4h", hidden, inner, true)?,
                down: mlp.linear("dense_4h_to_h", inner, hidden, true)?,
                activation: self.activation,
            }),
            after_mlp: None,
            parallel: self.parallel,
        })
    }
}
