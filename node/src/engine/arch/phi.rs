//! Phi 1, 1.5 and 2: attention and a plain MLP see the same normed input; biases everywhere, on the head too; a part of
//! each head is turned.

use std::sync::Arc;

use super::{
    Architecture,
    block::{Attending, Block, FeedForward, NormKind},
    options,
    stack::{Blocks, Frame, NAMES, Names, Stack},
};
use crate::engine::{
    EngineError,
    attention::Attention,
    cache::CacheShape,
    fields::Fields,
    kernels::Activation,
    mlp::Mlp,
    norm::Norm,
    parts::Parts,
    rotary::{Rotary, Spelling},
    widths::Stage,
};

const PHI: Names = Names { norm: "final_layernorm", head_bias: true, ..NAMES };

#[derive(Debug)]
struct Phi {
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    norm: NormKind,
    qk_norm: bool,
    activation: Activation,
    rotary: Arc<Rotary>,
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let hidden = fields.count("hidden_size", 1..=1 << 16)?;
    let heads = fields.count("num_attention_heads", 1..=1024)?;
    let kv_heads = options::kv_heads(fields, heads)?;
    let head_dim = match fields.count_if("head_dim", 2..=1024)? {
        Some(head_dim) => head_dim,
        None => options::head_dim(fields, "num_attention_heads", hidden, heads)?,
    };
    let norm = NormKind::Layer(options::eps(fields, "layer_norm_eps", 1e-5)?);
    let spelling = Spelling { share: ("partial_rotary_factor", 0.5), ..Spelling::default() };
    let rotary = Arc::new(Rotary::read(fields, head_dim, &spelling)?);
    let context = fields.limit_if("max_position_embeddings", 1..=1 << 24)?.unwrap_or(2048);
    let frame = Frame {
        vocab: fields.count("vocab_size", 1..=1 << 22)?,
        context: rotary.context(context),
        hidden,
        cache: CacheShape {
            blocks: fields.count("num_hidden_layers", 1..=1024)?,
            heads: kv_heads,
            elements: 2 * head_dim,
        },
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        norm,
        scale: None,
        soft_cap: None,
        names: &PHI,
        root: "model.",
    };
    let blocks = Phi {
        hidden,
        inner: fields.count("intermediate_size", 1..=1 << 20)?,
        heads,
        kv_heads,
        head_dim,
        norm,
        qk_norm: fields.flag("qk_layernorm")?.unwrap_or(false),
        activation: options::activation(fields, "hidden_act", "gelu_new")?,
        rotary,
    };
    Ok(Box::new(Stack { frame, blocks: Box::new(blocks) }))
}

impl Phi {
    fn attention(&self, index: usize, parts: &Parts<'_>) -> Result<Attention, EngineError> {
        let Self { hidden, heads, kv_heads, head_dim, .. } = *self;
        let linear = |name, heads: usize| parts.linear(name, hidden, heads * head_dim, true);
        let norm = |name| -> Result<Norm, EngineError> { self.norm.read(parts, name, head_dim) };
        Ok(Attention {
            query: linear("q_proj", heads)?,
            key: linear("k_proj", kv_heads)?,
            value: linear("v_proj", kv_heads)?,
            output: parts.linear("dense", heads * head_dim, hidden, true)?,
            clip: None,
            norms: match self.qk_norm {
                true => Some((norm("q_layernorm")?, norm("k_layernorm")?)),
                false => None,
            },
            rotary: Some(Arc::clone(&self.rotary)),
            heads,
            kv_heads,
            head_dim,
            window: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            soft_cap: None,
            block: index,
        })
    }
}

impl Blocks for Phi {
    fn stages(&self) -> Vec<Stage> {
        let Self { hidden, inner, heads, kv_heads, head_dim, .. } = *self;
        let cause = format!("num_attention_heads is {heads} and head_dim {head_dim}");
        let widths = [heads * head_dim, kv_heads * head_dim];
        vec![
            Stage::attention(cause, hidden, widths, head_dim, heads / kv_heads),
            Stage::feed_forward(format!("intermediate_size is {inner}"), hidden, inner),
        ]
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let (hidden, inner, mlp) = (self.hidden, self.inner, parts.under("mlp"));
        let norm = self.norm.read(parts, "input_layernorm", hidden)?;
        Ok(Block {
            before_attention: Some(norm.clone()),
            attention: Attending::Here(self.attention(index, &parts.under("self_attn"))?),
            after_attention: None,
            before_mlp: Some(norm),
            mlp: FeedForward::Plain(Mlp {
                up: mlp.linear("fc1", hidden, inner, true)?,
                down: mlp.linear("fc2", inner, hidden, true)?,
                activation: self.activation,
            }),
            after_mlp: None,
            parallel: true,
        })
    }
}
