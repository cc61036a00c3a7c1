//! What to tell the directory about a model. Pure.
//!
//! From coarse to fine: whoever has anything of a model, or is fetching it, announces the model; then the
//! stems that are whole, under keys of their content, so that models which share a layer share its key; and
//! then chunks. The directory takes as many of the first as its budget allows; between nodes that have met,
//! bitmaps say the rest.

use std::sync::Arc;

use surf_protocol::{Bitmap, Manifest};

use crate::fetch::Key;

/// Chunks of one model announced under their own keys. They matter to models that share them; the
/// first are as good as any.
const CHUNK_KEYS_MAX: usize = 256;

/// What is announced of one model, kept current by what has changed.
#[derive(Debug)]
pub struct Announced {
    manifest: Arc<Manifest>,
    stems: Vec<Part>,
    /// Which stems need which chunk: positions of both, sorted.
    needed_by: Vec<(u32, u32)>,
    have: Bitmap,
    wanted: bool,
}

#[derive(Debug)]
struct Part {
    key: Key,
    /// How many of its chunks are not here.
    missing: usize,
}

impl Announced {
    /// Nothing of `manifest` is here, and nobody wants it.
    pub fn new(manifest: Arc<Manifest>) -> Self {
        let (mut stems, mut needed_by) = (Vec::new(), Vec::new());
        for chunks in manifest.stems() {
            needed_by.extend(chunks.iter().map(|&at| (at, stems.len() as u32)));
            let key = Key::stem(chunks.iter().map(|&at| manifest.chunks()[at as usize].id));
            stems.push(Part { key, missing: chunks.len() });
        }
        needed_by.sort_unstable();
        let have = Bitmap::none(manifest.chunks().len());
        Self { manifest, stems, needed_by, have, wanted: false }
    }

    /// Now the chunks `have` are here, and the model is being fetched, or not. Returns the keys under which the
    /// node should be found, the most important first, if that is news.
    pub fn update(&mut self, have: &Bitmap, wanted: bool) -> Option<Vec<Key>> {
        if *have == self.have && wanted == self.wanted {
            return None;
        }
        for at in 0..self.have.len() {
            let (before, now) = (self.have.contains(at), have.contains(at));
            if before != now {
                self.change(at as u32, now);
            }
        }
        (self.have, self.wanted) = (have.clone(), wanted);
        Some(self.keys())
    }

    fn change(&mut self, at: u32, came: bool) {
        let first = self.needed_by.partition_point(|(chunk, _)| *chunk < at);
        for (_, stem) in self.needed_by[first..].iter().take_while(|(chunk, _)| *chunk == at) {
            let missing = &mut self.stems[*stem as usize].missing;
            *missing = if came { *missing - 1 } else { *missing + 1 };
        }
    }

    fn keys(&self) -> Vec<Key> {
        let chunks = self.manifest.chunks().iter().enumerate().filter(|(at, _)| self.have.contains(*at));
        let chunks: Vec<Key> = chunks.take(CHUNK_KEYS_MAX).map(|(_, chunk)| Key::Chunk(chunk.id)).collect();
        if chunks.is_empty() && !self.wanted {
            return Vec::new();
        }
        let whole = self.stems.iter().filter(|stem| stem.missing == 0).map(|stem| stem.key);
        [Key::Model(self.manifest.id())].into_iter().chain(whole).chain(chunks).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use surf_protocol::{
        ChunkId, FileEntry, TensorEntry,
        manifest::{ChunkEntry, FORMAT, Parts},
    };

    use super::*;

    fn id(at: u8) -> ChunkId {
        ChunkId::of(&[at])
    }

    /// Two tensors of two chunks each, these.
    fn manifest(chunks: [u8; 4]) -> Arc<Manifest> {
        let chunks: Vec<_> = chunks.into_iter().map(|at| ChunkEntry { id: id(at), size: 10 }).collect();
        let tensor = |name: &str, offset| TensorEntry {
            file: 0,
            name: name.into(),
            dtype: "U8".parse().unwrap(),
            shape: [20].into(),
            offset,
            size: 20,
        };
        let file = FileEntry { path: "x".to_owned(), size: 40, blake3: [0; 32], sha256: [0; 32], chunks };
        let tensors = vec![tensor("a.0", 0), tensor("a.1", 20)];
        let parts = Parts { format: FORMAT, files: vec![file], tensors };
        Arc::new(Manifest::new(parts).unwrap())
    }

    #[test]
    fn who_has_nothing_says_nothing_unless_it_wants_the_model() {
        let manifest = manifest([0, 1, 2, 3]);
        let mut announced = Announced::new(Arc::clone(&manifest));
        assert_eq!(announced.update(&Bitmap::none(4), false), None);
        let wanted = announced.update(&Bitmap::none(4), true);
        assert_eq!(wanted, Some(vec![Key::Model(manifest.id())]));
        assert_eq!(announced.update(&Bitmap::none(4), true), None, "no news");
        assert_eq!(announced.update(&Bitmap::none(4), false), Some(vec![]));
    }

    #[test]
    fn the_model_then_whole_stems_then_chunks() {
        let manifest = manifest([0, 1, 2, 3]);
        let mut announced = Announced::new(Arc::clone(&manifest));
        let keys = announced.update(&Bitmap::from_fn(4, |at| at != 1), false).unwrap();
        let [model, stem] = [Key::Model(manifest.id()), Key::stem([id(2), id(3)])];
        let chunk = |at| Key::Chunk(id(at));
        assert_eq!(keys, [model, stem, chunk(0), chunk(2), chunk(3)]);
        let keys = announced.update(&Bitmap::from_fn(4, |_| true), false).unwrap();
        assert_eq!(keys[1..3], [Key::stem([id(0), id(1)]), stem], "who has all says so too");
    }

    #[test]
    fn models_that_share_a_layer_share_its_key() {
        let one = Announced::new(manifest([0, 1, 2, 3])).stems;
        let two = Announced::new(manifest([4, 5, 0, 1])).stems;
        assert_eq!(one[0].key, two[1].key);
        assert_ne!(one[1].key, two[0].key);
        assert_eq!(Key::stem([id(1), id(0), id(1)]), Key::stem([id(0), id(1)]), "in whatever order");
    }

    proptest! {
        /// What is kept current is what would be found from nothing.
        #[test]
        fn changes_add_up(
            states in prop::collection::vec((any::<[bool; 4]>(), any::<bool>()), 1..20),
        ) {
            // A chunk in two stems, too.
            let manifest = manifest([0, 1, 1, 2]);
            let mut announced = Announced::new(Arc::clone(&manifest));
            let mut said = Vec::new();
            for (has, wanted) in states {
                let have = Bitmap::from_fn(3, |at| has[at]);
                if let Some(keys) = announced.update(&have, wanted) {
                    said = keys;
                }
                let fresh = Announced::new(Arc::clone(&manifest)).update(&have, wanted);
                prop_assert_eq!(&said, &fresh.unwrap_or_default());
            }
        }
    }
}
