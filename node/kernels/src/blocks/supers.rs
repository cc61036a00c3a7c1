//! Blocks of 256 elements in 16 runs, with integer scales.

use super::{IQ4_PLUS_128, half_at};

/// A format of blocks of 256 elements. In run `r` of 16 elements, an element is
/// `d · scales[r] · (quant − OFFSET) − dmin · minimums[r]`.
pub(crate) trait Super {
    /// Bytes of a block.
    const BYTES: usize;
    /// What is subtracted from each quant.
    const OFFSET: u8;
    /// The largest quant.
    const QUANT_MAX: u8;
    /// Whether runs have minimums. No format has both these and an offset.
    const HAS_MINIMUM: bool;
    /// Elements that share a scale: 16, or 32.
    const RUN: usize;

    /// All quants, in the order of the elements.
    fn quants(block: &[u8]) -> [u8; 256];

    /// The scale of each 16 elements.
    fn scales(block: &[u8]) -> [i8; 16];

    /// The minimum of each 16 elements; zeros if there are none.
    #[inline(always)]
    fn minimums(_: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    /// Where `d` is, a half.
    const D: usize;
    /// Where `dmin` is, a half, if runs have minimums.
    const DMIN: usize;

    #[inline(always)]
    fn d(block: &[u8]) -> f32 {
        half_at(block, Self::D)
    }

    #[inline(always)]
    fn dmin(block: &[u8]) -> f32 {
        if Self::HAS_MINIMUM { half_at(block, Self::DMIN) } else { 0.0 }
    }
}

/// Each of eight bytes twice.
#[inline(always)]
fn doubled(bytes: u64) -> [u8; 16] {
    let bytes = bytes.to_le_bytes();
    std::array::from_fn(|at| bytes[at / 2])
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Scales and minimums of six bits for eight runs of 32, in twelve bytes, as Q4_K and Q5_K pack them.
#[inline(always)]
fn sixes(bytes: &[u8]) -> (u64, u64) {
    let (a, b, c) = (word(bytes, 0), word(bytes, 4), word(bytes, 8));
    let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    let join = |first: u32, last: u32| u64::from(first) | u64::from(last) << 32;
    (join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | high(a)), join(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | high(b)))
}

/// 16 scales and minimums of four bits, 64 bytes of quants of two bits, `d`, `dmin`.
pub(crate) struct Q2K;

impl Super for Q2K {
    const BYTES: usize = 84;
    const OFFSET: u8 = 0;
    const QUANT_MAX: u8 = 3;
    const HAS_MINIMUM: bool = true;
    const RUN: usize = 16;
    const D: usize = 80;
    const DMIN: usize = 82;

    /// 32 bytes hold 128 elements, 32 in each pair of bits.
    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|at| block[16 + at / 128 * 32 + at % 32] >> (at / 32 % 4 * 2) & 3)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [i8; 16] {
        std::array::from_fn(|run| (block[run] & 15) as i8)
    }

    #[inline(always)]
    fn minimums(block: &[u8]) -> [u8; 16] {
        std::array::from_fn(|run| block[run] >> 4)
    }
}

/// 32 bytes of third bits, 64 of lower ones, 16 scales of six bits less 32, `d`.
pub(crate) struct Q3K;

impl Super for Q3K {
    const BYTES: usize = 110;
    const OFFSET: u8 = 4;
    const QUANT_MAX: u8 = 7;
    const HAS_MINIMUM: bool = false;
    const RUN: usize = 16;
    const D: usize = 108;
    const DMIN: usize = 0;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|at| {
            let low = block[32 + at / 128 * 32 + at % 32] >> (at / 32 % 4 * 2) & 3;
            low | (block[at % 32] >> (at / 32) & 1) << 2
        })
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [i8; 16] {
        let (a, b, c) = (word(block, 96), word(block, 100), word(block, 104));
        let words = [
            a & 0x0f0f_0f0f | (c & 0x0303_0303) << 4,
            b & 0x0f0f_0f0f | (c >> 2 & 0x0303_0303) << 4,
            a >> 4 & 0x0f0f_0f0f | (c >> 4 & 0x0303_0303) << 4,
            b >> 4 & 0x0f0f_0f0f | (c >> 6 & 0x0303_0303) << 4,
        ];
        std::array::from_fn(|run| (words[run / 4] >> (run % 4 * 8)) as u8 as i8 - 32)
    }
}

/// `d`, `dmin`, eight scales and minimums of six bits, 128 bytes of quants of four.
pub(crate) struct Q4K;

impl Super for Q4K {
    const BYTES: usize = 144;
    const OFFSET: u8 = 0;
    const QUANT_MAX: u8 = 15;
    const HAS_MINIMUM: bool = true;
    const RUN: usize = 32;
    const D: usize = 0;
    const DMIN: usize = 2;

    /// 32 bytes hold 64 elements, 32 in each half.
    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|at| block[16 + at / 64 * 32 + at % 32] >> (at / 32 % 2 * 4) & 15)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [i8; 16] {
        doubled(sixes(&block[4..]).0).map(|scale| scale as i8)
    }

    #[inline(always)]
    fn minimums(block: &[u8]) -> [u8; 16] {
        doubled(sixes(&block[4..]).1)
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the quants.
pub(crate) struct Q5K;

impl Super for Q5K {
    const BYTES: usize = 176;
    const OFFSET: u8 = 0;
    const QUANT_MAX: u8 = 31;
    const HAS_MINIMUM: bool = true;
    const RUN: usize = 32;
    const D: usize = 0;
    const DMIN: usize = 2;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|at| {
            let low = block[48 + at / 64 * 32 + at % 32] >> (at / 32 % 2 * 4) & 15;
            low | (block[16 + at % 32] >> (at / 32) & 1) << 4
        })
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [i8; 16] {
        Q4K::scales(block)
    }

    #[inline(always)]
    fn minimums(block: &[u8]) -> [u8; 16] {
        Q4K::minimums(block)
    }
}

/// 128 bytes of lower bits, 64 of upper ones, 16 scales of eight bits, `d`.
pub(crate) struct Q6K;

impl Super for Q6K {
    const BYTES: usize = 210;
    const OFFSET: u8 = 32;
    const QUANT_MAX: u8 = 63;
    const HAS_MINIMUM: bool = false;
    const RUN: usize = 16;
    const D: usize = 208;
    const DMIN: usize = 0;

    /// Of each half of the block: 64 bytes with two runs of 64, and 32 bytes with four runs of 32.
    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|at| {
            let low = block[at / 128 * 64 + at % 64] >> (at / 64 % 2 * 4) & 15;
            low | (block[128 + at / 128 * 32 + at % 32] >> (at / 32 % 4 * 2) & 3) << 4
        })
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [i8; 16] {
        std::array::from_fn(|run| block[192 + run] as i8)
    }
}

/// `d`, eight scales of six bits less 32, 128 bytes of quants of four bits, which stand for sixteen values.
pub(crate) struct Iq4Xs;

impl Super for Iq4Xs {
    const BYTES: usize = 136;
    const OFFSET: u8 = 128;
    const QUANT_MAX: u8 = 255;
    const HAS_MINIMUM: bool = false;
    const RUN: usize = 32;
    const D: usize = 0;
    const DMIN: usize = 0;

    /// 16 bytes hold 32 elements, 16 in each half.
    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|at| {
            let quant = block[8 + at / 32 * 16 + at % 16] >> (at / 16 % 2 * 4) & 15;
            IQ4_PLUS_128[usize::from(quant)]
        })
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [i8; 16] {
        let (high, low) = (u16::from_le_bytes([block[2], block[3]]), word(block, 4));
        std::array::from_fn(|run| {
            let run = run / 2;
            let scale = low >> (4 * run) & 15 | u32::from(high >> (2 * run) & 3) << 4;
            scale as i8 - 32
        })
    }
}
