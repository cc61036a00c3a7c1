//! Normalisation: by the root mean square, or by mean and variance.

use std::sync::Arc;

use candle_core::Tensor;

use super::{EngineError, host, kernels};

/// Scales rows to mean square one, then by a learned weight.
#[derive(Clone, Debug)]
pub(crate) struct RmsNorm {
    weight: Arc<[f32]>,
    eps: f32,
}

/// Shifts and scales rows to mean zero and variance one, then by what was learned.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    weight: Arc<[f32]>,
    bias: Arc<[f32]>,
    eps: f32,
}

impl LayerNorm {
    /// Over as many elements as `weight` and `bias` have.
    pub(crate) fn new(weight: Arc<[f32]>, bias: Arc<[f32]>, eps: f64) -> Self {
        Self { weight, bias, eps: eps as f32 }
    }

    /// Over `size` elements, with nothing learned.
    pub(crate) fn plain(size: usize, eps: f64) -> Self {
        Self::new(vec![1.0; size].into(), vec![0.0; size].into(), eps)
    }

    /// `[tokens, n · size]`, each run of `size` elements by itself: the whole row, or each head.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let (rows, cols) = x.dims2()?;
        let mut y = host::copy(x)?;
        kernels::layer_norm(&mut y, &self.weight, &self.bias, self.eps);
        host::tensor(y, rows, cols)
    }
}

impl RmsNorm {
    /// Over as many elements as `weight` has.
    pub(crate) fn new(weight: Arc<[f32]>, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// `[tokens, n · size]`, each run of `size` elements by itself: the whole row, or each head.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let (rows, cols) = x.dims2()?;
        let mut y = host::copy(x)?;
        kernels::rms_norm(&mut y, &self.weight, self.eps);
        host::tensor(y, rows, cols)
    }
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    /// `[tokens, n · size]`, each run of `size` elements by itself.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}
