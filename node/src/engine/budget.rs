//! A memory budget, and reservations of it.
//!
//! Counts bytes and allocates nothing: whoever needs much memory reserves it first, and gives up with a
//! sentence where that fails. A reservation gives its bytes back when it is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes that all who share it may hold together.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    left: AtomicU64,
}

/// Some bytes of a budget.
#[derive(Debug)]
pub(crate) struct Reservation {
    of: Arc<MemoryBudget>,
    bytes: u64,
}

impl MemoryBudget {
    /// A budget of so many bytes, none of them reserved.
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(total) })
    }

    /// Reserves `bytes`, if they are left.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.take(bytes).then(|| Reservation { of: Arc::clone(self), bytes })
    }

    /// Bytes that nobody has reserved.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl Reservation {
    /// Bytes in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it `bytes` large, if it is smaller and the rest is left. False if it is too small still.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let grown = self.of.take(more);
        if grown {
            self.bytes += more;
        }
        grown
    }

    /// Takes `bytes` of it out, as a reservation of their own. `None` if there are not as many.
    pub(crate) fn split(&mut self, bytes: u64) -> Option<Self> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Self { of: Arc::clone(&self.of), bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.of.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// `bytes` as people read them.
pub(crate) fn readable(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| 1 << shift <= bytes) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_comes_back() {
        let budget = MemoryBudget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(40).unwrap();
        assert!(!first.grow_to(61) && first.grow_to(10));
        assert_eq!((first.bytes(), budget.left()), (60, 0));
        drop(second);
        assert!(first.grow_to(100));
        let part = first.split(30).unwrap();
        assert!(first.split(71).is_none());
        drop(first);
        assert_eq!(budget.left(), 70);
        drop(part);
        assert_eq!(budget.left(), 100);
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([0, 1023, 1536].map(readable), ["0 bytes", "1023 bytes", "1.5 KiB"]);
        assert_eq!([64 << 20, 9 << 30].map(readable), ["64.0 MiB", "9.0 GiB"]);
    }
}
