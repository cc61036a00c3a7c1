//! Bytes that have been checked.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{id::ChunkId, limits::CHUNK_SIZE_MAX};

/// Bytes that hash to `id`.
///
/// There is no other constructor than [`Chunk::verify`] and [`Chunk::of`], so holding a `Chunk`
/// is proof that the check was made. Nothing downstream checks again.
///
/// Memory of ours cannot change behind our back, but a mapped file can: whoever computes with a chunk
/// that [lies in a file](Chunk::is_in_file) asks [afterwards](Chunk::is_unchanged) whether it still counts.
#[derive(Clone, Debug)]
pub struct Chunk {
    id: ChunkId,
    bytes: Bytes,
    file: Option<Arc<dyn InFile>>,
}

/// A file that the bytes of a chunk are a mapping of.
pub trait InFile: fmt::Debug + Send + Sync {
    /// Whether the bytes are still those that were checked, as far as the system can tell.
    fn is_unchanged(&self) -> bool;
}

/// Why bytes were not accepted as the chunk that was asked for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// The bytes hash to something else.
    #[error("asked for chunk {asked}, got bytes of {got}")]
    Mismatch {
        /// The id that was asked for.
        asked: ChunkId,
        /// The id of the bytes that came.
        got: ChunkId,
    },
    /// More bytes than any chunk may have.
    #[error("{size} bytes is more than a chunk may have ({CHUNK_SIZE_MAX})")]
    TooLarge {
        /// How many bytes came.
        size: usize,
    },
}

impl Chunk {
    /// Checks that `bytes` are what `asked` names. Hashes them on the calling thread.
    pub fn verify(asked: ChunkId, bytes: Bytes) -> Result<Self, VerifyError> {
        if CHUNK_SIZE_MAX < bytes.len() {
            return Err(VerifyError::TooLarge { size: bytes.len() });
        }
        let got = ChunkId::of(&bytes);
        if got != asked {
            return Err(VerifyError::Mismatch { asked, got });
        }
        Ok(Self { id: asked, bytes, file: None })
    }

    /// Names `bytes` by hashing them. For publishing: the bytes are ours.
    pub fn of(bytes: Bytes) -> Self {
        assert!(bytes.len() <= CHUNK_SIZE_MAX, "the chunker bounds chunks");
        Self { id: ChunkId::of(&bytes), bytes, file: None }
    }

    /// Says that the bytes are a mapping of `file`: they cost address space, but no memory that the
    /// system could not take back, so whoever uses them again may keep them.
    #[must_use]
    pub fn in_file(self, file: Arc<dyn InFile>) -> Self {
        Self { file: Some(file), ..self }
    }

    /// Whether the bytes are a mapping of a file.
    pub fn is_in_file(&self) -> bool {
        self.file.is_some()
    }

    /// Whether the bytes are still those that were checked. Asks the system, if they lie in a file.
    pub fn is_unchanged(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.is_unchanged())
    }

    /// The name of this chunk.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The bytes of this chunk.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Where the bytes lie makes no difference.
impl PartialEq for Chunk {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Chunk {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct File(bool);

    impl InFile for File {
        fn is_unchanged(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn a_mapped_chunk_is_the_same_chunk() {
        let chunk = Chunk::of(Bytes::from_static(b"layer 7"));
        let mapped = chunk.clone().in_file(Arc::new(File(true)));
        assert!(chunk.is_unchanged() && mapped.is_unchanged());
        assert!(!chunk.clone().in_file(Arc::new(File(false))).is_unchanged());
        assert!(mapped.is_in_file() && !chunk.is_in_file());
        assert_eq!(mapped, chunk);
        assert_ne!(mapped, Chunk::of(Bytes::from_static(b"layer 6")));
    }

    #[test]
    fn one_flipped_bit_is_refused() {
        let chunk = Chunk::of(Bytes::from_static(b"layer 7"));
        assert!(Chunk::verify(chunk.id(), Bytes::from_static(b"layer 7")).is_ok());
        let err = Chunk::verify(chunk.id(), Bytes::from_static(b"layer 6")).unwrap_err();
        assert!(matches!(err, VerifyError::Mismatch { asked, .. } if asked == chunk.id()));
    }

    #[test]
    fn more_than_a_chunk_is_refused_unhashed() {
        let bytes = Bytes::from(vec![0; CHUNK_SIZE_MAX + 1]);
        let err = Chunk::verify(ChunkId::of(&bytes), bytes).unwrap_err();
        assert_eq!(err, VerifyError::TooLarge { size: CHUNK_SIZE_MAX + 1 });
    }
}
