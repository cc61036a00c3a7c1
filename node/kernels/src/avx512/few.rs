//! Products with few rows of activations: weights are unpacked in registers and used at once.

use std::arch::x86_64::*;

use super::{SimpleQuants, SuperQuants};
use crate::{
    activation::{By32, By256},
    avx2::eight_scales,
    out::Out,
};

/// Which run a lane of two packed vectors of sums belongs to. Packing puts four sums of the first beside four
/// of the second, 128 bits at a time.
#[inline(always)]
unsafe fn runs_of_packed(first: i16) -> __m512i {
    let runs: [i16; 32] =
        std::array::from_fn(|lane| first + (lane / 8) as i16 + if lane % 8 < 4 { 0 } else { 4 });
    unsafe { _mm512_loadu_si512(runs.as_ptr().cast()) }
}

/// Four weight rows at a time, of blocks of 256, times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
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

/// Sums of four products times their scales, which are given as bytes and, in `packed`, as they belong to packed sums.
#[inline(always)]
unsafe fn scaled_sums<F: SuperQuants>(sums: [__m512i; 4], scales: __m128i, packed: [__m512i; 2]) -> __m512i {
    unsafe {
        let zero = _mm512_setzero_si512();
        // Sums of four products fit 16 bits, but for the largest quants.
        if F::QUANT_MAX < 64 {
            let sum = _mm512_dpwssd_epi32(zero, packed[0], _mm512_packs_epi32(sums[0], sums[1]));
            return _mm512_dpwssd_epi32(sum, packed[1], _mm512_packs_epi32(sums[2], sums[3]));
        }
        let scales = _mm512_cvtepi8_epi32(scales);
        let mut all = zero;
        for c in 0..4 {
            let lanes: [i32; 16] = std::array::from_fn(|lane| (c * 4 + lane / 4) as i32);
            let runs = _mm512_loadu_si512(lanes.as_ptr().cast());
            let scales = _mm512_permutexvar_epi32(runs, scales);
            all = _mm512_add_epi32(all, _mm512_mullo_epi32(sums[c], scales));
        }
        all
    }
}

#[inline(always)]
unsafe fn four_supers<F: SuperQuants, const M: usize>(
    rows: [*const u8; 4],
    x: *const By256,
    blocks: usize,
) -> [[f32; 4]; M] {
    unsafe {
        let zero = _mm512_setzero_si512();
        let (packed_first, packed_last) = (runs_of_packed(0), runs_of_packed(8));
        let mut acc = [_mm_setzero_ps(); M];
        for at in 0..blocks {
            let mut scaled = [[zero; 4]; M];
            let mut least = [[_mm_setzero_si128(); 4]; M];
            let mut d = [0u16; 8];
            for r in 0..4 {
                let start = rows[r].add(at * F::BYTES);
                let block = std::slice::from_raw_parts(start, F::BYTES);
                let quants = F::vectors(start);
                let scales = F::scales(block);
                let scales8 = _mm_loadu_si128(scales.as_ptr().cast());
                let scales16 = _mm256_cvtepi8_epi16(scales8);
                d[r] = start.add(F::D).cast::<u16>().read_unaligned();
                let others = if F::HAS_MINIMUM {
                    d[4 + r] = start.add(F::DMIN).cast::<u16>().read_unaligned();
                    let minimums = F::minimums(block);
                    _mm256_cvtepu8_epi16(_mm_loadu_si128(minimums.as_ptr().cast()))
                } else {
                    scales16
                };
                let wide = _mm512_castsi256_si512(scales16);
                let first = _mm512_permutexvar_epi16(packed_first, wide);
                let last = _mm512_permutexvar_epi16(packed_last, wide);
                for j in 0..M {
                    let x = &*x.add(j * blocks + at);
                    let p = array!([zero; 4], |c| {
                        let x = _mm512_load_si512(x.quants.as_ptr().add(c * 64).cast());
                        _mm512_dpbusd_epi32(zero, quants[c], x)
                    });
                    scaled[j][r] = scaled_sums::<F>(p, scales8, [first, last]);
                    let sums = _mm256_loadu_si256(x.sums.as_ptr().cast());
                    let sums = _mm256_madd_epi16(others, sums);
                    least[j][r] =
                        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
                }
            }
            let d = _mm256_cvtph_ps(_mm_loadu_si128(d.as_ptr().cast()));
            let (d, dmin) = (_mm256_castps256_ps128(d), _mm256_extractf128_ps::<1>(d));
            for j in 0..M {
                let scaled = totals(scaled[j]);
                let least = _mm_hadd_epi32(
                    _mm_hadd_epi32(least[j][0], least[j][1]),
                    _mm_hadd_epi32(least[j][2], least[j][3]),
                );
                let value = if F::HAS_MINIMUM {
                    let value = _mm_mul_ps(d, _mm_cvtepi32_ps(scaled));
                    _mm_fnmadd_ps(dmin, _mm_cvtepi32_ps(least), value)
                } else {
                    let offset = _mm_mullo_epi32(least, _mm_set1_epi32(i32::from(F::OFFSET)));
                    _mm_mul_ps(d, _mm_cvtepi32_ps(_mm_sub_epi32(scaled, offset)))
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

/// Sums of two words each, of `a` and `b` in turn.
#[inline(always)]
unsafe fn pairs(a: __m512i, b: __m512i) -> __m512i {
    unsafe { _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)) }
}

/// Sums of two words each, two of `a` and two of `b` in turn.
#[inline(always)]
unsafe fn fours(a: __m512i, b: __m512i) -> __m512i {
    unsafe { _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)) }
}

/// The sum of each of four vectors.
#[inline(always)]
unsafe fn totals(v: [__m512i; 4]) -> __m128i {
    unsafe {
        let all = fours(pairs(v[0], v[1]), pairs(v[2], v[3]));
        let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
        _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
    }
}

/// Eight weight rows at a time, of blocks of 32, times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn few_simples<F: SimpleQuants, const M: usize>(rows: &[&[u8]], x: &[By32], out: Out) {
    unsafe {
        let (all, blocks) = (x.len() / M, rows[0].len() / F::BYTES);
        let whole = blocks / 8;
        let mut tail = [[0u8; 8 * 34]; 8];
        for (group, rows) in rows.chunks(8).enumerate() {
            // Those that are not there are computed like the last, and left.
            let row = |at: usize| rows[at.min(rows.len() - 1)];
            let mut starts: [*const u8; 8] = std::array::from_fn(|at| row(at).as_ptr());
            let mut acc = [_mm256_setzero_ps(); M];
            for at in 0..whole {
                eight_simples::<F, M>(&starts, x.as_ptr().add(at), all, &mut acc);
                starts.iter_mut().for_each(|start| *start = start.add(8 * F::BYTES));
            }
            if whole < all {
                // Blocks after the last are zeros: they meet activations that are zeros, and add nothing.
                for (at, tail) in tail.iter_mut().enumerate() {
                    let rest = &row(at)[whole * 8 * F::BYTES..];
                    tail[..rest.len()].copy_from_slice(rest);
                    starts[at] = tail.as_ptr();
                }
                eight_simples::<F, M>(&starts, x.as_ptr().add(whole), all, &mut acc);
            }
            for (j, acc) in acc.into_iter().enumerate() {
                let mut sums = [0.0; 8];
                _mm256_storeu_ps(sums.as_mut_ptr(), acc);
                out.put(j, group * 8, &sums[..rows.len()]);
            }
        }
    }
}

/// Eight blocks of eight rows. `x` is the first block of activations, and `stride` after it that of the next row.
#[inline(always)]
unsafe fn eight_simples<F: SimpleQuants, const M: usize>(
    rows: &[*const u8; 8],
    x: *const By32,
    stride: usize,
    acc: &mut [__m256; M],
) {
    unsafe {
        for pair in 0..4 {
            let starts: [*const u8; 8] = std::array::from_fn(|r| rows[r].add(pair * 2 * F::BYTES));
            let quants = array!([_mm512_setzero_si512(); 8], |r| F::vector(starts[r]));
            let (first, first_least) = eight_scales::<F>(&starts, 0);
            let (last, last_least) = eight_scales::<F>(&starts, F::BYTES);
            for (j, acc) in acc.iter_mut().enumerate() {
                let x = &*x.add(j * stride);
                let vector = _mm512_load_si512(x.quants.as_ptr().add(pair * 64).cast());
                let [a, b] = [x.sums[2 * pair], x.sums[2 * pair + 1]];
                let offset = -i32::from(F::OFFSET);
                let start = _mm512_inserti64x4::<1>(
                    _mm512_castsi256_si512(_mm256_zextsi128_si256(_mm_cvtsi32_si128(a * offset))),
                    _mm256_zextsi128_si256(_mm_cvtsi32_si128(b * offset)),
                );
                let dots =
                    array!([_mm512_setzero_si512(); 8], |r| _mm512_dpbusd_epi32(start, quants[r], vector));
                let dots = _mm512_cvtepi32_ps(by_rows(dots));
                let parts = [_mm512_castps512_ps256(dots), _mm512_extractf32x8_ps::<1>(dots)];
                let scales = [first, last];
                let leasts = [first_least, last_least];
                for half in 0..2 {
                    let scale = _mm256_set1_ps(x.scales[2 * pair + half]);
                    *acc = _mm256_fmadd_ps(parts[half], _mm256_mul_ps(scales[half], scale), *acc);
                    if F::HAS_MINIMUM {
                        let sum = _mm256_set1_ps(x.sums[2 * pair + half] as f32);
                        *acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(leasts[half], scale), *acc);
                    }
                }
            }
        }
    }
}

/// The sums of eight vectors, of which each half belongs to a block: eight rows of the first block, then eight
/// of the second.
#[inline(always)]
unsafe fn by_rows(v: [__m512i; 8]) -> __m512i {
    unsafe {
        let low = fours(pairs(v[0], v[1]), pairs(v[2], v[3]));
        let high = fours(pairs(v[4], v[5]), pairs(v[6], v[7]));
        // Of each block there are two partial sums, 128 bits apart.
        let sums = _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high),
        );
        _mm512_shuffle_i32x4::<0b11_01_10_00>(sums, sums)
    }
}
