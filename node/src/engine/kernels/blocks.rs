//! The blocks of GGML, element for element as `ggml-quants.c` dequantises them: the same products and
//! differences in the same order, so the values are the same to the last bit.
//!
//! A block is a run of elements of one row. Those of 32 have one scale; those of 256, whose names end
//! in K, have a scale for every 16 or 32 elements, quantised in turn. Quants of fewer than eight bits are
//! packed so that one byte holds elements that lie half a block, or 32 elements, apart.

use super::widen::f16;

/// Dequantises blocks of `BYTES` bytes to `ELEMENTS` elements each.
#[inline(always)]
pub(super) fn each<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    to: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (block, to) in bytes.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
        one(block, to);
    }
}

/// The half at `at`.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], to: &mut [f32; 32]) {
    let scale = half(block, 0);
    for at in 0..16 {
        let quants = block[2 + at];
        to[at] = f32::from((quants & 15) as i8 - 8) * scale;
        to[at + 16] = f32::from((quants >> 4) as i8 - 8) * scale;
    }
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], to: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for at in 0..16 {
        let quants = block[4 + at];
        to[at] = f32::from(quants & 15) * scale + least;
        to[at + 16] = f32::from(quants >> 4) * scale + least;
    }
}

/// The fifth bits of 32 elements: bit `n` of the word is that of element `n`.
#[inline(always)]
fn fifths(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], to: &mut [f32; 32]) {
    let (scale, fifths) = (half(block, 0), fifths(block, 2));
    for at in 0..16 {
        let (quants, first, second) = (u32::from(block[6 + at]), fifths >> at, fifths >> (at + 16));
        to[at] = ((quants & 15 | (first & 1) << 4) as i32 - 16) as f32 * scale;
        to[at + 16] = ((quants >> 4 | (second & 1) << 4) as i32 - 16) as f32 * scale;
    }
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], to: &mut [f32; 32]) {
    let (scale, least, fifths) = (half(block, 0), half(block, 2), fifths(block, 4));
    for at in 0..16 {
        let (quants, first, second) = (u32::from(block[8 + at]), fifths >> at, fifths >> (at + 16));
        to[at] = (quants & 15 | (first & 1) << 4) as i32 as f32 * scale + least;
        to[at + 16] = (quants >> 4 | (second & 1) << 4) as i32 as f32 * scale + least;
    }
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], to: &mut [f32; 32]) {
    let scale = half(block, 0);
    for at in 0..32 {
        to[at] = f32::from(block[2 + at] as i8) * scale;
    }
}

/// 16 scales and minimums of four bits, 64 bytes of quants, scale and minimum of the block.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], to: &mut [f32; 256]) {
    let (scale, least) = (half(block, 80), half(block, 82));
    for (at, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(block[at] & 15);
        let least = least * f32::from(block[at] >> 4);
        // 32 bytes hold 128 elements, 32 in each pair of bits.
        let (first, shift) = (16 + at / 8 * 32 + at % 2 * 16, at / 2 % 4 * 2);
        for (to, quants) in to.iter_mut().zip(&block[first..first + 16]) {
            *to = scale * f32::from(quants >> shift & 3) - least;
        }
    }
}

/// 32 bytes of third bits, 64 of lower ones, 16 scales of six bits, scale of the block.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], to: &mut [f32; 256]) {
    let scale = half(block, 108);
    let scales: &[u8] = &block[96..108];
    for (at, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[at % 8] >> (at / 8 * 4) & 15;
        let high = scales[8 + at % 4] >> (at / 4 * 2) & 3;
        let scale = scale * f32::from((low | high << 4) as i8 - 32);
        let (first, shift) = (32 + at / 8 * 32 + at % 2 * 16, at / 2 % 4 * 2);
        let (third, bit) = (at % 2 * 16, at / 2);
        let quants = block[first..first + 16].iter().zip(&block[third..third + 16]);
        for (to, (low, third)) in to.iter_mut().zip(quants) {
            // Four less where the third bit is not set.
            let quant = (low >> shift & 3) as i8 - 4 * (1 - (third >> bit & 1) as i8);
            *to = scale * f32::from(quant);
        }
    }
}

/// The scale and the minimum of run `at` of eight, of six bits each, in 12 bytes.
#[inline(always)]
fn scale_and_least(scales: &[u8; 12], at: usize) -> (f32, f32) {
    let (scale, least) = match at {
        ..4 => (scales[at] & 63, scales[at + 4] & 63),
        _ => {
            let low = scales[at + 4];
            (low & 15 | scales[at - 4] >> 6 << 4, low >> 4 | scales[at] >> 6 << 4)
        }
    };
    (f32::from(scale), f32::from(least))
}

/// Scale and minimum of the block, those of its runs, 128 bytes of quants.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], to: &mut [f32; 256]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let scales = block[4..].first_chunk().expect("a block has 144 bytes");
    for (at, to) in to.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (of_run, least_of_run) = scale_and_least(scales, at);
        let (scale, least) = (scale * of_run, least * least_of_run);
        let (first, shift) = (16 + at / 2 * 32, at % 2 * 4);
        for (to, quants) in to.iter_mut().zip(&block[first..first + 32]) {
            *to = scale * f32::from(quants >> shift & 15) - least;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the quants.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], to: &mut [f32; 256]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let scales = block[4..].first_chunk().expect("a block has 176 bytes");
    for (at, to) in to.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (of_run, least_of_run) = scale_and_least(scales, at);
        let (scale, least) = (scale * of_run, least * least_of_run);
        let (first, shift) = (48 + at / 2 * 32, at % 2 * 4);
        let quants = block[first..first + 32].iter().zip(&block[16..48]);
        for (to, (low, fifth)) in to.iter_mut().zip(quants) {
            *to = scale * f32::from(low >> shift & 15 | (fifth >> at & 1) << 4) - least;
        }
    }
}

/// 128 bytes of lower bits, 64 of upper ones, 16 scales of eight bits, scale of the block.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], to: &mut [f32; 256]) {
    let scale = half(block, 208);
    for (at, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(block[192 + at] as i8);
        // Of each half of the block: 64 bytes with two runs of 64, 32 bytes with four runs of 32.
        let (half, run, part) = (at / 8, at / 2 % 4, at % 2 * 16);
        let low = half * 64 + run % 2 * 32 + part;
        let high = 128 + half * 32 + part;
        let quants = block[low..low + 16].iter().zip(&block[high..high + 16]);
        for (to, (low, high)) in to.iter_mut().zip(quants) {
            let quant = low >> (run / 2 * 4) & 15 | (high >> (run * 2) & 3) << 4;
            *to = scale * f32::from(quant as i8 - 32);
        }
    }
}
