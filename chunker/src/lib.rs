//! Model folders to chunks, and chunks to tensors.
//!
//! Synchronous, and it knows nothing of the node: paths in, values out. The same files give the same
//! [`Manifest`] on every machine, whatever the machine, the folder's place or the number of cores.
//!
//! Follow one folder from its path to its manifest, top to bottom:
//! - `list`: which files there are, and what each really is on disk.
//! - `header`: what a file of weights says is in it, checked against its size; safetensors itself (with the blocks
//!   of `packed`), `gguf`, and PyTorch's own in `pickle`.
//! - `index`: which files belong together, and whose tensors the manifest lists.
//! - `groups`: which tensors inference needs together.
//! - `plan`: where to cut. Pure arithmetic.
//! - `hash`: the only pass over the bytes.
//! - `error`: everything that can be wrong with a folder.
//!
//! The headers are read twice, once to plan and once with the rest; all other bytes once.

mod error;
pub mod gguf;
mod groups;
mod hash;
mod header;
mod index;
mod list;
pub mod packed;
mod pickle;
mod plan;

use std::{collections::BTreeMap, error::Error, io::Cursor, ops::Range, path::Path};

use bytes::{Bytes, BytesMut};
use surf_protocol::{
    Chunk, Group, GroupEntry, Manifest, TensorEntry,
    manifest::{FORMAT, Parts},
};

pub use error::{CutError, HeaderFault, IndexFault, TensorFault};
pub use header::header;
pub use list::{Listed, PARTIAL_PREFIX, list};

use groups::Grouping;
use header::{Format, Header};

/// What the publisher allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Publish what links point at even if it lies outside the folder.
    pub follow_links: bool,
}

/// Takes the chunks while a folder is cut.
///
/// Contract: called once for every chunk of every file, from several threads at once, in file order
/// within one file. `file` is the real file on disk, no link; the chunk's bytes stand at `offset` in it.
/// An error ends the cutting. Whoever keeps the bytes beyond the call keeps the memory they are in, which
/// is otherwise used again.
pub trait Sink: Sync {
    /// Takes one chunk.
    fn chunk(&self, chunk: &Chunk, file: &Path, offset: u64) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// Cuts the folder or the single file at `path`, hands every chunk to `sink`, and says what is where.
///
/// Reads every byte once, in memory that does not depend on the size of the model: at most
/// 4 files at a time, 16 MiB each. Files that change meanwhile are an error.
pub fn cut(path: &Path, options: &Options, sink: &dyn Sink) -> Result<Manifest, CutError> {
    let Folder { files, headers, listed, grouping } = Folder::new(path, options)?;
    let plan = |at: usize| match headers.get(&at) {
        Some(header) if header.understood() => {
            plan::tensors(header, files[at].size, |name| grouping.of(name))
        }
        _ => plan::plain(files[at].size),
    };
    let plans: Vec<Vec<u32>> = (0..files.len()).map(plan).collect();
    let hashed = hash::files(&files, &plans, sink)?;
    let tensors = entries(&headers, &listed);
    let groups = grouped(&tensors, &grouping);
    Ok(Manifest::new(Parts { format: FORMAT, files: hashed, tensors, groups })?)
}

/// What is in a folder, or a file, before any of it is hashed.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Every file, sorted by path.
    pub files: Vec<Listed>,
    /// The tensors that a manifest would list, sorted by name.
    pub tensors: Vec<TensorEntry>,
}

/// What [`cut`] would list of the folder or the single file at `path`. Reads the headers of files of weights, and
/// no more.
pub fn contents(path: &Path, options: &Options) -> Result<Contents, CutError> {
    let Folder { files, headers, listed, .. } = Folder::new(path, options)?;
    Ok(Contents { files, tensors: entries(&headers, &listed) })
}

/// What the headers in a folder say.
struct Folder {
    files: Vec<Listed>,
    /// By position in `files`.
    headers: BTreeMap<usize, Header>,
    /// The files whose tensors the manifest lists.
    listed: Vec<usize>,
    grouping: Grouping,
}

impl Folder {
    fn new(path: &Path, options: &Options) -> Result<Self, CutError> {
        let files = list(path, options)?;
        let headers = header::read_all(&files)?;
        // A shard or an index may be published alone; only in a folder do they answer for each other.
        let sets = if path.is_dir() { index::sets(&files, &headers)? } else { index::alone(&headers) };
        let mut listed = index::listed(&files, &headers, &sets)?;
        let grouping = grouping(&files, &headers, &mut listed);
        Ok(Self { files, headers, listed, grouping })
    }
}

/// The tensors that a safetensors file of `size` bytes, which begins with `head`, says are in it, each with its
/// place in the file, in the order of their bytes. `None` if it is damaged, or `head` does not hold all of its header.
pub fn tensors_of(head: &[u8], size: u64) -> Option<Vec<(String, Range<u64>)>> {
    Some(places(header::of(head, size)?))
}

/// The same, of a GGUF file.
pub fn tensors_of_gguf(head: &[u8], size: u64) -> Option<Vec<(String, Range<u64>)>> {
    Some(places(gguf::parse(head, size).ok().filter(Header::understood)?))
}

/// The same, of all bytes of a file that PyTorch wrote.
pub fn tensors_of_pickle(file: &[u8]) -> Option<Vec<(String, Range<u64>)>> {
    Some(places(pickle::parse(&mut Cursor::new(file), file.len() as u64).ok()?))
}

fn places(header: Header) -> Vec<(String, Range<u64>)> {
    let place = |tensor: header::Tensor| (tensor.name, tensor.offset..tensor.offset + tensor.size);
    header.tensors.into_iter().map(place).collect()
}

/// Joins pieces of chunks. One piece is returned as it is, without a copy.
pub fn join(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut whole = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}

/// How the tensors of the folder are grouped. A GGUF file beside a model of a known family is a copy of it
/// under other names, and is left out of `listed`.
fn grouping(files: &[Listed], headers: &BTreeMap<usize, Header>, listed: &mut Vec<usize>) -> Grouping {
    let is_gguf = |at: &usize| Format::of(&files[*at].path) == Some(Format::Gguf);
    let (gguf, others): (Vec<usize>, Vec<usize>) = listed.iter().partition(|at| is_gguf(at));
    let grouping = Grouping::new(groups::config(files).as_deref(), names(headers, &others));
    match grouping {
        Some(grouping) => {
            *listed = others;
            grouping
        }
        None if gguf.is_empty() => Grouping::unknown(),
        None => Grouping::gguf(),
    }
}

fn names<'a>(headers: &'a BTreeMap<usize, Header>, listed: &'a [usize]) -> impl Iterator<Item = &'a str> {
    listed.iter().flat_map(|at| &headers[at].tensors).map(|tensor| tensor.name.as_str())
}

/// The tensors of the files at `listed`, sorted by name.
fn entries(headers: &BTreeMap<usize, Header>, listed: &[usize]) -> Vec<TensorEntry> {
    let mut tensors: Vec<TensorEntry> = Vec::new();
    for at in listed {
        tensors.extend(headers[at].tensors.iter().filter_map(|tensor| {
            Some(TensorEntry {
                name: tensor.name.clone(),
                dtype: tensor.dtype?,
                shape: tensor.shape.clone(),
                file: *at as u32,
                offset: tensor.offset,
                size: tensor.size,
            })
        }));
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// Groups in order of use; within a group, tensors as they stand in the files.
fn grouped(tensors: &[TensorEntry], grouping: &Grouping) -> Vec<GroupEntry> {
    let mut in_file_order: Vec<u32> = (0..tensors.len() as u32).collect();
    in_file_order.sort_by_key(|&at| {
        let tensor = &tensors[at as usize];
        (tensor.file, tensor.offset, at)
    });
    let mut groups: BTreeMap<groups::Use, (Group, Vec<u32>)> = BTreeMap::new();
    for at in in_file_order {
        let group = grouping.of(&tensors[at as usize].name);
        groups.entry(groups::Use::of(&group)).or_insert_with(|| (group, Vec::new())).1.push(at);
    }
    groups.into_values().map(|(group, tensors)| GroupEntry { group, tensors }).collect()
}

#[cfg(test)]
mod tests;
