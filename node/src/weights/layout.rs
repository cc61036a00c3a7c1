//! What [`Streamed`](super::Streamed) must know of a manifest, looked up once.

use std::collections::HashMap;

use surf_protocol::{Group, GroupEntry, Manifest, Stack, TensorEntry, manifest::ChunkEntry};

use super::plan::Load;

/// Groups by number, and what is in them.
#[derive(Debug)]
pub(super) struct Layout {
    index: HashMap<Group, usize>,
    /// For each tensor of the manifest, its group.
    group_of_tensor: Vec<usize>,
    /// For each group, its chunks, by their positions in the manifest.
    chunks: Vec<Vec<usize>>,
}

impl Layout {
    /// The layout of `manifest`.
    pub(super) fn of(manifest: &Manifest) -> Self {
        let groups = manifest.groups();
        let mut group_of_tensor = vec![0; manifest.tensors().len()];
        for (at, entry) in groups.iter().enumerate() {
            entry.tensors.iter().for_each(|&tensor| group_of_tensor[tensor as usize] = at);
        }
        let position = |chunk: ChunkEntry| manifest.position(chunk.id).expect("a chunk of this manifest");
        let chunks = groups.iter().map(|entry| manifest.group_chunks(&entry.group));
        Self {
            index: groups.iter().enumerate().map(|(at, entry)| (entry.group.clone(), at)).collect(),
            group_of_tensor,
            chunks: chunks.map(|chunks| chunks.into_iter().map(position).collect()).collect(),
        }
    }

    /// The number of `group`.
    pub(super) fn index(&self, group: &Group) -> Option<usize> {
        self.index.get(group).copied()
    }

    /// The group of the tensor at position `tensor` of the manifest.
    pub(super) fn group_of_tensor(&self, tensor: usize) -> usize {
        self.group_of_tensor[tensor]
    }

    /// The chunks of `group`, by their positions in the manifest.
    pub(super) fn chunks(&self, group: usize) -> &[usize] {
        &self.chunks[group]
    }

    /// What is to be planned.
    ///
    /// A pass visits the groups in their order, but for three kinds. Routed experts are visited when
    /// the router says so. The embedding is read by row, before the pass; only where the model has
    /// no output projection of its own is the embedding's table that, needed whole and last. Groups
    /// of an unknown part of the model are visited by nobody.
    ///
    /// An encoder before a decoder is visited once for each prompt, and the decoder for each token.
    pub(super) fn load(&self, manifest: &Manifest) -> Load {
        let table = self.index(&Group::Embed);
        let each_pass =
            |group: &Group| !matches!(group, Group::Embed | Group::Expert { .. } | Group::Named(_));
        let groups = manifest.groups().iter().enumerate();
        let mut cycle: Vec<usize> =
            groups.filter(|(_, entry)| each_pass(&entry.group)).map(|(at, _)| at).collect();
        let of_encoder = |group: &&usize| {
            let group = &manifest.groups()[**group].group;
            matches!(group, Group::Block(Stack::Encoder, _) | Group::Norm(Stack::Encoder))
        };
        let once = cycle.iter().take_while(of_encoder).count();
        if is_tied(manifest) {
            cycle.extend(table);
        }
        let sizes = (0..self.chunks.len()).map(|group| self.size(manifest, group)).collect();
        let expert = |entry: &GroupEntry| matches!(entry.group, Group::Expert { .. });
        let experts = manifest.groups().iter().enumerate();
        let experts = experts.filter(|(_, entry)| expert(entry)).map(|(at, _)| at).collect();
        // An encoder alone is all there is to a pass.
        let again = if once < cycle.len() { once } else { 0 };
        Load { sizes, cycle, again, table, experts }
    }

    /// Bytes that `group` takes: those of its tensors, or those of its chunks, if they hold more.
    fn size(&self, manifest: &Manifest, group: usize) -> u64 {
        let entries = manifest.groups()[group].tensors.iter();
        let tensors: u64 = entries.map(|&at| manifest.tensors()[at as usize].size).sum();
        let chunks: u64 = self.chunks[group].iter().map(|&at| u64::from(manifest.chunks()[at].size)).sum();
        tensors.max(chunks)
    }
}

/// Whether the head has no matrix of its own.
fn is_tied(manifest: &Manifest) -> bool {
    let is_matrix = |tensor: &TensorEntry| 2 <= tensor.shape.len();
    manifest.group(&Group::Head).is_some_and(|mut head| !head.any(is_matrix))
}
