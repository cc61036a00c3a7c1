//! T5 and its descendants: an encoder, and a decoder that sees what the encoder said. Positions are
//! biases by distance, in the first block of each stack and used by all; scores are not scaled.
//! Saved without a decoder, it is an encoder.

use std::sync::Arc;

use candle_core::Tensor;
use surf_chunker::{
    Checkpoint, Group,
    Stack::{self, Decoder, Encoder},
};

use super::{Architecture, Kind, Layer, Shape, Step, Tables, options, root};
use crate::engine::{
    EngineError,
    cache::CacheShape,
    distances::{Buckets, Distances},
    fields::Fields,
    kernels::Activation,
    mlp::{GatedMlp, Mlp},
    norm::RmsNorm,
    parts::Parts,
    pass::Pass,
    plain_attention::{PlainAttention, Sees},
    projection::Projection,
    widths::{Stage, Widths},
};

/// Tokens in a prompt or an answer. The model itself knows no bound.
const CONTEXT: usize = 1 << 14;

/// What may stand before all names.
const ROOTS: [&str; 2] = ["", "transformer."];

/// The embedding, by any of its names.
const TABLES: [&str; 3] = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

#[derive(Clone, Debug)]
struct T5 {
    root: &'static str,
    table: String,
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    head_dim: usize,
    eps: f64,
    activation: Activation,
    gated: bool,
    buckets: Buckets,
    encoder_blocks: usize,
    /// None: it is an encoder.
    decoder: Option<Decoding>,
}

#[derive(Clone, Copy, Debug)]
struct Decoding {
    blocks: usize,
    start: u32,
    /// Whether the head is the embedding.
    tied: bool,
    /// What the last hidden state is multiplied with.
    scale: f64,
}

pub(super) fn read(fields: &Fields<'_>, manifest: &Checkpoint) -> Result<Box<dyn Architecture>, EngineError> {
    let root = root(manifest, &ROOTS, "encoder.block.0.layer.0.SelfAttention.q.weight")?;
    let has = |name: &str| manifest.tensor(&format!("{root}{name}")).is_some();
    let hidden = fields.count("d_model", 1..=1 << 16)?;
    let encoder_blocks = fields.count("num_layers", 1..=1024)?;
    let decoder = match has("decoder.block.0.layer.0.SelfAttention.q.weight") {
        true => Some(Decoding {
            blocks: fields.count_if("num_decoder_layers", 1..=1024)?.unwrap_or(encoder_blocks),
            start: start(fields)?,
            tied: manifest.tensor("lm_head.weight").is_none(),
            scale: if is_scaled(fields)? { (hidden as f64).powf(-0.5) } else { 1.0 },
        }),
        false => None,
    };
    let (activation, gated) = activation(fields)?;
    let table = TABLES.into_iter().find(|name| has(name)).unwrap_or(TABLES[0]);
    Ok(Box::new(T5 {
        root,
        table: format!("{root}{table}"),
        vocab: fields.count("vocab_size", 1..=1 << 22)?,
        hidden,
        intermediate: fields.count("d_ff", 1..=1 << 20)?,
        heads: fields.count("num_heads", 1..=1024)?,
        head_dim: fields.count("d_kv", 1..=1024)?,
        eps: options::eps(fields, "layer_norm_epsilon", 1e-6)?,
        activation,
        gated,
        buckets: buckets(fields)?,
        encoder_blocks,
        decoder,
    }))
}

/// The token that generation begins after.
fn start(fields: &Fields<'_>) -> Result<u32, EngineError> {
    let token = |name| fields.count_if(name, 0..=u32::MAX as usize);
    let start = token("decoder_start_token_id")?.or(token("pad_token_id")?).unwrap_or(0);
    Ok(start as u32)
}

/// Whether the head's input is scaled: said outright since transformers 5, before that by whether the
/// head is the embedding.
fn is_scaled(fields: &Fields<'_>) -> Result<bool, EngineError> {
    let said = fields.flag("scale_decoder_outputs")?;
    Ok(said.or(fields.flag("tie_word_embeddings")?).unwrap_or(true))
}

/// What is between the products of a block's second half, and whether there are three of them.
fn activation(fields: &Fields<'_>) -> Result<(Activation, bool), EngineError> {
    let said = fields.text("feed_forward_proj")?.unwrap_or("relu");
    let (gated, name) = match said.split_once('-') {
        None => (false, said),
        Some(("gated", "gelu")) => (true, "gelu_new"),
        Some(("gated", name)) => (true, name),
        Some(_) => {
            return Err(fields.invalid("feed_forward_proj", format!("is {said:?}, which is not known")));
        }
    };
    let outright = fields.text("dense_act_fn")?;
    let gated = fields.flag("is_gated_act")?.unwrap_or(gated);
    let field = if outright.is_some() { "dense_act_fn" } else { "feed_forward_proj" };
    let name = outright.unwrap_or(name);
    let known = Activation::named(name);
    let known = known.ok_or_else(|| fields.invalid(field, format!("is {name:?}, which is not known")))?;
    Ok((known, gated))
}

/// How distances are sorted, for keys on both sides.
fn buckets(fields: &Fields<'_>) -> Result<Buckets, EngineError> {
    let count = fields.count_if("relative_attention_num_buckets", 4..=1 << 12)?.unwrap_or(32);
    let distance_max = fields.count_if("relative_attention_max_distance", 1..=1 << 13)?.unwrap_or(128);
    if distance_max <= count / 2 {
        let reason = format!("is {distance_max}; {count} buckets reach farther");
        return Err(fields.invalid("relative_attention_max_distance", reason));
    }
    Ok(Buckets { count, distance_max, both_ways: true })
}

impl T5 {
    fn block(&self, stack: Stack, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let (name, sees) = match stack {
            Encoder => ("encoder", Sees::Sequence),
            Decoder => ("decoder", Sees::Past { block: index }),
        };
        let parts = parts.under_root(self.root).under(&format!("{name}.block.{index}"));
        let part = |number: usize| parts.under(&format!("layer.{number}"));
        let norm = |part: &Parts<'_>| part.rms_norm("layer_norm", self.hidden, self.eps);
        let (first, middle, last) = (part(0), part(1), part(if stack == Encoder { 1 } else { 2 }));
        let before = match stack {
            Encoder => None,
            Decoder => {
                let attention = middle.under("EncDecAttention");
                Some((norm(&middle)?, self.attention(&attention, Sees::Source { block: index })?))
            }
        };
        let own = first.under("SelfAttention");
        let distances = match index {
            0 => {
                let table = own.table("relative_attention_bias", self.buckets.count, self.heads)?;
                let buckets = Buckets { both_ways: stack == Encoder, ..self.buckets };
                Some(Arc::new(Distances::new(&table, self.heads, buckets)))
            }
            _ => None,
        };
        Ok(Block {
            distances,
            before_attention: norm(&first)?,
            attention: self.attention(&own, sees)?,
            source: before,
            before_mlp: norm(&last)?,
            mlp: self.mlp(&last.under("DenseReluDense"))?,
        })
    }

    fn attention(&self, parts: &Parts<'_>, sees: Sees) -> Result<PlainAttention, EngineError> {
        let (hidden, width) = (self.hidden, self.heads * self.head_dim);
        Ok(PlainAttention {
            query: parts.linear("q", hidden, width, false)?,
            key: parts.linear("k", hidden, width, false)?,
            value: parts.linear("v", hidden, width, false)?,
            output: parts.linear("o", width, hidden, false)?,
            heads: self.heads,
            head_dim: self.head_dim,
            scale: 1.0,
            sees,
        })
    }

    fn mlp(&self, parts: &Parts<'_>) -> Result<Inner, EngineError> {
        let (hidden, intermediate, activation) = (self.hidden, self.intermediate, self.activation);
        let up = |name| parts.linear(name, hidden, intermediate, false);
        let down = parts.linear("wo", intermediate, hidden, false)?;
        Ok(match self.gated {
            true => Inner::Gated(GatedMlp { gate: up("wi_0")?, up: up("wi_1")?, down, activation }),
            false => Inner::Plain(Mlp { up: up("wi")?, down, activation }),
        })
    }
}

impl Architecture for T5 {
    fn shape(&self) -> Shape {
        let blocks = self.decoder.map_or(0, |decoder| decoder.blocks);
        Shape {
            vocab: self.vocab,
            context: CONTEXT,
            cache: CacheShape { blocks, heads: self.heads, elements: 2 * self.head_dim },
            kind: match self.decoder {
                Some(Decoding { start, .. }) => Kind::Seq2Seq { start, width: self.hidden },
                None => Kind::Encoder { width: self.hidden },
            },
        }
    }

    fn widths(&self) -> Widths {
        let Self { hidden, intermediate, heads, head_dim, .. } = *self;
        let width = heads * head_dim;
        let cause = format!("num_heads is {heads} and d_kv {head_dim}");
        let stages = vec![
            Stage::attention(cause, hidden, [width, width], head_dim, 1),
            Stage::feed_forward(format!("d_ff is {intermediate}"), hidden, intermediate),
        ];
        // Each stack has a table of biases, which is widened once more while it is made.
        let biases = 3 * Distances::bytes(heads, self.buckets);
        let vocab = self.decoder.map_or(0, |_| self.vocab);
        Widths::new(hidden, vocab, stages).with_fixed(biases)
    }

    fn steps(&self) -> Vec<Step> {
        let step = |group| Step { group, head: false };
        let blocks = |stack, count| (0..count).map(move |at| step(Group::Layer(stack, at as u32)));
        let mut steps: Vec<Step> = blocks(Encoder, self.encoder_blocks).collect();
        steps.push(step(Group::Norm(Encoder)));
        if let Some(decoder) = self.decoder {
            steps.extend(blocks(Decoder, decoder.blocks));
            steps.push(Step { group: Group::Head, head: true });
            steps.extend(decoder.tied.then_some(Step { group: Group::Embed, head: true }));
        }
        steps
    }

    fn embed(&self, tables: &mut dyn Tables, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        tables.rows(&self.table, &pass.tokens, self.hidden)
    }

    fn layer(&self, step: &Step, parts: &Parts<'_>) -> Result<Box<dyn Layer>, EngineError> {
        let norm = |name| parts.under_root(self.root).rms_norm(name, self.hidden, self.eps);
        let project = |name| parts.to_logits(name, self.hidden, self.vocab, false);
        match (&step.group, self.decoder) {
            (Group::Layer(stack, index), _) => Ok(Box::new(self.block(*stack, *index as usize, parts)?)),
            (Group::Norm(Encoder), _) => {
                let norm = Some(norm("encoder.final_layer_norm")?);
                Ok(Box::new(Last { norm, scale: 1.0, projection: None }))
            }
            (Group::Head, Some(Decoding { tied, scale, .. })) => {
                let norm = Some(norm("decoder.final_layer_norm")?);
                let projection = if tied { None } else { Some(project("lm_head")?) };
                Ok(Box::new(Last { norm, scale, projection }))
            }
            (Group::Embed, Some(_)) => {
                let table = self.table.strip_suffix(".weight").unwrap_or(&self.table);
                Ok(Box::new(Last { norm: None, scale: 1.0, projection: Some(project(table)?) }))
            }
            (other, _) => Err(EngineError::NoGroup(other.clone())),
        }
    }
}

#[derive(Debug)]
struct Block {
    /// Biases that this block and all after it use, in the first.
    distances: Option<Arc<Distances>>,
    before_attention: RmsNorm,
    attention: PlainAttention,
    /// In a decoder: what comes before looking back at the encoder, and that.
    source: Option<(RmsNorm, PlainAttention)>,
    before_mlp: RmsNorm,
    mlp: Inner,
}

/// The second half of a block.
#[derive(Debug)]
enum Inner {
    Plain(Mlp),
    Gated(GatedMlp),
}

impl Layer for Block {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        if let Some(distances) = &self.distances {
            pass.distances = Some(Arc::clone(distances));
        }
        let mut x = (x + self.attention.forward(&self.before_attention.forward(x)?, pass)?)?;
        if let Some((norm, attention)) = &self.source {
            x = (&x + attention.forward(&norm.forward(&x)?, pass)?)?;
        }
        let normed = self.before_mlp.forward(&x)?;
        let inner = match &self.mlp {
            Inner::Plain(mlp) => mlp.forward(&normed)?,
            Inner::Gated(mlp) => mlp.forward(&normed)?,
        };
        Ok((x + inner)?)
    }
}

/// A stack's norm, the projection to logits, or both.
#[derive(Debug)]
struct Last {
    norm: Option<RmsNorm>,
    scale: f64,
    projection: Option<Projection>,
}

impl Layer for Last {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let x = match &self.norm {
            Some(norm) => (norm.forward(x)? * self.scale)?,
            None => x.clone(),
        };
        match &self.projection {
            Some(projection) => projection.forward(&x, pass.weights),
            None => Ok(x),
        }
    }
}
