//! Arithmetic on slices of f32, as fast as the processor allows.
//!
//! The instruction set is chosen when the program runs (`pulp`), so one binary is right for every
//! machine. Nothing here knows tensors, models or threads other than rayon's: a call made inside a
//! thread pool uses that pool.

mod dot;
mod elementwise;
mod matrix;
mod product;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

pub(crate) use elementwise::{Activation, add, gated, rms_norm, softmax};
pub(crate) use matrix::{Float, Matrix};
pub(crate) use product::{Block, View, product};

/// Rows of activations up to which weights are widened in registers; above it, panels of weights
/// are widened to memory and a blocked product is worth its overhead.
const FEW_ROWS_MAX: usize = 8;

/// Bytes of a widened panel of weights. It should stay in a core's second-level cache, beside the
/// activations that it meets.
const PANEL_BYTES: usize = 512 << 10;

/// `x · weightᵀ`: `x` is `m` by the matrix's columns, the result `m` by its rows, both by rows.
///
/// # Panics
///
/// If `x` is not of that size.
pub(crate) fn matmul(weight: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    assert_eq!(x.len(), m * weight.cols(), "the activations fit the matrix");
    if m <= FEW_ROWS_MAX { dot::few_rows(weight, x, m) } else { many_rows(weight, x, m) }
}

fn many_rows(weight: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let (n, k) = (weight.rows(), weight.cols());
    let panel_rows = (PANEL_BYTES / (4 * k)).clamp(16, 1024);
    let panels = weight.runs(panel_rows);
    let widths: Vec<usize> = panels.iter().map(|panel| panel.rows()).collect();
    let mut y = vec![0.0; m * n];
    let x = View::new(x, m, k, k);
    let blocks = Block::whole(&mut y, m, n).columns(&widths);
    panels.into_par_iter().zip(blocks).for_each(|(panel, block)| {
        panel.with_f32(|panel_f32| {
            product(block, x, View::new(panel_f32, panel.rows(), k, k).transposed(), 1.0);
        });
    });
    y
}
