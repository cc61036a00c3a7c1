//! The tensors of one group as layers, each checked against the shape that the configuration says.
//!
//! Cheap: weights stay where they are, only norms and biases are widened. So a block can be made
//! anew in every pass that streams it.

use std::sync::Arc;

use candle_core::Device;
use surf_protocol::Dtype;

use super::{
    EngineError,
    kernels::{Float, Matrix, Scales},
    linear::Linear,
    norm::{LayerNorm, RmsNorm},
    stored::Stored,
};
use crate::weights::{RawTensor, Tensors};

/// What a group is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts<'a> {
    tensors: &'a Tensors,
    device: &'a Device,
    stored: Stored,
    prefix: String,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(tensors: &'a Tensors, device: &'a Device) -> Self {
        Self { tensors, device, stored: Stored::default(), prefix: String::new() }
    }

    /// The same, of a model whose configuration says how its weights are stored.
    pub(crate) fn stored(self, stored: Stored) -> Self {
        Self { stored, ..self }
    }

    /// How the weights of the model are stored.
    pub(crate) fn how_stored(&self) -> Stored {
        self.stored
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
        let weight = self.matrix(name, outputs, inputs)?;
        let bias = match bias {
            true => Some(vector(&self.name(name, "bias"), self.raw(name, "bias")?, outputs)?),
            false => None,
        };
        Linear::new(weight, bias, self.device)
    }

    /// The weight of the projection called `name`, with the scales that stand beside it.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
        let raw = self.raw(name, "weight")?;
        let weight = matrix(&self.name(name, "weight"), raw, rows, cols)?;
        if !matches!(raw.dtype, Dtype::F8E4M3 | Dtype::F8E5M2) {
            return Ok(weight);
        }
        // They multiply, whichever name they go by.
        let beside = ["weight_scale_inv", "weight_scale"].map(|kind| self.name(name, kind));
        let found = beside.iter().find_map(|name| Some((name, self.tensors.tensors.get(name)?)));
        let Some((name, raw)) = found else { return Ok(weight) };
        let tile = self.tile(name, &raw.shape, rows, cols)?;
        let values = values(name, raw)?;
        weight
            .scaled(Scales { values, tile })
            .ok_or_else(|| EngineError::tensor(name, "does not have a scale for every tile of its weight"))
    }

    /// What part of a matrix of `rows` by `cols` each of the scales called `name` is for.
    fn tile(&self, name: &str, shape: &[usize], rows: usize, cols: usize) -> Result<[usize; 2], EngineError> {
        let fits = |&[high, wide]: &[usize; 2]| shape == [rows.div_ceil(high), cols.div_ceil(wide)];
        if let Some(tile) = self.stored.tile.filter(fits) {
            return Ok(tile);
        }
        match shape {
            [] | [1] | [1, 1] => Ok([rows, cols]),
            [each] | [each, 1] if *each == rows => Ok([1, cols]),
            _ => {
                let tiles = match self.stored.tile {
                    Some([high, wide]) => format!("in tiles of {high} by {wide}"),
                    None => "without quantization_config.weight_block_size".to_owned(),
                };
                let reason = format!("is {shape:?}, which does not fit a weight of [{rows}, {cols}] {tiles}");
                Err(EngineError::tensor(name, reason))
            }
        }
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
    values(name, raw)
}

/// All elements of `raw`, widened.
fn values(name: &str, raw: &RawTensor) -> Result<Arc<[f32]>, EngineError> {
    let float = float(name, raw)?;
    // A whole tensor was checked to have a size that can be had.
    let count = raw.shape.iter().product();
    let (rows, cols) = if float.is_single() { (count, 1) } else { (1, count) };
    let matrix = Matrix::new(float, rows, cols, raw.pieces.clone());
    let matrix =
        matrix.ok_or_else(|| EngineError::tensor(name, "has bytes that do not make up its shape"))?;
    Ok(matrix.runs(rows).iter().flat_map(|run| run.with_f32(<[f32]>::to_vec)).collect())
}

fn float(name: &str, raw: &RawTensor) -> Result<Float, EngineError> {
    Float::of(raw.dtype)
        .ok_or_else(|| EngineError::tensor(name, format!("is {:?}, which is no kind of float", raw.dtype)))
}
