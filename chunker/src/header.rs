//! The tensors of a safetensors file, from its header. Part of the manifest's format: what is read here and what is
//! refused stays as it is, or [`FORMAT`](surf_protocol::manifest::FORMAT) goes up. `docs/protocol.md` says the same.
//!
//! Only the header is read. A [`Header`] that was read is sound: its tensors are in order, touch each
//! other, and fill the file to its last byte. Sizes are those of the offsets: what a type is, and how many bytes
//! it takes, is the reader's business. Our own reader, because the reference implementation wants the whole file
//! in memory, knows a fixed list of types, and does not say which tensor is at fault.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::Read,
    sync::Arc,
};

use serde::{
    Deserialize,
    de::{
        DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
        value::MapAccessDeserializer,
    },
};
use surf_protocol::{limits::TENSOR_RANK_MAX, manifest::Tag};

use crate::{FileFault, HeaderFault, TensorFault, format::Stop};

/// Bytes in a header, as the reference implementation bounds them.
pub(crate) const HEADER_SIZE_MAX: u64 = 100_000_000;

/// The bytes that say how long the header is.
pub(crate) const LENGTH_SIZE: u64 = 8;

/// Tensors in a file of any format.
pub(crate) const TENSORS_MAX: usize = 1 << 18;

/// Bytes in the name of a tensor, in any format.
pub(crate) const NAME_SIZE_MAX: usize = 1024;

/// Bytes in all names of a file together. Those of a mixture of experts with 91,000 tensors have 6 MB.
pub(crate) const NAMES_SIZE_MAX: usize = 32 << 20;

/// What stands in the metadata before the name of a tensor whose bytes are blocks of a type of GGML's.
pub(crate) const PACKED: &str = "ggml_type.";

/// The tensors of a file of any format, in the order of their bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tensors: Vec<Tensor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: Arc<str>,
    /// What the file calls its type.
    pub(crate) dtype: Tag,
    /// Outermost first.
    pub(crate) shape: Vec<u64>,
    /// How many elements along the last dimension share bytes; `None` if that is not known, so that nothing is
    /// known of its rows.
    pub(crate) block: Option<u64>,
    /// First byte in the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: u64,
}

impl Header {
    /// `tensors` in the order of their bytes; or one that a manifest cannot list, or that lies over another.
    pub(crate) fn sorted(mut tensors: Vec<Tensor>) -> Result<Self, FileFault> {
        // Empty tensors may share an offset; their names decide, so that the order is always the same.
        tensors.sort_by(|a, b| (a.offset, a.size, &a.name).cmp(&(b.offset, b.size, &b.name)));
        few(tensors.len(), tensors.iter().map(|tensor| tensor.name.len()).sum())?;
        let mut names = HashSet::new();
        for tensor in &tensors {
            let fault = if NAME_SIZE_MAX < tensor.name.len() {
                TensorFault::LongName
            } else if TENSOR_RANK_MAX < tensor.shape.len() {
                TensorFault::Rank(tensor.shape.len())
            } else if !names.insert(&*tensor.name) {
                TensorFault::Twice
            } else {
                continue;
            };
            return Err(FileFault::tensor(&tensor.name, fault));
        }
        for pair in tensors.windows(2) {
            if pair[1].offset < pair[0].offset + pair[0].size {
                return Err(FileFault::tensor(&pair[1].name, TensorFault::Overlap(pair[0].name.to_string())));
            }
        }
        Ok(Self { tensors })
    }
}

/// Whether as many tensors, with as many bytes of names, are few enough to be read. Readers ask as they go on, so that
/// what a file claims takes no memory.
pub(crate) fn few(tensors: usize, names: usize) -> Result<(), HeaderFault> {
    let within = |what, count: usize, max: usize| match count <= max {
        true => Ok(()),
        false => Err(HeaderFault::TooMany { what, count: count as u64, max: max as u64 }),
    };
    within("tensors", tensors, TENSORS_MAX)?;
    within("bytes of names", names, NAMES_SIZE_MAX)
}

/// The header of a file of `size` bytes, read from its beginning.
pub(crate) fn read(file: &mut impl Read, size: u64) -> Result<Header, Stop> {
    let mut length = [0; LENGTH_SIZE as usize];
    if size < LENGTH_SIZE {
        return Err(HeaderFault::Short { size }.into());
    }
    file.read_exact(&mut length)?;
    let json_size = check_length(length, size)?;
    let mut json = vec![0; json_size as usize];
    file.read_exact(&mut json)?;
    Ok(parse(&json, LENGTH_SIZE + json_size, size)?)
}

/// The header of a file of `size` bytes that begins with `head`, if all of it is there.
pub(crate) fn of(head: &[u8], size: u64) -> Option<Header> {
    let (length, rest) = head.split_first_chunk().filter(|_| LENGTH_SIZE <= size)?;
    let json_size = check_length(*length, size).ok()?;
    let json = rest.get(..usize::try_from(json_size).ok()?)?;
    parse(json, LENGTH_SIZE + json_size, size).ok()
}

/// Whether a file of `size` bytes that begins with `head` is one, as far as that shows.
pub(crate) fn begins(head: &[u8], size: u64) -> bool {
    let Some((length, rest)) = head.split_first_chunk() else { return false };
    LENGTH_SIZE <= size
        && check_length(*length, size).is_ok_and(|length| 2 <= length)
        && rest.first() == Some(&b'{')
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

/// Reads the JSON of a header that takes the first `start` bytes of a file of `end` bytes.
pub(crate) fn parse(json: &[u8], start: u64, end: u64) -> Result<Header, FileFault> {
    let malformed = |error: String| HeaderFault::Malformed(error);
    let text = std::str::from_utf8(json).map_err(|error| malformed(error.to_string()))?;
    if !text.starts_with('{') {
        return Err(malformed("it does not begin with a brace".to_owned()).into());
    }
    let mut entries = Entries::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let outcome = entries.deserialize(&mut json).and_then(|()| json.end());
    few(entries.found.len(), entries.names)?;
    if let Err(error) = outcome {
        let error = error.to_string();
        return Err(match entries.current {
            Some(tensor) => FileFault::tensor(&tensor, TensorFault::Malformed(error)),
            None => malformed(error).into(),
        });
    }
    check(entries, start, end)
}

fn check(entries: Entries, start: u64, end: u64) -> Result<Header, FileFault> {
    let data = end - start;
    let mut tensors: Vec<Tensor> = Vec::with_capacity(entries.found.len());
    for (name, entry) in entries.found {
        let (begin, end) = entry.data_offsets;
        let fault = match entry.dtype.parse() {
            Err(error) => TensorFault::Tag(error),
            Ok(_) if end < begin => TensorFault::Backwards { begin, end },
            Ok(_) if data < end => TensorFault::PastEnd { end, data },
            Ok(dtype) => {
                let dtype = packed_tag(&entry.dtype, entries.packed.get(&name)).unwrap_or(dtype);
                let (offset, size) = (start + begin, end - begin);
                let name = name.into();
                tensors.push(Tensor { name, dtype, shape: entry.shape.0, block: Some(1), offset, size });
                continue;
            }
        };
        return Err(FileFault::tensor(&name, fault));
    }
    let header = Header::sorted(tensors)?;
    let mut filled = start;
    for tensor in &header.tensors {
        if filled < tensor.offset {
            return Err(FileFault::tensor(&tensor.name, TensorFault::Hole(tensor.offset - filled)));
        }
        filled = tensor.offset + tensor.size;
    }
    match end - filled {
        0 => Ok(header),
        rest => Err(HeaderFault::Trailing(rest).into()),
    }
}

/// `U8:Q4_K` for bytes of which the metadata says that they are blocks of Q4_K, where that is a tag.
fn packed_tag(dtype: &str, packed: Option<&String>) -> Option<Tag> {
    format!("{dtype}:{}", packed?).parse().ok()
}

/// What the header says of a tensor; further members are passed over.
#[derive(serde::Deserialize)]
struct Fields {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Dimensions, and no more than one too many of them.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = list.next_element()? {
                    if shape.len() <= TENSOR_RANK_MAX {
                        shape.push(dimension);
                    }
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// The same, of an object only: as a list, serde would take it too.
struct Entry(Fields);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(map)).map(Entry)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Collects entries, and remembers which one it was at when it failed.
#[derive(Default)]
struct Entries {
    found: Vec<(String, Fields)>,
    /// Bytes of their names.
    names: usize,
    /// For tensors, the type of GGML's that the metadata says they are of.
    packed: HashMap<String, String>,
    has_metadata: bool,
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
                write!(f, "metadata with the types of at most {TENSORS_MAX} tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Packed, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if pairs.len() == TENSORS_MAX {
                        return Err(A::Error::invalid_length(pairs.len() + 1, &self));
                    }
                    match key.strip_prefix(PACKED).filter(|tensor| tensor.len() <= NAME_SIZE_MAX) {
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
                if std::mem::replace(&mut self.has_metadata, true) {
                    return Err(serde::de::Error::custom("it has two __metadata__"));
                }
                let metadata = map.next_value::<Option<Packed>>()?;
                self.packed.extend(metadata.into_iter().flat_map(|Packed(pairs)| pairs));
                continue;
            }
            self.names += name.len();
            // What is too much is told by `few`.
            if few(self.found.len(), self.names).is_err() {
                return Err(A::Error::custom("it is too large"));
            }
            self.current = Some(name.clone());
            let Entry(entry) = map.next_value()?;
            self.current = None;
            self.found.push((name, entry));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
