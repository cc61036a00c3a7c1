//! Keys and values of the tokens that a sequence has seen.
//!
//! Grows with the sequence, by doubling, up to the length it was made for. What a failed pass left
//! beyond [`KvCache::len`] is overwritten by the next one.

use super::whole::Seen;

/// What a model keeps for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheShape {
    /// Blocks with attention.
    pub(crate) blocks: usize,
    /// Heads that have keys and values of their own.
    pub(crate) heads: usize,
    /// Elements of a key and a value of one head together.
    pub(crate) elements: usize,
}

impl CacheShape {
    /// Bytes for one token.
    pub(crate) fn token_bytes(&self) -> u64 {
        (self.blocks * self.heads * self.elements) as u64 * 4
    }
}

/// Keys and values of one sequence.
#[derive(Debug)]
pub(crate) struct KvCache {
    blocks: Vec<Vec<HeadCache>>,
    len: usize,
    /// What a model that is not ours keeps instead.
    pub(crate) whole: Option<Seen>,
}

/// Keys and values of one head in one block, by tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    pub(crate) fn new(shape: CacheShape) -> Self {
        Self { blocks: vec![vec![HeadCache::default(); shape.heads]; shape.blocks], len: 0, whole: None }
    }

    /// Tokens in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Says that a pass over `tokens` more has been completed.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The heads of one block.
    pub(crate) fn heads(&mut self, block: usize) -> &mut [HeadCache] {
        &mut self.blocks[block]
    }
}

impl HeadCache {
    /// Writes the key and value of the token at `position`, each of one head's size. Positions are
    /// written in order.
    pub(crate) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        self.keys.truncate(position * key.len());
        self.keys.extend_from_slice(key);
        self.values.truncate(position * value.len());
        self.values.extend_from_slice(value);
    }

    /// All keys, by tokens.
    pub(crate) fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// All values, by tokens.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }
}
