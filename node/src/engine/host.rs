//! Tensors on the CPU as slices of f32, and back.

use candle_core::{CpuStorage, Device, Storage, Tensor};

use super::EngineError;

/// Calls `with` with the elements of `x`, by rows.
pub(crate) fn read<R>(x: &Tensor, with: impl FnOnce(&[f32]) -> R) -> Result<R, EngineError> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(with(&values[start..end])),
        _ => Err(candle_core::Error::Msg("expected f32 on the CPU, by rows".to_owned()).into()),
    }
}

/// A copy of the elements of `x`, by rows.
pub(crate) fn copy(x: &Tensor) -> Result<Vec<f32>, EngineError> {
    read(x, <[f32]>::to_vec)
}

/// A tensor of `rows` by `cols` on the CPU.
pub(crate) fn tensor(values: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor, EngineError> {
    Ok(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?)
}
