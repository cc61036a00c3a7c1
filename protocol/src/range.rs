//! Part of a chunk, with the hashes that prove it belongs there.
//!
//! A chunk's id is the root of a BLAKE3 tree, so any range of its bytes can be proven with a few
//! sibling hashes (Bao, <https://github.com/oconnor663/bao>, in groups of 16 KiB). This is how a
//! handful of embedding rows is fetched without the table.

use std::ops::Range;

use bao_tree::{
    BaoTree, BlockSize, ByteRanges, ChunkRanges,
    io::{
        BaoContentItem,
        outboard::PostOrderMemOutboard,
        round_up_to_chunks,
        sync::{DecodeResponseIter, encode_ranges},
    },
};
use bytes::{Bytes, BytesMut};

use crate::{Chunk, ChunkId, limits::CHUNK_SIZE_MAX};

/// Bytes that one leaf of the tree covers: 16 KiB, so the hashes are 0.4 % of the data.
const BLOCK: BlockSize = BlockSize::from_chunk_log(4);

/// Bytes of a chunk that were proven to stand at `range` in it.
///
/// There is no other constructor than [`VerifiedRange::verify`] and [`VerifiedRange::of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRange {
    id: ChunkId,
    start: u32,
    bytes: Bytes,
}

/// Why bytes were not accepted as the range that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// The range is empty or does not lie in the chunk.
    #[error("bytes {}..{} are not in a chunk of {size}", range.start, range.end)]
    OutOfBounds {
        /// The range that was asked for.
        range: Range<u32>,
        /// Bytes in the chunk.
        size: u32,
    },
    /// The hashes do not lead from the bytes to the chunk's id, or bytes are missing.
    #[error("a range of chunk {id} is not what it claims to be")]
    Unproven {
        /// The chunk.
        id: ChunkId,
        /// What the decoder found.
        #[source]
        cause: bao_tree::io::DecodeError,
    },
    /// Bytes follow the proven range.
    #[error("a range of chunk {0} has bytes after its end")]
    Trailing(ChunkId),
}

impl VerifiedRange {
    /// Checks a `slice` made by [`encode`] from the chunk `id` of `size` bytes.
    pub fn verify(id: ChunkId, size: u32, range: Range<u32>, slice: &[u8]) -> Result<Self, RangeError> {
        check_bounds(&range, size)?;
        let root = blake3::Hash::from_bytes(*id.as_bytes());
        let tree = BaoTree::new(size.into(), BLOCK);
        let wanted = chunk_ranges(&range);
        let mut rest = slice;
        let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
        for item in DecodeResponseIter::new(root, tree, &mut rest, &wanted) {
            let item = item.map_err(|cause| RangeError::Unproven { id, cause })?;
            if let BaoContentItem::Leaf(leaf) = item {
                // Leaves cover whole blocks; keep the part that was asked for.
                let leaf_end = leaf.offset + leaf.data.len() as u64;
                let from = leaf.offset.max(range.start.into());
                let to = leaf_end.min(range.end.into());
                if from < to {
                    let inside = (from - leaf.offset) as usize..(to - leaf.offset) as usize;
                    bytes.extend_from_slice(&leaf.data[inside]);
                }
            }
        }
        if !rest.is_empty() {
            return Err(RangeError::Trailing(id));
        }
        Ok(Self { id, start: range.start, bytes: bytes.freeze() })
    }

    /// A range of a chunk that is already here. Shares the chunk's bytes.
    pub fn of(chunk: &Chunk, range: Range<u32>) -> Result<Self, RangeError> {
        check_bounds(&range, chunk.bytes().len() as u32)?;
        let bytes = chunk.bytes().slice(range.start as usize..range.end as usize);
        Ok(Self { id: chunk.id(), start: range.start, bytes })
    }

    /// The chunk that the bytes are of.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Where in the chunk the bytes stand.
    pub fn range(&self) -> Range<u32> {
        self.start..self.start + self.bytes.len() as u32
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The bytes of `range` in a chunk, interleaved with the hashes that prove them.
///
/// Hashes the whole chunk once, to find its tree.
pub fn encode(chunk: &[u8], range: Range<u32>) -> Result<Vec<u8>, RangeError> {
    check_bounds(&range, u32::try_from(chunk.len()).unwrap_or(u32::MAX))?;
    let tree = PostOrderMemOutboard::create(chunk, BLOCK);
    let mut slice = Vec::new();
    encode_ranges(chunk, &tree, &chunk_ranges(&range), &mut slice)
        .expect("reading and writing memory cannot fail");
    Ok(slice)
}

/// The most bytes that [`encode`] can give for a range of `len` bytes: whole blocks at both ends,
/// and two hashes for each node on the way.
pub fn encoded_size_max(len: u32) -> usize {
    let blocks = len as usize / BLOCK.bytes() + 2;
    let depth = (CHUNK_SIZE_MAX / BLOCK.bytes()).ilog2() as usize + 1;
    blocks * BLOCK.bytes() + (blocks + 2 * depth) * 64
}

fn chunk_ranges(range: &Range<u32>) -> ChunkRanges {
    round_up_to_chunks(&ByteRanges::from(u64::from(range.start)..u64::from(range.end)))
}

fn check_bounds(range: &Range<u32>, size: u32) -> Result<(), RangeError> {
    let inside = range.start < range.end && range.end <= size && size as usize <= CHUNK_SIZE_MAX;
    if inside { Ok(()) } else { Err(RangeError::OutOfBounds { range: range.clone(), size }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(size: usize) -> Chunk {
        Chunk::of((0..size).map(|i| (i * i % 251) as u8).collect::<Vec<_>>().into())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_range_proves_itself(size in 1usize..200_000, a in 0u32..200_000, len in 1u32..70_000) {
            let chunk = chunk(size);
            let start = a % size as u32;
            let range = start..(start + len).min(size as u32);
            let slice = encode(chunk.bytes(), range.clone()).unwrap();
            prop_assert!(slice.len() <= encoded_size_max(range.end - range.start));
            let got = VerifiedRange::verify(chunk.id(), size as u32, range.clone(), &slice).unwrap();
            prop_assert_eq!(&got, &VerifiedRange::of(&chunk, range).unwrap());
        }

        #[test]
        fn one_flipped_byte_is_refused(size in 1usize..100_000, at in any::<prop::sample::Index>()) {
            let chunk = chunk(size);
            let range = 0..(size as u32).min(5_000);
            let mut slice = encode(chunk.bytes(), range.clone()).unwrap();
            let at = at.index(slice.len());
            slice[at] ^= 1;
            prop_assert!(VerifiedRange::verify(chunk.id(), size as u32, range, &slice).is_err());
        }

        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..5_000), size in 1u32..9_000_000) {
            let result = VerifiedRange::verify(ChunkId::of(b"x"), size, 0..size.min(4_000), &noise);
            prop_assert!(result.is_err());
        }
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let chunk = chunk(40_000);
        let mut slice = encode(chunk.bytes(), 0..100).unwrap();
        slice.push(0);
        let result = VerifiedRange::verify(chunk.id(), 40_000, 0..100, &slice);
        assert!(matches!(result, Err(RangeError::Trailing(_))));
    }

    #[test]
    fn ranges_outside_the_chunk_are_refused() {
        let chunk = chunk(100);
        let backwards = Range { start: 7, end: 3 };
        for range in [0..101, 100..100, backwards, 90..u32::MAX] {
            assert!(encode(chunk.bytes(), range.clone()).is_err());
            assert!(VerifiedRange::of(&chunk, range.clone()).is_err());
            assert!(VerifiedRange::verify(chunk.id(), 100, range, b"").is_err());
        }
    }
}
