//! Which type of ours a file's tag means, and what stands in the file for types that its format lacks.
//!
//! Safetensors files have no types for GGML's blocks. Such a tensor is stored as `U8`, its last dimension counting the
//! bytes of a row, and the file's `__metadata__` says what they are: under `ggml_type.` and the tensor's name stands the
//! name that GGML has for the type. Other readers see bytes; a manifest has the tag `U8:Q6_K`.
//!
//! ```json
//! {"__metadata__": {"format": "pt", "ggml_type.lm_head.weight": "Q6_K"},
//!  "lm_head.weight": {"dtype": "U8", "shape": [32000, 3360], "data_offsets": [0, 107520000]}}
//! ```
//!
//! is 32,000 rows of 4,096 elements.

use surf_protocol::{Dtype, TensorEntry};

use crate::header::PACKED;

/// The types that safetensors files have.
const SINGLES: [(&str, Dtype); 15] = [
    ("BOOL", Dtype::Bool),
    ("U8", Dtype::U8),
    ("I8", Dtype::I8),
    ("U16", Dtype::U16),
    ("I16", Dtype::I16),
    ("U32", Dtype::U32),
    ("I32", Dtype::I32),
    ("U64", Dtype::U64),
    ("I64", Dtype::I64),
    ("F8_E4M3", Dtype::F8E4M3),
    ("F8_E5M2", Dtype::F8E5M2),
    ("F16", Dtype::F16),
    ("BF16", Dtype::Bf16),
    ("F32", Dtype::F32),
    ("F64", Dtype::F64),
];

/// The same, as PyTorch calls them.
const TORCH: [(&str, Dtype); 15] = [
    ("bool", Dtype::Bool),
    ("uint8", Dtype::U8),
    ("int8", Dtype::I8),
    ("uint16", Dtype::U16),
    ("int16", Dtype::I16),
    ("uint32", Dtype::U32),
    ("int32", Dtype::I32),
    ("uint64", Dtype::U64),
    ("int64", Dtype::I64),
    ("float8_e4m3fn", Dtype::F8E4M3),
    ("float8_e5m2", Dtype::F8E5M2),
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::Bf16),
    ("float32", Dtype::F32),
    ("float64", Dtype::F64),
];

/// GGML's types of blocks, by number and name.
const BLOCKS: [(u32, &str, Dtype); 13] = [
    (2, "Q4_0", Dtype::Q4_0),
    (3, "Q4_1", Dtype::Q4_1),
    (6, "Q5_0", Dtype::Q5_0),
    (7, "Q5_1", Dtype::Q5_1),
    (8, "Q8_0", Dtype::Q8_0),
    (10, "Q2_K", Dtype::Q2K),
    (11, "Q3_K", Dtype::Q3K),
    (12, "Q4_K", Dtype::Q4K),
    (13, "Q5_K", Dtype::Q5K),
    (14, "Q6_K", Dtype::Q6K),
    (20, "IQ4_NL", Dtype::Iq4Nl),
    (23, "IQ4_XS", Dtype::Iq4Xs),
    (39, "MXFP4", Dtype::Mxfp4),
];

/// GGML's other types that we compute with, by number.
const PLAIN: [(u32, Dtype); 8] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::Bf16),
];

/// Names of GGML's types that we do not compute with, for who is told so.
const FOREIGN: [(u32, &str); 11] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

/// The type and shape of `tensor`, or a sentence's end that says why it cannot be computed with.
pub(super) fn read(tensor: &TensorEntry) -> Result<(Dtype, Vec<u64>), String> {
    let tag = tensor.dtype.as_str();
    let (dtype, shape) = match tag.split_once(':') {
        Some(("U8", name)) => {
            let found = BLOCKS.iter().find(|(_, known, _)| *known == name).map(|(.., dtype)| *dtype);
            (found, found.and_then(|dtype| unpacked(dtype, &tensor.shape)))
        }
        _ => (single(tag), Some(tensor.shape.to_vec())),
    };
    let Some(dtype) = dtype else {
        return Err(format!("is of type {}, which this program does not compute with", named(tag)));
    };
    match shape.filter(|shape| dtype.size_of(shape) == Some(tensor.size)) {
        Some(shape) => Ok((dtype, shape)),
        None => {
            let (size, shape) = (tensor.size, &tensor.shape);
            Err(format!(
                "has {size} bytes, which are not those of its shape {shape:?} and type {}",
                named(tag)
            ))
        }
    }
}

/// The type of single elements that a tag means.
pub(crate) fn single(tag: &str) -> Option<Dtype> {
    let of = |table: &[(&str, Dtype)], name| {
        table.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype)
    };
    if let Some(name) = tag.strip_prefix("torch.") {
        return of(&TORCH, name);
    }
    let Some(number) = number(tag) else { return of(&SINGLES, tag) };
    let blocks = BLOCKS.iter().find(|(known, ..)| *known == number).map(|(.., dtype)| *dtype);
    blocks.or_else(|| PLAIN.iter().find(|(known, _)| *known == number).map(|(_, dtype)| *dtype))
}

/// The number of a type of GGML's.
fn number(tag: &str) -> Option<u32> {
    tag.strip_prefix("ggml:")?.parse().ok()
}

/// A tag as people know it.
fn named(tag: &str) -> String {
    let known = number(tag).and_then(|number| FOREIGN.iter().find(|(known, _)| *known == number));
    known.map_or_else(|| tag.to_owned(), |(_, name)| (*name).to_owned())
}

/// The shape of the elements of a tensor that is stored as bytes of this shape.
fn unpacked(dtype: Dtype, stored: &[u64]) -> Option<Vec<u64>> {
    let block = dtype.block();
    let mut shape = stored.to_vec();
    let row = shape.last_mut().filter(|row| row.is_multiple_of(block.bytes))?;
    *row = (*row / block.bytes).checked_mul(block.elements)?;
    Some(shape)
}

/// What a safetensors file calls a type that it has.
pub(crate) fn stored(dtype: Dtype) -> Option<&'static str> {
    SINGLES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name)
}

/// The entry of the metadata that says that `tensor` is blocks of `dtype`; `None` if that is no type of GGML's.
pub(crate) fn packed(tensor: &str, dtype: Dtype) -> Option<(String, &'static str)> {
    let (_, name, _) = BLOCKS.iter().find(|(.., known)| *known == dtype)?;
    Some((format!("{PACKED}{tensor}"), name))
}

/// The shape in which a tensor of `shape` is stored as blocks of `dtype`, its last dimension in bytes; `None` if its
/// rows are no whole blocks.
pub(crate) fn packed_shape(dtype: Dtype, shape: &[u64]) -> Option<Vec<u64>> {
    let mut stored = dtype.in_blocks(shape)?;
    let row = stored.last_mut()?;
    *row = row.checked_mul(dtype.block().bytes)?;
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: &str, shape: &[u64], size: u64) -> TensorEntry {
        TensorEntry {
            file: 0,
            name: "a".into(),
            dtype: tag.parse().unwrap(),
            shape: shape.into(),
            offset: 0,
            size,
        }
    }

    #[test]
    fn a_tag_means_a_type() {
        for (tag, size, dtype) in [
            ("BF16", 12, Dtype::Bf16),
            ("torch.float64", 48, Dtype::F64),
            ("ggml:0", 24, Dtype::F32),
            ("F8_E5M2", 6, Dtype::F8E5M2),
        ] {
            assert_eq!(read(&entry(tag, &[2, 3], size)), Ok((dtype, vec![2, 3])), "{tag}");
        }
        assert_eq!(read(&entry("ggml:12", &[2, 256], 288)), Ok((Dtype::Q4K, vec![2, 256])));
        assert_eq!(read(&entry("U8:Q6_K", &[3, 420], 1260)), Ok((Dtype::Q6K, vec![3, 512])));
    }

    #[test]
    fn what_is_stored_reads_back() {
        for (_, name, dtype) in BLOCKS {
            let elements = 3 * dtype.block().elements;
            let stored = packed_shape(dtype, &[2, 5, elements]).unwrap();
            assert_eq!(stored, [2, 5, 3 * dtype.block().bytes]);
            let stored = entry(&format!("U8:{name}"), &stored, stored.iter().product());
            assert_eq!(read(&stored), Ok((dtype, vec![2, 5, elements])));
            assert_eq!(packed("a.b", dtype), Some(("ggml_type.a.b".to_owned(), name)));
            assert_eq!(packed_shape(dtype, &[2, elements + 1]), None);
        }
        assert_eq!(packed("a", Dtype::F32), None);
    }

    #[test]
    fn what_cannot_be_computed_with_is_told() {
        for (tag, shape, size, says) in [
            ("F4", &[6][..], 3, "is of type F4"),
            ("ggml:22", &[256], 82, "is of type IQ2_S"),
            ("ggml:99", &[256], 136, "is of type ggml:99"),
            ("torch.complex64", &[1], 8, "is of type torch.complex64"),
            ("U8:Q9_K", &[18], 18, "is of type U8:Q9_K"),
            ("F32", &[3], 8, "has 8 bytes"),
            ("F32", &[u64::MAX, 2], 8, "has 8 bytes"),
            ("U8:Q4_0", &[2, 17], 34, "has 34 bytes"),
            ("U8:Q4_0", &[], 1, "has 1 bytes"),
            ("I8:Q4_0", &[18], 18, "is of type I8:Q4_0"),
        ] {
            let error = read(&entry(tag, shape, size)).unwrap_err();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
