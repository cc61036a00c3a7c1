//! Memory for chunks on their way, used again and again: pages that the system has just handed out
//! cost as much as hashing what is written to them.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

/// Buffers that wait to be used again: as many as are on their way at once on a fast line.
const FREE_MAX: usize = 8;

/// Larger ones are not kept: chunks as we cut them are no larger.
const KEPT_SIZE_MAX: usize = 2 << 20;

/// Where buffers come from, and go back to. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// An empty buffer that grows, and is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// An empty buffer with room for `size` bytes.
    pub(super) fn take(&self, size: usize) -> Buffer {
        // A few bytes that are kept for long must not keep a whole buffer.
        let fits = |buffer: &Vec<u8>| (size..=size.saturating_mul(2)).contains(&buffer.capacity());
        let found = {
            let mut free = self.free();
            free.iter().position(fits).map(|at| free.swap_remove(at))
        };
        Buffer { bytes: found.unwrap_or_else(|| Vec::with_capacity(size)), home: self.clone() }
    }

    /// Gives the memory back to the system.
    pub(super) fn clear(&self) {
        drop(mem::take(&mut *self.free()));
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().expect("no panics while held")
    }
}

impl Buffer {
    /// Bytes in it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds `more` at the end.
    pub(super) fn extend(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// The bytes, for anyone. Given back with the last of their clones.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.bytes);
        // Small ones would be in the way of those that are worth keeping.
        if (KEPT_SIZE_MAX / 2..=KEPT_SIZE_MAX).contains(&bytes.capacity()) {
            let mut free = self.home.free();
            if free.len() < FREE_MAX {
                bytes.clear();
                free.push(bytes);
            }
        }
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} free)", self.free().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_nobody_holds_it() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(KEPT_SIZE_MAX);
        buffer.extend(b"some");
        let frozen = buffer.freeze();
        let (at, slice) = (frozen.as_ptr(), frozen.slice(1..3));
        drop(frozen);
        assert_ne!(buffers.take(KEPT_SIZE_MAX).freeze().as_ptr(), at, "a slice still holds it");
        assert_eq!(&slice[..], b"om");
        buffers.clear();
        drop(slice);
        let mut again = buffers.take(KEPT_SIZE_MAX - 5);
        assert_eq!(again.len(), 0);
        again.extend(b"other");
        assert_eq!(again.as_ref(), b"other");
        assert_eq!(again.freeze().as_ptr(), at);
    }

    #[test]
    fn few_are_kept_and_none_that_are_large_or_small() {
        let buffers = Buffers::default();
        let many: Vec<_> = (0..2 * FREE_MAX).map(|_| buffers.take(KEPT_SIZE_MAX)).collect();
        drop(many);
        assert_eq!(buffers.free().len(), FREE_MAX);
        buffers.clear();
        drop((buffers.take(10), buffers.take(4 * KEPT_SIZE_MAX)));
        assert_eq!(buffers.free().len(), 0);
    }
}
