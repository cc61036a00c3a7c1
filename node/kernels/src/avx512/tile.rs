//! Unpacks weights to tiles: sixteen vectors, one of each row, are transposed.

use std::arch::x86_64::*;

use super::{SimpleQuants, SuperQuants};
use crate::{
    avx2::sixteen_scales,
    tile::{SimpleTile, SuperTile},
};

/// Unpacks the block of 256 elements at each of `rows`.
///
/// # Safety
///
/// Each points to a whole block.
#[inline(always)]
pub(super) unsafe fn unpack_super<F: SuperQuants>(tile: &mut SuperTile, rows: &[*const u8; 16]) {
    unsafe {
        let mut quants = [[_mm512_setzero_si512(); 16]; 4];
        let mut scales = [_mm_setzero_si128(); 16];
        let mut others = [_mm_setzero_si128(); 16];
        for (r, &row) in rows.iter().enumerate() {
            let block = std::slice::from_raw_parts(row, F::BYTES);
            for (c, vector) in F::vectors(row).into_iter().enumerate() {
                quants[c][r] = vector;
            }
            scales[r] = _mm_loadu_si128(F::scales(block).as_ptr().cast());
            others[r] = match F::HAS_MINIMUM {
                true => _mm_loadu_si128(F::minimums(block).as_ptr().cast()),
                false => scales[r],
            };
            tile.d[r] = F::d(block);
            tile.dmin[r] = F::dmin(block);
        }
        for (c, quants) in quants.into_iter().enumerate() {
            transposed(quants, &mut tile.quants[c * 16..]);
        }
        transposed(
            array!([_mm512_setzero_si512(); 16], |r| _mm512_cvtepi8_epi32(scales[r])),
            &mut tile.scales,
        );
        let pairs = array!([_mm512_setzero_si512(); 16], |r| match F::HAS_MINIMUM {
            true => _mm512_castsi256_si512(_mm256_cvtepu8_epi16(others[r])),
            false => _mm512_castsi256_si512(_mm256_cvtepi8_epi16(others[r])),
        });
        let mut both = [[0u32; 16]; 16];
        transposed(pairs, &mut both);
        tile.others.copy_from_slice(&both[..8]);
    }
}

/// Unpacks eight blocks of 32 elements at each of `rows`.
///
/// # Safety
///
/// Each points to eight whole blocks.
#[inline(always)]
pub(super) unsafe fn unpack_simple<F: SimpleQuants>(tile: &mut SimpleTile, rows: &[*const u8; 16]) {
    unsafe {
        for pair in 0..4 {
            let vectors =
                array!([_mm512_setzero_si512(); 16], |r| F::vector(rows[r].add(pair * 2 * F::BYTES)));
            transposed(vectors, &mut tile.quants[pair * 16..]);
        }
        sixteen_scales::<F>(tile, rows);
    }
}

/// Writes word `i` of each of sixteen vectors to `to[i]`.
#[inline(always)]
unsafe fn transposed<T>(v: [__m512i; 16], to: &mut [[T; 16]]) {
    const { assert!(size_of::<T>() == 4) };
    unsafe {
        let mut a = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
        }
        // b[4q + w]: word w of each 128 bits, of rows 4q to 4q + 3.
        let mut b = [_mm512_setzero_si512(); 16];
        for q in 0..4 {
            b[4 * q] = _mm512_unpacklo_epi64(a[4 * q], a[4 * q + 2]);
            b[4 * q + 1] = _mm512_unpackhi_epi64(a[4 * q], a[4 * q + 2]);
            b[4 * q + 2] = _mm512_unpacklo_epi64(a[4 * q + 1], a[4 * q + 3]);
            b[4 * q + 3] = _mm512_unpackhi_epi64(a[4 * q + 1], a[4 * q + 3]);
        }
        for w in 0..4 {
            let low = [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(b[w], b[4 + w]),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(b[8 + w], b[12 + w]),
            ];
            let high = [
                _mm512_shuffle_i32x4::<0b11_01_11_01>(b[w], b[4 + w]),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(b[8 + w], b[12 + w]),
            ];
            let words = [
                (w, _mm512_shuffle_i32x4::<0b10_00_10_00>(low[0], low[1])),
                (8 + w, _mm512_shuffle_i32x4::<0b11_01_11_01>(low[0], low[1])),
                (4 + w, _mm512_shuffle_i32x4::<0b10_00_10_00>(high[0], high[1])),
                (12 + w, _mm512_shuffle_i32x4::<0b11_01_11_01>(high[0], high[1])),
            ];
            for (word, vector) in words {
                _mm512_storeu_si512(to[word].as_mut_ptr().cast(), vector);
            }
        }
    }
}
