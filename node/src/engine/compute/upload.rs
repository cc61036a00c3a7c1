//! From a weight in host memory to tensors on a device.
//!
//! Elements come as they are stored wherever candle can multiply them: it is on the device that they are
//! widened, as far as they are, for one product at a time. A weight comes in parts, so that what is widened
//! at once is bounded.

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytemuck::cast_slice_mut;
use candle_core::{
    DType, Device, Module, Result, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};
use surf_protocol::Dtype;

use super::precision::Products;
use crate::engine::{
    kernels::{Matrix, Run},
    linear::Weight,
    pack,
};

/// Rows that are widened on the host at a time.
const ROWS: usize = 16;

/// A weight in host memory, and what it is to be on a device.
#[derive(Debug)]
pub(super) enum Upload<'a> {
    Rows(&'a Matrix, Becomes),
    /// Columns, which are cut out of their rows number by number, so that they are never blocks.
    Columns(&'a Matrix, Range<usize>, DType),
}

/// What elements are on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    /// Numbers of this type, as they are stored.
    Same(DType),
    /// Blocks, as they are stored.
    Blocks(GgmlDType),
    /// Numbers of this type, by way of f32.
    Widened(DType),
}

/// A part of a weight in host memory, for some of its outputs.
#[derive(Debug)]
pub(super) enum Part<'a> {
    /// Rows, one run after the other.
    Rows(Rows<'a>),
    /// Columns.
    Columns(&'a Matrix, Range<usize>, DType),
}

/// See [`Part::Rows`].
#[derive(Debug)]
pub(super) struct Rows<'a> {
    runs: Vec<Run<'a>>,
    count: usize,
    cols: usize,
    becomes: Becomes,
}

/// A part of a weight on a device.
#[derive(Debug)]
pub(super) enum Slab {
    /// Of outputs by inputs.
    Rows(Tensor),
    /// The same in blocks.
    Blocks(Arc<QTensor>),
    /// Of inputs by outputs.
    Columns(Tensor),
}

impl<'a> Upload<'a> {
    /// To be multiplied like this.
    pub(super) fn of(weight: &'a Weight, products: Products) -> Self {
        match weight {
            Weight::Rows(matrix) => Self::Rows(matrix, Becomes::of(matrix, products)),
            Weight::Columns(matrix, columns) => {
                let dtype = match Becomes::of(matrix, products) {
                    Becomes::Same(dtype) | Becomes::Widened(dtype) => dtype,
                    Becomes::Blocks(_) => DType::F32,
                };
                Self::Columns(matrix, columns.clone(), dtype)
            }
        }
    }

    /// Bytes that it takes on the device.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = |outputs: usize, inputs: usize, dtype: &DType| {
            outputs as u64 * inputs as u64 * dtype.size_in_bytes() as u64
        };
        match self {
            Self::Rows(matrix, Becomes::Widened(dtype)) => numbers(matrix.rows(), matrix.cols(), dtype),
            Self::Rows(matrix, _) => matrix.rows() as u64 * matrix.row_bytes() as u64,
            Self::Columns(matrix, columns, dtype) => numbers(columns.len(), matrix.rows(), dtype),
        }
    }

    /// All of it in order, each time as many outputs as take at most `elements_max` elements, or one.
    pub(super) fn parts(&self, elements_max: usize) -> Vec<Part<'a>> {
        match self {
            Self::Rows(matrix, becomes) => {
                let rows_max = (elements_max / matrix.cols()).clamp(1, matrix.rows());
                rows(matrix, *becomes, rows_max).into_iter().map(Part::Rows).collect()
            }
            Self::Columns(matrix, columns, dtype) => {
                let wide = (elements_max / matrix.rows()).max(1);
                let starts = columns.clone().step_by(wide);
                starts.map(|at| Part::Columns(matrix, at..columns.end.min(at + wide), *dtype)).collect()
            }
        }
    }
}

/// All rows in order, at most `rows_max` together.
fn rows(matrix: &Matrix, becomes: Becomes, rows_max: usize) -> Vec<Rows<'_>> {
    let none = || Rows { runs: Vec::new(), count: 0, cols: matrix.cols(), becomes };
    let (mut all, mut some) = (Vec::new(), none());
    for run in matrix.runs(rows_max) {
        if rows_max < some.count + run.rows() {
            all.push(std::mem::replace(&mut some, none()));
        }
        some.count += run.rows();
        some.runs.push(run);
    }
    all.push(some);
    all
}

impl Becomes {
    fn of(matrix: &Matrix, products: Products) -> Self {
        match products.widened(matrix.dtype(), matrix.is_scaled()) {
            Some(dtype) => Self::Widened(dtype),
            None => stored(matrix.dtype()).unwrap_or(Self::Widened(DType::F32)),
        }
    }
}

impl Part<'_> {
    /// Brings it to `device`.
    pub(super) fn bring(&self, device: &Device) -> Result<Slab> {
        match self {
            Self::Rows(rows) => rows.bring(device),
            Self::Columns(matrix, columns, dtype) => {
                let shape = (matrix.rows(), columns.len());
                let mut values = vec![0.0; shape.0 * shape.1];
                matrix.read_columns(columns.clone(), &mut values);
                Ok(Slab::Columns(Tensor::from_vec(values, shape, device)?.to_dtype(*dtype)?))
            }
        }
    }
}

impl Rows<'_> {
    fn bring(&self, device: &Device) -> Result<Slab> {
        let shape = (self.count, self.cols);
        match self.becomes {
            Becomes::Same(dtype) => self.with_bytes(|bytes| {
                Ok(Slab::Rows(Tensor::from_raw_buffer(bytes, dtype, &[self.count, self.cols], device)?))
            }),
            Becomes::Blocks(kind) => self.with_bytes(|bytes| {
                let storage = QStorage::from_data(Cow::Borrowed(bytes), device, kind)?;
                Ok(Slab::Blocks(Arc::new(QTensor::new(storage, shape)?)))
            }),
            Becomes::Widened(dtype) => {
                let mut values = Vec::with_capacity(self.count * self.cols);
                for run in self.runs.iter().flat_map(|run| run.parts(ROWS)) {
                    run.with_f32(|rows| values.extend_from_slice(rows));
                }
                Ok(Slab::Rows(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?))
            }
        }
    }

    /// Calls `with` with all bytes, in one run that is aligned for any element.
    fn with_bytes<R>(&self, with: impl FnOnce(&[u8]) -> R) -> R {
        if let [run] = &*self.runs
            && run.bytes().as_ptr().cast::<u64>().is_aligned()
        {
            return with(run.bytes());
        }
        let length: usize = self.runs.iter().map(|run| run.bytes().len()).sum();
        let mut joined = vec![0u64; length.div_ceil(8)];
        let bytes = &mut cast_slice_mut(&mut joined)[..length];
        let mut rest = &mut *bytes;
        for run in &self.runs {
            let (to, after) = rest.split_at_mut(run.bytes().len());
            to.copy_from_slice(run.bytes());
            rest = after;
        }
        with(bytes)
    }
}

impl Slab {
    /// `x` times this, in f32 as `x` is.
    pub(super) fn product(&self, x: &Tensor, products: Products) -> Result<Tensor> {
        let numbers = |weight: &Tensor| -> Result<(Tensor, Tensor)> {
            let dtype = match products {
                Products::Exact => DType::F32,
                Products::Fast(_) => weight.dtype(),
            };
            Ok((x.to_dtype(dtype)?, weight.to_dtype(dtype)?))
        };
        let y = match (self, products) {
            (Self::Rows(weight), _) => {
                let (x, weight) = numbers(weight)?;
                x.matmul(&weight.t()?)?
            }
            (Self::Columns(weight), _) => {
                let (x, weight) = numbers(weight)?;
                x.matmul(&weight)?
            }
            (Self::Blocks(weight), Products::Exact) => x.matmul(&weight.dequantize(x.device())?.t()?)?,
            (Self::Blocks(weight), Products::Fast(_)) => QMatMul::from_arc(Arc::clone(weight))?.forward(x)?,
        };
        y.to_dtype(DType::F32)
    }
}

/// What elements of `dtype` are to candle, if it multiplies them as they are.
fn stored(dtype: Dtype) -> Option<Becomes> {
    match dtype {
        Dtype::F32 => Some(Becomes::Same(DType::F32)),
        Dtype::F16 => Some(Becomes::Same(DType::F16)),
        Dtype::Bf16 => Some(Becomes::Same(DType::BF16)),
        _ => pack::kind(dtype).map(Becomes::Blocks),
    }
}
