//! What all decoder-only models are: an embedding, blocks one after the other, and a head, which may
//! be the embedding's table once more. Families differ in what things are called, and in their blocks.

use std::fmt;

use candle_core::Tensor;
use surf_chunker::{Checkpoint, Group, Stack as Of};

use super::{Architecture, Kind, Layer, Shape, Step, Tables, block::Block, block::NormKind};
use crate::engine::{
    EngineError,
    cache::CacheShape,
    gguf, host, kernels,
    norm::Norm,
    parts::Parts,
    pass::Pass,
    projection::Projection,
    widths::{Stage, Widths},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) frame: Frame,
    pub(super) blocks: Box<dyn Blocks>,
}

/// Everything but the blocks.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) vocab: usize,
    pub(super) context: usize,
    pub(super) hidden: usize,
    pub(super) cache: CacheShape,
    /// Whether the head is the embedding's table; none that is there is used instead.
    pub(super) tied: bool,
    pub(super) norm: NormKind,
    /// On the embedding.
    pub(super) scale: Option<f64>,
    /// Between which logits are pressed, where they are.
    pub(super) soft_cap: Option<f32>,
    pub(super) names: &'static Names,
    /// What stands before all names but the head's.
    pub(super) root: &'static str,
}

/// What the parts are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// The input embedding.
    pub(super) table: &'static str,
    /// The embedding of positions, where they are learned.
    pub(super) positions: Option<&'static str>,
    /// The blocks, before their numbers.
    pub(super) blocks: &'static str,
    /// The last norm.
    pub(super) norm: &'static str,
    /// The projection to logits, which stands beside the root.
    pub(super) heads: &'static [&'static str],
    /// Whether that has a bias.
    pub(super) head_bias: bool,
}

/// What makes a family's blocks.
pub(super) trait Blocks: fmt::Debug + Send + Sync {
    /// What a block takes in a pass.
    fn stages(&self) -> Vec<Stage>;

    /// Block `index`, whose parts these are.
    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError>;
}

/// Llama's names, and those of most others.
pub(super) const NAMES: Names = Names {
    table: "embed_tokens",
    positions: None,
    blocks: "layers",
    norm: "norm",
    heads: &["lm_head", "language_model.lm_head"],
    head_bias: false,
};

impl Stack {
    /// Whether it has weights of its own behind the blocks: a projection, or a norm with something learned.
    fn has_head(&self) -> bool {
        !self.frame.tied || !matches!(self.frame.norm, NormKind::Plain(_))
    }
}

impl Architecture for Stack {
    fn shape(&self) -> Shape {
        Shape {
            vocab: self.frame.vocab,
            context: self.frame.context,
            cache: self.frame.cache,
            kind: Kind::Causal,
        }
    }

    fn widths(&self) -> Widths {
        Widths::new(self.frame.hidden, self.frame.vocab, self.blocks.stages())
    }

    fn steps(&self) -> Vec<Step> {
        let block = |index| Step { group: Group::Layer(Of::Decoder, index as u32), head: false };
        let mut steps: Vec<Step> = (0..self.frame.cache.blocks).map(block).collect();
        if self.has_head() {
            steps.push(Step { group: Group::Head, head: true });
        }
        if self.frame.tied {
            steps.push(Step { group: Group::Embed, head: true });
        }
        steps
    }

    /// A decoder that was saved alone has no root. A head that is there is used, whatever the configuration
    /// says of the embedding.
    fn settle(&mut self, manifest: &Checkpoint) -> Result<(), EngineError> {
        let has =
            |module: &str| gguf::find(&format!("{module}.weight"), |name| manifest.tensor(name)).is_some();
        let Frame { names, root, .. } = self.frame;
        if has(names.table) && !has(&format!("{root}{}", names.table)) {
            self.frame.root = "";
        }
        let has_head = names.heads.iter().any(|head| has(head));
        if !has_head && !self.frame.tied && has(&format!("{}{}", self.frame.root, names.table)) {
            let reason = "is missing, and tie_word_embeddings is not set: the model generates no text";
            return Err(EngineError::tensor(format!("{}.weight", names.heads[0]), reason));
        }
        self.frame.tied &= !has_head;
        Ok(())
    }

    fn embed(&self, tables: &mut dyn Tables, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let Frame { root, names, hidden, .. } = self.frame;
        let mut rows = |name, rows: &[u32]| tables.rows(&format!("{root}{name}.weight"), rows, hidden);
        let mut x = rows(names.table, &pass.tokens)?;
        if let Some(positions) = names.positions {
            x = (x + rows(positions, &pass.positions)?)?;
        }
        match self.frame.scale {
            Some(scale) => Ok((x * scale)?),
            None => Ok(x),
        }
    }

    fn layer(&self, step: &Step, parts: &Parts<'_>) -> Result<Box<dyn Layer>, EngineError> {
        let Frame { root, names, hidden, vocab, norm, soft_cap, .. } = self.frame;
        let rooted = parts.under_root(root);
        match &step.group {
            Group::Layer(Of::Decoder, index) => {
                let index = *index as usize;
                let parts = rooted.under(&format!("{}.{index}", names.blocks));
                Ok(Box::new(self.blocks.block(index, &parts)?))
            }
            Group::Head => {
                let norm = Some(norm.read(&rooted, names.norm, hidden)?);
                if self.frame.tied {
                    return Ok(Box::new(Head { norm, projection: None, soft_cap: None }));
                }
                let here = names.heads.iter().find(|name| parts.has(&format!("{name}.weight")));
                let name = here.unwrap_or(&names.heads[0]);
                let projection = Some(parts.to_logits(name, hidden, vocab, names.head_bias)?);
                Ok(Box::new(Head { norm, projection, soft_cap }))
            }
            Group::Embed => {
                let projection = Some(rooted.to_logits(names.table, hidden, vocab, false)?);
                let norm = match self.has_head() {
                    true => None,
                    false => Some(norm.read(&rooted, names.norm, hidden)?),
                };
                Ok(Box::new(Head { norm, projection, soft_cap }))
            }
            other => Err(EngineError::NoGroup(other.clone())),
        }
    }
}

/// The final norm, the projection to logits, or both.
#[derive(Debug)]
struct Head {
    norm: Option<Norm>,
    projection: Option<Projection>,
    soft_cap: Option<f32>,
}

impl Layer for Head {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let mut x = match &self.norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        if let Some(projection) = &self.projection {
            x = projection.forward(&x, pass.weights)?;
        }
        let Some(cap) = self.soft_cap else { return Ok(x) };
        let (rows, cols) = x.dims2()?;
        let mut logits = host::copy(&x)?;
        kernels::soft_cap(&mut logits, cap);
        host::tensor(logits, rows, cols)
    }
}
