//! Little-endian elements of any float type to f32, exactly.
//!
//! Every loop is compiled for each instruction set that `pulp` knows, and has nothing in it that
//! keeps the compiler from turning it into vectors.

use bytemuck::pod_read_unaligned;
use pulp::Arch;
use surf_protocol::Dtype;

use super::format;

/// Whether [`widen`] takes `dtype`.
pub(super) fn known(dtype: Dtype) -> bool {
    !matches!(
        dtype,
        Dtype::Bool
            | Dtype::U8
            | Dtype::I8
            | Dtype::U16
            | Dtype::I16
            | Dtype::U32
            | Dtype::I32
            | Dtype::U64
            | Dtype::I64
    )
}

/// Widens `bytes`, of a type that [`Float::of`](super::Float::of) takes, to f32; an f64 is rounded. `to` has room
/// for as many elements as they are.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    Arch::new().dispatch(|| match dtype {
        Dtype::F32 => each::<4>(bytes, to, |bytes| pod_read_unaligned(&bytes)),
        Dtype::F64 => each::<8>(bytes, to, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::Bf16 => {
            each::<2>(bytes, to, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
        }
        Dtype::F16 => each::<2>(bytes, to, |bytes| f16(u16::from_le_bytes(bytes))),
        Dtype::F8E4M3 => each::<1>(bytes, to, |[byte]| f8_e4m3(byte)),
        // The upper half of an IEEE half.
        Dtype::F8E5M2 => each::<1>(bytes, to, |[byte]| f16(u16::from(byte) << 8)),
        other => {
            let blocks = format(other).is_some_and(|format| surf_kernels::widen_blocks(format, bytes, to));
            assert!(blocks, "{other:?} is no float, as `known` says");
        }
    });
}

#[inline(always)]
fn each<const SIZE: usize>(bytes: &[u8], to: &mut [f32], one: impl Fn([u8; SIZE]) -> f32) {
    for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
        *to = one(*bytes);
    }
}

/// Without a branch, so that many go side by side; `half` asks the processor what it can for every
/// eight.
#[inline(always)]
pub(super) fn f16(half: u16) -> f32 {
    /// From the exponents of a half to those of a float.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let (sign, rest) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff));
    let endless = if 0x7c00 <= rest { 0x7f80_0000 } else { 0 };
    f32::from_bits((f32::from_bits(rest << 13) * REBIAS).to_bits() | endless | sign)
}

/// Four bits of exponent, three of mantissa, no infinities.
#[inline(always)]
fn f8_e4m3(byte: u8) -> f32 {
    /// From its exponents to those of a float.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 7) << 23);
    let (sign, rest) = (u32::from(byte & 0x80) << 24, u32::from(byte & 0x7f));
    let not_a_number = if rest == 0x7f { 0x7fc0_0000 } else { 0 };
    f32::from_bits((f32::from_bits(rest << 20) * REBIAS).to_bits() | not_a_number | sign)
}
