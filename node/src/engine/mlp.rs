//! The gated feed-forward part of a block: `down(activation(gate(x)) · up(x))`.

use candle_core::Tensor;

use super::{
    EngineError, host,
    kernels::{self, Activation},
    linear::Linear,
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct GatedMlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

impl GatedMlp {
    /// From `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let gate = self.gate.forward(x)?;
        let up = self.up.forward(x)?;
        let (rows, cols) = gate.dims2()?;
        let mut inner = host::copy(&gate)?;
        host::read(&up, |up| kernels::gated(self.activation, &mut inner, up))?;
        self.down.forward(&host::tensor(inner, rows, cols)?)
    }
}
