//! A projection: `x · weightᵀ + bias`, or `x · weight + bias` where the weight is stored that way.
//!
//! On a CPU the weight stays in its own precision and is widened as it is used; on a GPU this is the
//! place for a tensor on that device.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Tensor};

use super::{
    EngineError, host,
    kernels::{self, Matrix},
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Arc<[f32]>>,
}

#[derive(Clone, Debug)]
enum Weight {
    /// Of which each row makes one output.
    Rows(Matrix),
    /// Of which each of these columns does.
    Columns(Matrix, Range<usize>),
}

impl Linear {
    /// `bias` has as many elements as `weight` rows.
    pub(crate) fn new(
        weight: Matrix,
        bias: Option<Arc<[f32]>>,
        device: &Device,
    ) -> Result<Self, EngineError> {
        Self::of(Weight::Rows(weight), bias, device)
    }

    /// With an output for each of these columns of `weight`. `bias` has as many elements.
    pub(crate) fn along_columns(
        weight: Matrix,
        columns: Range<usize>,
        bias: Option<Arc<[f32]>>,
        device: &Device,
    ) -> Result<Self, EngineError> {
        Self::of(Weight::Columns(weight, columns), bias, device)
    }

    fn of(weight: Weight, bias: Option<Arc<[f32]>>, device: &Device) -> Result<Self, EngineError> {
        match device {
            Device::Cpu => Ok(Self { weight, bias }),
            _ => Err(EngineError::Device("this build computes on the CPU only".to_owned())),
        }
    }

    /// From `[tokens, inputs]` to `[tokens, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let (rows, given) = x.dims2()?;
        let (inputs, outputs) = match &self.weight {
            Weight::Rows(weight) => (weight.cols(), weight.rows()),
            Weight::Columns(weight, columns) => (weight.rows(), columns.len()),
        };
        if given != inputs {
            let message = format!("a projection of {inputs} inputs was given {given}");
            return Err(candle_core::Error::Msg(message).into());
        }
        let mut y = host::read(x, |x| match &self.weight {
            Weight::Rows(weight) => kernels::matmul(weight, x, rows),
            Weight::Columns(weight, columns) => kernels::matmul_columns(weight, columns.clone(), x, rows),
        })?;
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| kernels::add(row, bias));
        }
        host::tensor(y, rows, outputs)
    }
}
