//! In what products are computed on a device.

use candle_core::DType;
use surf_protocol::Dtype;

use crate::config::Precision;

/// See the module. Sums are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// In f32, whatever the weights are: exact but for the order of sums.
    Exact,
    /// In the type of the weights: activations are rounded to it for each product, and to eight bits where
    /// the weights are quantised. Weights of a type that candle does not multiply become this one.
    Fast(DType),
}

impl Products {
    /// As asked for. Left open, results are what a CPU computes.
    pub(super) fn of(dtype: Precision) -> Self {
        match dtype {
            Precision::Auto | Precision::F32 => Self::Exact,
            Precision::Bf16 => Self::Fast(DType::BF16),
            Precision::F16 => Self::Fast(DType::F16),
        }
    }

    /// What elements of `dtype`, scaled if they are, become on the device. `None`: they come as they are.
    pub(super) fn widened(self, dtype: Dtype, scaled: bool) -> Option<DType> {
        let short = match self {
            Self::Exact => DType::F32,
            Self::Fast(dtype) => dtype,
        };
        match dtype {
            Dtype::F64 => Some(DType::F32),
            // Without their scales, bfloat16 holds any of them.
            Dtype::F8E4M3 | Dtype::F8E5M2 if !scaled => Some(DType::BF16),
            Dtype::F8E4M3 | Dtype::F8E5M2 => Some(short),
            _ if scaled => Some(DType::F32),
            _ => None,
        }
    }
}
