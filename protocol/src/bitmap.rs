//! Who has which chunks of a manifest.

use serde::{Deserialize, Serialize};

use crate::limits::MANIFEST_CHUNKS_MAX;

/// A set of positions in a manifest's [chunk list](crate::Manifest::chunks).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bitmap {
    len: u32,
    bits: Vec<u8>,
}

impl Bitmap {
    /// The empty set over `len` positions.
    pub fn none(len: usize) -> Self {
        assert!(len <= MANIFEST_CHUNKS_MAX, "manifests bound their chunks");
        Self { len: len as u32, bits: vec![0; len.div_ceil(8)] }
    }

    /// The set of the positions that `has` says yes to.
    pub fn from_fn(len: usize, mut has: impl FnMut(usize) -> bool) -> Self {
        let mut bitmap = Self::none(len);
        (0..len).filter(|&at| has(at)).for_each(|at| bitmap.insert(at));
        bitmap
    }

    /// Adds a position. Positions past the end are ignored.
    pub fn insert(&mut self, at: usize) {
        if at < self.len() {
            self.bits[at / 8] |= 1 << (at % 8);
        }
    }

    /// Adds every position of `other`, as far as there are such.
    pub fn insert_all(&mut self, other: &Self) {
        if self.len == other.len {
            self.bits.iter_mut().zip(&other.bits).for_each(|(bits, more)| *bits |= more);
        } else {
            (0..other.len()).filter(|&at| other.contains(at)).for_each(|at| self.insert(at));
        }
    }

    /// Takes a position away.
    pub fn remove(&mut self, at: usize) {
        if at < self.len() {
            self.bits[at / 8] &= !(1 << (at % 8));
        }
    }

    /// Whether `at` is in the set.
    pub fn contains(&self, at: usize) -> bool {
        at < self.len() && self.bits[at / 8] & (1 << (at % 8)) != 0
    }

    /// How many positions there are, in the set or not.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no positions at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many positions are in the set.
    pub fn count(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Whether every position is in the set.
    pub fn is_full(&self) -> bool {
        self.count() == self.len()
    }

    /// Whether length and bits belong together: what [`Holdings::after`](crate::wire::Holdings::after)
    /// checks of a bitmap that came from a peer. Bits past the end must be zero.
    pub(crate) fn is_consistent(&self) -> bool {
        let spare = self.bits.len() * 8 - self.len().min(self.bits.len() * 8);
        self.len() <= MANIFEST_CHUNKS_MAX
            && self.bits.len() == self.len().div_ceil(8)
            && self.bits.last().is_none_or(|last| last.leading_zeros() as usize >= spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut odd = Bitmap::from_fn(11, |at| at % 2 == 1);
        assert_eq!((odd.count(), odd.contains(9), odd.contains(10)), (5, true, false));
        assert!(!odd.contains(1000));
        odd.insert(10);
        odd.insert(11);
        assert_eq!(odd.count(), 6);
        odd.remove(1);
        assert_eq!(odd.count(), 5);
        assert!(Bitmap::from_fn(8, |_| true).is_full());
        assert!(odd.is_consistent());
        let mut even = Bitmap::from_fn(11, |at| at % 2 == 0);
        even.insert_all(&odd);
        assert_eq!((even.count(), even.contains(1), even.contains(3)), (10, false, true));
        even.insert_all(&Bitmap::from_fn(99, |at| at == 1 || at == 98));
        assert!(even.is_full() && even.is_consistent());
    }

    #[test]
    fn bits_past_the_end_are_noticed() {
        let forged = Bitmap { len: 3, bits: vec![0b1000] };
        assert!(!forged.is_consistent());
        assert!(!Bitmap { len: 9, bits: vec![0] }.is_consistent());
        assert!(Bitmap { len: 3, bits: vec![0b111] }.is_consistent());
    }
}
