//! Biases of attention scores by how far a key is from its query, as T5 has instead of positions.
//!
//! Distances are sorted into buckets: near ones have one each, farther ones share, and beyond a
//! largest distance all are one. So a model has one table of buckets, which its first block holds
//! and all blocks use.

/// A bias for each distance, worked out once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Distances {
    /// By heads, then by distances from the most negative on.
    values: Vec<f32>,
    max: usize,
}

/// How distances are sorted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    /// How many there are.
    pub(crate) count: usize,
    /// From this distance on, all are in the last.
    pub(crate) distance_max: usize,
    /// Whether keys after the query have buckets of their own; otherwise there are none to see.
    pub(crate) both_ways: bool,
}

impl Distances {
    /// From a table by buckets, then by `heads`.
    pub(crate) fn new(table: &[f32], heads: usize, buckets: Buckets) -> Self {
        let max = buckets.distance_max;
        let distances = -(max as i64)..=max as i64;
        let of =
            |head: usize| distances.clone().map(move |distance| table[buckets.of(distance) * heads + head]);
        Self { values: (0..heads).flat_map(of).collect(), max }
    }

    /// Bytes that the biases of so many heads take.
    pub(crate) fn bytes(heads: usize, buckets: Buckets) -> u64 {
        (heads * (2 * buckets.distance_max + 1) * size_of::<f32>()) as u64
    }

    /// The biases of `head`, for [`Biases::of`].
    pub(crate) fn head(&self, head: usize) -> Biases<'_> {
        let count = 2 * self.max + 1;
        Biases { values: &self.values[head * count..(head + 1) * count], max: self.max as i64 }
    }
}

/// The biases of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Biases<'a> {
    values: &'a [f32],
    max: i64,
}

impl Biases<'_> {
    /// The bias of a key at position `key` for a query at position `query`.
    pub(crate) fn of(&self, query: usize, key: usize) -> f32 {
        let distance = (key as i64 - query as i64).clamp(-self.max, self.max);
        self.values[(distance + self.max) as usize]
    }
}

impl Buckets {
    /// The bucket of `distance`, which is the key's position less the query's.
    fn of(&self, distance: i64) -> usize {
        let (count, first, distance) = match self.both_ways {
            true if 0 < distance => (self.count / 2, self.count / 2, distance as usize),
            true => (self.count / 2, 0, distance.unsigned_abs() as usize),
            false => (self.count, 0, distance.min(0).unsigned_abs() as usize),
        };
        let exact = count / 2;
        if distance < exact {
            return first + distance;
        }
        // In the precision in which it was trained: a boundary may fall on a whole number.
        let octaves = (distance as f32 / exact as f32).ln();
        let octaves_max = (self.distance_max as f64 / exact as f64).ln() as f32;
        let more = (octaves / octaves_max * (count - exact) as f32) as usize;
        first + (exact + more).min(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `T5Attention._relative_position_bucket` of transformers, for 32 buckets up to 128.
    #[test]
    fn buckets_are_those_of_transformers() {
        let both = Buckets { count: 32, distance_max: 128, both_ways: true };
        let past = Buckets { both_ways: false, ..both };
        let cases = [-200, -128, -64, -40, -16, -15, -8, -7, -1, 0, 1, 7, 8, 12, 33, 127, 500];
        let got = |buckets: Buckets| cases.map(|distance| buckets.of(distance));
        assert_eq!(got(both), [15, 15, 14, 12, 10, 9, 8, 7, 1, 0, 17, 23, 24, 25, 28, 31, 31]);
        assert_eq!(got(past), [31, 31, 26, 23, 16, 15, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_head_has_its_own_biases_and_far_is_far() {
        let buckets = Buckets { count: 4, distance_max: 3, both_ways: false };
        let table: Vec<f32> = (0..8).map(|at| at as f32).collect();
        let distances = Distances::new(&table, 2, buckets);
        let (first, second) = (distances.head(0), distances.head(1));
        assert_eq!((first.of(5, 5), first.of(5, 4), second.of(5, 4)), (0.0, 2.0, 3.0));
        assert_eq!((first.of(900, 0), second.of(900, 0)), (6.0, 7.0));
    }
}
