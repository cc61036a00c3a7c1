//! The feed-forward part of a block: `down(activation(up(x)))`, or gated, `down(activation(gate(x)) · up(x))`.

use candle_core::Tensor;

use super::{
    EngineError, host,
    kernels::{self, Activation},
    linear::Linear,
};

/// Two products, with an activation between.
#[derive(Clone, Debug)]
pub(crate) struct Mlp {
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

impl Mlp {
    /// From `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let up = self.up.forward(x)?;
        let (rows, cols) = up.dims2()?;
        let mut inner = host::copy(&up)?;
        kernels::activate(self.activation, &mut inner);
        self.down.forward(&host::tensor(inner, rows, cols)?)
    }
}

/// Three products, of which two meet behind an activation.
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
