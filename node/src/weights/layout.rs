//! What [`Streamed`](super::Streamed) must know of a manifest, looked up once.

use std::{
    collections::{HashMap, HashSet},
    iter,
    ops::Range,
};

use surf_chunker::{Checkpoint, Group, GroupEntry, Parameter, Stack};
use surf_protocol::{Dtype, manifest::ChunkEntry};

use super::plan::{self, Load};

/// Groups by number, and what is in them. Runs of rows of a table have the numbers after those.
#[derive(Debug)]
pub(super) struct Layout {
    index: HashMap<Group, usize>,
    /// For each tensor of the manifest, its group.
    group_of_tensor: Vec<usize>,
    /// The table that is no part of its group.
    cut: Option<Cut>,
    /// For each group and run, its chunks, by their positions in the manifest.
    chunks: Vec<Vec<usize>>,
}

/// A table that comes in runs of rows.
#[derive(Debug)]
struct Cut {
    /// Its position in the manifest.
    tensor: usize,
    /// Which rows each run has.
    rows: Vec<Range<usize>>,
    /// Each run as a tensor.
    entries: Vec<Parameter>,
}

impl Layout {
    /// The layout of `manifest`, to be held in `memory` bytes.
    pub(super) fn of(manifest: &Checkpoint, memory: u64) -> Self {
        let groups = manifest.groups();
        let mut group_of_tensor = vec![0; manifest.tensors().len()];
        for (at, entry) in groups.iter().enumerate() {
            entry.tensors.iter().for_each(|&tensor| group_of_tensor[tensor as usize] = at);
        }
        let index = groups.iter().enumerate().map(|(at, entry)| (entry.group.clone(), at)).collect();
        let mut layout = Self { index, group_of_tensor, cut: None, chunks: Vec::new() };
        layout.chunks = layout.all_chunks(manifest);
        layout.cut = last_table(manifest).and_then(|tensor| {
            let group = layout.group_of_tensor(tensor);
            let bytes = plan::run_bytes(&layout.load(manifest), group, memory)?;
            Cut::of(manifest, tensor, bytes)
        });
        if layout.cut.is_some() {
            layout.chunks = layout.all_chunks(manifest);
        }
        layout
    }

    /// How many groups and runs there are.
    pub(super) fn len(&self) -> usize {
        self.index.len() + self.cut.as_ref().map_or(0, |cut| cut.rows.len())
    }

    /// The number of `group`.
    pub(super) fn index(&self, group: &Group) -> Option<usize> {
        self.index.get(group).copied()
    }

    /// The number of the run that these `rows` of `tensor` are.
    pub(super) fn run(&self, manifest: &Checkpoint, tensor: &str, rows: &Range<usize>) -> Option<usize> {
        let cut = self.cut.as_ref().filter(|cut| *manifest.tensors()[cut.tensor].name == *tensor)?;
        let run = cut.rows.binary_search_by_key(&rows.start, |run| run.start).ok()?;
        (cut.rows[run] == *rows).then_some(self.index.len() + run)
    }

    /// What group or run `at` is called.
    pub(super) fn name(&self, manifest: &Checkpoint, at: usize) -> String {
        match (manifest.groups().get(at), &self.cut) {
            (Some(entry), _) => entry.group.to_string(),
            (None, Some(cut)) => {
                let (group, rows) = (self.group_of_tensor(cut.tensor), &cut.rows[at - self.index.len()]);
                format!("{}, rows {} to {}", manifest.groups()[group].group, rows.start, rows.end - 1)
            }
            (None, None) => unreachable!("only tables that are cut have runs"),
        }
    }

    /// Whether `at` is a routed expert.
    pub(super) fn is_expert(&self, manifest: &Checkpoint, at: usize) -> bool {
        manifest.groups().get(at).is_some_and(|entry| matches!(entry.group, Group::Expert { .. }))
    }

    /// The group of the tensor at position `tensor` of the manifest.
    pub(super) fn group_of_tensor(&self, tensor: usize) -> usize {
        self.group_of_tensor[tensor]
    }

    /// Whether the tensor at position `tensor` of the manifest comes in runs.
    pub(super) fn is_cut(&self, tensor: usize) -> bool {
        self.cut.as_ref().is_some_and(|cut| cut.tensor == tensor)
    }

    /// What is loaded as group or run `at`. A run is a tensor of its table's name with fewer rows.
    pub(super) fn entries<'a>(
        &'a self,
        manifest: &'a Checkpoint,
        at: usize,
    ) -> impl Iterator<Item = &'a Parameter> {
        let group = manifest.groups().get(at).into_iter().flat_map(|entry| &entry.tensors);
        let group = group.map(|&tensor| tensor as usize).filter(|&tensor| !self.is_cut(tensor));
        let run = at.checked_sub(self.index.len()).zip(self.cut.as_ref());
        group.map(|tensor| &manifest.tensors()[tensor]).chain(run.map(|(run, cut)| &cut.entries[run]))
    }

    /// The tables of group `at` that come in runs, and these.
    pub(super) fn left_out(&self, manifest: &Checkpoint, at: usize) -> HashMap<String, Vec<Range<usize>>> {
        let cut = self.cut.iter().filter(|cut| self.group_of_tensor(cut.tensor) == at);
        cut.map(|cut| (manifest.tensors()[cut.tensor].name.to_string(), cut.rows.clone())).collect()
    }

    /// The chunks of group or run `at`, by their positions in the manifest.
    pub(super) fn chunks(&self, at: usize) -> &[usize] {
        &self.chunks[at]
    }

    /// What is to be planned.
    ///
    /// A pass visits the groups in their order, but for three kinds. Routed experts are visited when
    /// the router says so. The embedding is read by row, before the pass; only where the model has
    /// no output projection of its own is the embedding's table that, needed whole and last. Groups
    /// of an unknown part of the model are visited by nobody. Runs of a table follow its group.
    ///
    /// An encoder before a decoder is visited once for each prompt, and the decoder for each token.
    pub(super) fn load(&self, manifest: &Checkpoint) -> Load {
        let table = self.index(&Group::Embed);
        let each_pass =
            |group: &Group| !matches!(group, Group::Embed | Group::Expert { .. } | Group::Named(_));
        let groups = manifest.groups().iter().enumerate();
        let mut cycle: Vec<usize> =
            groups.filter(|(_, entry)| each_pass(&entry.group)).map(|(at, _)| at).collect();
        let of_encoder = |group: &&usize| {
            let group = &manifest.groups()[**group].group;
            matches!(group, Group::Layer(Stack::Encoder, _) | Group::Norm(Stack::Encoder))
        };
        let once = cycle.iter().take_while(of_encoder).count();
        if is_tied(manifest) {
            cycle.extend(table);
        }
        let runs = self.index.len()..self.len();
        if let Some(cut) = &self.cut {
            let group = cycle.iter().position(|&group| group == self.group_of_tensor(cut.tensor));
            let after = group.map_or(cycle.len(), |group| group + 1);
            cycle.splice(after..after, runs.clone());
        }
        let sizes = (0..self.len()).map(|at| self.size(manifest, at)).collect();
        let expert = |entry: &GroupEntry| matches!(entry.group, Group::Expert { .. });
        let experts = manifest.groups().iter().enumerate();
        let experts = experts.filter(|(_, entry)| expert(entry)).map(|(at, _)| at).collect();
        // An encoder alone is all there is to a pass.
        let again = if once < cycle.len() { once } else { 0 };
        Load { sizes, cycle, again, table, experts, runs }
    }

    /// Bytes that group or run `at` takes: those of its tensors, or those of its chunks, if they hold more.
    fn size(&self, manifest: &Checkpoint, at: usize) -> u64 {
        let tensors: u64 = self.entries(manifest, at).map(|entry| entry.size).sum();
        let chunks: u64 = self.chunks[at].iter().map(|&at| u64::from(manifest.chunks()[at].size)).sum();
        tensors.max(chunks)
    }

    fn all_chunks(&self, manifest: &Checkpoint) -> Vec<Vec<usize>> {
        let position = |chunk: ChunkEntry| manifest.position(chunk.id).expect("a chunk of this manifest");
        let distinct = |at: usize| {
            let mut seen = HashSet::new();
            let pieces = self.entries(manifest, at).flat_map(|entry| manifest.tensor_pieces(entry));
            pieces.map(|piece| position(piece.chunk)).filter(|&chunk| seen.insert(chunk)).collect()
        };
        (0..self.len()).map(distinct).collect()
    }
}

impl Cut {
    /// The table at position `tensor` in runs of whole chunks and whole rows, of at most `bytes` where
    /// the smallest such run is not larger.
    fn of(manifest: &Checkpoint, tensor: usize, bytes: u64) -> Option<Self> {
        let table = &manifest.tensors()[tensor];
        let count = table.shape.first().copied().filter(|&count| 0 < count)?;
        let row = table.size / count;
        // Rows before which a chunk begins, and the end.
        let mut end = 0;
        let pieces = manifest.tensor_pieces(table);
        let ends = pieces.map(|piece| (end += piece.range.len() as u64, end).1);
        let starts = ends.filter(|end| end.checked_rem(row) == Some(0)).map(|end| end / row);
        let starts = starts.filter(|&start| start < count);
        let mut cut = Self { tensor, rows: Vec::new(), entries: Vec::new() };
        let (mut first, mut last) = (0, 0);
        for next in starts.chain(iter::once(count)) {
            if first < last && bytes < (next - first) * row {
                cut.add(table, first..last, row)?;
                first = last;
            }
            last = next;
        }
        cut.add(table, first..count, row)?;
        Some(cut)
    }

    fn add(&mut self, table: &Parameter, rows: Range<u64>, row: u64) -> Option<()> {
        let mut shape = table.shape.clone();
        *shape.first_mut()? = rows.end - rows.start;
        let (offset, size) = (table.offset + rows.start * row, (rows.end - rows.start) * row);
        self.entries.push(Parameter { shape, offset, size, ..table.clone() });
        self.rows.push(usize::try_from(rows.start).ok()?..usize::try_from(rows.end).ok()?);
        Some(())
    }
}

/// The position of the table that a pass ends with: the largest matrix of the head, or of the embedding where
/// the head has none. Not where scales stand beside it, which are for tiles of the whole.
fn last_table(manifest: &Checkpoint) -> Option<usize> {
    let group = if is_tied(manifest) { Group::Embed } else { Group::Head };
    let largest =
        manifest.group(&group)?.filter(|entry| entry.shape.len() == 2).max_by_key(|entry| entry.size)?;
    let scaled = matches!(largest.dtype, Dtype::F8E4M3 | Dtype::F8E5M2);
    let position = manifest.tensors().binary_search_by(|entry| entry.name.cmp(&largest.name)).ok()?;
    (!scaled).then_some(position)
}

/// Whether the head has no matrix of its own.
fn is_tied(manifest: &Checkpoint) -> bool {
    let is_matrix = |tensor: &Parameter| 2 <= tensor.shape.len();
    manifest.group(&Group::Head).is_some_and(|mut head| !head.any(is_matrix))
}
