//! Products as they are defined, one element after the other.

use crate::{
    activation::{By32, By256},
    blocks::{Simple, Super},
    lanes::{self, LANES},
};

/// A row of blocks of 256. Integers are exact, and blocks are added in their order.
pub(crate) fn supers<F: Super>(row: &[u8], x: &[By256]) -> f32 {
    let mut sum = 0.0f32;
    for (block, x) in row.chunks_exact(F::BYTES).zip(x) {
        let (quants, scales, minimums) = (F::quants(block), F::scales(block), F::minimums(block));
        let (mut scaled, mut least) = (0i32, 0i32);
        for run in 0..16 {
            let pairs = quants[run * 16..][..16].iter().zip(&x.quants[run * 16..][..16]);
            let dot: i32 = pairs.map(|(&w, &x)| (i32::from(w) - i32::from(F::OFFSET)) * i32::from(x)).sum();
            scaled += i32::from(scales[run]) * dot;
            least += i32::from(minimums[run]) * i32::from(x.sums[run]);
        }
        let mut value = F::d(block) * scaled as f32;
        if F::HAS_MINIMUM {
            value = (-F::dmin(block)).mul_add(least as f32, value);
        }
        sum = value.mul_add(x.scale, sum);
    }
    lanes::canonical(sum)
}

/// A row of blocks of 32.
pub(crate) fn simples<F: Simple>(row: &[u8], x: &[By32]) -> f32 {
    let mut sum = 0.0f32;
    for (at, block) in row.chunks_exact(F::BYTES).enumerate() {
        let (x, at) = (&x[at / 8], at % 8);
        let pairs = F::quants(block).into_iter().zip(&x.quants[at * 32..][..32]);
        let dot: i32 = pairs.map(|(w, &x)| (i32::from(w) - i32::from(F::OFFSET)) * i32::from(x)).sum();
        sum = (dot as f32).mul_add(F::scale(block) * x.scales[at], sum);
        if F::HAS_MINIMUM {
            sum = (x.sums[at] as f32).mul_add(F::minimum(block) * x.scales[at], sum);
        }
    }
    lanes::canonical(sum)
}

/// Two rows of f32, of which the second is padded with zeros.
pub(crate) fn floats(row: &[f32], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (at, x) in x.as_chunks::<LANES>().0.iter().enumerate() {
        for (lane, x) in x.iter().enumerate() {
            let weight = row.get(at * LANES + lane).copied().unwrap_or(0.0);
            sums[lane] = weight.mul_add(*x, sums[lane]);
        }
    }
    lanes::canonical(lanes::fold(sums))
}

/// Two rows of bfloat16, of which the second is padded with zeros.
pub(crate) fn pairs(row: &[u8], x: &[u16]) -> f32 {
    let weight = |at: usize| {
        let bytes = row.get(2 * at..2 * at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        lanes::bf16(bytes)
    };
    let mut sums = [0.0f32; LANES];
    for (at, x) in x.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
        for (lane, x) in x.as_chunks::<2>().0.iter().enumerate() {
            let first = 2 * (at * LANES + lane);
            let odd = weight(first + 1).mul_add(lanes::bf16(x[1]), sums[lane]);
            sums[lane] = weight(first).mul_add(lanes::bf16(x[0]), odd);
        }
    }
    lanes::canonical(lanes::fold(sums))
}
