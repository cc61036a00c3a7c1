//! A projection: `x · weightᵀ + bias`, or `x · weight + bias` where the weight is stored that way.
//!
//! On the host the weight stays in its own precision and is widened as it is used; a device has its own
//! place for it.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use super::{
    EngineError,
    compute::{Place, Product, Remote},
    host,
    kernels::{self, Matrix},
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Arc<[f32]>>,
    product: Product,
}

/// What activations are multiplied with.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// Of which each row makes one output.
    Rows(Matrix),
    /// Of which each of these columns does.
    Columns(Matrix, Range<usize>),
}

impl Linear {
    /// `bias` has as many elements as `weight` has outputs. `product` is who computes it.
    pub(crate) fn new(weight: Weight, bias: Option<Arc<[f32]>>, product: Product) -> Self {
        Self { weight, bias, product }
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
        let rounding = match &self.product {
            Product::Device(place) => return self.product(place, &place.bring(x)?)?.home(),
            Product::Host(rounding) => rounding,
        };
        let mut y = host::read(x, |x| match &self.weight {
            Weight::Rows(weight) if rounding.rounds() => kernels::matmul_rounded(weight, x, rows),
            Weight::Rows(weight) => kernels::matmul(weight, x, rows),
            Weight::Columns(weight, columns) => kernels::matmul_columns(weight, columns.clone(), x, rows),
        })?;
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| kernels::add(row, bias));
        }
        host::tensor(y, rows, outputs)
    }

    /// Where a device computes it, if one does.
    pub(crate) fn place(&self) -> Option<&Arc<Place>> {
        match &self.product {
            Product::Device(place) => Some(place),
            Product::Host(_) => None,
        }
    }

    /// The same on a device, at this place of its own.
    pub(crate) fn product(&self, place: &Place, x: &Remote) -> Result<Remote, EngineError> {
        place.product(&self.weight, self.bias.as_deref(), x)
    }
}
