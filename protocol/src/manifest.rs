//! Which chunks make up which file, and which bytes are which tensor.
//!
//! A manifest is a table of contents for a folder of files. It has no name in it, nothing that differs
//! between machines, and nothing that depends on what a program can compute with: the same files give the
//! same [`ModelId`] everywhere, now and later. What inference needs together is the reader's business.
//!
//! [`Parts`] is what is encoded; [`Manifest`] is `Parts` that have been checked, with the look-ups
//! that everyone needs. There is no way to a `Manifest` but through the check (`check`), which takes linear
//! time and, with the encoded bytes, at most four times their size in memory.

mod check;
mod tag;

use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ChunkId, ModelId},
    limits::{MANIFEST_CHUNKS_MAX, MANIFEST_SIZE_MAX, MANIFEST_TENSORS_MAX},
    stem::stem,
    wire,
};

pub use tag::{Tag, TagError};

/// The version of the format, and of the rules by which files are cut. It goes up when the same
/// folder would give another manifest.
pub const FORMAT: u32 = 4;

/// The version of [`Manifest`]'s check: it goes up when what was accepted may be refused. Whoever remembers
/// that a manifest was checked remembers by which.
pub const CHECK: u32 = 1;

/// What a manifest says, unchecked. The field order is the encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// [`FORMAT`].
    pub format: u32,
    /// Every file, sorted by path.
    #[serde(deserialize_with = "check::gradual")]
    pub files: Vec<FileEntry>,
    /// Every tensor of every file that could be parsed, sorted by file and name.
    #[serde(deserialize_with = "check::few_tensors")]
    pub tensors: Vec<TensorEntry>,
}

/// One file of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where in the folder, with `/` between parts. Relative, and never leaves the folder.
    pub path: String,
    /// Bytes in the file.
    pub size: u64,
    /// BLAKE3 of the whole file.
    pub blake3: [u8; 32],
    /// SHA-256 of the whole file, by which other tools name it.
    pub sha256: [u8; 32],
    /// The chunks whose bytes, joined, are the file.
    #[serde(deserialize_with = "check::gradual")]
    pub chunks: Vec<ChunkEntry>,
}

/// One chunk, as part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// Its name.
    pub id: ChunkId,
    /// Bytes in it. Never zero.
    pub size: u32,
}

/// One tensor, and where its bytes are. Its file and name together are its key: a folder may hold
/// several copies of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Position in [`Parts::files`].
    pub file: u32,
    /// Name in the file.
    pub name: Arc<str>,
    /// What the file calls the type of its elements.
    pub dtype: Tag,
    /// Dimensions as the file has them, outermost first.
    pub shape: Box<[u64]>,
    /// First byte in that file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A checked manifest.
///
/// Cloning copies everything; share it in an `Arc`.
#[derive(Clone)]
pub struct Manifest {
    id: ModelId,
    parts: Parts,
    look_up: LookUp,
}

/// What is worked out once.
#[derive(Clone)]
struct LookUp {
    /// Distinct chunks, in order of first appearance: what bitmaps count by.
    chunks: Vec<ChunkEntry>,
    /// Positions of these, sorted by their ids.
    by_id: Vec<u32>,
    /// The offset of each chunk of each file in it, one file behind the other.
    starts: Vec<u64>,
    /// For each file, where its chunks begin in `starts`.
    firsts: Vec<u32>,
}

/// Some bytes of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The chunk.
    pub chunk: ChunkEntry,
    /// Which of its bytes.
    pub range: Range<u32>,
}

/// Why parts are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes could not be read.
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
    /// Another version of the format.
    #[error("manifest format {0}; this program reads {FORMAT}")]
    Format(u32),
    /// The bytes are those of another manifest.
    #[error("the bytes are not those of the manifest of {0}")]
    Other(ModelId),
    /// More than a manifest may hold.
    #[error(
        "the manifest is larger than {MANIFEST_SIZE_MAX} bytes, {MANIFEST_CHUNKS_MAX} chunks or \
         {MANIFEST_TENSORS_MAX} tensors"
    )]
    TooLarge,
    /// A path that leaves the folder, repeats another, or cannot be written everywhere.
    #[error("the manifest's path {0:?} is not a plain relative path of its own")]
    Path(String),
    /// Chunks that do not add up to their file, or are too large.
    #[error("the chunks of {0:?} do not make up the file")]
    Chunks(String),
    /// A tensor outside its file, over another, twice or out of order.
    #[error("tensor {0:?} does not fit its file or its neighbours")]
    Tensor(String),
}

impl Manifest {
    /// Checks `parts`.
    pub fn new(parts: Parts) -> Result<Self, ManifestError> {
        let bytes = wire::encode_manifest(&parts);
        if MANIFEST_SIZE_MAX < bytes.len() {
            return Err(ManifestError::TooLarge);
        }
        Self::checked(ModelId::of(&bytes), parts)
    }

    /// Reads what [`Manifest::encode`] wrote, and checks it. Takes a while for large ones: not for a thread that
    /// others wait for.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::checked(ModelId::of(bytes), decoded(bytes)?)
    }

    /// Reads bytes that [`Manifest::decode`] has taken before, by this version of the check ([`CHECK`]). That
    /// they are the same bytes is checked, by their hash; nothing else is again.
    pub fn decode_again(id: ModelId, bytes: &[u8]) -> Result<Self, ManifestError> {
        if ModelId::of(bytes) != id {
            return Err(ManifestError::Other(id));
        }
        let parts = decoded(bytes)?;
        let look_up = check::look_up(&parts.files)?;
        Ok(Self { id, parts, look_up })
    }

    /// The manifest in bytes; their hash is its id.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode_manifest(&self.parts)
    }

    fn checked(id: ModelId, parts: Parts) -> Result<Self, ManifestError> {
        check::check(&parts)?;
        let look_up = check::look_up(&parts.files)?;
        Ok(Self { id, parts, look_up })
    }

    /// The name of the model.
    pub fn id(&self) -> ModelId {
        self.id
    }

    /// Every file, sorted by path.
    pub fn files(&self) -> &[FileEntry] {
        &self.parts.files
    }

    /// The position of the file at `path` in [`Manifest::files`].
    pub fn file_position(&self, path: &str) -> Option<u32> {
        let at = self.files().binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        Some(at as u32)
    }

    /// The file at `path`.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        Some(&self.files()[self.file_position(path)? as usize])
    }

    /// Every tensor, sorted by file and name.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.parts.tensors
    }

    /// The tensors of the file at position `file`, sorted by name.
    pub fn tensors_of(&self, file: u32) -> &[TensorEntry] {
        let tensors = self.tensors();
        let first = tensors.partition_point(|tensor| tensor.file < file);
        let end = first + tensors[first..].partition_point(|tensor| tensor.file == file);
        &tensors[first..end]
    }

    /// The tensor called `name` in the file at position `file`.
    pub fn tensor(&self, file: u32, name: &str) -> Option<&TensorEntry> {
        let tensors = self.tensors_of(file);
        let at = tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()?;
        Some(&tensors[at])
    }

    /// Distinct chunks in order of first appearance. Bitmaps count by this list.
    pub fn chunks(&self) -> &[ChunkEntry] {
        &self.look_up.chunks
    }

    /// The position of a chunk in [`Manifest::chunks`].
    pub fn position(&self, id: ChunkId) -> Option<usize> {
        let LookUp { chunks, by_id, .. } = &self.look_up;
        let at = by_id.binary_search_by_key(&id, |&at| chunks[at as usize].id).ok()?;
        Some(by_id[at] as usize)
    }

    /// Bytes of all distinct chunks: what one copy costs to fetch and to keep.
    pub fn size(&self) -> u64 {
        self.chunks().iter().map(|chunk| u64::from(chunk.size)).sum()
    }

    /// The pieces of chunks whose bytes, joined, are `range` of the file at position `file`.
    ///
    /// # Panics
    ///
    /// If there is no such file. Ranges are cut at the file's end.
    pub fn pieces(&self, file: u32, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let entry = &self.parts.files[file as usize];
        let first = self.look_up.firsts[file as usize] as usize;
        let starts = &self.look_up.starts[first..first + entry.chunks.len()];
        let first = starts.partition_point(|&start| start <= range.start).saturating_sub(1);
        let with_starts = entry.chunks[first..].iter().zip(&starts[first..]);
        with_starts
            .take_while({
                let end = range.end;
                move |&(_, &start)| start < end
            })
            .filter_map(move |(&chunk, &start)| {
                let from = range.start.max(start) - start;
                let to = range.end.min(start + u64::from(chunk.size)) - start;
                (from < to).then_some(Piece { chunk, range: from as u32..to as u32 })
            })
    }

    /// The pieces of chunks whose bytes, joined, are `tensor`.
    pub fn tensor_pieces(&self, tensor: &TensorEntry) -> impl Iterator<Item = Piece> + '_ {
        self.pieces(tensor.file, tensor.offset..tensor.offset + tensor.size)
    }

    /// For each stem of each file, the positions of the distinct chunks that hold its tensors, ascending:
    /// what is announced together. Stems without bytes are left out.
    pub fn stems(&self) -> Vec<Vec<u32>> {
        let mut stems: BTreeMap<(u32, &str), Vec<u32>> = BTreeMap::new();
        for tensor in self.tensors() {
            let positions = self.tensor_pieces(tensor).filter_map(|piece| self.position(piece.chunk.id));
            stems.entry((tensor.file, stem(&tensor.name))).or_default().extend(positions.map(|at| at as u32));
        }
        let mut stems: Vec<Vec<u32>> = stems.into_values().collect();
        for chunks in &mut stems {
            chunks.sort_unstable();
            chunks.dedup();
        }
        stems.retain(|chunks| !chunks.is_empty());
        stems
    }
}

/// The files of a manifest of format 3, which named chunks as format 4 does; `None` if `bytes` are no such
/// manifest. For a store that kept it: the files can be read from the chunks, and cut again.
pub fn files_of_format_3(bytes: &[u8]) -> Option<Vec<FileEntry>> {
    let files = wire::decode_files(bytes, 3)?;
    check::check_files(&files).ok()?;
    Some(files)
}

fn decoded(bytes: &[u8]) -> Result<Parts, ManifestError> {
    match bytes.first() {
        // Other formats have other fields after this one.
        Some(&format) if u32::from(format) != FORMAT => Err(ManifestError::Format(format.into())),
        _ if MANIFEST_SIZE_MAX < bytes.len() => Err(ManifestError::TooLarge),
        _ => Ok(wire::decode_manifest(bytes)?),
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("id", &self.id)
            .field("files", &self.files().len())
            .field("tensors", &self.tensors().len())
            .field("chunks", &self.chunks().len())
            .finish()
    }
}

#[cfg(test)]
mod tests;
