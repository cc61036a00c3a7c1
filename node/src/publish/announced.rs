//! What to tell the directory about a model. Pure.
//!
//! From coarse to fine: whoever has anything announces the model; whoever has not all of it
//! announces the groups that are whole, and then chunks. The directory takes as many of the first
//! as its budget allows; between nodes that have met, bitmaps say the rest.

use surf_protocol::{Bitmap, Manifest};

use crate::fetch::Key;

/// Chunks of one model announced under their own keys. They matter to models that share them; the
/// first are as good as any.
const CHUNK_KEYS_MAX: usize = 256;

/// The keys under which a node that has the chunks `have` of `manifest` should be found, the most
/// important first. None if it has nothing.
pub fn announced(manifest: &Manifest, have: &Bitmap) -> Vec<Key> {
    if have.count() == 0 {
        return Vec::new();
    }
    let has = |id| manifest.position(id).is_some_and(|at| have.contains(at));
    let mut keys = vec![Key::Model(manifest.id())];
    if !have.is_full() {
        let whole = manifest.groups().iter().map(|entry| &entry.group).filter(|group| {
            let chunks = manifest.group_chunks(group);
            !chunks.is_empty() && chunks.iter().all(|chunk| has(chunk.id))
        });
        keys.extend(whole.map(|group| Key::group(manifest.id(), group)));
    }
    let chunks = manifest.chunks().iter().filter(|chunk| has(chunk.id));
    keys.extend(chunks.take(CHUNK_KEYS_MAX).map(|chunk| Key::Chunk(chunk.id)));
    keys
}

#[cfg(test)]
mod tests {
    use surf_protocol::{
        ChunkId, Dtype, FileEntry, Group, GroupEntry, Stack, TensorEntry,
        manifest::{ChunkEntry, FORMAT, Parts},
    };

    use super::*;

    /// Two blocks of one tensor of two chunks each.
    fn manifest() -> Manifest {
        let chunks: Vec<_> = (0..4u8).map(|i| ChunkEntry { id: ChunkId::of(&[i]), size: 10 }).collect();
        let tensor = |name: &str, offset| TensorEntry {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape: vec![20],
            file: 0,
            offset,
            size: 20,
        };
        let file = FileEntry { path: "x".to_owned(), size: 40, blake3: [0; 32], sha256: [0; 32], chunks };
        let group = |i| GroupEntry { group: Group::Block(Stack::Decoder, i), tensors: vec![i] };
        let tensors = vec![tensor("a", 0), tensor("b", 20)];
        let parts = Parts { format: FORMAT, files: vec![file], tensors, groups: vec![group(0), group(1)] };
        Manifest::new(parts).unwrap()
    }

    #[test]
    fn who_has_nothing_says_nothing() {
        assert_eq!(announced(&manifest(), &Bitmap::none(4)), []);
    }

    #[test]
    fn who_has_a_part_says_which_groups_are_whole() {
        let manifest = manifest();
        let keys = announced(&manifest, &Bitmap::from_fn(4, |at| at != 1));
        assert_eq!(keys[0], Key::Model(manifest.id()));
        assert_eq!(keys[1], Key::group(manifest.id(), &Group::Block(Stack::Decoder, 1)));
        assert_eq!(keys.len(), 2 + 3);
    }

    #[test]
    fn who_has_all_needs_no_groups() {
        let keys = announced(&manifest(), &Bitmap::from_fn(4, |_| true));
        assert!(keys.iter().all(|key| !matches!(key, Key::Group(_))));
        assert_eq!(keys.len(), 1 + 4);
    }
}
