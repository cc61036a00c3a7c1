//! Weights times activations.
//!
//! A result is a function of the bytes of its weight row and of its row of activations, and of nothing else: not
//! of how many rows there are of either, how they are cut, or which instructions compute it. Few rows of
//! activations meet weights as these are unpacked in registers; for many, weights are unpacked to tiles first.

use std::cell::RefCell;

use crate::{
    activation::{Activations, BLOCK, By32, By256, Precision},
    blocks::{Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0},
    format::Format,
    lanes::LANES,
    level::Level,
    out::{Out, Part},
    portable,
    tile::{SimpleTile, SuperTile},
};

/// From so many rows of activations on, weights are unpacked to tiles.
const MANY: usize = 9;

/// Rows of activations that floats meet in registers.
const TOKENS: usize = 6;

/// Memory that products of one thread use, and use again.
#[derive(Default)]
struct Scratch {
    supers: Vec<SuperTile>,
    simples: Vec<SimpleTile>,
}

/// Rows that are handed to a kernel together.
const ROWS: usize = 64;

/// `x · weightᵀ`: `x` is `m` rows of activations, `weight` is `n` rows of as many elements, one after the other,
/// and `to` gets `m` rows of `n` results. A result that is no number is `f32::NAN`.
///
/// # Panics
///
/// If `weight` is not `n` rows as `format` says, `x` is not in the precision of the format, `to` has not `m` rows of
/// `n` results, or the processor has not what `level` asks for.
pub fn product(level: Level, format: Format, weight: &[u8], x: &Activations, to: Part<'_>) {
    let row_bytes = format.row_bytes(x.cols()).expect("a row is whole blocks");
    assert_eq!(weight.len(), to.columns() * row_bytes, "the weight has its size");
    assert_eq!(to.rows(), x.rows(), "there are results for every row of activations");
    assert_eq!(format.precision(), x.precision(), "the activations have the precision of the weights");
    assert!(level <= Level::best(), "the processor has what is asked for");
    if weight.is_empty() || x.rows() == 0 {
        return;
    }
    let out = to.out();
    SCRATCH.with_borrow_mut(|scratch| {
        for (at, weight) in weight.chunks(ROWS * row_bytes).enumerate() {
            let mut rows: [&[u8]; ROWS] = [&[]; ROWS];
            let count = weight.len() / row_bytes;
            rows.iter_mut().zip(weight.chunks_exact(row_bytes)).for_each(|(to, row)| *to = row);
            let job = Job { level, rows: &rows[..count], x, out: out.from(0, at * ROWS) };
            // SAFETY: rows and activations are of one size, the processor has the instructions, and `to` has room
            // for all results and is borrowed exclusively.
            unsafe { job.run(format, scratch) }
        }
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Job<'_> {
    /// # Safety
    ///
    /// Rows and activations are of one size, the processor has the instructions, and there is room for all results,
    /// which nobody else uses.
    unsafe fn run(self, format: Format, scratch: &mut Scratch) {
        unsafe {
            match format {
                Format::F32 => self.floats(4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                Format::F16 => self.floats(2, |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
                Format::Bf16 => self.pairs(),
                Format::Q4_0 => self.simples::<Q4_0>(scratch),
                Format::Q4_1 => self.simples::<Q4_1>(scratch),
                Format::Q5_0 => self.simples::<Q5_0>(scratch),
                Format::Q5_1 => self.simples::<Q5_1>(scratch),
                Format::Q8_0 => self.simples::<Q8_0>(scratch),
                Format::Iq4Nl => self.simples::<Iq4Nl>(scratch),
                Format::Mxfp4 => self.simples::<Mxfp4>(scratch),
                Format::Q2K => self.supers::<Q2K>(scratch),
                Format::Q3K => self.supers::<Q3K>(scratch),
                Format::Q4K => self.supers::<Q4K>(scratch),
                Format::Q5K => self.supers::<Q5K>(scratch),
                Format::Q6K => self.supers::<Q6K>(scratch),
                Format::Iq4Xs => self.supers::<Iq4Xs>(scratch),
            }
        }
    }
}

/// What both vector levels unpack.
#[cfg(target_arch = "x86_64")]
mod unpacked {
    use crate::{avx2, avx512, blocks};

    pub(super) trait Super: blocks::Super + avx2::SuperQuants + avx512::SuperQuants {}
    impl<F: blocks::Super + avx2::SuperQuants + avx512::SuperQuants> Super for F {}

    pub(super) trait Simple: blocks::Simple + avx2::SimpleQuants + avx512::SimpleQuants {}
    impl<F: blocks::Simple + avx2::SimpleQuants + avx512::SimpleQuants> Simple for F {}
}

#[cfg(not(target_arch = "x86_64"))]
mod unpacked {
    pub(super) use crate::blocks::{Simple, Super};
}

#[derive(Clone, Copy)]
struct Job<'a> {
    level: Level,
    rows: &'a [&'a [u8]],
    x: &'a Activations,
    out: Out,
}

/// Calls `$few::<.., M>` for rows of activations of `$width` elements each, at most `$most` at a time.
macro_rules! few {
    ($job:expr, $x:expr, $width:expr, $most:expr, |$x_part:ident, $out:ident| [$($m:literal => $call:expr),+]) => {{
        let (job, x, width) = ($job, $x, $width);
        let mut j = 0;
        while j < job.x.rows() {
            let m = (job.x.rows() - j).min($most);
            let ($x_part, $out) = (&x[j * width..][..m * width], job.out.from(j, 0));
            match m {
                $($m => $call,)+
                _ => unreachable!("there is a function for every number of rows"),
            }
            j += m;
        }
    }};
}

impl Job<'_> {
    /// # Safety
    ///
    /// As [`Job::run`].
    unsafe fn supers<F: unpacked::Super>(self, scratch: &mut Scratch) {
        let (x, m) = (self.x.by_256(), self.x.rows());
        let width = x.len() / m;
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use crate::{avx2, avx512};
            match self.level {
                Level::Portable => (),
                Level::Avx2 if MANY <= m => {
                    return avx2::many_supers::<F>(self.rows, x, m, self.out, &mut scratch.supers);
                }
                Level::Avx2 => {
                    return few!(self, x, width, 4, |x, out| [
                        1 => avx2::few_supers::<F, 1>(self.rows, x, out),
                        2 => avx2::few_supers::<F, 2>(self.rows, x, out),
                        3 => avx2::few_supers::<F, 3>(self.rows, x, out),
                        4 => avx2::few_supers::<F, 4>(self.rows, x, out)
                    ]);
                }
                _ if MANY <= m => {
                    return avx512::many_supers::<F>(self.rows, x, m, self.out, &mut scratch.supers);
                }
                _ => {
                    return few!(self, x, width, 4, |x, out| [
                        1 => avx512::few_supers::<F, 1>(self.rows, x, out),
                        2 => avx512::few_supers::<F, 2>(self.rows, x, out),
                        3 => avx512::few_supers::<F, 3>(self.rows, x, out),
                        4 => avx512::few_supers::<F, 4>(self.rows, x, out)
                    ]);
                }
            }
        }
        let _ = scratch;
        unsafe { self.each(|row, j| portable::supers::<F>(row, &x[j * width..][..width])) }
    }

    /// # Safety
    ///
    /// As [`Job::run`].
    unsafe fn simples<F: unpacked::Simple>(self, scratch: &mut Scratch) {
        let (x, m) = (self.x.by_32(), self.x.rows());
        let width = x.len() / m;
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use crate::{avx2, avx512};
            match self.level {
                Level::Portable => (),
                Level::Avx2 if MANY <= m => {
                    return avx2::many_simples::<F>(self.rows, x, m, self.out, &mut scratch.simples);
                }
                Level::Avx2 => {
                    return few!(self, x, width, 4, |x, out| [
                        1 => avx2::few_simples::<F, 1>(self.rows, x, out),
                        2 => avx2::few_simples::<F, 2>(self.rows, x, out),
                        3 => avx2::few_simples::<F, 3>(self.rows, x, out),
                        4 => avx2::few_simples::<F, 4>(self.rows, x, out)
                    ]);
                }
                _ if MANY <= m => {
                    return avx512::many_simples::<F>(self.rows, x, m, self.out, &mut scratch.simples);
                }
                _ => {
                    return few!(self, x, width, 4, |x, out| [
                        1 => avx512::few_simples::<F, 1>(self.rows, x, out),
                        2 => avx512::few_simples::<F, 2>(self.rows, x, out),
                        3 => avx512::few_simples::<F, 3>(self.rows, x, out),
                        4 => avx512::few_simples::<F, 4>(self.rows, x, out)
                    ]);
                }
            }
        }
        let _ = scratch;
        unsafe { self.each(|row, j| portable::simples::<F>(row, &x[j * width..][..width])) }
    }

    /// Elements of `size` bytes, which `widen` makes floats.
    ///
    /// # Safety
    ///
    /// As [`Job::run`].
    unsafe fn floats(self, size: usize, widen: impl Fn(&[u8]) -> f32) {
        let x = self.x.f32();
        let width = self.x.cols().next_multiple_of(LANES);
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use crate::{avx2, avx512};
            match (self.level, size) {
                (Level::Portable, _) => (),
                (Level::Avx2, 4) => {
                    return few!(self, x, width, 3, |x, out| [
                        1 => avx2::few_floats::<1>(self.rows, x, out),
                        2 => avx2::few_floats::<2>(self.rows, x, out),
                        3 => avx2::few_floats::<3>(self.rows, x, out)
                    ]);
                }
                (Level::Avx2, _) => {
                    return few!(self, x, width, 3, |x, out| [
                        1 => avx2::few_halves::<1>(self.rows, x, out),
                        2 => avx2::few_halves::<2>(self.rows, x, out),
                        3 => avx2::few_halves::<3>(self.rows, x, out)
                    ]);
                }
                (_, 4) => {
                    return few!(self, x, width, TOKENS, |x, out| [
                        1 => avx512::few_floats::<1>(self.rows, x, out),
                        2 => avx512::few_floats::<2>(self.rows, x, out),
                        3 => avx512::few_floats::<3>(self.rows, x, out),
                        4 => avx512::few_floats::<4>(self.rows, x, out),
                        5 => avx512::few_floats::<5>(self.rows, x, out),
                        6 => avx512::few_floats::<6>(self.rows, x, out)
                    ]);
                }
                _ => {
                    return few!(self, x, width, TOKENS, |x, out| [
                        1 => avx512::few_halves::<1>(self.rows, x, out),
                        2 => avx512::few_halves::<2>(self.rows, x, out),
                        3 => avx512::few_halves::<3>(self.rows, x, out),
                        4 => avx512::few_halves::<4>(self.rows, x, out),
                        5 => avx512::few_halves::<5>(self.rows, x, out),
                        6 => avx512::few_halves::<6>(self.rows, x, out)
                    ]);
                }
            }
        }
        let mut wide = Vec::with_capacity(self.x.cols());
        for (n, row) in self.rows.iter().enumerate() {
            wide.clear();
            wide.extend(row.chunks_exact(size).map(&widen));
            for (j, x) in x.chunks_exact(width).enumerate() {
                unsafe { self.out.put(j, n, &[portable::floats(&wide, x)]) };
            }
        }
    }

    /// # Safety
    ///
    /// As [`Job::run`].
    unsafe fn pairs(self) {
        let (x, width) = (self.x.bf16(), self.x.cols().next_multiple_of(2 * LANES));
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use crate::{avx2, avx512};
            match self.level {
                Level::Portable => (),
                Level::Avx2 => {
                    return few!(self, x, width, 3, |x, out| [
                        1 => avx2::few_pairs::<1>(self.rows, x, out),
                        2 => avx2::few_pairs::<2>(self.rows, x, out),
                        3 => avx2::few_pairs::<3>(self.rows, x, out)
                    ]);
                }
                // For one row, looking at the weights costs more than the instruction saves.
                Level::Avx512Bf16
                    if 1 < self.x.rows() && self.rows.iter().all(|row| avx512::is_exact(row)) =>
                {
                    return few!(self, x, width, TOKENS, |x, out| [
                        1 => avx512::few_pairs_exact::<1>(self.rows, x, out),
                        2 => avx512::few_pairs_exact::<2>(self.rows, x, out),
                        3 => avx512::few_pairs_exact::<3>(self.rows, x, out),
                        4 => avx512::few_pairs_exact::<4>(self.rows, x, out),
                        5 => avx512::few_pairs_exact::<5>(self.rows, x, out),
                        6 => avx512::few_pairs_exact::<6>(self.rows, x, out)
                    ]);
                }
                _ => {
                    return few!(self, x, width, TOKENS, |x, out| [
                        1 => avx512::few_pairs::<1>(self.rows, x, out),
                        2 => avx512::few_pairs::<2>(self.rows, x, out),
                        3 => avx512::few_pairs::<3>(self.rows, x, out),
                        4 => avx512::few_pairs::<4>(self.rows, x, out),
                        5 => avx512::few_pairs::<5>(self.rows, x, out),
                        6 => avx512::few_pairs::<6>(self.rows, x, out)
                    ]);
                }
            }
        }
        unsafe { self.each(|row, j| portable::pairs(row, &x[j * width..][..width])) }
    }

    /// Each result by itself.
    unsafe fn each(self, one: impl Fn(&[u8], usize) -> f32) {
        for (n, row) in self.rows.iter().enumerate() {
            for j in 0..self.x.rows() {
                unsafe { self.out.put(j, n, &[one(row, j)]) };
            }
        }
    }
}

const _: () = assert!(BLOCK == 256 && align_of::<By256>() == 64 && align_of::<By32>() == 64);
const _: () = assert!(matches!(Format::Q4K.precision(), Precision::Int8By256));
