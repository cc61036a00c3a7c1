//! The projection to logits: a layer like any other, or, where its table is too large to be in memory
//! whole, one run of rows after the other.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use super::{
    EngineError,
    compute::Compute,
    host,
    linear::{Linear, Weight},
    parts,
};
use crate::weights::Weights;

/// See the module.
#[derive(Debug)]
pub(crate) enum Projection {
    /// Its weight is here.
    Whole(Linear),
    /// Its weight is asked for while it computes.
    Runs(Runs),
}

/// Of a projection whose weight comes in runs of rows.
#[derive(Debug)]
pub(crate) struct Runs {
    /// What the weight is called where it is stored.
    pub(crate) tensor: String,
    /// From its first row to its last.
    pub(crate) rows: Vec<Range<usize>>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Of all outputs.
    pub(crate) bias: Option<Arc<[f32]>>,
    /// What computes the products.
    pub(crate) compute: Compute,
}

impl Projection {
    /// From `[tokens, inputs]` to `[tokens, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor, weights: &dyn Weights) -> Result<Tensor, EngineError> {
        match self {
            Self::Whole(linear) => linear.forward(x),
            Self::Runs(runs) => runs.forward(x, weights),
        }
    }
}

impl Runs {
    fn forward(&self, x: &Tensor, weights: &dyn Weights) -> Result<Tensor, EngineError> {
        let (tokens, _) = x.dims2()?;
        let mut y = vec![0.0; tokens * self.outputs];
        for rows in &self.rows {
            let raw = weights.run(&self.tensor, rows)?;
            let weight = parts::matrix(&self.tensor, &raw, rows.len(), self.inputs)?;
            let bias = self.bias.as_ref().map(|bias| bias[rows.clone()].into());
            let part = Linear::new(Weight::Rows(weight), bias, self.compute.product(false)).forward(x)?;
            host::read(&part, |part| {
                for (y, part) in y.chunks_exact_mut(self.outputs).zip(part.chunks_exact(rows.len())) {
                    y[rows.clone()].copy_from_slice(part);
                }
            })?;
        }
        host::tensor(y, tokens, self.outputs)
    }
}
