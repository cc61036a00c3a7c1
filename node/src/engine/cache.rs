//! Keys and values of the tokens that a sequence has seen.
//!
//! Grows with the sequence, in steps that are reserved first ([`KvCache::grow`]). What a failed pass left
//! beyond [`KvCache::len`] is overwritten by the next one.

/// Bytes of a head's cache without keys and values: itself, and what the allocator needs for two of them.
const HEAD_BYTES: usize = size_of::<HeadCache>() + 64;

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

    /// Bytes of a cache with room for so many tokens.
    pub(crate) fn bytes(&self, tokens: usize) -> u64 {
        let empty = (self.blocks * self.heads * HEAD_BYTES) as u64;
        self.token_bytes().saturating_mul(tokens as u64).saturating_add(empty)
    }

    /// The same, without keys and values: what an encoder keeps.
    pub(crate) fn nothing(self) -> Self {
        Self { blocks: 0, ..self }
    }
}

/// Keys and values of one sequence.
#[derive(Debug)]
pub(crate) struct KvCache {
    blocks: Vec<Vec<HeadCache>>,
    len: usize,
}

/// Keys and values of one head in one block, by tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Tokens that it may have without growing.
    room: usize,
}

impl KvCache {
    pub(crate) fn new(shape: CacheShape) -> Self {
        Self { blocks: vec![vec![HeadCache::default(); shape.heads]; shape.blocks], len: 0 }
    }

    /// Tokens in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Says that a pass over `tokens` more has been completed.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Gives it room for `tokens` in all. Memory is taken when they come.
    pub(crate) fn grow(&mut self, tokens: usize) {
        self.blocks.iter_mut().flatten().for_each(|head| head.room = tokens);
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
        let room = self.room.max(position + 1);
        put(&mut self.keys, position, key, room);
        put(&mut self.values, position, value, room);
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

/// Writes `part` at `position` of `all`, which takes memory for `room` of them when it must grow.
fn put(all: &mut Vec<f32>, position: usize, part: &[f32], room: usize) {
    all.truncate(position * part.len());
    if all.capacity() < all.len() + part.len() {
        all.reserve_exact(room * part.len() - all.len());
    }
    all.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_what_was_reserved_and_no_more() {
        let shape = CacheShape { blocks: 2, heads: 3, elements: 8 };
        assert_eq!(shape.token_bytes(), 2 * 3 * 8 * 4);
        assert_eq!(shape.bytes(10) - shape.bytes(0), 10 * shape.token_bytes());
        let mut cache = KvCache::new(shape);
        cache.grow(100);
        let head = &mut cache.heads(1)[2];
        (0..100).for_each(|at| head.write(at, &[at as f32; 4], &[0.5; 4]));
        assert_eq!((head.keys.capacity(), head.values.capacity()), (400, 400));
        assert_eq!(head.keys()[396..], [99.0; 4]);
        head.write(10, &[7.0; 4], &[7.0; 4]);
        assert_eq!((head.keys().len(), head.keys.capacity()), (44, 400));
        cache.grow(101);
        let head = &mut cache.heads(1)[2];
        (11..101).for_each(|at| head.write(at, &[0.0; 4], &[0.0; 4]));
        assert_eq!(head.keys.capacity(), 404);
    }
}
