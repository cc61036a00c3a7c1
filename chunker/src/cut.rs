//! From files to a manifest. Each file is cut by its bytes alone (see `format` and `plan`), so a manifest is what its
//! files say one after the other: nothing here knows families of models, or types that can be computed with.

use std::{
    error::Error,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use surf_protocol::{
    Chunk, ChunkId, FileEntry, Manifest, TensorEntry,
    limits::MANIFEST_SIZE_MAX,
    manifest::{ChunkEntry, FORMAT, ManifestError, Parts},
};

use crate::{CutError, Listed, format, hash, header::Header, list::list, plan};

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
    let files = list(path, options)?;
    let headers = headers(&files)?;
    let plans: Vec<Vec<u32>> =
        headers.iter().zip(&files).map(|(header, file)| planned(header.as_ref(), file.size)).collect();
    let hashed = hash::files(&files, &plans, sink)?;
    Ok(Manifest::new(Parts { format: FORMAT, files: hashed, tensors: entries(headers) })?)
}

/// The tensors that a manifest of `files` would list. Reads headers, and no more.
pub(crate) fn tensors(files: &[Listed]) -> Result<Vec<TensorEntry>, CutError> {
    Ok(entries(headers(files)?))
}

/// Cuts the single file `path` of `size` bytes that is read from `file`: what [`cut`] says of it in a folder. Each
/// chunk is handed to `sink`, with its offset.
pub fn cut_file<E: From<io::Error>>(
    path: &str,
    size: u64,
    file: &mut (impl Read + Seek),
    mut sink: impl FnMut(Chunk, u64) -> Result<(), E>,
) -> Result<(FileEntry, Vec<TensorEntry>), E> {
    let header = format::read(file, size)?;
    let (mut blake3, mut sha256) = (blake3::Hasher::new(), Sha256::new());
    let (mut chunks, mut offset) = (Vec::new(), 0);
    file.seek(SeekFrom::Start(0))?;
    for size in planned(header.as_ref(), size) {
        let mut bytes = vec![0; size as usize];
        file.read_exact(&mut bytes)?;
        blake3.update(&bytes);
        sha256.update(&bytes);
        let chunk = Chunk::of(Bytes::from(bytes));
        chunks.push(ChunkEntry { id: chunk.id(), size });
        sink(chunk, offset)?;
        offset += u64::from(size);
    }
    let (blake3, sha256) = (*blake3.finalize().as_bytes(), sha256.finalize().into());
    let entry = FileEntry { path: path.to_owned(), size, blake3, sha256, chunks };
    Ok((entry, entries(vec![header])))
}

/// For each file, its tensors, if it has any that can be read. Ends as soon as no manifest can list all of them.
fn headers(files: &[Listed]) -> Result<Vec<Option<Header>>, CutError> {
    // Bytes that a manifest needs at least: for the ids of chunks, and for the names of tensors.
    let mut needed = 0;
    let read = |file: &Listed| {
        let mut reader = file.open()?;
        let header = format::read(&mut reader, file.size).map_err(|error| file.failed(error))?;
        needed += file.size / plan::MAX * size_of::<ChunkId>() as u64;
        needed +=
            header.iter().flat_map(|header| &header.tensors).map(|one| one.name.len() as u64).sum::<u64>();
        match needed <= MANIFEST_SIZE_MAX as u64 {
            true => Ok(header),
            false => Err(ManifestError::TooLarge.into()),
        }
    };
    files.iter().map(read).collect()
}

fn planned(header: Option<&Header>, size: u64) -> Vec<u32> {
    header.map_or_else(|| plan::plain(size), |header| plan::tensors(header, size))
}

/// The tensors of the files with these headers, sorted by file and name.
fn entries(headers: Vec<Option<Header>>) -> Vec<TensorEntry> {
    let mut tensors = Vec::new();
    for (at, header) in headers.into_iter().enumerate() {
        tensors.extend(header.into_iter().flat_map(|header| header.tensors).map(|tensor| TensorEntry {
            file: at as u32,
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape.into(),
            offset: tensor.offset,
            size: tensor.size,
        }));
    }
    tensors.sort_by(|a, b| (a.file, &a.name).cmp(&(b.file, &b.name)));
    tensors
}
