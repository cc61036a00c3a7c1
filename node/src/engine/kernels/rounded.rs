//! Activations that are rounded to what the weights' type asks for, times weights as they are stored: the products
//! of `surf-kernels`, spread over threads.

use surf_kernels::{Activations, Format, Level, Part, team};
use surf_protocol::Dtype;

use super::{Matrix, matmul};

/// Bytes of weights in one task: small enough for threads to end together, large enough that handing a task to a
/// thread costs nothing beside it.
const TASK_BYTES: usize = 128 << 10;

/// Weight rows in one task, a multiple of this: a kernel unpacks so many together.
const TASK_ROWS: usize = 32;

/// Rows of activations that meet a task's weights: they stay in a core's second-level cache meanwhile.
const TOKENS: usize = 256;

/// `x · weightᵀ`: `x` is `m` by the matrix's columns, the result `m` by its rows, both by rows. What `docs/numerics.md`
/// defines; weights of a type that it does not know, and such as have scales beside them, are widened to f32.
///
/// # Panics
///
/// If `x` is not of that size.
pub(crate) fn matmul_rounded(weight: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let (n, k) = (weight.rows(), weight.cols());
    assert_eq!(x.len(), m * k, "the activations fit the matrix");
    let format = format(weight.dtype()).filter(|_| !weight.is_scaled());
    let Some(format) = format else { return matmul(weight, x, m) };
    let level = Level::best();
    let mut y = vec![0.0; m * n];
    for (x, y) in x.chunks(TOKENS * k).zip(y.chunks_mut(TOKENS * n)) {
        let activations = Activations::of(x, k, format.precision());
        let rows = (TASK_BYTES / weight.row_bytes()).next_multiple_of(TASK_ROWS).max(TASK_ROWS);
        let mut rest = Part::whole(y, n);
        let mut tasks = Vec::new();
        for run in weight.runs(rows) {
            let (part, after) = rest.split(run.rows());
            rest = after;
            tasks.push((run, part));
        }
        team::for_each_of(tasks, |(run, part)| {
            surf_kernels::product(level, format, run.bytes(), &activations, part);
        });
    }
    y
}

/// What the kernels call a type of weights, if they know it.
pub(super) fn format(dtype: Dtype) -> Option<Format> {
    Some(match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::Bf16 => Format::Bf16,
        Dtype::Q4_0 => Format::Q4_0,
        Dtype::Q4_1 => Format::Q4_1,
        Dtype::Q5_0 => Format::Q5_0,
        Dtype::Q5_1 => Format::Q5_1,
        Dtype::Q8_0 => Format::Q8_0,
        Dtype::Q2K => Format::Q2K,
        Dtype::Q3K => Format::Q3K,
        Dtype::Q4K => Format::Q4K,
        Dtype::Q5K => Format::Q5K,
        Dtype::Q6K => Format::Q6K,
        Dtype::Iq4Nl => Format::Iq4Nl,
        Dtype::Iq4Xs => Format::Iq4Xs,
        Dtype::Mxfp4 => Format::Mxfp4,
        _ => return None,
    })
}
