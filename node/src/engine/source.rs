//! What a decoder looks back at: the encoder's word on the prompt, as keys and values of each block.
//!
//! The prompt is encoded once. The first pass of the decoder makes every block's keys and values of
//! it, while that block's weights are here; from then on these are all that is kept.

use candle_core::Tensor;

use super::{
    EngineError,
    cache::{CacheShape, HeadCache, KvCache},
    linear::Linear,
    plain_attention::write,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Source {
    /// Until every block has made its keys and values of it.
    hidden: Option<Tensor>,
    cache: KvCache,
    tokens: usize,
}

impl Source {
    /// From the encoder's last hidden states, by tokens.
    pub(crate) fn new(hidden: Tensor, shape: CacheShape) -> Result<Self, EngineError> {
        let (tokens, _) = hidden.dims2()?;
        let mut cache = KvCache::new(shape);
        cache.grow(tokens);
        Ok(Self { hidden: Some(hidden), cache, tokens })
    }

    /// Tokens of which keys and values are to be made yet.
    pub(crate) fn unseen(&self) -> usize {
        if self.hidden.is_some() { self.tokens } else { 0 }
    }

    /// Tokens of the prompt.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The heads of one block, made by these projections if they are not there yet.
    pub(crate) fn heads(
        &mut self,
        block: usize,
        key: &Linear,
        value: &Linear,
    ) -> Result<&[HeadCache], EngineError> {
        let heads = self.cache.heads(block);
        if let Some(hidden) = &self.hidden {
            write(heads, 0, &key.forward(hidden)?, &value.forward(hidden)?)?;
        }
        Ok(heads)
    }

    /// Says that a pass over all blocks has been completed.
    pub(crate) fn complete(&mut self) {
        self.hidden = None;
    }
}
