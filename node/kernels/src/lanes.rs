//! Floats, summed in sixteen lanes.
//!
//! Element `i` of a row belongs to lane `i % 16`; each lane is a chain of fused multiply-adds in the order of
//! the elements. Of bfloat16 that meets bfloat16, two neighbours share a lane, 32 elements to a step, and
//! the odd one is added first, as the processor's own instruction does. At the end lanes are folded in halves.

/// How many sums run beside each other.
pub(crate) const LANES: usize = 16;

/// Magnitudes of bfloat16 below this are zero as activations: 2^-55. No product of two numbers of at least
/// that, and no sum of such products, is a denormal, which the processor's instruction would flush.
pub(crate) const BF16_LEAST: u16 = (127 - 55) << 7;

/// The one pattern of what is no number.
const BF16_NAN: u16 = 0x7fc0;

/// Rounds to bfloat16, to nearest, ties to even. What is smaller than [`BF16_LEAST`] is zero.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let rounded = if rounded & 0x7fff < BF16_LEAST { rounded & 0x8000 } else { rounded };
    if x.is_nan() { BF16_NAN } else { rounded }
}

/// The number that these bits are.
#[inline(always)]
pub(crate) fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The sum of the lanes: those eight apart, then four, two and one.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while 0 < half {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The one pattern of what is no number, if it is none.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::NAN } else { x }
}
