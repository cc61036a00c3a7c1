//! Bytes of a device's memory, as far as weights may take them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// What is left for weights that stay.
#[derive(Debug)]
pub(super) struct Room {
    left: AtomicU64,
}

/// Some of it, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Room>,
    bytes: u64,
}

impl Room {
    /// All of these bytes.
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(bytes) })
    }

    /// `bytes` of it, if they are left.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let less = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        Some(Share { of: Arc::clone(self), bytes })
    }

    /// What nobody has taken.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Of the bytes that are free on a device, how many go to weights that stay, if `memory` is the most: what
/// is brought for one product, what is widened beside it, and activations need room too.
pub(super) fn weights_max(memory: u64, free: u64) -> u64 {
    /// Enough for all of that.
    const APART: u64 = 2 << 30;
    memory.min(free - APART.min(free / 4))
}
