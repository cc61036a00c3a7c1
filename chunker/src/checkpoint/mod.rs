//! What a reader loads of a model: which tensors, of which types, and what inference needs together.
//!
//! A manifest lists the tensors of every file that can be parsed, copies too. A [`Checkpoint`] is the choice that
//! transformers would make of them (`choose`), with the types that we compute with (`dtype`), in groups
//! ([`Families`]). Where no such choice can be run, it says why: one sentence, the same for who publishes and for who
//! asks for text.
//!
//! All of this is the reader's: nothing that is hashed depends on it, and another version may choose otherwise.

mod choose;
pub(crate) mod dtype;
mod index;

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    sync::Arc,
};

use surf_protocol::{
    ChunkId, Dtype, FileEntry, Manifest, TensorEntry,
    manifest::{ChunkEntry, Piece},
};

use crate::families::{Families, Group, Use, by_name};
use choose::{Choice, Listing, choose};

/// Bytes of a `config.json` that are read. Those of a thousand models have under a hundred thousand.
const CONFIG_SIZE_MAX: u64 = 1024 * 1024;

/// Reads the files of a model. Blocks.
///
/// Few bytes are read: configuration and indexes, and of a file that is not understood what says why.
pub trait Files {
    /// The bytes of `range`, all of them in the file at position `file`.
    fn read(&self, file: u32, range: Range<u64>) -> io::Result<Vec<u8>>;
}

/// A tensor that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, which no other has.
    pub name: Arc<str>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Position of its file in the manifest.
    pub file: u32,
    /// First byte in that file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Parameters that inference needs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// Which part of the model.
    pub group: Group,
    /// Positions in [`Checkpoint::tensors`], as they stand in the files.
    pub tensors: Vec<u32>,
}

/// What is loaded of a model.
#[derive(Debug)]
pub struct Checkpoint {
    manifest: Arc<Manifest>,
    loaded: Loaded,
}

/// Tensors, groups, and what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Sorted by name.
    pub(crate) parameters: Vec<Parameter>,
    /// In order of use. Each parameter is in exactly one.
    pub(crate) groups: Vec<GroupEntry>,
    pub(crate) fault: Option<String>,
}

/// The groups of `manifest`, in order of use, as far as names tell: without a look at any of its files.
pub fn groups(manifest: &Arc<Manifest>, families: &Families) -> Vec<GroupEntry> {
    Checkpoint::by_names(Arc::clone(manifest), families).loaded.groups
}

impl Checkpoint {
    /// What of `manifest` is loaded, with a look at the files that say so.
    pub fn read(manifest: Arc<Manifest>, families: &Families, files: &dyn Files) -> io::Result<Self> {
        let listing =
            Listing::new(manifest.files().iter().map(|file| (&*file.path, file.size)), manifest.tensors());
        let loaded = load(&listing, families, Some(files))?;
        Ok(Self { manifest, loaded })
    }

    /// The same by names alone, for who only shows what there is.
    pub fn by_names(manifest: Arc<Manifest>, families: &Families) -> Self {
        let listing =
            Listing::new(manifest.files().iter().map(|file| (&*file.path, file.size)), manifest.tensors());
        // Without files, nothing is read, and nothing fails.
        let loaded = load(&listing, families, None).unwrap_or_default();
        Self { manifest, loaded }
    }

    /// These parameters of `manifest`, sorted by name, in these groups, in order of use: for who has chosen by
    /// other means.
    pub fn chosen(manifest: Arc<Manifest>, parameters: Vec<Parameter>, groups: Vec<GroupEntry>) -> Self {
        Self { manifest, loaded: Loaded { parameters, groups, fault: None } }
    }

    /// Why the model cannot be run, if its weights cannot be loaded. One sentence.
    pub fn fault(&self) -> Option<&str> {
        self.loaded.fault.as_deref()
    }

    /// The table of contents.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Every parameter, sorted by name.
    pub fn tensors(&self) -> &[Parameter] {
        &self.loaded.parameters
    }

    /// The position of the parameter called `name`.
    pub fn tensor_position(&self, name: &str) -> Option<usize> {
        self.tensors().binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()
    }

    /// The parameter called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Parameter> {
        Some(&self.tensors()[self.tensor_position(name)?])
    }

    /// Groups in order of use.
    pub fn groups(&self) -> &[GroupEntry] {
        &self.loaded.groups
    }

    /// The parameters of `group`, if the model has it.
    pub fn group(&self, group: &Group) -> Option<impl Iterator<Item = &Parameter>> {
        let groups = self.groups();
        let at = groups.binary_search_by_key(&Use::of(group), |entry| Use::of(&entry.group)).ok()?;
        Some(groups[at].tensors.iter().map(|&at| &self.tensors()[at as usize]))
    }

    /// The pieces of chunks whose bytes, joined, are `tensor`.
    pub fn tensor_pieces(&self, tensor: &Parameter) -> impl Iterator<Item = Piece> + '_ {
        self.manifest.pieces(tensor.file, tensor.offset..tensor.offset + tensor.size)
    }

    /// Distinct chunks that hold the parameters of `group`, in order. Empty if there is no such group.
    pub fn group_chunks(&self, group: &Group) -> Vec<ChunkEntry> {
        let mut seen = HashSet::new();
        let tensors = self.group(group).into_iter().flatten();
        let pieces = tensors.flat_map(|tensor| self.tensor_pieces(tensor));
        pieces.map(|piece| piece.chunk).filter(|chunk| seen.insert(chunk.id)).collect()
    }

    /// Every file of the manifest.
    pub fn files(&self) -> &[FileEntry] {
        self.manifest.files()
    }

    /// The file at `path`.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        self.manifest.file(path)
    }

    /// Distinct chunks of the manifest.
    pub fn chunks(&self) -> &[ChunkEntry] {
        self.manifest.chunks()
    }

    /// The position of a chunk among these.
    pub fn position(&self, id: ChunkId) -> Option<usize> {
        self.manifest.position(id)
    }

    /// The pieces of chunks whose bytes, joined, are `range` of the file at position `file`.
    pub fn pieces(&self, file: u32, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        self.manifest.pieces(file, range)
    }
}

/// What of a folder's tensors is loaded.
pub(crate) fn load(
    listing: &Listing<'_>,
    families: &Families,
    files: Option<&dyn Files>,
) -> io::Result<Loaded> {
    let config = config(listing, files)?;
    let Choice { tensors, grouping, fault } = choose(listing, families, config.as_deref(), files)?;
    let group_of = |name: &str| grouping.map_or_else(|| by_name(name), |grouping| grouping.of(name));
    let mut loaded = Loaded { fault, ..Loaded::default() };
    for tensor in tensors {
        match dtype::read(tensor) {
            Ok((dtype, shape)) => loaded.parameters.push(Parameter {
                name: Arc::clone(&tensor.name),
                dtype,
                shape,
                file: tensor.file,
                offset: tensor.offset,
                size: tensor.size,
            }),
            // What no pass of a known family visits is not missed.
            Err(_) if grouping.is_some() && matches!(group_of(&tensor.name), Group::Named(_)) => (),
            Err(why) => {
                let (path, _) = listing.files[tensor.file as usize];
                let fault = || format!("tensor {:?} of {path} {why}", tensor.name);
                loaded.fault.get_or_insert_with(fault);
            }
        }
    }
    loaded.parameters.sort_by(|a, b| a.name.cmp(&b.name));
    loaded.groups = grouped(&loaded.parameters, group_of);
    Ok(loaded)
}

/// The `config.json` of the folder, if there is one of a sensible size.
fn config(listing: &Listing<'_>, files: Option<&dyn Files>) -> io::Result<Option<Vec<u8>>> {
    let Some((at, size)) = listing.file("config.json").filter(|(_, size)| *size <= CONFIG_SIZE_MAX) else {
        return Ok(None);
    };
    files.map(|files| files.read(at, 0..size)).transpose()
}

/// Groups in order of use; within a group, parameters as they stand in the files.
fn grouped(parameters: &[Parameter], group_of: impl Fn(&str) -> Group) -> Vec<GroupEntry> {
    let mut in_file_order: Vec<u32> = (0..parameters.len() as u32).collect();
    in_file_order.sort_by_key(|&at| {
        let tensor = &parameters[at as usize];
        (tensor.file, tensor.offset, at)
    });
    let mut found: HashMap<Group, Vec<u32>> = HashMap::new();
    for at in in_file_order {
        found.entry(group_of(&parameters[at as usize].name)).or_default().push(at);
    }
    let mut groups: Vec<_> =
        found.into_iter().map(|(group, tensors)| GroupEntry { group, tensors }).collect();
    groups.sort_unstable_by(|a, b| Use::of(&a.group).cmp(&Use::of(&b.group)));
    groups
}

/// The tensors of a folder that has not been hashed.
pub(crate) fn of_tensors(
    paths: &[(&str, u64)],
    tensors: &[TensorEntry],
    files: &dyn Files,
) -> io::Result<Loaded> {
    load(&Listing::new(paths.iter().copied(), tensors), &Families::default(), Some(files))
}

#[cfg(test)]
mod tests;
