//! AVX-512 with VNNI: 64 products of bytes to an instruction.
//!
//! Functions here that are unsafe ask for a processor with these instructions, and for pointers to whole rows.

mod few;
mod floats;
mod many;
mod quants;
mod tile;

pub(crate) use few::{few_simples, few_supers};
pub(crate) use floats::{few_floats, few_halves, few_pairs, few_pairs_exact, is_exact};
pub(crate) use many::{many_simples, many_supers};
pub(crate) use quants::{SimpleQuants, SuperQuants};

/// Runs `work` as the compiler makes it for these instructions.
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn inner<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
    // SAFETY: whoever chose this level saw that the processor has the instructions.
    unsafe { inner(work) }
}
