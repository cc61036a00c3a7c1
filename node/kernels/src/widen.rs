//! Blocks as what they stand for, in f32.
//!
//! Element for element as `ggml-quants.c` dequantises them: the same products and differences in the same order, so the
//! values are the same to the last bit.

use crate::{
    Format,
    blocks::{Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Simple, Super},
};

/// Writes the elements of `bytes`, which are whole blocks of `format`, to `to`. Returns whether `format` has blocks;
/// if not, nothing is written. Stops where either ends.
#[inline(always)]
pub fn widen_blocks(format: Format, bytes: &[u8], to: &mut [f32]) -> bool {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => return false,
        Format::Q4_0 => simple::<Q4_0>(bytes, to),
        Format::Q4_1 => simple::<Q4_1>(bytes, to),
        Format::Q5_0 => simple::<Q5_0>(bytes, to),
        Format::Q5_1 => simple::<Q5_1>(bytes, to),
        Format::Q8_0 => simple::<Q8_0>(bytes, to),
        Format::Iq4Nl => simple::<Iq4Nl>(bytes, to),
        Format::Mxfp4 => simple::<Mxfp4>(bytes, to),
        Format::Q2K => super_block::<Q2K>(bytes, to),
        Format::Q3K => super_block::<Q3K>(bytes, to),
        Format::Q4K => super_block::<Q4K>(bytes, to),
        Format::Q5K => super_block::<Q5K>(bytes, to),
        Format::Q6K => super_block::<Q6K>(bytes, to),
        Format::Iq4Xs => super_block::<Iq4Xs>(bytes, to),
    }
    true
}

#[inline(always)]
fn simple<F: Simple>(bytes: &[u8], to: &mut [f32]) {
    for (block, to) in bytes.chunks_exact(F::BYTES).zip(to.as_chunks_mut::<32>().0) {
        let (scale, minimum, quants) = (F::scale(block), F::minimum(block), F::quants(block));
        for at in 0..32 {
            let value = f32::from(i16::from(quants[at]) - i16::from(F::OFFSET)) * scale;
            to[at] = if F::HAS_MINIMUM { value + minimum } else { value };
        }
    }
}

#[inline(always)]
fn super_block<F: Super>(bytes: &[u8], to: &mut [f32]) {
    for (block, to) in bytes.chunks_exact(F::BYTES).zip(to.as_chunks_mut::<256>().0) {
        let (d, dmin, quants) = (F::d(block), F::dmin(block), F::quants(block));
        let (scales, minimums) = (F::scales(block), F::minimums(block));
        for run in 0..16 {
            let scale = d * f32::from(scales[run]);
            let minimum = dmin * f32::from(minimums[run]);
            for at in 16 * run..16 * run + 16 {
                let value = scale * f32::from(i16::from(quants[at]) - i16::from(F::OFFSET));
                to[at] = if F::HAS_MINIMUM { value - minimum } else { value };
            }
        }
    }
}
