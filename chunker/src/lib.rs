//! Model folders to chunks, and chunks to tensors.
//!
//! Synchronous, and it knows nothing of the node: paths in, values out. The same files give the same
//! [`Manifest`](surf_protocol::Manifest) on every machine, whatever the machine, the folder's place or the number of
//! cores; and with every version, whatever families and types it knows.
//!
//! There are two halves. The first makes the manifest, and knows nothing of the second. Follow one folder from its path
//! to its manifest, top to bottom:
//! - `list`: which files there are, and what each really is on disk.
//! - `format`: which tensors a file has, checked against its size: safetensors (`header`), `gguf`, and PyTorch's own
//!   (`pickle`).
//! - `plan`: where to cut. Pure arithmetic.
//! - `hash`: the only pass over the bytes.
//! - `cut`: all of these, one after the other.
//!
//! The second is for readers, and may change at any time:
//! - [`families`]: what is known of families of models. Pure data.
//! - `checkpoint`: which tensors are loaded, of which types, in which groups.
//! - `write`: what a safetensors file begins with.
//! - [`json`]: as Python reads it.
//!
//! `error`: everything that can be wrong with a folder or a file. The headers are read twice, once to plan and once with
//! the rest; all other bytes once.

mod checkpoint;
mod cut;
mod error;
pub mod families;
mod format;
pub mod gguf;
mod hash;
mod header;
pub mod json;
mod list;
mod pickle;
mod plan;
mod regular;
mod write;

use std::{
    io::{self, Cursor, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

pub use checkpoint::{Checkpoint, Files, GroupEntry, Parameter, groups};
pub use cut::{Options, Sink, cut, cut_file};
pub use error::{CutError, FileFault, HeaderFault, TensorFault};
pub use families::{Families, Group, Stack};
pub use list::{Listed, PARTIAL_PREFIX, list};
pub use regular::{open_regular, read_regular};
pub use write::header;

/// What is in a folder, or a file, before any of it is hashed.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Every file, sorted by path.
    pub files: Vec<Listed>,
    /// The tensors that are loaded, sorted by name.
    pub tensors: Vec<Parameter>,
    /// Why they cannot be run.
    pub fault: Option<String>,
}

/// What the folder or the single file at `path` holds. Reads the headers of files of weights, and
/// little more.
pub fn contents(path: &Path, options: &Options) -> Result<Contents, CutError> {
    let files = list(path, options)?;
    let tensors = cut::tensors(&files)?;
    let paths: Vec<(&str, u64)> = files.iter().map(|file| (&*file.path, file.size)).collect();
    let loaded = checkpoint::of_tensors(&paths, &tensors, &OnDisk(&files));
    let loaded = loaded.map_err(|source| CutError::Io { path: path.to_owned(), source })?;
    Ok(Contents { tensors: loaded.parameters, fault: loaded.fault, files })
}

/// Cuts the folder or the single file at `path` as [`cut()`] does, and says what is loaded of it.
pub fn open(path: &Path, options: &Options, sink: &dyn Sink) -> Result<Checkpoint, CutError> {
    let manifest = Arc::new(cut(path, options, sink)?);
    let files = list(path, options)?;
    Checkpoint::read(manifest, &Families::default(), &OnDisk(&files))
        .map_err(|source| CutError::Io { path: path.to_owned(), source })
}

/// Files where they were listed.
#[derive(Debug)]
pub struct OnDisk<'a>(pub &'a [Listed]);

impl Files for OnDisk<'_> {
    fn read(&self, file: u32, range: Range<u64>) -> io::Result<Vec<u8>> {
        let listed = self.0.get(file as usize).ok_or(io::ErrorKind::NotFound)?;
        let mut file = open_regular(&listed.real)?;
        file.seek(SeekFrom::Start(range.start))?;
        let mut bytes = Vec::new();
        let count = range.end.saturating_sub(range.start);
        match file.take(count).read_to_end(&mut bytes)? as u64 {
            read if read == count => Ok(bytes),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The tensors that a safetensors file of `size` bytes, which begins with `head`, says are in it, each with its
/// place in the file, in the order of their bytes. `None` if it is damaged, or `head` does not hold all of its header.
pub fn tensors_of(head: &[u8], size: u64) -> Option<Vec<(String, Range<u64>)>> {
    Some(places(header::of(head, size)?))
}

/// The same, of a GGUF file.
pub fn tensors_of_gguf(head: &[u8], size: u64) -> Option<Vec<(String, Range<u64>)>> {
    Some(places(gguf::parse(head, size).ok()?))
}

/// The same, of all bytes of a file that PyTorch wrote.
pub fn tensors_of_pickle(file: &[u8]) -> Option<Vec<(String, Range<u64>)>> {
    Some(places(pickle::read(&mut Cursor::new(file), file.len() as u64).ok()?))
}

fn places(header: header::Header) -> Vec<(String, Range<u64>)> {
    let place =
        |tensor: header::Tensor| (tensor.name.to_string(), tensor.offset..tensor.offset + tensor.size);
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

#[cfg(test)]
mod tests;
