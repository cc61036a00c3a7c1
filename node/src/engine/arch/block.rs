//! One block of a decoder, whatever it is made of: attention, then a feed-forward part, each with a
//! norm before it, behind it, or both, added to what came in.

use candle_core::Tensor;
use surf_chunker::Group;

use super::Layer;
use crate::engine::{
    EngineError,
    attention::Attention,
    experts::Mixture,
    latent::LatentAttention,
    mlp::{GatedMlp, Mlp},
    norm::{LayerNorm, Norm},
    parts::Parts,
    pass::Pass,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) before_attention: Option<Norm>,
    pub(super) attention: Attending,
    pub(super) after_attention: Option<Norm>,
    pub(super) before_mlp: Option<Norm>,
    pub(super) mlp: FeedForward,
    pub(super) after_mlp: Option<Norm>,
    /// Whether the feed-forward part sees what attention sees, not what it makes of it.
    pub(super) parallel: bool,
}

/// How tokens see each other.
#[derive(Debug)]
pub(super) enum Attending {
    /// By keys and values that each token leaves.
    Here(Attention),
    /// By a latent that each token leaves, from which those are made.
    Latent(LatentAttention),
}

/// What a block does after its attention.
#[derive(Debug)]
pub(super) enum FeedForward {
    Gated(GatedMlp),
    Plain(Mlp),
    Mixture(Box<Mixture>),
}

/// The kind of norm that a model has, and what keeps it from dividing by zero.
#[derive(Clone, Copy, Debug)]
pub(super) enum NormKind {
    Rms(f64),
    /// With weights that are added to one.
    RmsFromOne(f64),
    Layer(f64),
    /// The same, of which nothing was learned.
    Plain(f64),
}

impl NormKind {
    /// The norm called `name` over `size` elements.
    pub(super) fn read(self, parts: &Parts<'_>, name: &str, size: usize) -> Result<Norm, EngineError> {
        Ok(match self {
            Self::Rms(eps) => Norm::Rms(parts.rms_norm(name, size, eps)?),
            Self::RmsFromOne(eps) => Norm::Rms(parts.rms_norm_from_one(name, size, eps)?),
            Self::Layer(eps) => Norm::Layer(parts.layer_norm(name, size, eps)?),
            Self::Plain(eps) => Norm::Layer(LayerNorm::plain(size, eps)),
        })
    }
}

impl Layer for Block {
    fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, EngineError> {
        let seen = normed(&self.before_attention, x)?;
        let attended = match &self.attention {
            Attending::Here(attention) => attention.forward(&seen, pass)?,
            Attending::Latent(attention) => attention.forward(&seen, pass)?,
        };
        let y = (x + normed(&self.after_attention, &attended)?)?;
        let seen = if self.parallel { x } else { &y };
        let given = normed(&self.before_mlp, seen)?;
        let made = match &self.mlp {
            FeedForward::Gated(mlp) => mlp.forward(&given)?,
            FeedForward::Plain(mlp) => mlp.forward(&given)?,
            FeedForward::Mixture(mixture) => mixture.forward(&given, seen, pass)?,
        };
        Ok((&y + normed(&self.after_mlp, &made)?)?)
    }

    fn likely(&self, x: &Tensor) -> Result<Vec<Group>, EngineError> {
        match &self.mlp {
            FeedForward::Mixture(mixture) => mixture.likely(&normed(&self.before_mlp, x)?),
            FeedForward::Gated(_) | FeedForward::Plain(_) => Ok(Vec::new()),
        }
    }
}

/// `x` through the norm, where there is one.
fn normed(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor, EngineError> {
    match norm {
        Some(norm) => norm.forward(x),
        None => Ok(x.clone()),
    }
}
