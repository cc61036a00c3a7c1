//! Rows of floats into GGML's blocks, by candle's quantisers, on all cores.
//!
//! The other way round is the business of the kernels.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use rayon::prelude::*;
use surf_protocol::Dtype;

use super::{
    error::in_a_line,
    kernels::{Float, widen},
};

/// Elements that one thread packs at a time.
const PART: usize = 1 << 16;

/// The largest half. Scales are halves, and what is larger makes the quantisers' sums overflow.
const VALUE_MAX: f32 = 65_504.0;

/// Rows of one type, to become rows of another.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    from: Dtype,
    to: Dtype,
    kind: GgmlDType,
    cols: usize,
    /// Bytes of a row, before and after.
    rows: [usize; 2],
}

/// Why rows could not be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpackable {
    /// There is nothing to round to.
    #[error("has values that are not finite")]
    NotFinite,
    /// The scale of a block is a half.
    #[error("has values that are too large for {0:?}")]
    TooLarge(Dtype),
    /// The quantiser failed.
    #[error("could not be quantised: {0}")]
    Failed(String),
}

impl Packing {
    /// Of rows of `cols` elements; `None` if `from` is no kind of float, `to` no kind of blocks, or a row is no
    /// whole blocks.
    pub fn new(from: Dtype, to: Dtype, cols: usize) -> Option<Self> {
        let bytes = |dtype| Float::of(dtype)?.row_bytes(cols).filter(|&bytes| 0 < bytes);
        Some(Self { from, to, kind: kind(to)?, cols, rows: [bytes(from)?, bytes(to)?] })
    }

    /// Bytes of a row before it is packed.
    pub fn row_bytes(&self) -> usize {
        self.rows[0]
    }

    /// The blocks of whole `rows`.
    pub fn pack(&self, rows: &[u8]) -> Result<Vec<u8>, Unpackable> {
        let part = (PART / self.cols).max(1) * self.rows[0];
        let packed: Result<Vec<_>, _> = rows.par_chunks(part).map(|rows| self.part(rows)).collect();
        Ok(packed?.concat())
    }

    fn part(&self, rows: &[u8]) -> Result<Vec<u8>, Unpackable> {
        let count = rows.len() / self.rows[0];
        let mut values = vec![0.0; count * self.cols];
        widen(self.from, rows, &mut values);
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Unpackable::NotFinite);
        }
        if values.iter().any(|value| VALUE_MAX < value.abs()) {
            return Err(Unpackable::TooLarge(self.to));
        }
        let failed = |error: candle_core::Error| Unpackable::Failed(in_a_line(&error));
        let values = Tensor::from_vec(values, (count, self.cols), &Device::Cpu).map_err(failed)?;
        let packed = QTensor::quantize(&values, self.kind).map_err(failed)?;
        let packed = packed.data().map_err(failed)?.into_owned();
        match packed.len() == count * self.rows[1] {
            true => Ok(packed),
            false => Err(Unpackable::Failed(format!("{} bytes came of {count} rows", packed.len()))),
        }
    }
}

/// What candle calls it.
pub(super) fn kind(dtype: Dtype) -> Option<GgmlDType> {
    Some(match dtype {
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q4_1 => GgmlDType::Q4_1,
        Dtype::Q5_0 => GgmlDType::Q5_0,
        Dtype::Q5_1 => GgmlDType::Q5_1,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q2K => GgmlDType::Q2K,
        Dtype::Q3K => GgmlDType::Q3K,
        Dtype::Q4K => GgmlDType::Q4K,
        Dtype::Q5K => GgmlDType::Q5K,
        Dtype::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the largest error of an element, as a part of the largest element.
    const KINDS: [(Dtype, f32); 10] = [
        (Dtype::Q8_0, 0.005),
        (Dtype::Q6K, 0.05),
        (Dtype::Q5_1, 0.045),
        (Dtype::Q5_0, 0.08),
        (Dtype::Q5K, 0.09),
        (Dtype::Q4_1, 0.08),
        (Dtype::Q4_0, 0.14),
        (Dtype::Q4K, 0.17),
        (Dtype::Q3K, 0.4),
        (Dtype::Q2K, 0.6),
    ];

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|at| (at * 2_654_435_761 % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_packed_is_near_what_it_was() {
        let (rows, cols) = (300, 512);
        let values = values(rows * cols);
        for (to, most) in KINDS {
            let packed = Packing::new(Dtype::F32, to, cols).unwrap().pack(&bytes(&values)).unwrap();
            assert_eq!(packed.len() as u64, to.size_of(&[rows as u64, cols as u64]).unwrap());
            let mut widened = vec![0.0; values.len()];
            widen(to, &packed, &mut widened);
            let error = values.iter().zip(&widened).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < most && most / 20.0 < error, "{to:?}: {error}");
        }
    }

    #[test]
    fn other_floats_are_widened_first() {
        let values = values(64);
        let halves: Vec<u8> =
            values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
        let rounded: Vec<f32> = values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect();
        let packed = |from, bytes: &[u8]| Packing::new(from, Dtype::Q8_0, 32).unwrap().pack(bytes).unwrap();
        assert_eq!(packed(Dtype::Bf16, &halves), packed(Dtype::F32, &bytes(&rounded)));
    }

    #[test]
    fn what_comes_to_no_numbers_is_refused() {
        for to in KINDS.map(|(to, _)| to) {
            let packing = Packing::new(Dtype::F32, to, 256).unwrap();
            for bad in [f32::NAN, f32::INFINITY] {
                let mut values = values(256);
                values[100] = bad;
                assert_eq!(packing.pack(&bytes(&values)), Err(Unpackable::NotFinite));
            }
            let mut large = values(256);
            large[100] = 1e5;
            assert_eq!(packing.pack(&bytes(&large)), Err(Unpackable::TooLarge(to)));
            // Numbers so small that scales come to nothing.
            let small: Vec<f32> = values(256).iter().map(|value| value * 1e-40).collect();
            assert!(packing.pack(&bytes(&small)).is_ok(), "{to:?}");
            assert!(packing.pack(&[0; 1024]).is_ok(), "{to:?}");
        }
        assert!(Packing::new(Dtype::I32, Dtype::Q4_0, 32).is_none());
        assert!(Packing::new(Dtype::F32, Dtype::F16, 32).is_none());
        assert!(Packing::new(Dtype::F32, Dtype::Q4K, 32).is_none());
        assert!(Packing::new(Dtype::F32, Dtype::Q4_0, 0).is_none());
    }
}
