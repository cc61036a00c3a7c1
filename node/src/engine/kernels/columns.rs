//! Activations times a matrix of which each row belongs to one of their elements, so that it is summed
//! along its columns: as GPT-2 stores its projections.
//!
//! Nothing is transposed. Each task widens some columns into its own scratch, and multiplies there.

use std::ops::Range;

use surf_kernels::team;

use super::{Block, Matrix, View, product};

/// Bytes of scratch for one task: what stays in a core's second-level cache.
const TASK_BYTES: usize = 256 << 10;

/// Columns in one task, at least: a cache line of f32.
const LINE: usize = 16;

/// `x · weight`, for some of its columns: `x` is `m` by the matrix's rows, the result `m` by these columns,
/// both by rows.
///
/// # Panics
///
/// If the sizes do not fit each other.
pub(crate) fn matmul_columns(weight: &Matrix, columns: Range<usize>, x: &[f32], m: usize) -> Vec<f32> {
    let (k, n) = (weight.rows(), columns.len());
    assert_eq!(x.len(), m * k, "the activations fit the matrix");
    assert!(columns.end <= weight.cols(), "the columns are in the matrix");
    let width = (TASK_BYTES / 4 / k / LINE * LINE).max(LINE);
    let starts = columns.clone().step_by(width);
    let widths: Vec<usize> = starts.clone().map(|start| width.min(columns.end - start)).collect();
    let mut out = vec![0.0; m * n];
    let blocks = Block::whole(&mut out, m, n).columns(&widths);
    let tasks: Vec<_> = starts.zip(widths).zip(blocks).collect();
    team::for_each_of(tasks, |((start, width), to)| {
        let mut scratch = vec![0.0; k * width];
        weight.read_columns(start..start + width, &mut scratch);
        product(to, View::new(x, m, k, k), View::new(&scratch, k, width, width), 1.0);
    });
    out
}
