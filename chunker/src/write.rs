//! What a safetensors file begins with, written.

use serde_json::{Map, Value, json};
use surf_protocol::Dtype;

use crate::{checkpoint::dtype, header::LENGTH_SIZE};

/// The bytes before the tensors of a file that holds `tensors`, each with its name, type and shape, one right behind
/// the other in this order; or the name of one whose shape cannot be stored as its type. Blocks of GGML's are
/// written as `checkpoint::dtype` says. The same tensors give the same bytes.
pub fn header<'a>(tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [u64])>) -> Result<Vec<u8>, String> {
    // As transformers writes it, and wants to read it.
    let mut metadata = Map::from_iter([("format".to_owned(), json!("pt"))]);
    let (mut entries, mut end) = (Map::new(), 0u64);
    for (name, dtype, shape) in tensors {
        let unstorable = || name.to_owned();
        let size = dtype.size_of(shape);
        let (stored, shape) = match (dtype::stored(dtype), dtype::packed(name, dtype)) {
            (Some(stored), _) => (stored, shape.to_vec()),
            (None, Some((key, kind))) => {
                metadata.insert(key, json!(kind));
                ("U8", dtype::packed_shape(dtype, shape).ok_or_else(unstorable)?)
            }
            (None, None) => return Err(unstorable()),
        };
        let start = end;
        end = size.and_then(|size| start.checked_add(size)).ok_or_else(unstorable)?;
        entries
            .insert(name.to_owned(), json!({"dtype": stored, "shape": shape, "data_offsets": [start, end]}));
    }
    entries.insert("__metadata__".to_owned(), Value::Object(metadata));
    let mut json = Value::Object(entries).to_string().into_bytes();
    // So that the tensors begin at a multiple of it, as the reference implementation has it.
    json.resize(json.len().next_multiple_of(LENGTH_SIZE as usize), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header;

    #[test]
    fn what_is_written_reads_back() {
        let tensors = [
            ("b", Dtype::Bf16, &[2, 3][..]),
            ("a", Dtype::Q4K, &[5, 512]),
            ("empty", Dtype::F32, &[0]),
            ("c", Dtype::Q8_0, &[2, 2, 32]),
        ];
        let written = header(tensors).unwrap();
        let size = written.len() as u64 + 12 + 5 * 288 + 4 * 34;
        let read = header::read(&mut &written[..], size).unwrap();
        let found: Vec<_> =
            read.tensors.iter().map(|t| (&*t.name, t.dtype.as_str(), t.shape.as_slice())).collect();
        for expected in [
            ("b", "BF16", &[2, 3][..]),
            ("a", "U8:Q4_K", &[5, 288]),
            ("empty", "F32", &[0]),
            ("c", "U8:Q8_0", &[2, 2, 34]),
        ] {
            assert!(found.contains(&expected), "{found:?}");
        }
        let places: Vec<u64> = ["b", "a", "c"]
            .map(|name| read.tensors.iter().find(|tensor| *tensor.name == *name).unwrap().offset)
            .to_vec();
        assert_eq!(places, [0, 12, 12 + 5 * 288].map(|at| at + written.len() as u64));
        assert_eq!(written.len() % 8, 0);
    }

    #[test]
    fn what_cannot_be_stored_is_named() {
        assert_eq!(header([("a", Dtype::Q4K, &[5, 100][..])]), Err("a".to_owned()));
        assert_eq!(header([("a", Dtype::F32, &[u64::MAX, 2][..])]), Err("a".to_owned()));
    }
}
