//! Which chunks make up which file, which bytes are which tensor, and which tensors inference needs
//! together.
//!
//! A manifest is a table of contents for a folder of files. It has no name in it and nothing that
//! differs between machines, so the same files give the same [`ModelId`] everywhere.
//!
//! [`Parts`] is what is encoded; [`Manifest`] is `Parts` that have been checked, with the look-ups
//! that everyone needs. There is no way to a `Manifest` but through the check.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ChunkId, ModelId},
    limits::{CHUNK_SIZE_MAX, MANIFEST_CHUNKS_MAX, MANIFEST_SIZE_MAX, PATH_SIZE_MAX, TENSOR_RANK_MAX},
    wire,
};

/// The version of the format, and of the rules by which files are cut. It goes up when the same
/// folder would give another manifest.
pub const FORMAT: u32 = 3;

/// What a manifest says, unchecked. The field order is the encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// [`FORMAT`].
    pub format: u32,
    /// Every file, sorted by path.
    pub files: Vec<FileEntry>,
    /// Every tensor that was understood, sorted by name.
    pub tensors: Vec<TensorEntry>,
    /// Groups in the order in which one forward pass uses them. Each tensor is in exactly one.
    pub groups: Vec<GroupEntry>,
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

/// One tensor, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Position in [`Parts::files`].
    pub file: u32,
    /// First byte in that file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A list of tensors that inference needs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEntry {
    /// Which part of the model.
    pub group: Group,
    /// Positions in [`Parts::tensors`].
    pub tensors: Vec<u32>,
}

/// What inference needs at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Group {
    /// Token and position embeddings.
    Embed,
    /// One transformer block, without its routed experts.
    Block(Stack, u32),
    /// One routed expert of a block.
    Expert {
        /// The stack of blocks.
        stack: Stack,
        /// The block in the stack.
        block: u32,
        /// The expert in the block.
        expert: u32,
    },
    /// What follows the last block of a stack before the next part: its final norm.
    Norm(Stack),
    /// Final norm and output projection.
    Head,
    /// Tensors of a model whose structure is not known, by the numbered part of their names.
    Named(String),
}

/// A stack of blocks. Most models have only a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stack {
    /// Blocks that see the whole input, of encoder and encoder-decoder models.
    Encoder,
    /// Blocks that generate.
    Decoder,
}

/// Element type of a tensor, by what the formats call them. Those whose names begin with Q are GGML's: a row is
/// runs of elements in blocks of bytes, each with a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F8E4M3,
    F8E5M2,
    F16,
    Bf16,
    F32,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// The smallest run of elements that has bytes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Elements in it, all of one row.
    pub elements: u64,
    /// Bytes that they take together.
    pub bytes: u64,
}

/// A checked manifest.
///
/// Cloning copies everything; share it in an `Arc`.
#[derive(Clone)]
pub struct Manifest {
    id: ModelId,
    parts: Parts,
    /// Distinct chunks, in order of first appearance: what bitmaps count by.
    chunks: Vec<ChunkEntry>,
    positions: HashMap<ChunkId, u32>,
    /// For each file, the offset of each chunk in it.
    starts: Vec<Vec<u64>>,
    groups: HashMap<Group, u32>,
    tensors: HashMap<String, u32>,
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
    /// More than a manifest may hold.
    #[error("the manifest is larger than {MANIFEST_SIZE_MAX} bytes or {MANIFEST_CHUNKS_MAX} chunks")]
    TooLarge,
    /// A path that leaves the folder, repeats another, or cannot be written everywhere.
    #[error("the manifest's path {0:?} is not a plain relative path of its own")]
    Path(String),
    /// Chunks that do not add up to their file, or are too large.
    #[error("the chunks of {0:?} do not make up the file")]
    Chunks(String),
    /// A tensor outside its file, over another, or whose size is not that of its shape.
    #[error("tensor {0:?} does not fit its file, its neighbours, its shape or its type")]
    Tensor(String),
    /// Groups that do not hold every tensor exactly once.
    #[error("the groups do not hold every tensor exactly once")]
    Groups,
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

    /// Reads what [`Manifest::encode`] wrote, and checks it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::checked(ModelId::of(bytes), wire::decode_manifest(bytes)?)
    }

    /// The manifest in bytes; their hash is its id.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode_manifest(&self.parts)
    }

    fn checked(id: ModelId, parts: Parts) -> Result<Self, ManifestError> {
        if parts.format != FORMAT {
            return Err(ManifestError::Format(parts.format));
        }
        check_paths(&parts.files)?;
        let starts = parts.files.iter().map(check_chunks).collect::<Result<Vec<_>, _>>()?;
        parts.tensors.iter().try_for_each(|tensor| check_tensor(tensor, &parts.files))?;
        check_overlaps(&parts.tensors)?;
        let (groups, tensors) = check_groups(&parts)?;
        let (chunks, positions) = distinct_chunks(&parts.files)?;
        Ok(Self { id, parts, chunks, positions, starts, groups, tensors })
    }

    /// The name of the model.
    pub fn id(&self) -> ModelId {
        self.id
    }

    /// Every file, sorted by path.
    pub fn files(&self) -> &[FileEntry] {
        &self.parts.files
    }

    /// The file at `path`.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        let at = self.files().binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        Some(&self.files()[at])
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.parts.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        Some(&self.tensors()[*self.tensors.get(name)? as usize])
    }

    /// Groups in order of use.
    pub fn groups(&self) -> &[GroupEntry] {
        &self.parts.groups
    }

    /// The tensors of `group`, if the model has it.
    pub fn group(&self, group: &Group) -> Option<impl Iterator<Item = &TensorEntry>> {
        let entry = &self.groups()[*self.groups.get(group)? as usize];
        Some(entry.tensors.iter().map(|&at| &self.tensors()[at as usize]))
    }

    /// Distinct chunks in order of first appearance. Bitmaps count by this list.
    pub fn chunks(&self) -> &[ChunkEntry] {
        &self.chunks
    }

    /// The position of a chunk in [`Manifest::chunks`].
    pub fn position(&self, id: ChunkId) -> Option<usize> {
        self.positions.get(&id).map(|&at| at as usize)
    }

    /// Bytes of all distinct chunks: what one copy costs to fetch and to keep.
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.size)).sum()
    }

    /// The pieces of chunks whose bytes, joined, are `range` of the file at position `file`.
    ///
    /// # Panics
    ///
    /// If there is no such file. Ranges are cut at the file's end.
    pub fn pieces(&self, file: u32, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let (entry, starts) = (&self.parts.files[file as usize], &self.starts[file as usize]);
        let first = starts.partition_point(|&start| start <= range.start).saturating_sub(1);
        let with_starts =
            entry.chunks[first.min(entry.chunks.len())..].iter().zip(&starts[first.min(starts.len())..]);
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

    /// Distinct chunks that hold the tensors of `group`, in order. Empty if there is no such group.
    pub fn group_chunks(&self, group: &Group) -> Vec<ChunkEntry> {
        let mut seen = HashSet::new();
        let tensors = self.group(group).into_iter().flatten();
        let pieces = tensors.flat_map(|tensor| self.tensor_pieces(tensor));
        pieces.map(|piece| piece.chunk).filter(|chunk| seen.insert(chunk.id)).collect()
    }
}

fn check_paths(files: &[FileEntry]) -> Result<(), ManifestError> {
    let mut folders = HashSet::new();
    for pair in files.windows(2) {
        if pair[1].path <= pair[0].path {
            return Err(ManifestError::Path(pair[1].path.clone()));
        }
    }
    for file in files {
        let plain = file.path.len() <= PATH_SIZE_MAX
            && !file.path.contains(['\0', '\\'])
            && file.path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !plain {
            return Err(ManifestError::Path(file.path.clone()));
        }
        folders.extend(file.path.match_indices('/').map(|(at, _)| &file.path[..at]));
    }
    match files.iter().find(|file| folders.contains(file.path.as_str())) {
        Some(both) => Err(ManifestError::Path(both.path.clone())),
        None => Ok(()),
    }
}

fn check_chunks(file: &FileEntry) -> Result<Vec<u64>, ManifestError> {
    let mut starts = Vec::with_capacity(file.chunks.len());
    let mut end = 0;
    for chunk in &file.chunks {
        if chunk.size == 0 || CHUNK_SIZE_MAX < chunk.size as usize {
            return Err(ManifestError::Chunks(file.path.clone()));
        }
        starts.push(end);
        end += u64::from(chunk.size);
    }
    if end == file.size { Ok(starts) } else { Err(ManifestError::Chunks(file.path.clone())) }
}

fn check_tensor(tensor: &TensorEntry, files: &[FileEntry]) -> Result<(), ManifestError> {
    let holds = || {
        let file = files.get(tensor.file as usize)?;
        let inside = tensor.offset.checked_add(tensor.size)? <= file.size;
        let size = tensor.dtype.size_of(&tensor.shape)?;
        (inside && size == tensor.size && tensor.shape.len() <= TENSOR_RANK_MAX).then_some(())
    };
    holds().ok_or_else(|| ManifestError::Tensor(tensor.name.clone()))
}

/// No byte is in two tensors, so the chunks of all groups together are no more than those of the files.
fn check_overlaps(tensors: &[TensorEntry]) -> Result<(), ManifestError> {
    let mut in_file_order: Vec<&TensorEntry> = tensors.iter().filter(|tensor| tensor.size != 0).collect();
    in_file_order.sort_by_key(|tensor| (tensor.file, tensor.offset));
    let overlap = |pair: &&[&TensorEntry]| {
        pair[0].file == pair[1].file && pair[1].offset < pair[0].offset + pair[0].size
    };
    match in_file_order.windows(2).find(overlap) {
        Some(pair) => Err(ManifestError::Tensor(pair[1].name.clone())),
        None => Ok(()),
    }
}

type Index<K> = HashMap<K, u32>;

fn check_groups(parts: &Parts) -> Result<(Index<Group>, Index<String>), ManifestError> {
    let mut grouped = vec![false; parts.tensors.len()];
    let mut groups = HashMap::new();
    for (at, entry) in parts.groups.iter().enumerate() {
        for &tensor in &entry.tensors {
            match grouped.get_mut(tensor as usize) {
                Some(seen @ false) => *seen = true,
                _ => return Err(ManifestError::Groups),
            }
        }
        if groups.insert(entry.group.clone(), at as u32).is_some() {
            return Err(ManifestError::Groups);
        }
    }
    let names = parts.tensors.iter().enumerate();
    let tensors: Index<String> = names.map(|(at, tensor)| (tensor.name.clone(), at as u32)).collect();
    let sorted = parts.tensors.is_sorted_by(|a, b| a.name < b.name);
    if grouped.contains(&false) || !sorted {
        return Err(ManifestError::Groups);
    }
    Ok((groups, tensors))
}

fn distinct_chunks(files: &[FileEntry]) -> Result<(Vec<ChunkEntry>, Index<ChunkId>), ManifestError> {
    let (mut chunks, mut positions) = (Vec::<ChunkEntry>::new(), HashMap::new());
    for file in files {
        for chunk in &file.chunks {
            let at = *positions.entry(chunk.id).or_insert(chunks.len() as u32);
            match chunks.get(at as usize) {
                None => chunks.push(*chunk),
                Some(earlier) if earlier.size == chunk.size => (),
                Some(_) => return Err(ManifestError::Chunks(file.path.clone())),
            }
        }
    }
    if MANIFEST_CHUNKS_MAX < chunks.len() {
        return Err(ManifestError::TooLarge);
    }
    Ok((chunks, positions))
}

impl Dtype {
    /// One element, or a block of them.
    pub fn block(self) -> Block {
        let (elements, bytes) = match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => (1, 1),
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => (1, 2),
            Self::U32 | Self::I32 | Self::F32 => (1, 4),
            Self::U64 | Self::I64 | Self::F64 => (1, 8),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        };
        Block { elements, bytes }
    }

    /// `shape` with blocks for the elements of its rows; `None` if they are no whole blocks.
    pub fn in_blocks(self, shape: &[u64]) -> Option<Vec<u64>> {
        let mut shape = shape.to_vec();
        match (shape.last_mut(), self.block().elements) {
            (_, 1) => (),
            (Some(row), elements) if row.is_multiple_of(elements) => *row /= elements,
            _ => return None,
        }
        Some(shape)
    }

    /// Bytes in a tensor of `shape`, unless there are more than fit in 64 bits, or rows are no whole blocks.
    pub fn size_of(self, shape: &[u64]) -> Option<u64> {
        let blocks = self.in_blocks(shape)?;
        let blocks = blocks.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
        blocks.checked_mul(self.block().bytes)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("embed"),
            Self::Block(stack, index) => write!(f, "{stack}block {index}"),
            Self::Expert { stack, block, expert } => write!(f, "{stack}block {block} expert {expert}"),
            Self::Norm(stack) => write!(f, "{stack}norm"),
            Self::Head => f.write_str("head"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Stack {
    /// Nothing for a decoder, which is the ordinary case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encoder => "encoder ",
            Self::Decoder => "",
        })
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("id", &self.id)
            .field("files", &self.files().len())
            .field("tensors", &self.tensors().len())
            .field("chunks", &self.chunks.len())
            .finish()
    }
}

#[cfg(test)]
mod tests;
