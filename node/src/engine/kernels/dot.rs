//! Activations times a matrix whose rows are dotted with theirs. Each weight is widened in registers
//! and meets several rows of activations there, so the weights are read once from memory whatever
//! their precision: with one row of activations this is bound by memory, with many by arithmetic.

use pulp::{Arch, Simd, WithSimd};
use surf_kernels::team;

use super::matrix::{Float, Matrix};

/// Bytes of weights in one task: small enough to stay in a core's second-level cache while all
/// activations meet them and for threads to end together, large enough that handing a task to a
/// thread costs nothing beside it.
const TASK_BYTES: usize = 128 << 10;

/// Bytes of weights that are widened in memory at a time, for the same reason.
const WIDENED_BYTES: usize = 256 << 10;

/// Bytes of a weight row that are used before going on to the next rows: the activations of one tile
/// then stay in the first-level cache.
const DEPTH_BYTES: usize = 4096;

/// Rows of activations in one tile, at most.
const TILE: usize = 4;

/// Rows of the result that are transposed together: a cache line of f32.
const LINE: usize = 16;

/// Activations, laid out as the weights' vectors will meet them.
struct Operand<'a> {
    /// By rows.
    all: &'a [f32],
    /// Elements with even numbers, by rows of half the length. Two bfloat16 are read as one word,
    /// whose halves are an even and an odd element.
    even: Vec<f32>,
    /// Elements with odd numbers.
    odd: Vec<f32>,
    k: usize,
}

/// Weights in a form that vectors can be read from.
#[derive(Clone, Copy)]
enum Weights<'a> {
    /// Pairs of bfloat16, the even one in the lower half.
    Pairs(&'a [u32]),
    Singles(&'a [f32]),
}

/// See [`super::matmul`].
pub(super) fn matmul(weight: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let (n, k) = (weight.rows(), weight.cols());
    let pairs = weight.is_plain(Float::BF16) && k.is_multiple_of(2);
    let x = Operand::new(x, k, pairs);
    // By weight rows, so that each task writes one run of it.
    let mut transposed = vec![0.0; n * m];
    let mut rest = transposed.as_mut_slice();
    let mut tasks = Vec::new();
    let task_rows = (TASK_BYTES / weight.row_bytes()).next_multiple_of(4).max(4);
    for run in weight.runs(task_rows) {
        let (out, after) = rest.split_at_mut(run.rows() * m);
        rest = after;
        tasks.push((run, out));
    }
    team::for_each_of(tasks, |(run, out)| {
        if let (true, Ok(words)) = (pairs, bytemuck::try_cast_slice(run.bytes())) {
            return Arch::new().dispatch(Task { weights: Weights::Pairs(words), x: &x, m, out });
        }
        // What cannot be widened in registers is widened in memory; a few rows at a time are still
        // in the first-level cache when they are used.
        let some = if m <= TILE { 4 } else { (WIDENED_BYTES / (4 * k)).next_multiple_of(4).max(4) };
        for (run, out) in run.parts(some).zip(out.chunks_mut(some * m)) {
            run.with_f32(|rows| {
                Arch::new().dispatch(Task { weights: Weights::Singles(rows), x: &x, m, out });
            });
        }
    });
    if m == 1 { transposed } else { transpose(&transposed, n, m) }
}

fn transpose(from: &[f32], n: usize, m: usize) -> Vec<f32> {
    let mut to = vec![0.0; n * m];
    team::for_each_chunk(&mut to, LINE * n, |line, to| {
        let (first, rows) = (line * LINE, to.len() / n);
        for (j, from) in from.chunks_exact(m).enumerate() {
            for (i, value) in from[first..first + rows].iter().enumerate() {
                to[i * n + j] = *value;
            }
        }
    });
    to
}

impl<'a> Operand<'a> {
    /// `pairs` says whether even and odd elements are needed apart.
    fn new(all: &'a [f32], k: usize, pairs: bool) -> Self {
        let split = if pairs { all.as_chunks::<2>().0 } else { &[] };
        let even = split.iter().map(|pair| pair[0]).collect();
        let odd = split.iter().map(|pair| pair[1]).collect();
        Self { all, even, odd, k }
    }
}

/// Some weight rows times all activations. `out` is by weight rows, and zero.
struct Task<'a> {
    weights: Weights<'a>,
    x: &'a Operand<'a>,
    m: usize,
    out: &'a mut [f32],
}

/// Where a tile is: from which row of activations on, and which elements of the rows.
#[derive(Clone, Copy)]
struct Place {
    tile: usize,
    first: usize,
    len: usize,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // A tile's sums should stay in registers.
        if S::REGISTER_COUNT < 32 { self.tiles::<S, 2>(simd) } else { self.tiles::<S, 4>(simd) }
    }
}

impl Task<'_> {
    /// In tiles of `R` weight rows by [`TILE`] rows of activations.
    #[inline(always)]
    fn tiles<S: Simd, const R: usize>(self, simd: S) {
        let (k, m) = (self.x.k, self.m);
        let element_bytes = if matches!(self.weights, Weights::Pairs(_)) { 2 } else { 4 };
        let depth = if m <= TILE { k } else { DEPTH_BYTES / element_bytes };
        for first in (0..k).step_by(depth) {
            let len = depth.min(k - first);
            for tile in (0..m).step_by(TILE) {
                let place = Place { tile, first, len };
                for (group, out) in self.out.chunks_mut(R * m).enumerate() {
                    if out.len() == R * m {
                        some::<S, R>(simd, self.weights, group * R, self.x, place, out);
                        continue;
                    }
                    for (at, out) in out.chunks_exact_mut(m).enumerate() {
                        some::<S, 1>(simd, self.weights, group * R + at, self.x, place, out);
                    }
                }
            }
        }
    }
}

/// One tile, from weight row `row` on, of as many rows of activations as there are.
#[inline(always)]
fn some<S: Simd, const R: usize>(
    simd: S,
    weights: Weights<'_>,
    row: usize,
    x: &Operand<'_>,
    place: Place,
    out: &mut [f32],
) {
    match out.len() / R - place.tile {
        1 => one::<S, R, 1>(simd, weights, row, x, place, out),
        2 => one::<S, R, 2>(simd, weights, row, x, place, out),
        3 => one::<S, R, 3>(simd, weights, row, x, place, out),
        _ => one::<S, R, TILE>(simd, weights, row, x, place, out),
    }
}

/// One tile of `R` by `M`.
#[inline(always)]
fn one<S: Simd, const R: usize, const M: usize>(
    simd: S,
    weights: Weights<'_>,
    row: usize,
    x: &Operand<'_>,
    place: Place,
    out: &mut [f32],
) {
    let m = out.len() / R;
    let sums = match weights {
        Weights::Pairs(words) => dots_pairs::<S, R, M>(simd, words, row, x, place),
        Weights::Singles(values) => dots_singles::<S, R, M>(simd, values, row, x, place),
    };
    for (r, sums) in sums.iter().enumerate() {
        for (out, sum) in out[r * m + place.tile..][..M].iter_mut().zip(sums) {
            *out += sum;
        }
    }
}

#[inline(always)]
fn dots_pairs<S: Simd, const R: usize, const M: usize>(
    simd: S,
    words: &[u32],
    row: usize,
    x: &Operand<'_>,
    place: Place,
) -> [[f32; M]; R] {
    let (half, first, len) = (x.k / 2, place.first / 2, place.len / 2);
    let vectors = len / S::U32_LANES;
    // Cut to one length that the compiler sees, so that nothing is checked in the loop.
    let (mut rows, mut rests) = ([&[][..]; R], [&[][..]; R]);
    for r in 0..R {
        let (whole, rest) = S::as_simd_u32s(&words[(row + r) * half + first..][..len]);
        (rows[r], rests[r]) = (&whole[..vectors], rest);
    }
    let (mut evens, mut odds) = ([&[][..]; M], [&[][..]; M]);
    for j in 0..M {
        let start = (place.tile + j) * half + first;
        evens[j] = &S::as_simd_f32s(&x.even[start..][..len]).0[..vectors];
        odds[j] = &S::as_simd_f32s(&x.odd[start..][..len]).0[..vectors];
    }
    let (shift, high) = (simd.splat_u32s(16), simd.splat_u32s(0xffff_0000));
    let mut sums = [[simd.splat_f32s(0.0); M]; R];
    for at in 0..vectors {
        for r in 0..R {
            let even = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(rows[r][at], shift));
            for j in 0..M {
                sums[r][j] = simd.mul_add_e_f32s(even, evens[j][at], sums[r][j]);
            }
        }
        for r in 0..R {
            let odd = simd.transmute_f32s_u32s(simd.and_u32s(rows[r][at], high));
            for j in 0..M {
                sums[r][j] = simd.mul_add_e_f32s(odd, odds[j][at], sums[r][j]);
            }
        }
    }
    let mut out = [[0.0; M]; R];
    for r in 0..R {
        for j in 0..M {
            out[r][j] = simd.reduce_sum_f32s(sums[r][j]);
            let rest = (place.tile + j) * x.k + place.first + 2 * (len - rests[r].len());
            for (word, pair) in rests[r].iter().zip(x.all[rest..].as_chunks::<2>().0) {
                out[r][j] += f32::from_bits(word << 16) * pair[0];
                out[r][j] += f32::from_bits(word & 0xffff_0000) * pair[1];
            }
        }
    }
    out
}

#[inline(always)]
fn dots_singles<S: Simd, const R: usize, const M: usize>(
    simd: S,
    values: &[f32],
    row: usize,
    x: &Operand<'_>,
    place: Place,
) -> [[f32; M]; R] {
    let Place { tile, first, len } = place;
    let vectors = len / S::F32_LANES;
    let (mut rows, mut rests) = ([&[][..]; R], [&[][..]; R]);
    for r in 0..R {
        let (whole, rest) = S::as_simd_f32s(&values[(row + r) * x.k + first..][..len]);
        (rows[r], rests[r]) = (&whole[..vectors], rest);
    }
    let (mut operands, mut operand_rests) = ([&[][..]; M], [&[][..]; M]);
    for j in 0..M {
        let (whole, rest) = S::as_simd_f32s(&x.all[(tile + j) * x.k + first..][..len]);
        (operands[j], operand_rests[j]) = (&whole[..vectors], rest);
    }
    let mut sums = [[simd.splat_f32s(0.0); M]; R];
    for at in 0..vectors {
        for r in 0..R {
            for j in 0..M {
                sums[r][j] = simd.mul_add_e_f32s(rows[r][at], operands[j][at], sums[r][j]);
            }
        }
    }
    let mut out = [[0.0; M]; R];
    for r in 0..R {
        for j in 0..M {
            let rest: f32 = rests[r].iter().zip(operand_rests[j]).map(|(a, b)| a * b).sum();
            out[r][j] = simd.reduce_sum_f32s(sums[r][j]) + rest;
        }
    }
    out
}
