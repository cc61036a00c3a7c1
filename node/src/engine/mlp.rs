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
        if let (Some(up), Some(down)) = (self.up.place(), self.down.place()) {
            let inner = self.up.product(up, &up.bring(x)?)?.activated(self.activation)?;
            return self.down.product(down, &inner)?.home();
        }
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
        if let (Some(gate), Some(up), Some(down)) = (self.gate.place(), self.up.place(), self.down.place()) {
            let x = gate.bring(x)?;
            let inner = self.gate.product(gate, &x)?.activated(self.activation)?;
            let inner = inner.times(&self.up.product(up, &x)?)?;
            return self.down.product(down, &inner)?.home();
        }
        let gate = self.gate.forward(x)?;
        let up = self.up.forward(x)?;
        let (rows, cols) = gate.dims2()?;
        let mut inner = host::copy(&gate)?;
        host::read(&up, |up| kernels::gated(self.activation, &mut inner, up))?;
        self.down.forward(&host::tensor(inner, rows, cols)?)
    }
}
