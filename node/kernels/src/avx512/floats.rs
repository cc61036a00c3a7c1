//! Products of floats: sixteen lanes are one vector.

use std::arch::x86_64::*;

use crate::{lanes::BF16_LEAST, out::Out, steps::parts};

/// Weight rows that meet activations in registers.
const ROWS: usize = 4;

/// The lanes of `ROWS` weight rows and `M` rows of activations.
type Sums<const M: usize> = [[__m512; M]; ROWS];

/// Folds the lanes, and writes the results of those rows that are there.
#[inline(always)]
unsafe fn put<const M: usize>(sums: &Sums<M>, rows: usize, out: Out) {
    unsafe {
        for j in 0..M {
            let mut results = [0.0; ROWS];
            for r in 0..ROWS {
                let sum = sums[r][j];
                let eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                results[r] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            }
            out.put(j, 0, &results[..rows]);
        }
    }
}

/// How sixteen weights become a vector.
trait Widen {
    /// Bytes of sixteen.
    const SIZE: usize;

    unsafe fn widen(weights: *const u8) -> __m512;
}

struct F32;

impl Widen for F32 {
    const SIZE: usize = 64;

    #[inline(always)]
    unsafe fn widen(weights: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(weights.cast()) }
    }
}

struct F16;

impl Widen for F16 {
    const SIZE: usize = 32;

    #[inline(always)]
    unsafe fn widen(weights: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(weights.cast())) }
    }
}

#[inline(always)]
unsafe fn few<W: Widen, const M: usize>(rows: &[&[u8]], x: &[f32], out: Out) {
    unsafe {
        let (x, width) = (x.as_ptr(), x.len() / M);
        let mut tail = [[0; 64]; ROWS];
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            let mut sums: Sums<M> = [[_mm512_setzero_ps(); M]; ROWS];
            for (starts, steps) in parts(rows, W::SIZE, &mut tail) {
                for at in steps {
                    let weights = array!([_mm512_setzero_ps(); ROWS], |r| W::widen(
                        starts[r].wrapping_add(at * W::SIZE)
                    ));
                    for j in 0..M {
                        let x = _mm512_loadu_ps(x.add(j * width + at * 16));
                        for r in 0..ROWS {
                            sums[r][j] = _mm512_fmadd_ps(weights[r], x, sums[r][j]);
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn few_floats<const M: usize>(rows: &[&[u8]], x: &[f32], out: Out) {
    unsafe { few::<F32, M>(rows, x, out) }
}

/// Rows of f16 times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn few_halves<const M: usize>(rows: &[&[u8]], x: &[f32], out: Out) {
    unsafe { few::<F16, M>(rows, x, out) }
}

/// The elements with odd numbers, of pairs of bfloat16.
#[inline(always)]
unsafe fn odd(pairs: __m512i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32))) }
}

/// The elements with even numbers, of pairs of bfloat16.
#[inline(always)]
unsafe fn even(pairs: __m512i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)) }
}

/// How pairs of bfloat16 are multiplied and added.
trait Pairs {
    unsafe fn add(sum: __m512, weights: __m512i, x: __m512i) -> __m512;
}

struct Fused;

impl Pairs for Fused {
    #[inline(always)]
    unsafe fn add(sum: __m512, weights: __m512i, x: __m512i) -> __m512 {
        unsafe {
            let sum = _mm512_fmadd_ps(odd(weights), odd(x), sum);
            _mm512_fmadd_ps(even(weights), even(x), sum)
        }
    }
}

struct Own;

impl Pairs for Own {
    #[inline(always)]
    unsafe fn add(sum: __m512, weights: __m512i, x: __m512i) -> __m512 {
        unsafe {
            let pairs = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
            _mm512_dpbf16_ps(sum, pairs(weights), pairs(x))
        }
    }
}

#[inline(always)]
unsafe fn few_of<P: Pairs, const M: usize>(rows: &[&[u8]], x: &[u16], out: Out) {
    unsafe {
        let (x, width) = (x.as_ptr(), x.len() / M);
        let mut tail = [[0; 64]; ROWS];
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            let mut sums: Sums<M> = [[_mm512_setzero_ps(); M]; ROWS];
            for (starts, steps) in parts(rows, 64, &mut tail) {
                for at in steps {
                    let weights = array!([_mm512_setzero_si512(); ROWS], |r| {
                        _mm512_loadu_si512(starts[r].wrapping_add(at * 64).cast())
                    });
                    for j in 0..M {
                        let x = _mm512_loadu_si512(x.add(j * width + at * 32).cast());
                        for r in 0..ROWS {
                            sums[r][j] = P::add(sums[r][j], weights[r], x);
                        }
                    }
                }
            }
            put(&sums, rows.len(), out.from(0, group * ROWS));
        }
    }
}

/// Rows of bfloat16 times `M` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn few_pairs<const M: usize>(rows: &[&[u8]], x: &[u16], out: Out) {
    unsafe { few_of::<Fused, M>(rows, x, out) }
}

/// The same, if [`is_exact`] says that the processor's own instruction gives the same bits.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(crate) unsafe fn few_pairs_exact<const M: usize>(rows: &[&[u8]], x: &[u16], out: Out) {
    unsafe { few_of::<Own, M>(rows, x, out) }
}

/// Whether each of these bfloat16 is zero, or finite and at least [`BF16_LEAST`].
///
/// # Safety
///
/// `bytes` is an even number of bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn is_exact(bytes: &[u8]) -> bool {
    const INFINITY: u16 = 0x7f80;
    let span = INFINITY - BF16_LEAST;
    let (whole, rest) = bytes.as_chunks::<64>();
    let mut bad: __mmask32 = 0;
    for chunk in whole {
        // SAFETY: 64 bytes are there.
        let v = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        let magnitude = _mm512_and_si512(v, _mm512_set1_epi16(0x7fff));
        let above = _mm512_sub_epi16(magnitude, _mm512_set1_epi16(BF16_LEAST as i16));
        let outside = _mm512_cmpge_epu16_mask(above, _mm512_set1_epi16(span as i16));
        bad |= _mm512_mask_test_epi16_mask(outside, magnitude, magnitude);
    }
    bad == 0
        && rest.as_chunks::<2>().0.iter().all(|bytes| {
            let magnitude = u16::from_le_bytes(*bytes) & 0x7fff;
            magnitude == 0 || (BF16_LEAST..INFINITY).contains(&magnitude)
        })
}
