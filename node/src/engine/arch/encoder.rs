//! The encoder that BERT made common: every token sees every other, and each half of a block is
//! followed by a norm. Its kin differ in names and in how positions are counted.

use candle_core::Tensor;
use surf_chunker::{Checkpoint, Group, Stack};

use super::{Architecture, Kind, Layer, Shape, Step, Tables, root};
use crate::engine::{
    EngineError,
    cache::CacheShape,
    kernels::Activation,
    mlp::Mlp,
    norm::LayerNorm,
    parts::Parts,
    pass::Pass,
    plain_attention::{PlainAttention, Sees},
    widths::{Stage, Widths},
};

/// An encoder's structure.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    sizes: Sizes,
    names: &'static Names,
    root: &'static str,
    positions: Positions,
}

/// What a configuration says, in whatever words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) vocab: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) blocks: usize,
    pub(super) eps: f64,
    pub(super) activation: Activation,
}

/// How positions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positions {
    /// From 0, along the row.
    Places,
    /// From the number of the padding token, along the tokens that are not that one.
    After {
        /// The padding token.
        pad: u32,
    },
}

/// What the parts are called.
#[derive(Debug)]
pub(super) struct Names {
    /// What may stand before all others.
    pub(super) roots: &'static [&'static str],
    /// Whether there is a table of token types.
    pub(super) types: bool,
    pub(super) block: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attended: &'static str,
    pub(super) after_attention: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) after_mlp: &'static str,
}

impl Encoder {
    /// Finds out what the names begin with.
    pub(super) fn boxed(
        sizes: Sizes,
        names: &'static Names,
        positions: Positions,
        manifest: &Checkpoint,
    ) -> Result<Box<dyn Architecture>, EngineError> {
        let root = root(manifest, names.roots, "embeddings.word_embeddings.weight")?;
        Ok(Box::new(Self { sizes, names, root, positions }))
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let Sizes { hidden, intermediate, heads, eps, activation, .. } = self.sizes;
        let (names, whole) = (self.names, parts.under_root(self.root));
        let block = whole.under(&format!("{}.{index}", names.block));
        let linear = |name| block.linear(name, hidden, hidden, true);
        let embedded = match index {
            0 => Some(whole.layer_norm("embeddings.LayerNorm", hidden, eps)?),
            _ => None,
        };
        Ok(Block {
            embedded,
            attention: PlainAttention {
                query: linear(names.query)?,
                key: linear(names.key)?,
                value: linear(names.value)?,
                output: linear(names.attended)?,
                heads,
                head_dim: hidden / heads,
                scale: 1.0 / ((hidden / heads) as f32).sqrt(),
                sees: Sees::Sequence,
            },
            after_attention: block.layer_norm(names.after_attention, hidden, eps)?,
            mlp: Mlp {
                up: block.linear(names.up, hidden, intermediate, true)?,
                down: block.linear(names.down, intermediate, hidden, true)?,
                activation,
            },
            after_mlp: block.layer_norm(names.after_mlp, hidden, eps)?,
        })
    }
}

impl Architecture for Encoder {
    fn shape(&self) -> Shape {
        // The first positions are taken by the padding token and those before it.
        let taken = match self.positions {
            Positions::Places => 0,
            Positions::After { pad } => pad as usize + 1,
        };
        Shape {
            vocab: self.sizes.vocab,
            context: self.sizes.positions.saturating_sub(taken),
            cache: CacheShape { blocks: 0, heads: 0, elements: 0 },
            kind: Kind::Encoder { width: self.sizes.hidden },
        }
    }

    fn widths(&self) -> Widths {
        let Sizes { hidden, intermediate, heads, .. } = self.sizes;
        let cause = format!("the hidden size is {hidden}");
        let stages = vec![
            Stage::attention(cause, hidden, [hidden, hidden], hidden / heads, 1),
            Stage::feed_forward(format!("the intermediate size is {intermediate}"), hidden, intermediate),
        ];
        Widths::new(hidden, 0, stages)
    }

    fn steps(&self) -> Vec<Step> {
        let block = |index| Step { group: Group::Layer(Stack::Encoder, index as u32), head: false };
        (0..self.sizes.blocks).map(block).collect()
    }

    fn positions(&self, tokens: &[u32], _: &[bool]) -> Vec<u32> {
        match self.positions {
            Positions::Places => (0..tokens.len() as u32).collect(),
            Positions::After { pad } => {
                let mut last = pad;
                let next = tokens.iter().map(|&token| {
                    last += u32::from(token != pad);
                    if token == pad { pad } else { last }
                });
                next.collect()
            }
        }
    }

    fn embed(&self, tables: &mut dyn Tables, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let hidden = self.sizes.hidden;
        let name = |table| format!("{}embeddings.{table}.weight", self.root);
        let words = tables.rows(&name("word_embeddings"), &pass.tokens, hidden)?;
        let places = tables.rows(&name("position_embeddings"), &pass.positions, hidden)?;
        if !self.names.types {
            return Ok((words + places)?);
        }
        // Every token is of the first type: pairs of texts are not understood.
        let kind = tables.rows(&name("token_type_embeddings"), &[0], hidden)?;
        Ok((words.broadcast_add(&kind)? + places)?)
    }

    fn layer(&self, step: &Step, parts: &Parts<'_>) -> Result<Box<dyn Layer>, EngineError> {
        match &step.group {
            Group::Layer(Stack::Encoder, index) => Ok(Box::new(self.block(*index as usize, parts)?)),
            other => Err(EngineError::NoGroup(other.clone())),
        }
    }
}

#[derive(Debug)]
struct Block {
    /// The norm of the embeddings, which comes with the first block.
    embedded: Option<LayerNorm>,
    attention: PlainAttention,
    after_attention: LayerNorm,
    mlp: Mlp,
    after_mlp: LayerNorm,
}

impl Layer for Block {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let x = match &self.embedded {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let attended = self.attention.forward(&x, pass)?;
        let x = self.after_attention.forward(&(x + attended)?)?;
        let inner = self.mlp.forward(&x)?;
        self.after_mlp.forward(&(x + inner)?)
    }
}
