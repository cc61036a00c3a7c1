//! Products of floats: sixteen lanes are two vectors.

use std::arch::x86_64::*;

use crate::{out::Out, steps::parts};

/// Weight rows that meet activations in registers.
const ROWS: usize = 2;

/// The lanes of `ROWS` weight rows and `M` rows of activations.
type Sums<const M: usize> = [[[__m256; 2]; M]; ROWS];

/// Folds the lanes, and writes the results of those rows that are there.
#[inline(always)]
unsafe fn put<const M: usize>(sums: &Sums<M>, rows: usize, out: Out) {
    unsafe {
        for j in 0..M {
            let mut results = [0.0; ROWS];
            for r in 0..ROWS {
                let eight = _mm256_add_ps(sums[r][j][0], sums[r][j][1]);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                results[r] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            }
            out.put(j, 0, &results[..rows]);
        }
    }
}

/// How sixteen weights become two vectors.
trait Widen {
    /// Bytes of sixteen.
    const SIZE: usize;

    unsafe fn widen(weights: *const u8) -> [__m256; 2];
}

struct F32;

impl Widen for F32 {
    const SIZE: usize = 64;

    #[inline(always)]
    unsafe fn widen(weights: *const u8) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(weights.cast()), _mm256_loadu_ps(weights.wrapping_add(32).cast())] }
    }
}

struct F16;

impl Widen for F16 {
    const SIZE: usize = 32;

    #[inline(always)]
    unsafe fn widen(weights: *const u8) -> [__m256; 2] {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(weights.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(weights.wrapping_add(16).cast())),
            ]
        }
    }
}

#[inline(always)]
unsafe fn few<W: Widen, const M: usize>(rows: &[&[u8]], x: &[f32], out: Out) {
    unsafe {
        let (x, width) = (x.as_ptr(), x.len() / M);
        let mut tail = [[0; 64]; ROWS];
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            let mut sums: Sums<M> = [[[_mm256_setzero_ps(); 2]; M]; ROWS];
            for (starts, steps) in parts(rows, W::SIZE, &mut tail) {
                for at in steps {
                    let weights = array!([[_mm256_setzero_ps(); 2]; ROWS], |r| {
                        W::widen(starts[r].wrapping_add(at * W::SIZE))
                    });
                    for j in 0..M {
                        for half in 0..2 {
                            let x = _mm256_loadu_ps(x.add(j * width + at * 16 + half * 8));
                            for r in 0..ROWS {
                                sums[r][j][half] = _mm256_fmadd_ps(weights[r][half], x, sums[r][j][half]);
                            }
                        }
                    }
                }
            }
            put(&sums, rows.len(), out.from(0, group * ROWS));
        }
    }
}

/// Rows of f32 times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn few_floats<const M: usize>(rows: &[&[u8]], x: &[f32], out: Out) {
    unsafe { few::<F32, M>(rows, x, out) }
}

/// Rows of f16 times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn few_halves<const M: usize>(rows: &[&[u8]], x: &[f32], out: Out) {
    unsafe { few::<F16, M>(rows, x, out) }
}

/// The elements with odd numbers, of pairs of bfloat16.
#[inline(always)]
unsafe fn odd(pairs: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32))) }
}

/// The elements with even numbers, of pairs of bfloat16.
#[inline(always)]
unsafe fn even(pairs: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)) }
}

/// Rows of bfloat16 times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn few_pairs<const M: usize>(rows: &[&[u8]], x: &[u16], out: Out) {
    unsafe {
        let (x, width) = (x.as_ptr(), x.len() / M);
        let mut tail = [[0; 64]; ROWS];
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            let mut sums: Sums<M> = [[[_mm256_setzero_ps(); 2]; M]; ROWS];
            for (starts, steps) in parts(rows, 64, &mut tail) {
                for at in steps {
                    for half in 0..2 {
                        let weights = array!([_mm256_setzero_si256(); ROWS], |r| {
                            _mm256_loadu_si256(starts[r].wrapping_add(at * 64 + half * 32).cast())
                        });
                        for j in 0..M {
                            let x = _mm256_loadu_si256(x.add(j * width + at * 32 + half * 16).cast());
                            for r in 0..ROWS {
                                let sum = _mm256_fmadd_ps(odd(weights[r]), odd(x), sums[r][j][half]);
                                sums[r][j][half] = _mm256_fmadd_ps(even(weights[r]), even(x), sum);
                            }
                        }
                    }
                }
            }
            put(&sums, rows.len(), out.from(0, group * ROWS));
        }
    }
}
