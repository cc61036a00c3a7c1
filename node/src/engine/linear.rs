//! A projection: `x · weightᵀ + bias`.
//!
//! On a CPU the weight stays in its own precision and is widened as it is used; on a GPU this is the
//! place for a tensor on that device.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{
    EngineError, host,
    kernels::{self, Matrix},
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Arc<[f32]>>,
}

impl Linear {
    /// `bias` has as many elements as `weight` rows.
    pub(crate) fn new(
        weight: Matrix,
        bias: Option<Arc<[f32]>>,
        device: &Device,
    ) -> Result<Self, EngineError> {
        match device {
            Device::Cpu => Ok(Self { weight, bias }),
            _ => Err(EngineError::Device("this build computes on the CPU only".to_owned())),
        }
    }

    /// Its weight, of outputs by inputs.
    pub(crate) fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// From `[tokens, inputs]` to `[tokens, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let (rows, inputs) = x.dims2()?;
        if inputs != self.weight.cols() {
            let message = format!("a projection of {} inputs was given {inputs}", self.weight.cols());
            return Err(candle_core::Error::Msg(message).into());
        }
        let mut y = host::read(x, |x| kernels::matmul(&self.weight, x, rows))?;
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| kernels::add(row, bias));
        }
        host::tensor(y, rows, self.weight.rows())
    }
}
