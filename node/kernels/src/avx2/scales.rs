//! Scales of blocks of 32 elements.

use std::arch::x86_64::*;

use crate::{blocks::Simple, tile::SimpleTile};

/// Scales and minimums of the block at `at` of each row.
///
/// # Safety
///
/// There is such a block at each.
#[inline(always)]
pub(crate) unsafe fn eight_scales<F: Simple>(rows: &[*const u8; 8], at: usize) -> (__m256, __m256) {
    unsafe {
        let row = |r: usize| rows[r].add(at);
        if F::IS_POWER {
            let e = |r: usize| i32::from(row(r).read());
            let e = _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7));
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
            let denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
            let is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
            let scales = _mm256_blendv_epi8(denormal, normal, is_normal);
            return (_mm256_castsi256_ps(scales), _mm256_setzero_ps());
        }
        let half = |r: usize| row(r).cast::<i16>().read_unaligned();
        let halves = _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
        let leasts = if F::HAS_MINIMUM {
            let half = |r: usize| row(r).add(2).cast::<i16>().read_unaligned();
            let halves =
                _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
            _mm256_cvtph_ps(halves)
        } else {
            _mm256_setzero_ps()
        };
        (_mm256_cvtph_ps(halves), leasts)
    }
}

/// Unpacks the scales and minimums of eight blocks at each of `rows`.
///
/// # Safety
///
/// Each points to eight whole blocks.
#[inline(always)]
pub(crate) unsafe fn sixteen_scales<F: Simple>(tile: &mut SimpleTile, rows: &[*const u8; 16]) {
    let [first, last] = rows.as_chunks::<8>().0 else { unreachable!("sixteen rows are twice eight") };
    for block in 0..8 {
        for (rows, at) in [(first, 0), (last, 8)] {
            unsafe {
                let (scales, minimums) = eight_scales::<F>(rows, block * F::BYTES);
                _mm256_storeu_ps(tile.scales[block].as_mut_ptr().add(at), scales);
                _mm256_storeu_ps(tile.minimums[block].as_mut_ptr().add(at), minimums);
            }
        }
    }
}
