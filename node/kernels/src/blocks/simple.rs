//! Blocks of 32 elements with one scale.
//!
//! Four bits a quant: a byte holds an element in its lower half, and the element 16 further in its upper.

use super::{E2M1_PLUS_12, IQ4_PLUS_128, half_at};

/// A format of blocks of 32 elements: `scale · (quant − OFFSET)`, plus `minimum` if there is one.
pub(crate) trait Simple {
    /// Bytes of a block.
    const BYTES: usize;
    /// What is subtracted from each quant.
    const OFFSET: u8;
    /// The largest quant.
    const QUANT_MAX: u8;
    /// Whether blocks have minimums, which follow the scale.
    const HAS_MINIMUM: bool;
    /// Whether the scale is a power of two in one byte. Others are halves. Either comes first.
    const IS_POWER: bool = false;

    /// All quants, in the order of the elements.
    fn quants(block: &[u8]) -> [u8; 32];

    fn scale(block: &[u8]) -> f32;

    /// Zero if blocks have none.
    fn minimum(_: &[u8]) -> f32 {
        0.0
    }
}

/// The lower halves of 16 bytes, then the upper ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let bytes: &[u8; 16] = bytes.first_chunk().expect("a block has 16 bytes of quants");
    std::array::from_fn(|at| if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 })
}

/// The same, with a fifth bit for each.
#[inline(always)]
fn fives(fifths: &[u8], bytes: &[u8]) -> [u8; 32] {
    let fifths = u32::from_le_bytes(*fifths.first_chunk().expect("a block has 4 bytes of fifth bits"));
    let low = nibbles(bytes);
    std::array::from_fn(|at| low[at] | ((fifths >> at & 1) as u8) << 4)
}

/// A scale and four bits a quant, less 8.
pub(crate) struct Q4_0;

impl Simple for Q4_0 {
    const BYTES: usize = 18;
    const OFFSET: u8 = 8;
    const QUANT_MAX: u8 = 15;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        nibbles(&block[2..])
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        half_at(block, 0)
    }
}

/// A scale, a minimum and four bits a quant.
pub(crate) struct Q4_1;

impl Simple for Q4_1 {
    const BYTES: usize = 20;
    const OFFSET: u8 = 0;
    const QUANT_MAX: u8 = 15;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        nibbles(&block[4..])
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        half_at(block, 0)
    }

    #[inline(always)]
    fn minimum(block: &[u8]) -> f32 {
        half_at(block, 2)
    }
}

/// A scale, a word of fifth bits and four bits a quant, less 16.
pub(crate) struct Q5_0;

impl Simple for Q5_0 {
    const BYTES: usize = 22;
    const OFFSET: u8 = 16;
    const QUANT_MAX: u8 = 31;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        fives(&block[2..], &block[6..])
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        half_at(block, 0)
    }
}

/// A scale, a minimum, a word of fifth bits and four bits a quant.
pub(crate) struct Q5_1;

impl Simple for Q5_1 {
    const BYTES: usize = 24;
    const OFFSET: u8 = 0;
    const QUANT_MAX: u8 = 31;
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        fives(&block[4..], &block[8..])
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        half_at(block, 0)
    }

    #[inline(always)]
    fn minimum(block: &[u8]) -> f32 {
        half_at(block, 2)
    }
}

/// A scale and quants of eight bits with a sign, to which 128 is added here.
pub(crate) struct Q8_0;

impl Simple for Q8_0 {
    const BYTES: usize = 34;
    const OFFSET: u8 = 128;
    const QUANT_MAX: u8 = 255;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        let bytes: &[u8; 32] = block[2..].first_chunk().expect("a block has 32 bytes of quants");
        bytes.map(|byte| byte ^ 0x80)
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        half_at(block, 0)
    }
}

/// A scale and four bits a quant, which stand for sixteen values that lie closer together near zero.
pub(crate) struct Iq4Nl;

impl Simple for Iq4Nl {
    const BYTES: usize = 18;
    const OFFSET: u8 = 128;
    const QUANT_MAX: u8 = 255;
    const HAS_MINIMUM: bool = false;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        nibbles(&block[2..]).map(|quant| IQ4_PLUS_128[usize::from(quant)])
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        half_at(block, 0)
    }
}

/// A power of two and floats of four bits (OCP Microscaling Formats, MXFP4). The floats are taken twice, so
/// that they are integers, and the scale half.
pub(crate) struct Mxfp4;

impl Simple for Mxfp4 {
    const BYTES: usize = 17;
    const OFFSET: u8 = 12;
    const QUANT_MAX: u8 = 24;
    const HAS_MINIMUM: bool = false;
    const IS_POWER: bool = true;

    #[inline(always)]
    fn quants(block: &[u8]) -> [u8; 32] {
        nibbles(&block[1..]).map(|quant| E2M1_PLUS_12[usize::from(quant)])
    }

    /// 2 to the power of `e − 128`: below two it is a denormal.
    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        let e = u32::from(block[0]);
        f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
    }
}
