//! GGML's quantisation blocks: how their bytes are laid out, and what their elements are.
//!
//! A block is a run of elements of one row. There are two kinds. A [`Simple`] block has 32 elements and one
//! scale in floating point, perhaps with a minimum. A [`Super`] block has 256 elements in 16 runs of 16, each
//! with an integer scale, perhaps with an integer minimum, and floats that all of these are multiplied by.
//! Formats whose runs have 32 elements give each scale twice.
//!
//! What is here is portable, and the definition that the vector code must equal. Layouts are those of
//! `ggml-common.h` and `ggml-quants.c` in llama.cpp.

mod simple;
mod supers;

pub(crate) use simple::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Simple};
pub(crate) use supers::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K, Super};

/// The sixteen values of IQ4_NL and IQ4_XS, plus 128: `kvalues_iq4nl`.
pub(crate) const IQ4_PLUS_128: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// Twice the sixteen values of a float of four bits (E2M1), plus 12: `kvalues_mxfp4`.
pub(crate) const E2M1_PLUS_12: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// The half at `at`.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
