//! The tensors of one group as layers, each checked against the shape that the configuration says.
//!
//! Cheap: weights stay where they are, only norms and biases are widened. So a block can be made
//! anew in every pass that streams it.

use std::sync::Arc;

use candle_core::Device;

use super::{
    EngineError,
    kernels::{Float, Matrix},
    linear::Linear,
    norm::{LayerNorm, RmsNorm},
};
use crate::weights::{RawTensor, Tensors};

/// What a group is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts<'a> {
    tensors: &'a Tensors,
    device: &'a Device,
    prefix: String,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(tensors: &'a Tensors, device: &'a Device) -> Self {
        Self { tensors, device, prefix: String::new() }
    }

    /// Names under `name`, as in `model.layers.3`.
    pub(crate) fn under(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..*self }
    }

    /// Names that begin with `root`, which ends as it is to end, or is nothing.
    pub(crate) fn under_root(&self, root: &str) -> Self {
        Self { prefix: format!("{}{root}", self.prefix), ..*self }
    }

    /// The projection called `name`, from `inputs` to `outputs`.
    pub(crate) fn linear(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Linear, EngineError> {
        let weight = matrix(&self.name(name, "weight"), self.raw(name, "weight")?, outputs, inputs)?;
        let bias = match bias {
            true => Some(vector(&self.name(name, "bias"), self.raw(name, "bias")?, outputs)?),
            false => None,
        };
        Linear::new(weight, bias, self.device)
    }

    /// The norm called `name` over `size` elements.
    pub(crate) fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Result<RmsNorm, EngineError> {
        let weight = vector(&self.name(name, "weight"), self.raw(name, "weight")?, size)?;
        RmsNorm::new(weight, eps, self.device)
    }

    /// The `size` numbers called `name`, in full.
    pub(crate) fn numbers(&self, name: &str, size: usize) -> Result<Arc<[f32]>, EngineError> {
        let name = format!("{}{name}", self.prefix);
        let found = self.tensors.tensors.get(&name);
        vector(&name, found.ok_or_else(|| EngineError::tensor(&name, "is missing from its group"))?, size)
    }

    /// The norm by mean and variance called `name` over `size` elements.
    pub(crate) fn layer_norm(&self, name: &str, size: usize, eps: f64) -> Result<LayerNorm, EngineError> {
        // As the first BERTs were saved.
        let old = self.tensors.tensors.contains_key(&self.name(name, "gamma"));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let part = |kind| vector(&self.name(name, kind), self.raw(name, kind)?, size);
        LayerNorm::new(part(weight)?, part(bias)?, eps, self.device)
    }

    /// The table called `name`, of `rows` by `cols`, as numbers.
    pub(crate) fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>, EngineError> {
        let table = matrix(&self.name(name, "weight"), self.raw(name, "weight")?, rows, cols)?;
        Ok(table.runs(rows).iter().flat_map(|run| run.with_f32(<[f32]>::to_vec)).collect())
    }

    fn name(&self, name: &str, kind: &str) -> String {
        format!("{}{name}.{kind}", self.prefix)
    }

    fn raw(&self, name: &str, kind: &str) -> Result<&'a RawTensor, EngineError> {
        let name = self.name(name, kind);
        let found = self.tensors.tensors.get(&name);
        found.ok_or_else(|| EngineError::tensor(name, "is missing from its group"))
    }
}

/// `raw` as a matrix of `rows` by `cols`.
pub(crate) fn matrix(name: &str, raw: &RawTensor, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
    if raw.shape != [rows, cols] {
        return Err(EngineError::tensor(name, format!("is {:?}, not [{rows}, {cols}]", raw.shape)));
    }
    let float = float(name, raw)?;
    Matrix::new(float, rows, cols, raw.pieces.clone())
        .ok_or_else(|| EngineError::tensor(name, "has bytes that do not make up its shape"))
}

/// `raw` as `size` numbers.
pub(crate) fn vector(name: &str, raw: &RawTensor, size: usize) -> Result<Arc<[f32]>, EngineError> {
    if raw.shape != [size] {
        return Err(EngineError::tensor(name, format!("is {:?}, not [{size}]", raw.shape)));
    }
    let float = float(name, raw)?;
    let matrix = Matrix::new(float, size, 1, raw.pieces.clone());
    let matrix =
        matrix.ok_or_else(|| EngineError::tensor(name, "has bytes that do not make up its shape"))?;
    let values = matrix.runs(size).iter().flat_map(|run| run.with_f32(<[f32]>::to_vec)).collect();
    Ok(values)
}

fn float(name: &str, raw: &RawTensor) -> Result<Float, EngineError> {
    Float::of(raw.dtype).ok_or_else(|| {
        EngineError::tensor(name, format!("is {:?}; only F32, F16 and Bf16 can be computed with", raw.dtype))
    })
}
