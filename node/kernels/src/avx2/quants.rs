//! Quants of blocks as vectors of bytes, in the order of the elements.

use std::arch::x86_64::*;

use crate::blocks::{
    E2M1_PLUS_12, IQ4_PLUS_128, Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
    Simple, Super,
};

/// Unpacks blocks of 256 elements.
pub(crate) trait SuperQuants: Super {
    /// The same as [`Super::quants`].
    ///
    /// # Safety
    ///
    /// `block` points to a whole block.
    unsafe fn vectors(block: *const u8) -> [__m256i; 8];
}

/// Unpacks blocks of 32 elements.
pub(crate) trait SimpleQuants: Simple {
    /// The same as [`Simple::quants`].
    ///
    /// # Safety
    ///
    /// `block` points to a whole block.
    unsafe fn vector(block: *const u8) -> __m256i;
}

#[inline(always)]
unsafe fn load(bytes: *const u8) -> __m256i {
    unsafe { _mm256_loadu_si256(bytes.cast()) }
}

/// Shifts bytes by `right` bits to the right, or to the left if that is negative, and keeps `mask`.
#[inline(always)]
unsafe fn bits(v: __m256i, right: i32, mask: i8) -> __m256i {
    unsafe {
        let by = _mm_cvtsi32_si128(right.abs());
        let shifted = if right < 0 { _mm256_sll_epi16(v, by) } else { _mm256_srl_epi16(v, by) };
        _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
    }
}

/// The lower halves of 16 bytes, then the upper ones.
#[inline(always)]
unsafe fn nibbles(bytes: *const u8) -> __m256i {
    unsafe {
        let bytes = _mm_loadu_si128(bytes.cast());
        let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// What quants of four bits stand for.
#[inline(always)]
unsafe fn looked_up(quants: __m256i, table: &[u8; 16]) -> __m256i {
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        _mm256_shuffle_epi8(table, quants)
    }
}

impl SuperQuants for Q2K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m256i; 8] {
        unsafe {
            let quants = [load(block.add(16)), load(block.add(48))];
            array!([_mm256_setzero_si256(); 8], |at| bits(quants[at / 4], 2 * (at % 4) as i32, 3))
        }
    }
}

impl SuperQuants for Q3K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m256i; 8] {
        unsafe {
            let (thirds, quants) = (load(block), [load(block.add(32)), load(block.add(64))]);
            array!([_mm256_setzero_si256(); 8], |at| {
                let low = bits(quants[at / 4], 2 * (at % 4) as i32, 3);
                _mm256_or_si256(low, bits(thirds, at as i32 - 2, 4))
            })
        }
    }
}

impl SuperQuants for Q4K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m256i; 8] {
        unsafe {
            array!([_mm256_setzero_si256(); 8], |at| bits(
                load(block.add(16 + at / 2 * 32)),
                4 * (at % 2) as i32,
                15
            ))
        }
    }
}

impl SuperQuants for Q5K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m256i; 8] {
        unsafe {
            let fifths = load(block.add(16));
            array!([_mm256_setzero_si256(); 8], |at| {
                let low = bits(load(block.add(48 + at / 2 * 32)), 4 * (at % 2) as i32, 15);
                _mm256_or_si256(low, bits(fifths, at as i32 - 4, 16))
            })
        }
    }
}

impl SuperQuants for Q6K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m256i; 8] {
        unsafe {
            array!([_mm256_setzero_si256(); 8], |at| {
                let (half, run) = (at / 4, at % 4);
                let low = bits(load(block.add(half * 64 + run % 2 * 32)), 4 * (run / 2) as i32, 15);
                let high = bits(load(block.add(128 + half * 32)), 2 * run as i32 - 4, 0x30);
                _mm256_or_si256(low, high)
            })
        }
    }
}

impl SuperQuants for Iq4Xs {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m256i; 8] {
        unsafe {
            array!([_mm256_setzero_si256(); 8], |at| looked_up(
                nibbles(block.add(8 + 16 * at)),
                &IQ4_PLUS_128
            ))
        }
    }
}

impl SimpleQuants for Q4_0 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { nibbles(block.add(2)) }
    }
}

impl SimpleQuants for Q4_1 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { nibbles(block.add(4)) }
    }
}

/// Fifth bits of 32 elements as 16 or 0.
#[inline(always)]
unsafe fn fifths(bytes: *const u8) -> __m256i {
    unsafe {
        let word = _mm256_set1_epi32(bytes.cast::<i32>().read_unaligned());
        let byte_of =
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit_of = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let bits = _mm256_and_si256(_mm256_shuffle_epi8(word, byte_of), bit_of);
        _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(16))
    }
}

impl SimpleQuants for Q5_0 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { _mm256_or_si256(nibbles(block.add(6)), fifths(block.add(2))) }
    }
}

impl SimpleQuants for Q5_1 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { _mm256_or_si256(nibbles(block.add(8)), fifths(block.add(4))) }
    }
}

impl SimpleQuants for Q8_0 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { _mm256_xor_si256(load(block.add(2)), _mm256_set1_epi8(-128)) }
    }
}

impl SimpleQuants for Iq4Nl {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { looked_up(nibbles(block.add(2)), &IQ4_PLUS_128) }
    }
}

impl SimpleQuants for Mxfp4 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m256i {
        unsafe { looked_up(nibbles(block.add(1)), &E2M1_PLUS_12) }
    }
}
