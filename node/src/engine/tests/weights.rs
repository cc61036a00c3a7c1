//! Weights straight from the files of a folder, in pieces as chunks would bring them.

use std::{
    collections::HashMap,
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use bytes::Bytes;
use surf_chunker::{Checkpoint, Group, GroupEntry, Options, Parameter, Sink, Stack};
use surf_protocol::{Chunk, ChunkId};

use crate::{
    source::SourceError,
    weights::{RawTensor, Tensors, Weights, WeightsError},
};

/// Tensors with more bytes than this come in several pieces.
const PIECE_BYTES: usize = 10_000;

#[derive(Debug)]
pub(super) struct FileWeights {
    manifest: Checkpoint,
    groups: HashMap<Group, Arc<Tensors>>,
    cut: Option<(String, RawTensor)>,
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
    /// Of the folder or the single file at `path`.
    pub(super) fn open(path: &str) -> Self {
        let path = Path::new(path);
        let manifest = surf_chunker::open(path, &Options::default(), &Nobody).unwrap();
        let folder = if path.is_dir() { path } else { path.parent().unwrap() };
        let read = |path: &str| Bytes::from(std::fs::read(folder.join(path)).unwrap());
        let files: Vec<Bytes> = manifest.files().iter().map(|file| read(&file.path)).collect();
        let named = |entry: &Parameter| (entry.name.to_string(), raw(entry, &files[entry.file as usize]));
        let tensors = |entry: &GroupEntry| {
            let tensors = manifest.group(&entry.group).unwrap().map(named).collect();
            (entry.group.clone(), Arc::new(Tensors { tensors, ..Tensors::default() }))
        };
        Self {
            groups: manifest.groups().iter().map(tensors).collect(),
            cut: None,
            manifest,
            state: Mutex::default(),
            released: Condvar::new(),
        }
    }

    /// The same, all staying in memory.
    pub(super) fn all_resident(mut self) -> Self {
        for tensors in self.groups.values_mut() {
            *tensors =
                Arc::new(Tensors { tensors: tensors.tensors.clone(), resident: true, ..Tensors::default() });
        }
        self
    }

    /// The same, with the table called `name` in runs of `count` rows.
    pub(super) fn in_runs(mut self, name: &str, count: usize) -> Self {
        let group = self.groups.values_mut().find(|group| group.tensors.contains_key(name)).unwrap();
        let mut tensors = group.tensors.clone();
        let table = tensors.remove(name).unwrap();
        let rows = (0..table.shape[0]).step_by(count).map(|at| at..table.shape[0].min(at + count)).collect();
        let runs = HashMap::from([(name.to_owned(), rows)]);
        *group = Arc::new(Tensors { tensors, runs, resident: group.resident, ..Tensors::default() });
        self.cut = Some((name.to_owned(), table));
        self
    }

    fn table(&self, tensor: &str) -> Result<&RawTensor, WeightsError> {
        let whole = self.groups.values().find_map(|group| group.tensors.get(tensor));
        let cut = self.cut.iter().find(|(name, _)| name == tensor).map(|(_, table)| table);
        whole.or(cut).ok_or_else(|| WeightsError::NoSuchTensor(tensor.to_owned()))
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
    fn checkpoint(&self) -> &Checkpoint {
        &self.manifest
    }

    fn group(&self, group: &Group) -> Result<Arc<Tensors>, WeightsError> {
        let state = self.state.lock().unwrap();
        let mut state = self.released.wait_while(state, |state| state.held).unwrap();
        state.asked.push(group.to_string());
        if state.failing && *group == Group::Layer(Stack::Decoder, 2) {
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
        let table = self.table(tensor)?;
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

    fn run(&self, tensor: &str, rows: &Range<usize>) -> Result<RawTensor, WeightsError> {
        self.state.lock().unwrap().asked.push(format!("{tensor} {rows:?}"));
        self.rows(tensor, &rows.clone().map(|row| row as u32).collect::<Vec<_>>())
    }

    fn settle(&self, _: bool) -> bool {
        true
    }
}

fn raw(entry: &Parameter, file: &Bytes) -> RawTensor {
    let bytes = file.slice(entry.offset as usize..(entry.offset + entry.size) as usize);
    let shape: Vec<usize> = entry.shape.iter().map(|&n| n as usize).collect();
    let row_bytes = bytes.len() / shape.first().copied().unwrap_or(1);
    let piece = (PIECE_BYTES / row_bytes).max(1) * row_bytes;
    let pieces =
        (0..bytes.len()).step_by(piece).map(|at| bytes.slice(at..bytes.len().min(at + piece))).collect();
    RawTensor { dtype: entry.dtype, shape, pieces }
}

/// Nobody keeps the chunks.
struct Nobody;

impl Sink for Nobody {
    fn chunk(&self, _: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}
