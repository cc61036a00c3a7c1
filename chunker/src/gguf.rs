//! What a GGUF file says is in it: metadata, and tensors with their places.
//!
//! Written for files from strangers: every count and length is checked against what is left of the file before
//! anything is made of it, values are borrowed from the bytes that were read, and a tensor that was read lies
//! inside its file, apart from the others. What is read here and what is refused is part of the manifest's format, as is
//! the table of types: a tensor of another type reaches to the next one, and nothing is known of its rows.

use std::{io::Read, sync::Arc};

use crate::{
    FileFault, HeaderFault, TensorFault,
    format::Stop as Unread,
    header::{HEADER_SIZE_MAX, Header, TENSORS_MAX, Tensor, few},
};

/// What every file begins with.
pub(crate) const MAGIC: &[u8] = b"GGUF";

/// Entries of metadata. Models have some dozens.
const ENTRIES_MAX: u64 = 1 << 16;

/// Dimensions of a tensor, as GGML bounds them.
const DIMENSIONS_MAX: u32 = 4;

/// Bytes that tensors are aligned to, where the file does not say.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 16;

/// Bytes that are read at first. Most headers with a vocabulary have a few MB.
const HEAD_SIZE: u64 = 1 << 20;

/// The metadata of a file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Metadata<'a> {
    entries: Vec<(&'a str, Value<'a>)>,
}

/// One value of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number of any width without a sign.
    Unsigned(u64),
    /// A whole number of any width.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text, if it is UTF-8.
    Text(&'a [u8]),
    /// Values of one kind.
    List(List<'a>),
}

/// Values of one kind that follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct List<'a> {
    kind: u32,
    count: u64,
    bytes: &'a [u8],
}

/// Why a header was not read to its end.
#[derive(Debug, PartialEq)]
pub(crate) enum Stop {
    /// More of it is needed.
    Short,
    /// It is something newer than this program.
    Unknown,
    Fault(FileFault),
}

impl<F: Into<FileFault>> From<F> for Stop {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

impl<'a> Metadata<'a> {
    /// The metadata of a file that begins with `head`, which holds all of it.
    pub fn read(head: &'a [u8]) -> Result<Self, HeaderFault> {
        let mut cursor = Cursor { head, at: 0, size: head.len() as u64 };
        match preamble(&mut cursor).and_then(|counts| metadata(&mut cursor, counts.entries)) {
            Ok(metadata) => Ok(metadata),
            Err(Stop::Fault(FileFault::Header(fault))) => Err(fault),
            Err(_) => Err(HeaderFault::Unknown),
        }
    }

    /// The value called `key`.
    pub fn find(&self, key: &str) -> Option<Value<'a>> {
        self.entries.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

impl<'a> Value<'a> {
    /// A whole number that is not below zero.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(number) => Some(number),
            Self::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(number) => Some(number as f64),
            Self::Signed(number) => Some(number as f64),
            Self::Float(number) => Some(number),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Text that is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Several values.
    pub fn as_list(&self) -> Option<List<'a>> {
        match *self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }
}

impl<'a> List<'a> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        // Each has a byte at least, and all of them are in memory.
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor { head: self.bytes, at: 0, size: self.bytes.len() as u64 };
        let kind = self.kind;
        (0..self.count).map_while(move |_| value(&mut cursor, kind).ok())
    }
}

/// The header of a file of `size` bytes, read from its beginning.
pub(crate) fn read(file: &mut impl Read, size: u64) -> Result<Header, Unread> {
    let mut head = Vec::new();
    loop {
        let wanted = (2 * head.len() as u64).clamp(HEAD_SIZE, HEADER_SIZE_MAX).min(size);
        let more = wanted - head.len() as u64;
        let read = file.by_ref().take(more).read_to_end(&mut head)?;
        if (read as u64) < more {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        return match parse(&head, size) {
            Ok(header) => Ok(header),
            Err(Stop::Unknown) => Err(HeaderFault::Unknown.into()),
            Err(Stop::Short) if wanted < HEADER_SIZE_MAX.min(size) => continue,
            Err(Stop::Short) => Err(HeaderFault::TooLarge { header: wanted + 1 }.into()),
            Err(Stop::Fault(fault)) => Err(fault.into()),
        };
    }
}

/// The tensors of a file of `size` bytes that begins with `head`.
pub(crate) fn parse(head: &[u8], size: u64) -> Result<Header, Stop> {
    let mut cursor = Cursor { head, at: 0, size };
    let counts = preamble(&mut cursor)?;
    let metadata = metadata(&mut cursor, counts.entries)?;
    let alignment = match metadata.find("general.alignment") {
        None => ALIGNMENT,
        Some(value) => match value.as_u64() {
            Some(bytes) if bytes.is_power_of_two() && bytes <= ALIGNMENT_MAX => bytes,
            other => return Err(HeaderFault::Alignment(other.unwrap_or(0)).into()),
        },
    };
    let (mut entries, mut names) = (Vec::new(), 0);
    for _ in 0..counts.tensors {
        let entry = entry(&mut cursor)?;
        names += entry.name.len();
        few(entries.len(), names)?;
        entries.push(entry);
    }
    let data = cursor.at.next_multiple_of(alignment);
    let mut offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
    offsets.sort_unstable();
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        let next = offsets.get(offsets.partition_point(|offset| *offset <= entry.offset)).copied();
        let space = Space { data, alignment, size, next };
        let name = Arc::clone(&entry.name);
        tensors.push(placed(entry, &space).map_err(|fault| FileFault::tensor(&name, fault))?);
    }
    Ok(Header::sorted(tensors)?)
}

/// Bytes of a header, of a file of `size` bytes.
struct Cursor<'a> {
    head: &'a [u8],
    at: u64,
    size: u64,
}

/// What stands at the very beginning.
struct Counts {
    tensors: u64,
    entries: u64,
}

struct Entry {
    name: Arc<str>,
    /// Outermost first.
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Stop> {
        if self.size - self.at < count {
            return Err(HeaderFault::Cut { size: self.size }.into());
        }
        let end = self.at + count;
        let bytes = usize::try_from(end).ok().and_then(|end| self.head.get(self.at as usize..end));
        self.at = end;
        bytes.ok_or(Stop::Short)
    }

    fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Stop> {
        let mut array = [0; SIZE];
        array.copy_from_slice(self.take(SIZE as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.u64()?;
        self.take(length)
    }

    /// `count` things of at least `least` bytes each, unless what is left cannot hold them.
    fn counted(&self, what: &'static str, count: u64, least: u64, max: u64) -> Result<u64, Stop> {
        let held = (self.size - self.at) / least;
        match count {
            _ if held < count => Err(HeaderFault::Count { what, count, size: self.size }.into()),
            _ if max < count => Err(HeaderFault::TooMany { what, count, max }.into()),
            _ => Ok(count),
        }
    }
}

fn preamble(cursor: &mut Cursor<'_>) -> Result<Counts, Stop> {
    if cursor.size < 8 {
        return Err(HeaderFault::Short { size: cursor.size }.into());
    }
    match &cursor.array()? {
        b"GGUF" => (),
        b"vers" => return Err(HeaderFault::Pointer.into()),
        _ => return Err(HeaderFault::Magic.into()),
    }
    // The other versions are the first, with narrower counts, those to come, and files for big-endian machines.
    if !matches!(cursor.u32()?, 2 | 3) {
        return Err(Stop::Unknown);
    }
    let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
    // A name's length, a number of dimensions, a type, an offset; a key's length, a kind, a value.
    let tensors = cursor.counted("tensors", tensors, 24, TENSORS_MAX as u64)?;
    let entries = cursor.counted("entries of metadata", entries, 13, ENTRIES_MAX)?;
    Ok(Counts { tensors, entries })
}

fn metadata<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<Metadata<'a>, Stop> {
    let mut entries = Vec::new();
    for _ in 0..count {
        let key = std::str::from_utf8(cursor.text()?);
        let key = key.map_err(|error| HeaderFault::Malformed(error.to_string()))?;
        let kind = cursor.u32()?;
        entries.push((key, value(cursor, kind)?));
    }
    Ok(Metadata { entries })
}

const TEXT: u32 = 8;
const LIST: u32 = 9;

/// The least bytes that a value of `kind` has, which is how many it has unless it is text.
fn least(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        TEXT | 10..=12 => Some(8),
        _ => None,
    }
}

fn value<'a>(cursor: &mut Cursor<'a>, kind: u32) -> Result<Value<'a>, Stop> {
    Ok(match kind {
        0 => Value::Unsigned(u8::from_le_bytes(cursor.array()?).into()),
        1 => Value::Signed(i8::from_le_bytes(cursor.array()?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(cursor.array()?).into()),
        3 => Value::Signed(i16::from_le_bytes(cursor.array()?).into()),
        4 => Value::Unsigned(cursor.u32()?.into()),
        5 => Value::Signed(i32::from_le_bytes(cursor.array()?).into()),
        6 => Value::Float(f32::from_le_bytes(cursor.array()?).into()),
        7 => Value::Bool(cursor.array::<1>()? != [0]),
        TEXT => Value::Text(cursor.text()?),
        LIST => Value::List(list(cursor)?),
        10 => Value::Unsigned(cursor.u64()?),
        11 => Value::Signed(i64::from_le_bytes(cursor.array()?)),
        12 => Value::Float(f64::from_le_bytes(cursor.array()?)),
        _ => return Err(Stop::Unknown),
    })
}

/// Lists of lists are allowed by the format, and in no file; they are not followed.
fn list<'a>(cursor: &mut Cursor<'a>) -> Result<List<'a>, Stop> {
    let (kind, count) = (cursor.u32()?, cursor.u64()?);
    let least = least(kind).ok_or(Stop::Unknown)?;
    let count = cursor.counted("values in a list", count, least, u64::MAX)?;
    let start = cursor.at;
    if kind == TEXT {
        for _ in 0..count {
            cursor.text()?;
        }
    } else {
        cursor.take(count * least)?;
    }
    let bytes = cursor.head.get(start as usize..cursor.at as usize).ok_or(Stop::Short)?;
    Ok(List { kind, count, bytes })
}

fn entry(cursor: &mut Cursor<'_>) -> Result<Entry, Stop> {
    let name =
        std::str::from_utf8(cursor.text()?).map_err(|error| HeaderFault::Malformed(error.to_string()))?;
    let name = Arc::from(name);
    let dimensions = cursor.u32()?;
    if DIMENSIONS_MAX < dimensions {
        return Err(FileFault::tensor(&name, TensorFault::Dimensions(dimensions)).into());
    }
    let shape = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
    // Written innermost first.
    let shape = shape.into_iter().rev().collect();
    Ok(Entry { name, shape, kind: cursor.u32()?, offset: cursor.u64()? })
}

/// Where tensors may lie.
struct Space {
    /// Where their bytes begin.
    data: u64,
    alignment: u64,
    /// Bytes of the file.
    size: u64,
    /// The next greater offset of another tensor.
    next: Option<u64>,
}

/// A tensor that lies inside the file. One of a type that is not in [`TYPES`] reaches to the next offset.
fn placed(entry: Entry, space: &Space) -> Result<Tensor, TensorFault> {
    let Entry { name, shape, kind, offset } = entry;
    let Space { data, alignment, size, next } = *space;
    if !offset.is_multiple_of(alignment) {
        return Err(TensorFault::Alignment { offset, alignment });
    }
    let known = TYPES.iter().find(|(number, ..)| *number == kind);
    let past = |bytes: u64| TensorFault::PastEnd {
        end: offset.saturating_add(bytes),
        data: size.saturating_sub(data),
    };
    let bytes = match known {
        _ if shape.contains(&0) => 0,
        Some((.., block, bytes)) => size_of(&shape, *block, *bytes)
            .ok_or_else(|| TensorFault::Blocks { dtype: tag(kind), shape: shape.clone() })?,
        None => match next {
            Some(next) => next - offset,
            None => size.checked_sub(data).and_then(|all| all.checked_sub(offset)).ok_or_else(|| past(0))?,
        },
    };
    let start = data.checked_add(offset);
    let inside = start.and_then(|start| start.checked_add(bytes)).is_some_and(|end| end <= size);
    match start {
        // Where there are no bytes, the file may end before they would begin.
        Some(start) if inside || bytes == 0 => Ok(Tensor {
            name,
            dtype: tag(kind).parse().map_err(TensorFault::Tag)?,
            shape,
            block: known.map(|(_, block, _)| *block),
            offset: start.min(size),
            size: bytes,
        }),
        _ => Err(past(bytes)),
    }
}

/// What a manifest calls the type that GGML numbers `kind`.
fn tag(kind: u32) -> String {
    format!("ggml:{kind}")
}

/// Bytes in a tensor of `shape`, whose rows are runs of `block` elements in `bytes` bytes; `None` if rows are no
/// whole blocks, or there are more bytes than fit in 64 bits.
fn size_of(shape: &[u64], block: u64, bytes: u64) -> Option<u64> {
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return None;
    }
    let outer = shape.split_last().map_or(&[][..], |(_, outer)| outer);
    let rows = outer.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
    rows.checked_mul(row / block)?.checked_mul(bytes)
}

/// GGML's types, by number: elements in a block, and bytes. Part of the manifest's format: those that GGML adds are
/// unknown here for ever.
const TYPES: [(u32, u64, u64); 32] = [
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (9, 32, 36),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (15, 256, 292),
    (16, 256, 66),
    (17, 256, 74),
    (18, 256, 98),
    (19, 256, 50),
    (20, 32, 18),
    (21, 256, 110),
    (22, 256, 82),
    (23, 256, 136),
    (24, 1, 1),
    (25, 1, 2),
    (26, 1, 4),
    (27, 1, 8),
    (28, 1, 8),
    (29, 256, 56),
    (30, 1, 2),
    (34, 256, 54),
    (35, 256, 66),
    (39, 32, 17),
];

#[cfg(test)]
#[path = "gguf/tests.rs"]
mod tests;
