//! Activations, in the precision that the weights they meet ask for.
//!
//! Blocks of integers meet integers: each run of 256 elements, or of 32, is scaled to the range of ±127 and
//! rounded to nearest, ties to even. A run's result depends on nothing outside of it.

use crate::{lanes::bf16_bits, level::Level};

/// Elements in a block of activations.
pub const BLOCK: usize = 256;

/// A run whose largest magnitude is below this is zero: 2^-100. Its inverse scale would overflow.
const LEAST: f32 = 1.0 / ((1u128 << 100) as f32);

/// What activations are rounded to before a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nothing.
    F32,
    /// bfloat16.
    Bf16,
    /// Integers of eight bits with a scale for each 256: for blocks of 256 weights.
    Int8By256,
    /// Integers of eight bits with a scale for each 32: for blocks of 32 weights.
    Int8By32,
}

/// 256 activations with one scale.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct By256 {
    pub(crate) quants: [i8; BLOCK],
    /// The sum of each 16 quants.
    pub(crate) sums: [i16; 16],
    /// NaN if one of the activations is not finite.
    pub(crate) scale: f32,
}

/// 256 activations with a scale for each 32.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct By32 {
    pub(crate) quants: [i8; BLOCK],
    /// The sum of each 32 quants.
    pub(crate) sums: [i32; 8],
    /// NaN if one of the run's activations is not finite.
    pub(crate) scales: [f32; 8],
}

impl By256 {
    const ZERO: Self = Self { quants: [0; BLOCK], sums: [0; 16], scale: 0.0 };
}

impl By32 {
    const ZERO: Self = Self { quants: [0; BLOCK], sums: [0; 8], scales: [0.0; 8] };
}

/// Rows of activations, ready to be multiplied. Filling it again uses the memory that it has.
#[derive(Clone, Debug)]
pub struct Activations {
    rows: usize,
    cols: usize,
    precision: Precision,
    f32: Vec<f32>,
    bf16: Vec<u16>,
    by_256: Vec<By256>,
    by_32: Vec<By32>,
}

impl Default for Activations {
    fn default() -> Self {
        Self {
            rows: 0,
            cols: 0,
            precision: Precision::F32,
            f32: Vec::new(),
            bf16: Vec::new(),
            by_256: Vec::new(),
            by_32: Vec::new(),
        }
    }
}

impl Activations {
    /// Rounds `x`, rows of `cols` elements, to `precision`.
    ///
    /// # Panics
    ///
    /// If `x` is not whole rows.
    pub fn of(x: &[f32], cols: usize, precision: Precision) -> Self {
        let mut activations = Self::default();
        activations.fill(Level::best(), x, cols, precision);
        activations
    }

    /// The same, in place of what was here.
    ///
    /// # Panics
    ///
    /// If `x` is not whole rows.
    pub fn fill(&mut self, level: Level, x: &[f32], cols: usize, precision: Precision) {
        assert!(0 < cols && x.len().is_multiple_of(cols), "activations are whole rows");
        (self.rows, self.cols, self.precision) = (x.len() / cols, cols, precision);
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => crate::avx512::wide(|| self.round(x)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => crate::avx2::wide(|| self.round(x)),
            _ => self.round(x),
        }
    }

    /// The same operations whatever the instructions: the compiler does not reorder floats.
    #[inline(always)]
    fn round(&mut self, x: &[f32]) {
        let rows = x.chunks_exact(self.cols);
        let padded = |run: usize| self.cols.next_multiple_of(run);
        match self.precision {
            Precision::F32 => {
                let width = padded(crate::lanes::LANES);
                self.f32.clear();
                self.f32.resize(self.rows * width, 0.0);
                rows.zip(self.f32.chunks_exact_mut(width))
                    .for_each(|(x, to)| to[..x.len()].copy_from_slice(x));
            }
            Precision::Bf16 => {
                let width = padded(2 * crate::lanes::LANES);
                self.bf16.clear();
                self.bf16.resize(self.rows * width, 0);
                for (x, to) in rows.zip(self.bf16.chunks_exact_mut(width)) {
                    x.iter().zip(to).for_each(|(x, to)| *to = bf16_bits(*x));
                }
            }
            Precision::Int8By256 => {
                let blocks = padded(BLOCK) / BLOCK;
                self.by_256.resize(self.rows * blocks, By256::ZERO);
                for (x, to) in rows.zip(self.by_256.chunks_exact_mut(blocks)) {
                    x.chunks(BLOCK).zip(to).for_each(|(x, to)| by_256(x, to));
                }
            }
            Precision::Int8By32 => {
                let blocks = padded(BLOCK) / BLOCK;
                self.by_32.resize(self.rows * blocks, By32::ZERO);
                for (x, to) in rows.zip(self.by_32.chunks_exact_mut(blocks)) {
                    x.chunks(BLOCK).zip(to).for_each(|(x, to)| by_32(x, to));
                }
            }
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What they were rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Rows in f32, padded with zeros to a multiple of 16.
    pub(crate) fn f32(&self) -> &[f32] {
        debug_assert_eq!(self.precision, Precision::F32);
        &self.f32
    }

    /// Rows of bfloat16, padded with zeros to a multiple of 32.
    pub(crate) fn bf16(&self) -> &[u16] {
        debug_assert_eq!(self.precision, Precision::Bf16);
        &self.bf16
    }

    /// Rows of blocks, the last padded with zeros.
    pub(crate) fn by_256(&self) -> &[By256] {
        debug_assert_eq!(self.precision, Precision::Int8By256);
        &self.by_256[..self.rows * self.cols.div_ceil(BLOCK)]
    }

    /// Rows of blocks, the last padded with zeros.
    pub(crate) fn by_32(&self) -> &[By32] {
        debug_assert_eq!(self.precision, Precision::Int8By32);
        &self.by_32[..self.rows * self.cols.div_ceil(BLOCK)]
    }
}

#[inline(always)]
fn by_256(x: &[f32], to: &mut By256) {
    let (inverse, scale) = scales(x);
    to.scale = scale;
    quantize(x, inverse, &mut to.quants);
    for (sum, quants) in to.sums.iter_mut().zip(to.quants.as_chunks::<16>().0) {
        *sum = quants.iter().map(|&quant| i16::from(quant)).sum();
    }
}

#[inline(always)]
fn by_32(x: &[f32], to: &mut By32) {
    *to = By32::ZERO;
    for (at, x) in x.chunks(32).enumerate() {
        let (inverse, scale) = scales(x);
        let quants = &mut to.quants[at * 32..][..32];
        to.scales[at] = scale;
        quantize(x, inverse, quants);
        to.sums[at] = quants.iter().map(|&quant| i32::from(quant)).sum();
    }
}

/// What elements of a run are multiplied by to become quants, and what quants are to become elements.
#[inline(always)]
fn scales(x: &[f32]) -> (f32, f32) {
    // Magnitudes are in the order of their bits, and what is not finite is above all.
    let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        (0.0, f32::NAN)
    } else if largest < LEAST {
        (0.0, 0.0)
    } else {
        (127.0 / largest, largest / 127.0)
    }
}

/// Elements times `inverse`, to nearest, ties to even; zeros after the last and where `inverse` is zero.
#[inline(always)]
fn quantize(x: &[f32], inverse: f32, to: &mut [i8]) {
    /// Added to a number below 2^22, it leaves the integer nearest to it in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let (to, rest) = to.split_at_mut(x.len());
    rest.fill(0);
    if inverse == 0.0 {
        return to.fill(0);
    }
    for (to, x) in to.iter_mut().zip(x) {
        *to = ((x * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quants_are_rounded_to_nearest_and_ties_to_even() {
        let x = [127.0, 0.5, 1.5, -0.5, -1.5, 2.5, -126.5, 3.4];
        let activations = Activations::of(&x, 8, Precision::Int8By256);
        let block = &activations.by_256()[0];
        assert_eq!(block.quants[..9], [127, 0, 2, 0, -2, 2, -126, 3, 0]);
        assert_eq!((block.scale, block.sums[0], block.sums[1]), (1.0, 6, 0));
    }

    #[test]
    fn what_is_not_finite_makes_its_run_nan_and_what_is_tiny_makes_it_zero() {
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 600];
            x[300] = odd;
            let activations = Activations::of(&x, 600, Precision::Int8By256);
            let nans: Vec<bool> = activations.by_256().iter().map(|block| block.scale.is_nan()).collect();
            assert_eq!(nans, [false, true, false]);
            let activations = Activations::of(&x, 600, Precision::Int8By32);
            let nan = |block: &By32| block.scales.iter().position(|scale| scale.is_nan());
            let nans: Vec<Option<usize>> = activations.by_32().iter().map(nan).collect();
            assert_eq!(nans, [None, Some(1), None]);
        }
        let x = [LEAST / 2.0, -LEAST / 4.0, f32::from_bits(1)];
        assert_eq!(Activations::of(&x, 3, Precision::Int8By256).by_256(), [By256::ZERO]);
        assert_eq!(Activations::of(&x, 3, Precision::Int8By32).by_32(), [By32::ZERO]);
        let x = [LEAST, f32::MAX];
        let activations = Activations::of(&x, 1, Precision::Int8By256);
        assert_eq!(activations.by_256().iter().map(|block| block.quants[0]).collect::<Vec<_>>(), [127, 127]);
    }

    #[test]
    fn every_level_rounds_alike_and_memory_is_used_again() {
        let x: Vec<f32> =
            (0..3 * 777u32).map(|at| f32::from_bits(at.wrapping_mul(2_654_435_761) >> 2)).collect();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8By256, Precision::Int8By32] {
            let expected = {
                let mut activations = Activations::default();
                activations.fill(Level::Portable, &x, 777, precision);
                format!("{activations:?}")
            };
            for level in Level::available() {
                let mut activations = Activations::default();
                activations.fill(level, &x, 777, precision);
                assert_eq!(format!("{activations:?}"), expected, "{level}");
                activations.fill(level, &x[..777], 777, precision);
                activations.fill(level, &x, 777, precision);
                assert_eq!(format!("{activations:?}"), expected, "{level}");
            }
        }
    }
}
