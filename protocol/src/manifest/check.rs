//! What parts must be to be a manifest, and the look-ups that are made of them.
//!
//! For manifests from strangers: time is linear in their bytes (times the depth of a sort), and what is
//! made of them is bounded by their size.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use super::{ChunkEntry, FORMAT, FileEntry, LookUp, ManifestError, Parts, TensorEntry};
use crate::limits::{
    CHUNK_SIZE_MAX, MANIFEST_CHUNKS_MAX, MANIFEST_TENSORS_MAX, PATH_SIZE_MAX, TENSOR_RANK_MAX,
};

/// Everything that a manifest promises, but for what [`look_up`] finds.
pub(super) fn check(parts: &Parts) -> Result<(), ManifestError> {
    if parts.format != FORMAT {
        return Err(ManifestError::Format(parts.format));
    }
    if MANIFEST_TENSORS_MAX < parts.tensors.len() {
        return Err(ManifestError::TooLarge);
    }
    check_files(&parts.files)?;
    check_tensors(&parts.tensors, &parts.files)
}

/// Paths, and chunks that make up their files.
pub(super) fn check_files(files: &[FileEntry]) -> Result<(), ManifestError> {
    check_paths(files)?;
    files.iter().try_for_each(check_chunks)
}

fn check_paths(files: &[FileEntry]) -> Result<(), ManifestError> {
    let wrong = |path: &str| Err(ManifestError::Path(path.to_owned()));
    // The earlier paths that the current one begins with, each of them with the next.
    let mut begun: Vec<&str> = Vec::new();
    let mut before = None;
    for path in files.iter().map(|file| file.path.as_str()) {
        let plain = path.len() <= PATH_SIZE_MAX && is_plain(path.as_bytes());
        if !plain || before.is_some_and(|before| path <= before) {
            return wrong(path);
        }
        // In order of their bytes, all that begin with a path follow it without a gap. So each is dropped
        // once, and those left are shorter than the path, each by another length.
        while begun.last().is_some_and(|begin| !path.starts_with(begin)) {
            begun.pop();
        }
        if begun.iter().any(|begin| path.as_bytes()[begin.len()] == b'/') {
            return wrong(path);
        }
        begun.push(path);
        before = Some(path);
    }
    Ok(())
}

/// Whether no part of a path is empty, `.` or `..`, and it has neither a NUL nor a backslash. One look at each byte:
/// there may be tens of millions.
fn is_plain(path: &[u8]) -> bool {
    // Bytes of the current part so far, and whether all of them were dots.
    let (mut size, mut dots) = (0, true);
    let is_name = |size: usize, dots: bool| 0 < size && !(dots && size <= 2);
    for &byte in path {
        match byte {
            0 | b'\\' => return false,
            b'/' if !is_name(size, dots) => return false,
            b'/' => (size, dots) = (0, true),
            _ => (size, dots) = (size + 1, dots && byte == b'.'),
        }
    }
    is_name(size, dots)
}

fn check_chunks(file: &FileEntry) -> Result<(), ManifestError> {
    let wrong = || ManifestError::Chunks(file.path.clone());
    let mut end = 0u64;
    for chunk in &file.chunks {
        if chunk.size == 0 || CHUNK_SIZE_MAX < chunk.size as usize {
            return Err(wrong());
        }
        end += u64::from(chunk.size);
    }
    if end == file.size { Ok(()) } else { Err(wrong()) }
}

/// Sorted, in their files, and no byte in two of them: so all stems together have no more chunks than the
/// files have, and one more for each tensor.
fn check_tensors(tensors: &[TensorEntry], files: &[FileEntry]) -> Result<(), ManifestError> {
    let wrong = |tensor: &TensorEntry| Err(ManifestError::Tensor(tensor.name.to_string()));
    for tensor in tensors {
        let end = tensor.offset.checked_add(tensor.size);
        let inside = files.get(tensor.file as usize).zip(end).is_some_and(|(file, end)| end <= file.size);
        if !inside || TENSOR_RANK_MAX < tensor.shape.len() {
            return wrong(tensor);
        }
    }
    if let Some(pair) =
        tensors.windows(2).find(|pair| (pair[1].file, &pair[1].name) <= (pair[0].file, &pair[0].name))
    {
        return wrong(&pair[1]);
    }
    let mut in_file_order: Vec<u32> = (0..tensors.len() as u32).collect();
    in_file_order.retain(|&at| tensors[at as usize].size != 0);
    in_file_order.sort_unstable_by_key(|&at| (tensors[at as usize].file, tensors[at as usize].offset));
    for pair in in_file_order.windows(2) {
        let [one, two] = [pair[0], pair[1]].map(|at| &tensors[at as usize]);
        if one.file == two.file && two.offset < one.offset + one.size {
            return wrong(two);
        }
    }
    Ok(())
}

/// The look-ups for `files`, if each chunk id has one size.
pub(super) fn look_up(files: &[FileEntry]) -> Result<LookUp, ManifestError> {
    let count: usize = files.iter().map(|file| file.chunks.len()).sum();
    let (mut starts, mut firsts) = (Vec::with_capacity(count), Vec::with_capacity(files.len()));
    let mut all: Vec<(u32, u32)> = Vec::with_capacity(count);
    for (at, file) in files.iter().enumerate() {
        firsts.push(starts.len() as u32);
        let mut end = 0;
        for (chunk, entry) in file.chunks.iter().enumerate() {
            starts.push(end);
            end += u64::from(entry.size);
            all.push((at as u32, chunk as u32));
        }
    }
    let entry = |(file, chunk): (u32, u32)| files[file as usize].chunks[chunk as usize];
    all.sort_unstable_by_key(|&place| (entry(place).id, place));
    if let Some(pair) = all.windows(2).find(|pair| {
        let [one, two] = [entry(pair[0]), entry(pair[1])];
        one.id == two.id && one.size != two.size
    }) {
        return Err(ManifestError::Chunks(files[pair[1].0 as usize].path.clone()));
    }
    // Of equal chunks, the first place.
    all.dedup_by_key(|place| entry(*place).id);
    all.sort_unstable();
    if MANIFEST_CHUNKS_MAX < all.len() {
        return Err(ManifestError::TooLarge);
    }
    let chunks: Vec<ChunkEntry> = all.into_iter().map(entry).collect();
    let mut by_id: Vec<u32> = (0..chunks.len() as u32).collect();
    by_id.sort_unstable_by_key(|&at| chunks[at as usize].id);
    Ok(LookUp { chunks, by_id, starts, firsts })
}

/// Reads a list of tensors, unless it is too long: an empty one takes few bytes, and many in memory.
pub(super) fn few_tensors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TensorEntry>, D::Error> {
    deserializer.deserialize_seq(Gradual { max: MANIFEST_TENSORS_MAX, item: PhantomData })
}

/// Reads a list in little more memory than its items take.
pub(super) fn gradual<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Gradual { max: usize::MAX, item: PhantomData })
}

/// Makes room for a quarter more at a time: not for as many as a list says that it has, nor for twice as many.
struct Gradual<T> {
    max: usize,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Gradual<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {}", self.max)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == self.max {
                return Err(A::Error::invalid_length(items.len() + 1, &self));
            }
            if items.len() == items.capacity() {
                items.reserve_exact(items.len() / 4 + 4);
            }
            items.push(item);
        }
        items.shrink_to_fit();
        Ok(items)
    }
}
