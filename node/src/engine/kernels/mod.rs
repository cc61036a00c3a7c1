//! Arithmetic on slices of f32, as fast as the processor allows.
//!
//! The instruction set is chosen when the program runs (`pulp`), so one binary is right for every
//! machine. Nothing here knows tensors, models or threads: a call made inside a team (`surf_kernels::team`) uses that team.

mod columns;
mod dot;
mod elementwise;
mod matrix;
mod product;
mod rounded;
mod widen;

#[cfg(test)]
mod tests;

pub(crate) use columns::matmul_columns;
pub(crate) use elementwise::{
    Activation, activate, add, add_scaled, gated, layer_norm, rms_norm, soft_cap, softmax,
};
pub(crate) use matrix::{Float, Matrix, Run, Scales};
pub(crate) use product::{Block, View, product};
use rounded::format;
pub(crate) use rounded::matmul_rounded;
pub(crate) use widen::widen;

/// `x · weightᵀ`: `x` is `m` by the matrix's columns, the result `m` by its rows, both by rows.
///
/// # Panics
///
/// If `x` is not of that size.
pub(crate) fn matmul(weight: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    assert_eq!(x.len(), m * weight.cols(), "the activations fit the matrix");
    dot::matmul(weight, x, m)
}
