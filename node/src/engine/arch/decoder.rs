//! The decoder that Llama made common: RMS norms before attention and a gated MLP, rotary positions,
//! grouped queries. Its descendants differ in biases, in norms of queries and keys, and in windows.

use std::sync::Arc;

use candle_core::Tensor;
use surf_protocol::{Group, Stack};

use super::{
    Architecture, Kind, Layer, Shape, Step, Tables,
    mixture::{FeedForward, MixtureShape},
};
use crate::engine::{
    EngineError, attention::Attention, cache::CacheShape, fields::Fields, kernels::Activation,
    linear::Linear, mlp::GatedMlp, norm::RmsNorm, parts::Parts, pass::Pass, rotary::Rotary,
};

/// The input embedding, and the output projection where both are one.
const TABLE: &str = "model.embed_tokens";

/// A decoder's structure.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    vocab: usize,
    context: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f64,
    activation: Activation,
    rotary: Arc<Rotary>,
    tied: bool,
    blocks: usize,
    variant: Variant,
}

/// In what the descendants differ.
#[derive(Clone, Debug, Default)]
pub(super) struct Variant {
    /// What each block sees: so many tokens, or everything before it. Empty for everything.
    pub(super) windows: Vec<Option<usize>>,
    /// Whether queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether attention's output has one.
    pub(super) output_bias: bool,
    /// Whether the MLP has them.
    pub(super) mlp_bias: bool,
    /// Whether queries and keys are normed, head by head.
    pub(super) qk_norm: bool,
    /// The experts that blocks have instead of an MLP.
    pub(super) mixture: Option<Arc<MixtureShape>>,
}

/// What a configuration that does not say means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) context: usize,
    /// Else the hidden size shared among the heads.
    pub(super) head_dim: Option<usize>,
}

impl Decoder {
    /// What all descendants have in common.
    pub(super) fn read(fields: &Fields<'_>, defaults: Defaults) -> Result<Self, EngineError> {
        let hidden = fields.count("hidden_size", 1..=1 << 16)?;
        let heads = fields.count("num_attention_heads", 1..=1024)?;
        let kv_heads = fields.count_if("num_key_value_heads", 1..=1024)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(fields.invalid("num_key_value_heads", format!("does not divide {heads} heads")));
        }
        let head_dim = match fields.count_if("head_dim", 2..=1024)?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) && heads < hidden => hidden / heads,
            None => return Err(fields.invalid("num_attention_heads", format!("does not divide {hidden}"))),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(fields.invalid("head_dim", format!("is {head_dim}; it must be even")));
        }
        let activation = fields.text("hidden_act")?.unwrap_or("silu");
        Ok(Self {
            vocab: fields.count("vocab_size", 1..=1 << 22)?,
            context: fields.count_if("max_position_embeddings", 1..=1 << 24)?.unwrap_or(defaults.context),
            hidden,
            intermediate: fields.count("intermediate_size", 1..=1 << 20)?,
            heads,
            kv_heads,
            head_dim,
            eps: eps(fields)?,
            activation: Activation::named(activation).ok_or_else(|| {
                fields.invalid("hidden_act", format!("is {activation:?}, which is not known"))
            })?,
            rotary: Arc::new(Rotary::read(fields, head_dim)?),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            blocks: fields.count("num_hidden_layers", 1..=1024)?,
            variant: Variant::default(),
        })
    }

    /// Transformer blocks.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Elements of a token between blocks.
    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Elements inside an MLP.
    pub(super) fn intermediate(&self) -> usize {
        self.intermediate
    }

    /// Of the norms.
    pub(super) fn eps(&self) -> f64 {
        self.eps
    }

    /// What MLPs put between their products.
    pub(super) fn activation(&self) -> Activation {
        self.activation
    }

    /// As this descendant.
    pub(super) fn boxed(self, variant: Variant) -> Box<dyn Architecture> {
        Box::new(Self { variant, ..self })
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let block = parts.under(&format!("model.layers.{index}"));
        let attention = block.under("self_attn");
        let (hidden, dim) = (self.hidden, self.head_dim);
        let (width, kv_width) = (self.heads * dim, self.kv_heads * dim);
        let head_norm = |name| attention.rms_norm(name, dim, self.eps);
        Ok(Block {
            before_attention: block.rms_norm("input_layernorm", hidden, self.eps)?,
            attention: Attention {
                query: attention.linear("q_proj", hidden, width, self.variant.qkv_bias)?,
                key: attention.linear("k_proj", hidden, kv_width, self.variant.qkv_bias)?,
                value: attention.linear("v_proj", hidden, kv_width, self.variant.qkv_bias)?,
                output: attention.linear("o_proj", width, hidden, self.variant.output_bias)?,
                norms: if self.variant.qk_norm {
                    Some((head_norm("q_norm")?, head_norm("k_norm")?))
                } else {
                    None
                },
                rotary: Arc::clone(&self.rotary),
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: dim,
                window: self.variant.windows.get(index).copied().flatten(),
                block: index,
            },
            before_mlp: block.rms_norm("post_attention_layernorm", hidden, self.eps)?,
            feed_forward: self.feed_forward(index, &block)?,
        })
    }

    fn feed_forward(&self, index: usize, block: &Parts<'_>) -> Result<FeedForward, EngineError> {
        if let Some(mixture) = self.variant.mixture.as_ref().filter(|mixture| mixture.is_in(index)) {
            return Ok(FeedForward::Mixture(Box::new(mixture.layer(index as u32, block)?)));
        }
        let (mlp, hidden, bias) = (block.under("mlp"), self.hidden, self.variant.mlp_bias);
        Ok(FeedForward::Dense(GatedMlp {
            gate: mlp.linear("gate_proj", hidden, self.intermediate, bias)?,
            up: mlp.linear("up_proj", hidden, self.intermediate, bias)?,
            down: mlp.linear("down_proj", self.intermediate, hidden, bias)?,
            activation: self.activation,
        }))
    }
}

impl Architecture for Decoder {
    fn shape(&self) -> Shape {
        let cache = CacheShape { blocks: self.blocks, heads: self.kv_heads, elements: 2 * self.head_dim };
        Shape { vocab: self.vocab, context: self.context, cache, kind: Kind::Causal }
    }

    fn steps(&self) -> Vec<Step> {
        let block = |index| Step { group: Group::Block(Stack::Decoder, index as u32), head: false };
        let mut steps: Vec<Step> = (0..self.blocks).map(block).collect();
        steps.push(Step { group: Group::Head, head: true });
        if self.tied {
            steps.push(Step { group: Group::Embed, head: true });
        }
        steps
    }

    fn embed(&self, tables: &mut dyn Tables, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        tables.rows(&format!("{TABLE}.weight"), &pass.tokens, self.hidden)
    }

    fn layer(&self, step: &Step, parts: &Parts<'_>) -> Result<Box<dyn Layer>, EngineError> {
        match &step.group {
            Group::Block(Stack::Decoder, index) => Ok(Box::new(self.block(*index as usize, parts)?)),
            Group::Head => {
                let norm = parts.rms_norm("model.norm", self.hidden, self.eps)?;
                let projection = match self.tied {
                    true => None,
                    false => Some(parts.linear("lm_head", self.hidden, self.vocab, false)?),
                };
                Ok(Box::new(Head { norm: Some(norm), projection }))
            }
            Group::Embed => {
                let projection = Some(parts.linear(TABLE, self.hidden, self.vocab, false)?);
                Ok(Box::new(Head { norm: None, projection }))
            }
            other => Err(EngineError::NoGroup(other.clone())),
        }
    }
}

#[derive(Debug)]
struct Block {
    before_attention: RmsNorm,
    attention: Attention,
    before_mlp: RmsNorm,
    feed_forward: FeedForward,
}

impl Layer for Block {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let x = (x + self.attention.forward(&self.before_attention.forward(x)?, pass)?)?;
        let y = self.feed_forward.forward(&self.before_mlp.forward(&x)?, &x, pass)?;
        Ok((x + y)?)
    }

    fn likely(&self, x: &Tensor) -> Result<Vec<Group>, EngineError> {
        self.feed_forward.likely(&self.before_mlp, x)
    }
}

/// The final norm, the projection to logits, or both.
#[derive(Debug)]
struct Head {
    norm: Option<RmsNorm>,
    projection: Option<Linear>,
}

impl Layer for Head {
    fn forward(&self, x: &Tensor, _: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        match &self.projection {
            Some(projection) => projection.forward(&x),
            None => Ok(x),
        }
    }
}

fn eps(fields: &Fields<'_>) -> Result<f64, EngineError> {
    match fields.real("rms_norm_eps")?.unwrap_or(1e-6) {
        eps if (0.0..1.0).contains(&eps) => Ok(eps),
        _ => Err(fields.invalid("rms_norm_eps", "must be from 0 to 1")),
    }
}
