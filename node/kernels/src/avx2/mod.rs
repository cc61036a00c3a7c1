//! AVX2, FMA and F16C: 32 products of bytes to three instructions.
//!
//! Pairs of products are added in 16 bits, which is exact: quants of up to 63 cannot leave them, and larger ones,
//! which have signs, are multiplied by their magnitudes with the activations' signs turned.
//!
//! Functions here that are unsafe ask for a processor with these instructions, and for pointers to whole rows.

mod few;
mod floats;
mod many;
mod quants;
mod scales;

pub(crate) use few::{few_simples, few_supers};
pub(crate) use floats::{few_floats, few_halves, few_pairs};
pub(crate) use many::{many_simples, many_supers};
pub(crate) use quants::{SimpleQuants, SuperQuants};
pub(crate) use scales::{eight_scales, sixteen_scales};

/// Runs `work` as the compiler makes it for these instructions.
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
    // SAFETY: whoever chose this level saw that the processor has the instructions.
    unsafe { inner(work) }
}
