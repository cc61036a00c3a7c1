//! The decoder that Llama made common: norms before attention and a gated MLP, rotary positions,
//! grouped queries. Its descendants differ in biases, in where norms stand and of which kind they are, in windows, in
//! what is capped or clipped, and in which matrices are stored as one.

use std::{ops::Range, sync::Arc};

use super::{
    Architecture,
    block::{Attending, Block, FeedForward, NormKind},
    mixture::MixtureShape,
    options,
    stack::{Blocks, Frame, NAMES, Stack},
};
use crate::engine::{
    EngineError,
    attention::Attention,
    cache::CacheShape,
    fields::Fields,
    kernels::Activation,
    linear::Linear,
    mlp::{GatedMlp, Mlp},
    parts::Parts,
    rotary::{Rotary, Spelling},
    widths::Stage,
};

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
    /// Which blocks turn positions in another way, and how.
    pub(super) local: Option<(Vec<bool>, Arc<Rotary>)>,
    /// Whether queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether attention's output has one.
    pub(super) output_bias: bool,
    /// Whether the MLP has them.
    pub(super) mlp_bias: bool,
    /// The kind of its norms; by root mean square, where nothing is said.
    pub(super) norm: Option<NormKind>,
    /// Where they stand.
    pub(super) norms: NormPlaces,
    /// Whether queries and keys are normed, and how many of their elements together.
    pub(super) qk_norm: Option<Together>,
    /// Between which numbers queries, keys and values are held.
    pub(super) clip: Option<f32>,
    /// What the two products of an MLP without a gate are called.
    pub(super) plain_mlp: Option<[&'static str; 2]>,
    /// The experts that blocks have instead of an MLP.
    pub(super) mixture: Option<Arc<MixtureShape>>,
    /// Whether queries, keys and values are stored as one matrix, and the MLP's gate and what it
    /// gates as another.
    pub(super) fused: bool,
    /// What Gemma does in another way.
    pub(super) gemma: Option<Gemma>,
}

/// Where a block has norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum NormPlaces {
    /// Before attention and MLP.
    #[default]
    Before,
    /// Behind them.
    Behind,
    /// Both.
    Around,
}

/// How many elements of queries and keys are normed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Together {
    /// Each head's.
    Head,
    /// All of a token's.
    All,
}

/// Norms that are stored as what is added to one; an embedding scaled by the square root of its size; scores scaled and
/// capped in another way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gemma {
    /// Scores are divided by its root.
    pub(super) query_scalar: f64,
    pub(super) score_cap: Option<f32>,
    pub(super) logit_cap: Option<f32>,
}

/// How a configuration is read: the names that differ, and what is meant where it does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    pub(super) context: usize,
    /// Else the hidden size shared among the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) eps: f64,
    pub(super) activation: (&'a str, &'a str),
    pub(super) tied: bool,
    pub(super) rotary: Spelling<'a>,
}

impl Default for Reading<'_> {
    fn default() -> Self {
        Self {
            context: 2048,
            head_dim: None,
            eps: 1e-6,
            activation: ("hidden_act", "silu"),
            tied: false,
            rotary: Spelling::default(),
        }
    }
}

impl Decoder {
    /// What all descendants have in common.
    pub(super) fn read(fields: &Fields<'_>, reading: &Reading<'_>) -> Result<Self, EngineError> {
        let hidden = fields.count("hidden_size", 1..=1 << 16)?;
        let heads = fields.count("num_attention_heads", 1..=1024)?;
        let kv_heads = options::kv_heads(fields, heads)?;
        let head_dim = match fields.count_if("head_dim", 2..=1024)?.or(reading.head_dim) {
            Some(head_dim) => head_dim,
            None => options::head_dim(fields, "num_attention_heads", hidden, heads)?,
        };
        let rotary = Arc::new(Rotary::read(fields, head_dim, &reading.rotary)?);
        let context = fields.limit_if("max_position_embeddings", 1..=1 << 24)?.unwrap_or(reading.context);
        Ok(Self {
            vocab: fields.count("vocab_size", 1..=1 << 22)?,
            context: rotary.context(context),
            hidden,
            intermediate: fields.count("intermediate_size", 1..=1 << 20)?,
            heads,
            kv_heads,
            head_dim,
            eps: options::eps(fields, "rms_norm_eps", reading.eps)?,
            activation: options::activation(fields, reading.activation.0, reading.activation.1)?,
            rotary,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(reading.tied),
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

    /// Elements of one head.
    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// As this descendant.
    pub(super) fn boxed(self, variant: Variant) -> Box<dyn Architecture> {
        self.boxed_under("model.", variant)
    }

    /// The same, as this descendant.
    pub(super) fn with(self, variant: Variant) -> Self {
        Self { variant, ..self }
    }

    /// As this descendant, with `root` before all names.
    pub(super) fn boxed_under(self, root: &'static str, variant: Variant) -> Box<dyn Architecture> {
        let decoder = self.with(variant);
        Box::new(Stack { frame: decoder.frame(root), blocks: Box::new(decoder) })
    }

    /// Everything but the blocks.
    pub(super) fn frame(&self, root: &'static str) -> Frame {
        let gemma = self.variant.gemma;
        Frame {
            vocab: self.vocab,
            context: self.context,
            hidden: self.hidden,
            cache: CacheShape { blocks: self.blocks, heads: self.kv_heads, elements: 2 * self.head_dim },
            tied: self.tied,
            norm: self.norm(),
            scale: gemma.map(|_| (self.hidden as f64).sqrt()),
            soft_cap: gemma.and_then(|gemma| gemma.logit_cap),
            names: &NAMES,
            root,
        }
    }

    /// What the part behind attention takes in a pass.
    pub(super) fn feed_forward_stages(&self) -> Vec<Stage> {
        let mixture = self.variant.mixture.as_deref();
        let dense = (0..self.blocks).any(|index| !mixture.is_some_and(|mixture| mixture.is_in(index)));
        let cause = format!("intermediate_size is {}", self.intermediate);
        let plain = dense.then(|| Stage::feed_forward(cause, self.hidden, self.intermediate));
        plain.into_iter().chain(mixture.map(MixtureShape::stage)).collect()
    }

    fn norm(&self) -> NormKind {
        match (self.variant.norm, self.variant.gemma) {
            (Some(norm), _) => norm,
            (None, Some(_)) => NormKind::RmsFromOne(self.eps),
            (None, None) => NormKind::Rms(self.eps),
        }
    }

    /// Attention of block `index`.
    fn attention(&self, index: usize, parts: &Parts<'_>) -> Result<Attention, EngineError> {
        let (variant, dim) = (&self.variant, self.head_dim);
        let (width, kv_width) = (self.heads * dim, self.kv_heads * dim);
        let widths = [("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)];
        let [query, key, value] = self.side_by_side(parts, "qkv_proj", widths, variant.qkv_bias)?;
        let rotary = match &variant.local {
            Some((blocks, local)) if blocks[index] => local,
            _ => &self.rotary,
        };
        let gemma = variant.gemma;
        let norms = variant.qk_norm.map(|together| {
            let [queries, keys] = match together {
                Together::Head => [dim, dim],
                Together::All => [width, kv_width],
            };
            let norm = |name, size| self.norm().read(parts, name, size);
            Ok::<_, EngineError>((norm("q_norm", queries)?, norm("k_norm", keys)?))
        });
        Ok(Attention {
            query,
            key,
            value,
            output: parts.linear("o_proj", width, self.hidden, variant.output_bias)?,
            clip: variant.clip,
            norms: norms.transpose()?,
            rotary: Some(Arc::clone(rotary)),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: dim,
            window: variant.windows.get(index).copied().flatten(),
            scale: gemma.map_or(dim as f64, |gemma| gemma.query_scalar).powf(-0.5) as f32,
            soft_cap: gemma.and_then(|gemma| gemma.score_cap),
            block: index,
        })
    }

    /// Projections of what the block sees: each by its own name, or all rows of `fused`.
    fn side_by_side<const N: usize>(
        &self,
        parts: &Parts<'_>,
        fused: &str,
        outputs: [(&str, usize); N],
        bias: bool,
    ) -> Result<[Linear; N], EngineError> {
        let all = outputs.iter().map(|(_, width)| width).sum();
        let mut first = 0;
        let mut linears = Vec::with_capacity(N);
        for (name, width) in outputs {
            let rows: Range<usize> = first..first + width;
            first = rows.end;
            linears.push(match self.variant.fused {
                true => parts.linear_of(fused, self.hidden, all, &[rows], bias)?,
                false => parts.linear(name, self.hidden, width, bias)?,
            });
        }
        Ok(linears.try_into().expect("one for each of N names"))
    }

    /// What stands behind attention in block `index`, whose parts these are.
    pub(super) fn feed_forward(&self, index: usize, block: &Parts<'_>) -> Result<FeedForward, EngineError> {
        if let Some(mixture) = self.variant.mixture.as_ref().filter(|mixture| mixture.is_in(index)) {
            return Ok(FeedForward::Mixture(Box::new(mixture.layer(index as u32, block)?)));
        }
        let mlp = block.under("mlp");
        let (inner, bias, activation) = (self.intermediate, self.variant.mlp_bias, self.activation);
        if let Some([up, down]) = self.variant.plain_mlp {
            let up = mlp.linear(up, self.hidden, inner, bias)?;
            let down = mlp.linear(down, inner, self.hidden, bias)?;
            return Ok(FeedForward::Plain(Mlp { up, down, activation }));
        }
        let [gate, up] =
            self.side_by_side(&mlp, "gate_up_proj", [("gate_proj", inner), ("up_proj", inner)], bias)?;
        let down = mlp.linear("down_proj", inner, self.hidden, bias)?;
        Ok(FeedForward::Gated(GatedMlp { gate, up, down, activation }))
    }
}

impl Blocks for Decoder {
    fn stages(&self) -> Vec<Stage> {
        let (heads, dim) = (self.heads, self.head_dim);
        let cause = format!("num_attention_heads is {heads} and head_dim {dim}");
        let widths = [heads, self.kv_heads].map(|heads| heads * dim);
        let attention = Stage::attention(cause, self.hidden, widths, dim, heads / self.kv_heads);
        std::iter::once(attention).chain(self.feed_forward_stages()).collect()
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let norm =
            |name: Option<&str>| name.map(|name| self.norm().read(parts, name, self.hidden)).transpose();
        // What Llama calls after attention is before the MLP; others take the name at its word.
        let [input, attended, before, made] = [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ];
        let [before_attention, after_attention, before_mlp, after_mlp] = match self.variant.norms {
            NormPlaces::Before => [Some(input), None, Some(attended), None],
            NormPlaces::Behind => [None, Some(attended), None, Some(made)],
            NormPlaces::Around => [Some(input), Some(attended), Some(before), Some(made)],
        };
        Ok(Block {
            before_attention: norm(before_attention)?,
            attention: Attending::Here(self.attention(index, &parts.under("self_attn"))?),
            after_attention: norm(after_attention)?,
            before_mlp: norm(before_mlp)?,
            mlp: self.feed_forward(index, parts)?,
            after_mlp: norm(after_mlp)?,
            parallel: false,
        })
    }
}
