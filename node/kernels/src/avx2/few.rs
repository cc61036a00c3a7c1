//! Products with few rows of activations: weights are unpacked in registers and used at once.

use std::arch::x86_64::*;

use super::{SimpleQuants, SuperQuants, eight_scales};
use crate::{
    activation::{By32, By256},
    out::Out,
};

/// Sums of two products each, in 16 bits. Quants that reach 255 have 128 subtracted, all others nothing.
#[inline(always)]
pub(super) unsafe fn pairs(quants: __m256i, x: __m256i, quant_max: u8) -> __m256i {
    unsafe {
        if quant_max < 64 {
            return _mm256_maddubs_epi16(quants, x);
        }
        let quants = _mm256_xor_si256(quants, _mm256_set1_epi8(-128));
        _mm256_maddubs_epi16(_mm256_abs_epi8(quants), _mm256_sign_epi8(x, quants))
    }
}

/// What is still to be subtracted from quants after [`pairs`].
pub(super) const fn offset(offset: u8, quant_max: u8) -> i32 {
    if quant_max < 64 { offset as i32 } else { 0 }
}

/// Four weight rows at a time, of blocks of 256, times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn few_supers<F: SuperQuants, const M: usize>(rows: &[&[u8]], x: &[By256], out: Out) {
    unsafe {
        for (group, rows) in rows.chunks(4).enumerate() {
            // Those that are not there are computed like the last, and left.
            let row = |at: usize| rows[at.min(rows.len() - 1)].as_ptr();
            let sums = four_supers::<F, M>([row(0), row(1), row(2), row(3)], x.as_ptr(), x.len() / M);
            for (j, sums) in sums.into_iter().enumerate() {
                out.put(j, group * 4, &sums[..rows.len()]);
            }
        }
    }
}

#[inline(always)]
unsafe fn four_supers<F: SuperQuants, const M: usize>(
    rows: [*const u8; 4],
    x: *const By256,
    blocks: usize,
) -> [[f32; 4]; M] {
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut acc = [_mm_setzero_ps(); M];
        for at in 0..blocks {
            let mut scaled = [[zero; 4]; M];
            let mut least = [[zero; 4]; M];
            let mut d = [0u16; 8];
            for r in 0..4 {
                let start = rows[r].add(at * F::BYTES);
                let block = std::slice::from_raw_parts(start, F::BYTES);
                let quants = F::vectors(start);
                let scales = F::scales(block);
                let scales = _mm256_cvtepi8_epi16(_mm_loadu_si128(scales.as_ptr().cast()));
                d[r] = start.add(F::D).cast::<u16>().read_unaligned();
                let others = if F::HAS_MINIMUM {
                    d[4 + r] = start.add(F::DMIN).cast::<u16>().read_unaligned();
                    let minimums = F::minimums(block);
                    _mm256_cvtepu8_epi16(_mm_loadu_si128(minimums.as_ptr().cast()))
                } else {
                    scales
                };
                let halves = [
                    _mm256_permute2x128_si256::<0x00>(scales, scales),
                    _mm256_permute2x128_si256::<0x11>(scales, scales),
                ];
                for c in 0..8 {
                    // Two runs: one in each half.
                    let (low, high) = ((c % 4 * 4) as i8, (c % 4 * 4 + 2) as i8);
                    let which: [i8; 32] =
                        std::array::from_fn(|at| if at < 16 { low } else { high } + (at % 2) as i8);
                    let which = _mm256_loadu_si256(which.as_ptr().cast());
                    let scales = _mm256_shuffle_epi8(halves[c / 4], which);
                    for j in 0..M {
                        let x = &*x.add(j * blocks + at);
                        let x = _mm256_load_si256(x.quants.as_ptr().add(c * 32).cast());
                        let dots = _mm256_madd_epi16(pairs(quants[c], x, F::QUANT_MAX), scales);
                        scaled[j][r] = _mm256_add_epi32(scaled[j][r], dots);
                    }
                }
                for j in 0..M {
                    let x = &*x.add(j * blocks + at);
                    least[j][r] = _mm256_madd_epi16(others, _mm256_loadu_si256(x.sums.as_ptr().cast()));
                }
            }
            let d = _mm256_cvtph_ps(_mm_loadu_si128(d.as_ptr().cast()));
            let (d, dmin) = (_mm256_castps256_ps128(d), _mm256_extractf128_ps::<1>(d));
            for j in 0..M {
                let (scaled, least) = (totals(scaled[j]), totals(least[j]));
                let value = if F::HAS_MINIMUM {
                    let value = _mm_mul_ps(d, _mm_cvtepi32_ps(scaled));
                    _mm_fnmadd_ps(dmin, _mm_cvtepi32_ps(least), value)
                } else {
                    let offset = _mm_set1_epi32(offset(F::OFFSET, F::QUANT_MAX));
                    let scaled = _mm_sub_epi32(scaled, _mm_mullo_epi32(least, offset));
                    _mm_mul_ps(d, _mm_cvtepi32_ps(scaled))
                };
                acc[j] = _mm_fmadd_ps(value, _mm_set1_ps((*x.add(j * blocks + at)).scale), acc[j]);
            }
        }
        let mut sums = [[0.0; 4]; M];
        for j in 0..M {
            _mm_storeu_ps(sums[j].as_mut_ptr(), acc[j]);
        }
        sums
    }
}

/// The sum of each of four vectors.
#[inline(always)]
unsafe fn totals(v: [__m256i; 4]) -> __m128i {
    unsafe {
        let sums = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
    }
}

/// Eight weight rows at a time, of blocks of 32, times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn few_simples<F: SimpleQuants, const M: usize>(rows: &[&[u8]], x: &[By32], out: Out) {
    unsafe {
        let (all, blocks) = (x.len() / M, rows[0].len() / F::BYTES);
        for (group, rows) in rows.chunks(8).enumerate() {
            // Those that are not there are computed like the last, and left.
            let mut starts: [*const u8; 8] = std::array::from_fn(|at| rows[at.min(rows.len() - 1)].as_ptr());
            let mut acc = [_mm256_setzero_ps(); M];
            for at in 0..blocks {
                one_simple::<F, M>(&starts, x.as_ptr().add(at / 8), all, at % 8, &mut acc);
                starts.iter_mut().for_each(|start| *start = start.add(F::BYTES));
            }
            for (j, acc) in acc.into_iter().enumerate() {
                let mut sums = [0.0; 8];
                _mm256_storeu_ps(sums.as_mut_ptr(), acc);
                out.put(j, group * 8, &sums[..rows.len()]);
            }
        }
    }
}

/// One block of eight rows, which meets the run `at` of `x`; `stride` after it is the next row of activations.
#[inline(always)]
unsafe fn one_simple<F: SimpleQuants, const M: usize>(
    rows: &[*const u8; 8],
    x: *const By32,
    stride: usize,
    at: usize,
    acc: &mut [__m256; M],
) {
    unsafe {
        let quants = array!([_mm256_setzero_si256(); 8], |r| F::vector(rows[r]));
        let (scales, minimums) = eight_scales::<F>(rows, 0);
        for (j, acc) in acc.iter_mut().enumerate() {
            let x = &*x.add(j * stride);
            let vector = _mm256_load_si256(x.quants.as_ptr().add(at * 32).cast());
            let ones = _mm256_set1_epi16(1);
            let dots = array!([_mm256_setzero_si256(); 8], |r| {
                _mm256_madd_epi16(pairs(quants[r], vector, F::QUANT_MAX), ones)
            });
            let offset = offset(F::OFFSET, F::QUANT_MAX) * x.sums[at];
            let dots = _mm256_sub_epi32(by_rows(dots), _mm256_set1_epi32(offset));
            let scale = _mm256_set1_ps(x.scales[at]);
            *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(scales, scale), *acc);
            if F::HAS_MINIMUM {
                let sum = _mm256_set1_ps(x.sums[at] as f32);
                *acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(minimums, scale), *acc);
            }
        }
    }
}

/// The sum of each of eight vectors.
#[inline(always)]
unsafe fn by_rows(v: [__m256i; 8]) -> __m256i {
    unsafe {
        let two = array!([_mm256_setzero_si256(); 4], |at| _mm256_hadd_epi32(v[2 * at], v[2 * at + 1]));
        let (low, high) = (_mm256_hadd_epi32(two[0], two[1]), _mm256_hadd_epi32(two[2], two[3]));
        _mm256_add_epi32(
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        )
    }
}
