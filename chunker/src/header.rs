//! What a file of weights says is in it, and the reader of safetensors files, checked against their size.
//!
//! Only the header is read. A [`Header`] that was read is sound: its tensors are in order, touch each
//! other, fill the file to its last byte, and each has the size of its shape and type. Our own reader, because
//! the reference implementation wants the whole file in memory and does not say which tensor is at fault.
//!
//! Types that the format knows and this program does not are no damage: such a file is published
//! like any other, but its tensors are not listed. Bytes of which the metadata says that they are blocks of GGML's are
//! listed as such (see `packed`).

mod write;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    io::Read,
};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use surf_protocol::{Dtype, limits::TENSOR_RANK_MAX};

use crate::{CutError, HeaderFault, Listed, TensorFault, gguf, packed, pickle};

pub use write::header;

/// Bytes in a header, as the reference implementation bounds them.
pub(crate) const HEADER_SIZE_MAX: u64 = 100_000_000;

/// The bytes that say how long the header is.
const LENGTH_SIZE: u64 = 8;

/// The tensors of a file of any format, in the order of their bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tensors: Vec<Tensor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// None, if the format knows the type and we do not.
    pub(crate) dtype: Option<Dtype>,
    pub(crate) shape: Vec<u64>,
    /// First byte in the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: u64,
}

impl Header {
    /// `tensors` in the order of their bytes; or the name of one that lies over another, and how.
    pub(crate) fn sorted(mut tensors: Vec<Tensor>) -> Result<Self, (String, TensorFault)> {
        // Empty tensors may share an offset; their names decide, so that the order is always the same.
        tensors.sort_by(|a, b| (a.offset, a.size, &a.name).cmp(&(b.offset, b.size, &b.name)));
        for pair in tensors.windows(2) {
            if pair[1].offset < pair[0].offset + pair[0].size {
                return Err((pair[1].name.clone(), TensorFault::Overlap(pair[0].name.clone())));
            }
        }
        Ok(Self { tensors })
    }

    /// Whether a manifest can list every tensor of the file.
    pub(crate) fn understood(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.dtype.is_some() && tensor.shape.len() <= TENSOR_RANK_MAX)
    }
}

/// The headers of all files of weights, by position in `files`.
pub(crate) fn read_all(files: &[Listed]) -> Result<BTreeMap<usize, Header>, CutError> {
    let mut headers = BTreeMap::new();
    for (at, file) in files.iter().enumerate() {
        let header = match Format::of(&file.path) {
            Some(Format::Safetensors) => read(file)?,
            Some(Format::Gguf) => gguf::read(file)?,
            Some(Format::Pickle) | None => continue,
        };
        headers.insert(at, header);
    }
    for at in pickle::weights(files)? {
        headers.insert(at, pickle::read(&files[at])?);
    }
    Ok(headers)
}

/// Formats that hold weights, as files are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    Gguf,
    /// PyTorch's; other files are called so too.
    Pickle,
}

impl Format {
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "safetensors" => Some(Self::Safetensors),
            "gguf" => Some(Self::Gguf),
            ending if pickle::ENDINGS.contains(&ending) => Some(Self::Pickle),
            _ => None,
        }
    }
}

fn read(file: &Listed) -> Result<Header, CutError> {
    let header_fault = |fault| CutError::Header { file: file.seen.clone(), fault };
    let mut reader = file.open()?;
    let mut length = [0; LENGTH_SIZE as usize];
    if file.size < LENGTH_SIZE {
        return Err(header_fault(HeaderFault::Short { size: file.size }));
    }
    reader.read_exact(&mut length).map_err(|source| file.failed(source))?;
    let json_size = check_length(length, file.size).map_err(header_fault)?;
    let mut json = vec![0; json_size as usize];
    reader.read_exact(&mut json).map_err(|source| file.failed(source))?;
    let size = LENGTH_SIZE + json_size;
    let tensors = parse(&json, size, file.size).map_err(|damage| match damage {
        Damage::Header(fault) => header_fault(fault),
        Damage::Tensor(tensor, fault) => CutError::Tensor { file: file.seen.clone(), tensor, fault },
    })?;
    Ok(Header { tensors })
}

/// The header of a file of `size` bytes that begins with `head`, if it is sound and all there.
pub(crate) fn of(head: &[u8], size: u64) -> Option<Header> {
    if size < LENGTH_SIZE {
        return None;
    }
    let (length, rest) = head.split_first_chunk()?;
    let json_size = check_length(*length, size).ok()?;
    let json = rest.get(..usize::try_from(json_size).ok()?)?;
    let start = LENGTH_SIZE + json_size;
    Some(Header { tensors: parse(json, start, size).ok()? })
}

fn check_length(length: [u8; 8], file_size: u64) -> Result<u64, HeaderFault> {
    let header = u64::from_le_bytes(length);
    if &length == b"version " {
        return Err(HeaderFault::Pointer);
    }
    if file_size - LENGTH_SIZE < header {
        return Err(HeaderFault::PastEnd { header, size: file_size });
    }
    if HEADER_SIZE_MAX < header {
        return Err(HeaderFault::TooLarge { header });
    }
    Ok(header)
}

#[derive(Debug, PartialEq, Eq)]
enum Damage {
    Header(HeaderFault),
    Tensor(String, TensorFault),
}

/// Reads the JSON of a header that takes the first `start` bytes of a file of `end` bytes.
fn parse(json: &[u8], start: u64, end: u64) -> Result<Vec<Tensor>, Damage> {
    let malformed = |error: String| Damage::Header(HeaderFault::Malformed(error));
    let json = std::str::from_utf8(json).map_err(|error| malformed(error.to_string()))?;
    let mut entries = Entries::default();
    let mut json = serde_json::Deserializer::from_str(json);
    let outcome = entries.deserialize(&mut json).and_then(|()| json.end());
    if let Err(error) = outcome {
        let error = error.to_string();
        return Err(match entries.current {
            Some(tensor) => Damage::Tensor(tensor, TensorFault::Malformed(error)),
            None => malformed(error),
        });
    }
    let mut tensors = check(entries.found, start, end)?;
    unpack(&mut tensors, &entries.packed).map_err(|(tensor, fault)| Damage::Tensor(tensor, fault))?;
    Ok(tensors)
}

/// Gives the tensors that `packed` names the type that it says.
fn unpack(tensors: &mut [Tensor], packed: &[(String, String)]) -> Result<(), (String, TensorFault)> {
    if packed.is_empty() {
        return Ok(());
    }
    let mut by_name: HashMap<String, &mut Tensor> =
        tensors.iter_mut().map(|tensor| (tensor.name.clone(), tensor)).collect();
    for (name, dtype) in packed {
        let fault = |fault| (name.clone(), fault);
        let tensor = by_name.get_mut(name).ok_or(fault(TensorFault::Absent))?;
        let (dtype, shape) = packed::unpacked(dtype, tensor.dtype, &tensor.shape).map_err(fault)?;
        (tensor.dtype, tensor.shape) = (Some(dtype), shape);
    }
    Ok(())
}

fn check(mut entries: Vec<(String, Entry)>, start: u64, end: u64) -> Result<Vec<Tensor>, Damage> {
    // Empty tensors may share an offset; their names decide, so that the order is always the same.
    entries.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));
    let mut names = HashSet::new();
    if let Some((twice, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(Damage::Tensor(twice.clone(), TensorFault::Twice));
    }
    let data = end - start;
    let mut tensors: Vec<Tensor> = Vec::with_capacity(entries.len());
    let mut filled = 0;
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        let fault = match element(&entry, data) {
            Ok(_) if begin < filled => {
                // What was filled has an owner: the tensor before.
                let before = tensors.last().map(|tensor| tensor.name.clone()).unwrap_or_default();
                TensorFault::Overlap(before)
            }
            Ok(_) if filled < begin => TensorFault::Hole(begin - filled),
            Err(fault) => fault,
            Ok(dtype) => {
                let (offset, size) = (start + begin, end - begin);
                tensors.push(Tensor { name, dtype, shape: entry.shape, offset, size });
                filled = end;
                continue;
            }
        };
        return Err(Damage::Tensor(name, fault));
    }
    match data - filled {
        0 => Ok(tensors),
        rest => Err(Damage::Header(HeaderFault::Trailing(rest))),
    }
}

/// The type of a tensor that lies inside `data` bytes and has the size of its shape.
fn element(entry: &Entry, data: u64) -> Result<Option<Dtype>, TensorFault> {
    let (begin, end) = entry.data_offsets;
    let Some((bits, dtype)) = dtype_of(&entry.dtype) else {
        return Err(TensorFault::Dtype(entry.dtype.clone()));
    };
    if end < begin {
        return Err(TensorFault::Backwards { begin, end });
    }
    if data < end {
        return Err(TensorFault::PastEnd { end, data });
    }
    let elements = entry.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let bits = elements.and_then(|elements| elements.checked_mul(bits));
    if bits != (end - begin).checked_mul(8) || bits.is_none() {
        let (dtype, shape) = (entry.dtype.clone(), entry.shape.clone());
        return Err(TensorFault::Size { dtype, shape, size: end - begin });
    }
    Ok(dtype)
}

/// The types of which we know the elements, as the format calls them.
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

/// Bits in an element of a type that the format knows, and what we call it.
fn dtype_of(name: &str) -> Option<(u64, Option<Dtype>)> {
    if let Some((_, dtype)) = SINGLES.iter().find(|(known, _)| *known == name) {
        return Some((8 * dtype.block().bytes, Some(*dtype)));
    }
    match name {
        "F4" => Some((4, None)),
        "F6_E2M3" | "F6_E3M2" => Some((6, None)),
        "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some((8, None)),
        "C64" => Some((64, None)),
        _ => None,
    }
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Collects entries, and remembers which one it was at when it failed.
#[derive(Default)]
struct Entries {
    found: Vec<(String, Entry)>,
    /// Tensors, and the type that the metadata says they are of.
    packed: Vec<(String, String)>,
    current: Option<String>,
}

/// What the metadata says of tensors; the rest of it is passed over.
struct Packed(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Packed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of metadata")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Packed, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match packed::tensor(&key) {
                        Some(tensor) => pairs.push((tensor.to_owned(), map.next_value()?)),
                        None => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(Packed(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl<'de> DeserializeSeed<'de> for &mut Entries {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Entries {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let metadata = map.next_value::<Option<Packed>>()?;
                self.packed.extend(metadata.into_iter().flat_map(|Packed(pairs)| pairs));
                continue;
            }
            self.current = Some(name.clone());
            let entry = map.next_value()?;
            self.current = None;
            self.found.push((name, entry));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
