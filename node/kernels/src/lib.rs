//! Arithmetic on weights as they are stored: the same bits on every processor.
//!
//! `docs/numerics.md` defines each result. From the definition to the fast code, in the order to read:
//!
//! ```text
//! format       how weights are stored, and what activations are rounded to before they meet them
//! blocks       GGML's blocks: layouts, and what their elements are
//! activation   rows of activations, rounded
//! lanes        floats: sixteen sums beside each other
//! portable     products as they are defined
//! level        which instructions the processor has
//! avx2, avx512 the same products, faster
//! product      weights times activations
//! widen        blocks as what they stand for, in f32
//! team         threads that compute together
//! ```
//!
//! Nothing here knows models or files, and nothing allocates once its buffers have grown.

#![allow(
    unsafe_code,
    reason = "vector instructions and matrices that threads share; each use says why it is sound"
)]
#![allow(clippy::needless_range_loop, reason = "several arrays have one index")]

/// An array of what an expression is for each index. Not a closure's work: the compiler makes closures by
/// themselves, without the instructions of the function that they stand in.
#[cfg(target_arch = "x86_64")]
macro_rules! array {
    ([$zero:expr; $len:expr], |$at:ident| $value:expr) => {{
        let mut all = [$zero; $len];
        let mut $at = 0;
        while $at < $len {
            all[$at] = $value;
            $at += 1;
        }
        all
    }};
}

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod format;
mod lanes;
mod level;
mod out;
mod portable;
mod product;
#[cfg(target_arch = "x86_64")]
mod steps;
pub mod team;
mod tile;
mod widen;

#[cfg(test)]
mod tests;

pub use activation::{Activations, BLOCK, Precision};
pub use format::Format;
pub use level::Level;
pub use out::Part;
pub use product::product;
pub use widen::widen_blocks;
