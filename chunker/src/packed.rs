//! Tensors of GGML's blocks in safetensors files.
//!
//! The format has no types for them. So such a tensor is stored as `U8`, its last dimension counting the bytes of
//! a row, and the file's `__metadata__` says what they are: under `ggml_type.` and the tensor's name stands the
//! name that GGML has for the type. Other readers see bytes; a manifest lists the tensor with its type and the
//! shape of its elements.
//!
//! ```json
//! {"__metadata__": {"format": "pt", "ggml_type.lm_head.weight": "Q6_K"},
//!  "lm_head.weight": {"dtype": "U8", "shape": [32000, 3360], "data_offsets": [0, 107520000]}}
//! ```
//!
//! is 32,000 rows of 4,096 elements.

use surf_protocol::Dtype;

use crate::TensorFault;

/// What stands before a tensor's name in the metadata.
const PREFIX: &str = "ggml_type.";

/// The types, as GGML calls them.
const NAMES: [(&str, Dtype); 10] = [
    ("Q4_0", Dtype::Q4_0),
    ("Q4_1", Dtype::Q4_1),
    ("Q5_0", Dtype::Q5_0),
    ("Q5_1", Dtype::Q5_1),
    ("Q8_0", Dtype::Q8_0),
    ("Q2_K", Dtype::Q2K),
    ("Q3_K", Dtype::Q3K),
    ("Q4_K", Dtype::Q4K),
    ("Q5_K", Dtype::Q5K),
    ("Q6_K", Dtype::Q6K),
];

/// The entry of the metadata that says that `tensor` is blocks of `dtype`; `None` if that is no type of GGML's.
pub fn entry(tensor: &str, dtype: Dtype) -> Option<(String, &'static str)> {
    let (name, _) = NAMES.iter().find(|(_, known)| *known == dtype)?;
    Some((format!("{PREFIX}{tensor}"), name))
}

/// The shape in which a tensor of `shape` is stored as blocks of `dtype`, its last dimension in bytes; `None` if its
/// rows are no whole blocks.
pub fn stored_shape(dtype: Dtype, shape: &[u64]) -> Option<Vec<u64>> {
    let mut stored = dtype.in_blocks(shape)?;
    let row = stored.last_mut()?;
    *row = row.checked_mul(dtype.block().bytes)?;
    Some(stored)
}

/// The tensor that an entry of the metadata called `key` speaks of.
pub(crate) fn tensor(key: &str) -> Option<&str> {
    key.strip_prefix(PREFIX)
}

/// The type called `name` and the shape of the elements, of a tensor that is stored as `stored` of type `dtype`.
pub(crate) fn unpacked(
    name: &str,
    dtype: Option<Dtype>,
    stored: &[u64],
) -> Result<(Dtype, Vec<u64>), TensorFault> {
    let (_, packed) =
        NAMES.iter().find(|(known, _)| *known == name).ok_or(TensorFault::Packing(name.to_owned()))?;
    let misfit = || TensorFault::Packed { dtype: name.to_owned(), shape: stored.to_vec() };
    let block = packed.block();
    let mut shape = stored.to_vec();
    let row = shape.last_mut().filter(|row| dtype == Some(Dtype::U8) && row.is_multiple_of(block.bytes));
    let row = row.ok_or_else(misfit)?;
    *row = (*row / block.bytes).checked_mul(block.elements).ok_or_else(misfit)?;
    Ok((*packed, shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_back() {
        for (name, dtype) in NAMES {
            let elements = 3 * dtype.block().elements;
            let stored = stored_shape(dtype, &[2, 5, elements]).unwrap();
            assert_eq!(stored, [2, 5, 3 * dtype.block().bytes]);
            assert_eq!(unpacked(name, Some(Dtype::U8), &stored), Ok((dtype, vec![2, 5, elements])));
            assert_eq!(entry("a.b", dtype), Some(("ggml_type.a.b".to_owned(), name)));
            assert_eq!(stored_shape(dtype, &[2, elements + 1]), None);
        }
        assert_eq!(tensor("ggml_type.a.b"), Some("a.b"));
        assert_eq!((tensor("format"), entry("a", Dtype::F32)), (None, None));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let packed = |shape: &[u64]| TensorFault::Packed { dtype: "Q4_0".to_owned(), shape: shape.to_vec() };
        for (dtype, shape) in [
            (Some(Dtype::U8), &[2, 17][..]),
            (Some(Dtype::U8), &[]),
            (Some(Dtype::I8), &[2, 18]),
            (None, &[2, 18]),
            (Some(Dtype::U8), &[0, u64::MAX / 18 * 18]),
        ] {
            assert_eq!(unpacked("Q4_0", dtype, shape), Err(packed(shape)), "{dtype:?} {shape:?}");
        }
        assert_eq!(unpacked("Q9_K", Some(Dtype::U8), &[18]), Err(TensorFault::Packing("Q9_K".to_owned())));
    }
}
