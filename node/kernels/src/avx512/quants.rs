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
    unsafe fn vectors(block: *const u8) -> [__m512i; 4];
}

/// Unpacks blocks of 32 elements.
pub(crate) trait SimpleQuants: Simple {
    /// The same as [`Simple::quants`] of two blocks.
    ///
    /// # Safety
    ///
    /// `block` points to two whole blocks.
    unsafe fn vector(block: *const u8) -> __m512i;
}

/// 32 bytes twice.
#[inline(always)]
unsafe fn twice(bytes: *const u8) -> __m512i {
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(bytes.cast())) }
}

/// How far the first 32 bytes are shifted, and how far the last.
#[inline(always)]
unsafe fn by(first: i64, last: i64) -> __m512i {
    unsafe { _mm512_setr_epi64(first, first, first, first, last, last, last, last) }
}

/// Shifts by `first` and `last` bits to the right, or to the left if they are negative, and keeps `mask`.
#[inline(always)]
unsafe fn bits(v: __m512i, first: i64, last: i64, mask: i8) -> __m512i {
    unsafe {
        let shifted = if first < 0 {
            _mm512_sllv_epi64(v, by(-first, -last))
        } else {
            _mm512_srlv_epi64(v, by(first, last))
        };
        _mm512_and_si512(shifted, _mm512_set1_epi8(mask))
    }
}

/// Of each 16 bytes the lower halves, then the upper ones: 16 bytes in each half of `bytes`.
#[inline(always)]
unsafe fn nibbles(bytes: __m256i) -> __m512i {
    unsafe {
        let twice = _mm512_shuffle_i64x2::<0b01_01_00_00>(
            _mm512_castsi256_si512(bytes),
            _mm512_castsi256_si512(bytes),
        );
        let shifted = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        _mm512_and_si512(shifted, _mm512_set1_epi8(15))
    }
}

/// 16 bytes of each of two blocks.
#[inline(always)]
unsafe fn both(first: *const u8, last: *const u8) -> __m256i {
    unsafe { _mm256_loadu2_m128i(last.cast(), first.cast()) }
}

/// What quants of four bits stand for.
#[inline(always)]
unsafe fn looked_up(quants: __m512i, table: &[u8; 16]) -> __m512i {
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        _mm512_shuffle_epi8(table, quants)
    }
}

impl SuperQuants for Q2K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m512i; 4] {
        unsafe {
            let (first, last) = (twice(block.add(16)), twice(block.add(48)));
            [bits(first, 0, 2, 3), bits(first, 4, 6, 3), bits(last, 0, 2, 3), bits(last, 4, 6, 3)]
        }
    }
}

impl SuperQuants for Q3K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m512i; 4] {
        unsafe {
            let (thirds, first, last) = (twice(block), twice(block.add(32)), twice(block.add(64)));
            [
                _mm512_or_si512(bits(first, 0, 2, 3), bits(thirds, -2, -1, 4)),
                _mm512_or_si512(bits(first, 4, 6, 3), bits(thirds, 0, 1, 4)),
                _mm512_or_si512(bits(last, 0, 2, 3), bits(thirds, 2, 3, 4)),
                _mm512_or_si512(bits(last, 4, 6, 3), bits(thirds, 4, 5, 4)),
            ]
        }
    }
}

impl SuperQuants for Q4K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m512i; 4] {
        unsafe {
            let quants = block.add(16);
            [
                bits(twice(quants), 0, 4, 15),
                bits(twice(quants.add(32)), 0, 4, 15),
                bits(twice(quants.add(64)), 0, 4, 15),
                bits(twice(quants.add(96)), 0, 4, 15),
            ]
        }
    }
}

impl SuperQuants for Q5K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m512i; 4] {
        unsafe {
            let (fifths, quants) = (twice(block.add(16)), block.add(48));
            [
                _mm512_or_si512(bits(twice(quants), 0, 4, 15), bits(fifths, -4, -3, 16)),
                _mm512_or_si512(bits(twice(quants.add(32)), 0, 4, 15), bits(fifths, -2, -1, 16)),
                _mm512_or_si512(bits(twice(quants.add(64)), 0, 4, 15), bits(fifths, 0, 1, 16)),
                _mm512_or_si512(bits(twice(quants.add(96)), 0, 4, 15), bits(fifths, 2, 3, 16)),
            ]
        }
    }
}

impl SuperQuants for Q6K {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m512i; 4] {
        unsafe {
            let low = [_mm512_loadu_si512(block.cast()), _mm512_loadu_si512(block.add(64).cast())];
            let high = [twice(block.add(128)), twice(block.add(160))];
            [
                _mm512_or_si512(bits(low[0], 0, 0, 15), bits(high[0], -4, -2, 0x30)),
                _mm512_or_si512(bits(low[0], 4, 4, 15), bits(high[0], 0, 2, 0x30)),
                _mm512_or_si512(bits(low[1], 0, 0, 15), bits(high[1], -4, -2, 0x30)),
                _mm512_or_si512(bits(low[1], 4, 4, 15), bits(high[1], 0, 2, 0x30)),
            ]
        }
    }
}

impl SuperQuants for Iq4Xs {
    #[inline(always)]
    unsafe fn vectors(block: *const u8) -> [__m512i; 4] {
        unsafe {
            array!([_mm512_setzero_si512(); 4], |at| {
                let bytes = _mm256_loadu_si256(block.add(8 + 32 * at).cast());
                looked_up(nibbles(bytes), &IQ4_PLUS_128)
            })
        }
    }
}

impl SimpleQuants for Q4_0 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe { nibbles(both(block.add(2), block.add(2 + Self::BYTES))) }
    }
}

impl SimpleQuants for Q4_1 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe { nibbles(both(block.add(4), block.add(4 + Self::BYTES))) }
    }
}

/// Fifth bits of 32 elements each, at `first` and at `last`, as 16 or 0.
#[inline(always)]
unsafe fn fifths(first: *const u8, last: *const u8) -> __m512i {
    unsafe {
        let word = |at: *const u8| u64::from(at.cast::<u32>().read_unaligned());
        _mm512_maskz_set1_epi8(word(first) | word(last) << 32, 16)
    }
}

impl SimpleQuants for Q5_0 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe {
            let next = block.add(Self::BYTES);
            _mm512_or_si512(nibbles(both(block.add(6), next.add(6))), fifths(block.add(2), next.add(2)))
        }
    }
}

impl SimpleQuants for Q5_1 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe {
            let next = block.add(Self::BYTES);
            _mm512_or_si512(nibbles(both(block.add(8), next.add(8))), fifths(block.add(4), next.add(4)))
        }
    }
}

impl SimpleQuants for Q8_0 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe {
            let first = _mm256_loadu_si256(block.add(2).cast());
            let last = _mm256_loadu_si256(block.add(2 + Self::BYTES).cast());
            let quants = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), last);
            _mm512_xor_si512(quants, _mm512_set1_epi8(-128))
        }
    }
}

impl SimpleQuants for Iq4Nl {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe { looked_up(nibbles(both(block.add(2), block.add(2 + Self::BYTES))), &IQ4_PLUS_128) }
    }
}

impl SimpleQuants for Mxfp4 {
    #[inline(always)]
    unsafe fn vector(block: *const u8) -> __m512i {
        unsafe { looked_up(nibbles(both(block.add(1), block.add(1 + Self::BYTES))), &E2M1_PLUS_12) }
    }
}
