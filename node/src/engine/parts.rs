//! The tensors of one group as layers, each checked against the shape that the configuration says.
//!
//! Cheap: weights stay where they are, only norms and biases are widened. So a block can be made
//! anew in every pass that streams it.

use std::{ops::Range, sync::Arc};

use surf_protocol::Dtype;

use super::{
    EngineError,
    compute::Compute,
    gguf,
    kernels::{Float, Matrix, Scales},
    linear::{Linear, Weight},
    norm::{LayerNorm, RmsNorm},
    projection::{Projection, Runs},
    stored::Stored,
};
use crate::weights::{RawTensor, Tensors};

/// What a group is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts<'a> {
    tensors: &'a Tensors,
    compute: &'a Compute,
    stored: Stored,
    prefix: String,
}

impl<'a> Parts<'a> {
    /// Of `tensors`, whose products `compute` computes.
    pub(crate) fn new(tensors: &'a Tensors, compute: &'a Compute) -> Self {
        Self { tensors, compute, stored: Stored::default(), prefix: String::new() }
    }

    /// The same, of a model whose configuration says how its weights are stored.
    pub(crate) fn stored(self, stored: Stored) -> Self {
        Self { stored, ..self }
    }

    /// How the weights of the model are stored.
    pub(crate) fn how_stored(&self) -> Stored {
        self.stored
    }

    /// What computes products.
    pub(crate) fn compute(&self) -> &Compute {
        self.compute
    }

    /// Whether they stay in memory.
    pub(crate) fn stay(&self) -> bool {
        self.tensors.resident
    }

    /// Names under `name`, as in `model.layers.3`.
    pub(crate) fn under(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..*self }
    }

    /// Names that begin with `root`, which ends as it is to end, or is nothing.
    pub(crate) fn under_root(&self, root: &str) -> Self {
        Self { prefix: format!("{}{root}", self.prefix), ..*self }
    }

    /// Whether there is a tensor called `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = format!("{}{name}", self.prefix);
        self.tensors.tensors.contains_key(&name) || self.tensors.runs.contains_key(&name)
    }

    /// The projection to logits called `name`, from `inputs` to `outputs`.
    pub(crate) fn to_logits(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Projection, EngineError> {
        let weight = self.name(name, "weight");
        let Some((tensor, rows)) = gguf::find(&weight, |name| self.tensors.runs.get_key_value(name)) else {
            return Ok(Projection::Whole(self.linear(name, inputs, outputs, bias)?));
        };
        let (tensor, rows) = (tensor.clone(), rows.clone());
        match rows.last() {
            Some(last) if last.end == outputs => {
                let (bias, compute) = (self.bias(name, outputs, bias)?, self.compute.clone());
                Ok(Projection::Runs(Runs { tensor, rows, inputs, outputs, bias, compute }))
            }
            last => {
                let rows = last.map_or(0, |last| last.end);
                Err(EngineError::tensor(tensor, format!("has {rows} rows, not {outputs}")))
            }
        }
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
        Ok(self.projection(Weight::Rows(weight), self.bias(name, outputs, bias)?))
    }

    /// The bias of the projection called `name`, with `outputs` elements, if there is to be one.
    fn bias(&self, name: &str, outputs: usize, bias: bool) -> Result<Option<Arc<[f32]>>, EngineError> {
        match bias {
            true => Ok(Some(vector(&self.name(name, "bias"), self.raw(name, "bias")?, outputs)?)),
            false => Ok(None),
        }
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

    /// Several projections stored as one called `name`, from `inputs` to `outputs`: that whose outputs
    /// are these `rows`, one run after the other. The weights stay where they are.
    pub(crate) fn linear_of(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        rows: &[Range<usize>],
        bias: bool,
    ) -> Result<Linear, EngineError> {
        let weight_name = self.name(name, "weight");
        let raw = self.raw(name, "weight")?;
        check(&weight_name, raw, &[outputs, inputs])?;
        without_scales(&weight_name, raw)?;
        let some = rows_of(&weight_name, raw, rows)?;
        let weight = matrix(&weight_name, &some, some.shape[0], inputs)?;
        let bias = match bias {
            true => {
                let all = vector(&self.name(name, "bias"), self.raw(name, "bias")?, outputs)?;
                Some(rows.iter().flat_map(|rows| all[rows.clone()].iter().copied()).collect())
            }
            false => None,
        };
        Ok(self.projection(Weight::Rows(weight), bias))
    }

    /// A projection with bias that is stored the other way round, as `[inputs, outputs]`, but not in GGUF
    /// files: that whose outputs are these `columns`.
    pub(crate) fn linear_along_columns(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        columns: Range<usize>,
    ) -> Result<Linear, EngineError> {
        if self.is_as_in_gguf(name) {
            return self.linear_of(name, inputs, outputs, &[columns], true);
        }
        let (weight_name, raw) = (self.name(name, "weight"), self.raw(name, "weight")?);
        without_scales(&weight_name, raw)?;
        let weight = matrix(&weight_name, raw, inputs, outputs)?;
        let bias = vector(&self.name(name, "bias"), self.raw(name, "bias")?, outputs)?;
        let bias = bias[columns.clone()].into();
        Ok(self.projection(Weight::Columns(weight, columns), Some(bias)))
    }

    /// The norm called `name` over `size` elements.
    pub(crate) fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Result<RmsNorm, EngineError> {
        let weight = vector(&self.name(name, "weight"), self.raw(name, "weight")?, size)?;
        Ok(RmsNorm::new(weight, eps))
    }

    /// The `size` numbers called `name`, in full.
    pub(crate) fn numbers(&self, name: &str, size: usize) -> Result<Arc<[f32]>, EngineError> {
        let name = format!("{}{name}", self.prefix);
        let found = self.tensors.tensors.get(&name);
        vector(&name, found.ok_or_else(|| EngineError::tensor(&name, "is missing from its group"))?, size)
    }

    /// The norm by root mean square called `name` over `size` elements, whose weights are added to one.
    pub(crate) fn rms_norm_from_one(
        &self,
        name: &str,
        size: usize,
        eps: f64,
    ) -> Result<RmsNorm, EngineError> {
        if self.is_as_in_gguf(name) {
            // Where they have been added already.
            return self.rms_norm(name, size, eps);
        }
        let weight = vector(&self.name(name, "weight"), self.raw(name, "weight")?, size)?;
        Ok(RmsNorm::new(weight.iter().map(|weight| 1.0 + weight).collect(), eps))
    }

    /// The norm by mean and variance called `name` over `size` elements.
    pub(crate) fn layer_norm(&self, name: &str, size: usize, eps: f64) -> Result<LayerNorm, EngineError> {
        // As the first BERTs were saved.
        let old = self.tensors.tensors.contains_key(&self.name(name, "gamma"));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let part = |kind| vector(&self.name(name, kind), self.raw(name, kind)?, size);
        Ok(LayerNorm::new(part(weight)?, part(bias)?, eps))
    }

    /// The weights of several projections, stored as one tensor called `name`, if they are.
    pub(crate) fn stack(&self, name: &str) -> Option<&'a RawTensor> {
        gguf::find(&self.name(name, "weight"), |name| self.tensors.tensors.get(name))
    }

    /// The table called `name`, of `rows` by `cols`, as numbers.
    pub(crate) fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>, EngineError> {
        let table = matrix(&self.name(name, "weight"), self.raw(name, "weight")?, rows, cols)?;
        Ok(table.runs(rows).iter().flat_map(|run| run.with_f32(<[f32]>::to_vec)).collect())
    }

    fn projection(&self, weight: Weight, bias: Option<Arc<[f32]>>) -> Linear {
        Linear::new(weight, bias, self.compute.product(self.tensors.resident))
    }

    fn name(&self, name: &str, kind: &str) -> String {
        format!("{}{name}.{kind}", self.prefix)
    }

    /// Whether the weight called `name` goes by the name, and so is as it is, in GGUF files.
    fn is_as_in_gguf(&self, name: &str) -> bool {
        !self.tensors.tensors.contains_key(&self.name(name, "weight"))
    }

    fn raw(&self, name: &str, kind: &str) -> Result<&'a RawTensor, EngineError> {
        let name = self.name(name, kind);
        let found = gguf::find(&name, |name| self.tensors.tensors.get(name));
        found.ok_or_else(|| EngineError::tensor(name, "is missing from its group"))
    }
}

/// `raw` as a matrix of `rows` by `cols`.
pub(crate) fn matrix(name: &str, raw: &RawTensor, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
    // One row may be written as a vector.
    if rows != 1 || raw.shape != [cols] {
        check(name, raw, &[rows, cols])?;
    }
    let float = float(name, raw)?;
    Matrix::new(float, rows, cols, raw.pieces.clone())
        .ok_or_else(|| EngineError::tensor(name, "has bytes that do not make up its shape"))
}

/// `raw` as `size` numbers.
pub(crate) fn vector(name: &str, raw: &RawTensor, size: usize) -> Result<Arc<[f32]>, EngineError> {
    check(name, raw, &[size])?;
    values(name, raw)
}

/// All elements of `raw`, widened.
pub(crate) fn values(name: &str, raw: &RawTensor) -> Result<Arc<[f32]>, EngineError> {
    let float = float(name, raw)?;
    // A whole tensor was checked to have a size that can be had.
    let count = raw.shape.iter().product();
    let (rows, cols) = if float.is_single() { (count, 1) } else { (1, count) };
    let matrix = Matrix::new(float, rows, cols, raw.pieces.clone());
    let matrix =
        matrix.ok_or_else(|| EngineError::tensor(name, "has bytes that do not make up its shape"))?;
    Ok(matrix.runs(rows).iter().flat_map(|run| run.with_f32(<[f32]>::to_vec)).collect())
}

fn check(name: &str, raw: &RawTensor, shape: &[usize]) -> Result<(), EngineError> {
    if raw.shape == shape {
        return Ok(());
    }
    Err(EngineError::tensor(name, format!("is {:?}, not {shape:?}", raw.shape)))
}

/// Refuses what has scales beside it, where they are not looked for.
fn without_scales(name: &str, raw: &RawTensor) -> Result<(), EngineError> {
    match raw.dtype {
        Dtype::F8E4M3 | Dtype::F8E5M2 => {
            Err(EngineError::tensor(name, "is several projections in float8, which is not supported"))
        }
        _ => Ok(()),
    }
}

/// These rows of `raw`, one run after the other, where they are.
fn rows_of(name: &str, raw: &RawTensor, rows: &[Range<usize>]) -> Result<RawTensor, EngineError> {
    let bytes: usize = raw.pieces.iter().map(|piece| piece.len()).sum();
    let row_bytes = bytes / raw.shape[0].max(1);
    if row_bytes == 0 || raw.pieces.iter().any(|piece| !piece.len().is_multiple_of(row_bytes)) {
        return Err(EngineError::tensor(name, "has bytes that do not make up its shape"));
    }
    let mut pieces = Vec::new();
    for rows in rows {
        let mut first = 0;
        for piece in &raw.pieces {
            let end = first + piece.len() / row_bytes;
            let (from, to) = (rows.start.max(first), rows.end.min(end));
            if from < to {
                pieces.push(piece.slice((from - first) * row_bytes..(to - first) * row_bytes));
            }
            first = end;
        }
    }
    let mut shape = raw.shape.clone();
    shape[0] = rows.iter().map(|rows| rows.len()).sum();
    Ok(RawTensor { shape, pieces, ..*raw })
}

fn float(name: &str, raw: &RawTensor) -> Result<Float, EngineError> {
    Float::of(raw.dtype)
        .ok_or_else(|| EngineError::tensor(name, format!("is {:?}, which is no kind of float", raw.dtype)))
}
