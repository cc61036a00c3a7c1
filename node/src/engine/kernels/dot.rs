//! Few rows of activations times a matrix: one pass over the weights, which are widened in
//! registers and used for several rows at once. Bound by memory, as generating one token is.

use std::mem::size_of;

use bytemuck::pod_read_unaligned;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::matrix::{Float, Matrix, Run, widen};

/// Bytes of weights in one task: small enough that threads end together, large enough that handing
/// a task to a thread costs nothing beside it.
const TASK_BYTES: usize = 128 << 10;

/// Weight rows that are read side by side.
const ROWS: usize = 4;

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

/// As [`super::matmul`], for small `m`.
pub(super) fn few_rows(weight: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let (n, k) = (weight.rows(), weight.cols());
    let x = Operand::new(x, k, weight.float());
    // Transposed, so that each task writes one run of it.
    let mut transposed = vec![0.0; n * m];
    let mut rest = transposed.as_mut_slice();
    let mut tasks = Vec::new();
    for run in weight.runs((TASK_BYTES / (k * weight.float().size())).max(ROWS)) {
        let (out, after) = rest.split_at_mut(run.rows() * m);
        rest = after;
        tasks.push((run, out));
    }
    tasks.into_par_iter().for_each(|(run, out)| {
        Arch::new().dispatch(Task { float: weight.float(), run, x: &x, m, out });
    });
    if m == 1 { transposed } else { (0..m * n).map(|at| transposed[at % n * m + at / n]).collect() }
}

impl<'a> Operand<'a> {
    fn new(all: &'a [f32], k: usize, float: Float) -> Self {
        let (mut even, mut odd) = (Vec::new(), Vec::new());
        if float == Float::Bf16 {
            for row in all.chunks_exact(k) {
                for pair in row.as_chunks::<2>().0 {
                    even.push(pair[0]);
                    odd.push(pair[1]);
                }
            }
        }
        Self { all, even, odd, k }
    }

    #[inline(always)]
    fn row(&self, at: usize) -> [&[f32]; 3] {
        let half = self.k / 2;
        let all = &self.all[at * self.k..][..self.k];
        if self.even.is_empty() {
            return [all, &[], &[]];
        }
        [all, &self.even[at * half..][..half], &self.odd[at * half..][..half]]
    }
}

/// One run of weight rows times all activations. `out` is by weight row, then by activation row.
struct Task<'a> {
    float: Float,
    run: Run<'a>,
    x: &'a Operand<'a>,
    m: usize,
    out: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let row_bytes = self.run.row_bytes();
        let mut widened = vec![0.0; if self.float == Float::F16 { ROWS * self.x.k } else { 0 }];
        let groups = self.run.bytes().chunks(ROWS * row_bytes).zip(self.out.chunks_mut(ROWS * self.m));
        for (bytes, out) in groups {
            let (float, bytes) = match self.float {
                Float::F16 => {
                    let widened = &mut widened[..bytes.len() / 2];
                    widen(Float::F16, bytes, widened);
                    (Float::F32, bytemuck::cast_slice(widened))
                }
                float => (float, bytes),
            };
            if out.len() == ROWS * self.m {
                block_of_rows::<S, ROWS>(simd, float, bytes, self.x, self.m, out);
            } else {
                let row_bytes = bytes.len() / (out.len() / self.m);
                for (bytes, out) in bytes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(self.m)) {
                    block_of_rows::<S, 1>(simd, float, bytes, self.x, self.m, out);
                }
            }
        }
    }
}

/// `R` weight rows times all activations, four activation rows at a time.
#[inline(always)]
fn block_of_rows<S: Simd, const R: usize>(
    simd: S,
    float: Float,
    bytes: &[u8],
    x: &Operand<'_>,
    m: usize,
    out: &mut [f32],
) {
    let row_bytes = bytes.len() / R;
    let mut rows: [&[u8]; R] = [&[]; R];
    for (row, bytes) in rows.iter_mut().zip(bytes.chunks_exact(row_bytes)) {
        *row = bytes;
    }
    let mut first = 0;
    while first < m {
        match m - first {
            1 => block::<S, R, 1>(simd, float, rows, x, first, m, out),
            2 => block::<S, R, 2>(simd, float, rows, x, first, m, out),
            3 => block::<S, R, 3>(simd, float, rows, x, first, m, out),
            _ => block::<S, R, 4>(simd, float, rows, x, first, m, out),
        }
        first += 4;
    }
}

/// `R` weight rows times `M` activation rows from `first` on.
#[inline(always)]
fn block<S: Simd, const R: usize, const M: usize>(
    simd: S,
    float: Float,
    rows: [&[u8]; R],
    x: &Operand<'_>,
    first: usize,
    m: usize,
    out: &mut [f32],
) {
    let mut operands: [[&[f32]; 3]; M] = [[&[]; 3]; M];
    for (j, operand) in operands.iter_mut().enumerate() {
        *operand = x.row(first + j);
    }
    let sums = match float {
        Float::Bf16 => dots_bf16(simd, rows, operands),
        Float::F32 | Float::F16 => dots_f32(simd, rows, operands),
    };
    for (r, sums) in sums.iter().enumerate() {
        out[r * m + first..][..M].copy_from_slice(sums);
    }
}

#[inline(always)]
fn dots_bf16<S: Simd, const R: usize, const M: usize>(
    simd: S,
    rows: [&[u8]; R],
    x: [[&[f32]; 3]; M],
) -> [[f32; M]; R] {
    let (lanes, step) = (S::U32_LANES, size_of::<S::u32s>());
    let vectors = rows[0].len() / step;
    let (shift, high) = (simd.splat_u32s(16), simd.splat_u32s(0xffff_0000));
    let mut sums = [[simd.splat_f32s(0.0); M]; R];
    let mut halves = [(simd.splat_f32s(0.0), simd.splat_f32s(0.0)); M];
    for at in 0..vectors {
        for j in 0..M {
            halves[j] = (read::<S>(x[j][1], at * lanes), read::<S>(x[j][2], at * lanes));
        }
        for r in 0..R {
            let words: S::u32s = pod_read_unaligned(&rows[r][at * step..][..step]);
            let even = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(words, shift));
            let odd = simd.transmute_f32s_u32s(simd.and_u32s(words, high));
            for j in 0..M {
                sums[r][j] = simd.mul_add_e_f32s(even, halves[j].0, sums[r][j]);
                sums[r][j] = simd.mul_add_e_f32s(odd, halves[j].1, sums[r][j]);
            }
        }
    }
    let done = vectors * 2 * lanes;
    let element = |row: &[u8], at: usize| {
        f32::from_bits(u32::from(u16::from_le_bytes([row[2 * at], row[2 * at + 1]])) << 16)
    };
    finish(simd, sums, rows, x, done, element)
}

#[inline(always)]
fn dots_f32<S: Simd, const R: usize, const M: usize>(
    simd: S,
    rows: [&[u8]; R],
    x: [[&[f32]; 3]; M],
) -> [[f32; M]; R] {
    let (lanes, step) = (S::F32_LANES, size_of::<S::f32s>());
    let vectors = rows[0].len() / step;
    let mut sums = [[simd.splat_f32s(0.0); M]; R];
    for at in 0..vectors {
        for r in 0..R {
            let weights: S::f32s = pod_read_unaligned(&rows[r][at * step..][..step]);
            for j in 0..M {
                let operand = read::<S>(x[j][0], at * lanes);
                sums[r][j] = simd.mul_add_e_f32s(weights, operand, sums[r][j]);
            }
        }
    }
    let element = |row: &[u8], at: usize| pod_read_unaligned(&row[4 * at..][..4]);
    finish(simd, sums, rows, x, vectors * lanes, element)
}

#[inline(always)]
fn read<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    pod_read_unaligned(bytemuck::cast_slice(&values[at..][..S::F32_LANES]))
}

/// Sums over lanes, and adds the elements from `done` on, which fill no vector.
#[inline(always)]
fn finish<S: Simd, const R: usize, const M: usize>(
    simd: S,
    sums: [[S::f32s; M]; R],
    rows: [&[u8]; R],
    x: [[&[f32]; 3]; M],
    done: usize,
    element: impl Fn(&[u8], usize) -> f32,
) -> [[f32; M]; R] {
    let mut out = [[0.0; M]; R];
    for r in 0..R {
        for j in 0..M {
            let all = x[j][0];
            out[r][j] = simd.reduce_sum_f32s(sums[r][j]);
            for at in done..all.len() {
                out[r][j] += element(rows[r], at) * all[at];
            }
        }
    }
    out
}
