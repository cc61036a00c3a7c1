//! Weights straight from a folder's safetensors files, in pieces as chunks would bring them.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex},
};

use bytes::Bytes;
use safetensors::SafeTensors;
use surf_protocol::{
    ChunkId, Dtype, FileEntry, Group, GroupEntry, Manifest, Stack, TensorEntry,
    manifest::{ChunkEntry, FORMAT, Parts},
};

use crate::{
    source::SourceError,
    weights::{RawTensor, Tensors, Weights, WeightsError},
};

/// Tensors with more bytes than this come in several pieces.
const PIECE_BYTES: usize = 10_000;

#[derive(Debug)]
pub(super) struct FileWeights {
    manifest: Manifest,
    groups: HashMap<Group, Arc<Tensors>>,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<String>,
    failing: bool,
    held: bool,
}

impl FileWeights {
    pub(super) fn open(folder: &str) -> Self {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".safetensors") && !name.starts_with("expected"))
            .collect();
        names.sort();
        let mut parts = Parts { format: FORMAT, ..Parts::default() };
        let mut tensors = HashMap::new();
        for (file, name) in names.into_iter().enumerate() {
            let bytes = Bytes::from(std::fs::read(format!("{folder}/{name}")).unwrap());
            let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            for (name, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                let (start, end) = (header + 8 + start, header + 8 + end);
                let raw = raw(info.dtype, info.shape.clone(), bytes.slice(start..end));
                parts.tensors.push(TensorEntry {
                    name: name.clone(),
                    dtype: raw.dtype,
                    shape: raw.shape.iter().map(|&n| n as u64).collect(),
                    file: file as u32,
                    offset: start as u64,
                    size: (end - start) as u64,
                });
                tensors.insert(name, raw);
            }
            parts.files.push(file_entry(name, &bytes));
        }
        parts.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        parts.groups = groups(&parts.tensors);
        let named = |entry: &GroupEntry| {
            let name = |&at: &u32| parts.tensors[at as usize].name.clone();
            let tensors = entry.tensors.iter().map(name).map(|name| (name.clone(), tensors[&name].clone()));
            (entry.group.clone(), Arc::new(Tensors { tensors: tensors.collect(), resident: false }))
        };
        Self {
            groups: parts.groups.iter().map(named).collect(),
            manifest: Manifest::new(parts).unwrap(),
            state: Mutex::default(),
            released: Condvar::new(),
        }
    }

    /// The same, all staying in memory.
    pub(super) fn all_resident(mut self) -> Self {
        for tensors in self.groups.values_mut() {
            *tensors = Arc::new(Tensors { tensors: tensors.tensors.clone(), resident: true });
        }
        self
    }

    /// Groups asked for so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// From now on, whether the third block cannot be had.
    pub(super) fn fail(&self, failing: bool) {
        self.state.lock().unwrap().failing = failing;
    }

    /// From now on, whether asking waits.
    pub(super) fn hold(&self, held: bool) {
        self.state.lock().unwrap().held = held;
        self.released.notify_all();
    }
}

impl Weights for FileWeights {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn group(&self, group: &Group) -> Result<Arc<Tensors>, WeightsError> {
        let state = self.state.lock().unwrap();
        let mut state = self.released.wait_while(state, |state| state.held).unwrap();
        state.asked.push(group.to_string());
        if state.failing && *group == Group::Block(Stack::Decoder, 2) {
            return Err(SourceError::Missing(ChunkId::of(b"gone")).into());
        }
        self.groups.get(group).cloned().ok_or_else(|| WeightsError::NoSuchGroup(group.clone()))
    }

    fn ready(&self, _: &Group) -> Option<Arc<Tensors>> {
        None
    }

    fn expect(&self, experts: &[Group]) {
        let experts: Vec<String> = experts.iter().map(Group::to_string).collect();
        self.state.lock().unwrap().asked.push(format!("expect {}", experts.join(", ")));
    }

    fn guess(&self, _: &[Group]) {}

    fn rows(&self, tensor: &str, rows: &[u32]) -> Result<RawTensor, WeightsError> {
        let found = self.groups.values().find_map(|group| group.tensors.get(tensor));
        let table = found.ok_or_else(|| WeightsError::NoSuchTensor(tensor.to_owned()))?;
        let joined = table.pieces.concat();
        let row_bytes = joined.len() / table.shape[0];
        let row = |&row: &u32| {
            let start = row as usize * row_bytes;
            let missing = WeightsError::NoSuchRow { tensor: tensor.to_owned(), rows: table.shape[0], row };
            joined.get(start..start + row_bytes).map(Bytes::copy_from_slice).ok_or(missing)
        };
        let pieces = rows.iter().map(row).collect::<Result<_, _>>()?;
        Ok(RawTensor { dtype: table.dtype, shape: vec![rows.len(), table.shape[1]], pieces })
    }
}

fn raw(dtype: safetensors::Dtype, shape: Vec<usize>, bytes: Bytes) -> RawTensor {
    let dtype = match dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::BF16 => Dtype::Bf16,
        safetensors::Dtype::F16 => Dtype::F16,
        other => panic!("{other:?}"),
    };
    let row_bytes = bytes.len() / shape[0];
    let piece = (PIECE_BYTES / row_bytes).max(1) * row_bytes;
    let pieces =
        (0..bytes.len()).step_by(piece).map(|at| bytes.slice(at..bytes.len().min(at + piece))).collect();
    RawTensor { dtype, shape, pieces }
}

fn file_entry(path: String, bytes: &[u8]) -> FileEntry {
    let chunks = bytes.chunks(1 << 20);
    let chunks = chunks.map(|chunk| ChunkEntry { id: ChunkId::of(chunk), size: chunk.len() as u32 });
    FileEntry {
        path,
        size: bytes.len() as u64,
        blake3: *blake3::hash(bytes).as_bytes(),
        sha256: [0; 32],
        chunks: chunks.collect(),
    }
}

/// The groups of a decoder, in order of use.
fn groups(tensors: &[TensorEntry]) -> Vec<GroupEntry> {
    let mut groups: Vec<GroupEntry> = Vec::new();
    for (at, tensor) in tensors.iter().enumerate() {
        let group = match tensor.name.strip_prefix("model.layers.") {
            Some(rest) => Group::Block(Stack::Decoder, rest.split('.').next().unwrap().parse().unwrap()),
            None if tensor.name.starts_with("model.embed") => Group::Embed,
            None => Group::Head,
        };
        match groups.iter_mut().find(|entry| entry.group == group) {
            Some(entry) => entry.tensors.push(at as u32),
            None => groups.push(GroupEntry { group, tensors: vec![at as u32] }),
        }
    }
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    groups
}
