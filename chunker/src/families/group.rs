//! What inference needs at once, and in which order.

use std::fmt;

use super::named::Natural;

/// What inference needs at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Token and position embeddings.
    Embed,
    /// One transformer layer, without its routed experts.
    Layer(Stack, u32),
    /// One routed expert of a layer.
    Expert {
        /// The stack of layers.
        stack: Stack,
        /// The layer in the stack.
        layer: u32,
        /// The expert in the layer.
        expert: u32,
    },
    /// What follows the last layer of a stack before the next part: its final norm.
    Norm(Stack),
    /// Final norm and output projection.
    Head,
    /// Tensors of a model whose structure is not known, by the numbered part of their names.
    Named(String),
}

/// A stack of layers. Most models have only a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stack {
    /// Layers that see the whole input, of encoder and encoder-decoder models.
    Encoder,
    /// Layers that generate.
    Decoder,
}

/// When a group is used in a pass; greater is later. Named groups come last, in natural order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use<'a> {
    Embed,
    Stack(Stack, Within),
    Head,
    Named(Natural<'a>),
}

/// When a group of a stack is used.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Within {
    /// A layer, then its experts.
    Layer(u32, Option<u32>),
    /// The stack's final norm, before the next stack begins.
    Norm,
}

impl<'a> Use<'a> {
    pub(crate) fn of(group: &'a Group) -> Self {
        match group {
            Group::Embed => Self::Embed,
            Group::Layer(stack, layer) => Self::Stack(*stack, Within::Layer(*layer, None)),
            Group::Expert { stack, layer, expert } => {
                Self::Stack(*stack, Within::Layer(*layer, Some(*expert)))
            }
            Group::Norm(stack) => Self::Stack(*stack, Within::Norm),
            Group::Head => Self::Head,
            Group::Named(name) => Self::Named(Natural(name)),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("embed"),
            Self::Layer(stack, index) => write!(f, "{stack}layer {index}"),
            Self::Expert { stack, layer, expert } => write!(f, "{stack}layer {layer} expert {expert}"),
            Self::Norm(stack) => write!(f, "{stack}norm"),
            Self::Head => f.write_str("head"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Stack {
    /// Nothing for a decoder, which is the ordinary case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encoder => "encoder ",
            Self::Decoder => "",
        })
    }
}
