//! Which models there are, what they are called, and what the user said about them. In memory, no I/O.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use surf_protocol::{ChunkId, FileEntry, Manifest, ModelId, id::MODEL_ID_PREFIX, manifest::ChunkEntry};

use super::{
    ResolveError,
    notes::{Aliases, Note},
};

/// Digits by which a model may be called, at least. With fewer, a typing error may hit another model.
const PREFIX_DIGITS_MIN: usize = 8;
const MODEL_ID_DIGITS: usize = 64;
const ALIAS_SIZE_MAX: usize = 255;

/// Every model whose manifest is here.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) manifests: HashMap<ModelId, Arc<Manifest>>,
    /// The files of models whose manifest an earlier version wrote.
    pub(super) older: HashMap<ModelId, Vec<FileEntry>>,
    /// Such models that were cut again since the store was opened, and what they are now.
    pub(super) renamed: Vec<(ModelId, ModelId)>,
    /// May hold notes about models whose manifest is not here, or not yet.
    pub(super) notes: HashMap<ModelId, Note>,
    pub(super) aliases: Aliases,
    /// Models whose manifest could not be read when the store opened.
    pub(super) damaged: BTreeSet<ModelId>,
}

impl Catalogue {
    /// The model that `text` means: a whole id, which need not be here; a name; or the first digits of
    /// an id that is here.
    pub(super) fn resolve(&self, text: &str) -> Result<ModelId, ResolveError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        if let Some(&id) = self.aliases.get(text) {
            return Ok(id);
        }
        let digits = text.strip_prefix(MODEL_ID_PREFIX).unwrap_or(text).to_ascii_lowercase();
        let candidates: BTreeSet<_> = match looks_like_digits(&digits) {
            true => self.manifests.keys().filter(|id| id.to_hex().starts_with(&digits)).copied().collect(),
            false => BTreeSet::new(),
        };
        let meant_as_id = text.starts_with(MODEL_ID_PREFIX) || !candidates.is_empty();
        if digits.len() < PREFIX_DIGITS_MIN && meant_as_id {
            return Err(ResolveError::TooShort(text.to_owned()));
        }
        match (candidates.len(), candidates.first()) {
            (1, Some(&id)) => Ok(id),
            (0, _) if meant_as_id && looks_like_digits(&digits) => {
                Err(ResolveError::Digits { text: text.to_owned(), digits: digits.len() })
            }
            (0, _) => Err(ResolveError::Unknown(text.to_owned())),
            _ => {
                let candidates = candidates.into_iter().collect();
                Err(ResolveError::Ambiguous { text: text.to_owned(), candidates })
            }
        }
    }

    /// The names of `model`, sorted.
    pub(super) fn aliases_of(&self, model: ModelId) -> Vec<String> {
        let names = self.aliases.iter().filter(|(_, id)| **id == model);
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Whether `model` is pinned.
    pub(super) fn is_pinned(&self, model: ModelId) -> bool {
        self.notes.get(&model).is_some_and(|note| note.pinned)
    }

    /// Every chunk that a manifest here names.
    pub(super) fn named_chunks(&self) -> HashSet<ChunkId> {
        self.chunks().map(|chunk| chunk.id).collect()
    }

    fn chunks(&self) -> impl Iterator<Item = &ChunkEntry> {
        let chunks = self.manifests.values().flat_map(|manifest| manifest.chunks());
        chunks.chain(self.older.values().flatten().flat_map(|file| &file.chunks))
    }

    /// The size of every chunk that a manifest here names.
    pub(super) fn chunk_sizes(&self) -> HashMap<ChunkId, u32> {
        self.chunks().map(|chunk| (chunk.id, chunk.size)).collect()
    }
}

/// Whether a model may be called `name`: it must not be taken for an id, nor trouble a terminal.
pub(super) fn is_good_alias(name: &str) -> bool {
    let like_an_id = PREFIX_DIGITS_MIN <= name.len() && looks_like_digits(name);
    (1..=ALIAS_SIZE_MAX).contains(&name.len())
        && !name.starts_with(MODEL_ID_PREFIX)
        && !name.contains(char::is_control)
        && name.trim() == name
        && !like_an_id
}

fn looks_like_digits(text: &str) -> bool {
    !text.is_empty() && text.len() <= MODEL_ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use surf_protocol::manifest::{FORMAT, Parts};

    use super::*;

    fn catalogue(models: usize) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for at in 0..models {
            let file = FileEntry {
                path: format!("{at}"),
                size: 0,
                blake3: [0; 32],
                sha256: [0; 32],
                chunks: vec![],
            };
            let parts = Parts { format: FORMAT, files: vec![file], ..Parts::default() };
            let manifest = Manifest::new(parts).unwrap();
            catalogue.manifests.insert(manifest.id(), Arc::new(manifest));
        }
        catalogue
    }

    #[test]
    fn a_model_is_found_by_id_name_and_first_digits() {
        let mut catalogue = catalogue(1);
        let id = *catalogue.manifests.keys().next().unwrap();
        catalogue.aliases.insert("org/tiny".to_owned(), id);
        let hex = id.to_hex();
        for text in
            [&id.to_string(), &hex, &hex[..8], &hex[..9].to_uppercase(), &id.to_string()[..13], "org/tiny"]
        {
            assert_eq!(catalogue.resolve(text), Ok(id), "{text}");
        }
        let elsewhere = ModelId::of(b"elsewhere");
        assert_eq!(catalogue.resolve(&elsewhere.to_string()), Ok(elsewhere));
        for text in [&hex[..7], &id.to_string()[..12], "surf:"] {
            assert_eq!(catalogue.resolve(text), Err(ResolveError::TooShort(text.to_owned())));
        }
        for text in ["org/other", "", "ünïcode", &elsewhere.to_hex()[..20], &format!("{hex}0")] {
            assert_eq!(catalogue.resolve(text), Err(ResolveError::Unknown(text.to_owned())));
        }
    }

    #[test]
    fn ids_that_start_alike_are_told_apart_or_listed() {
        // A clash of eight digits takes too long to make, so two names of one are forged.
        let mut catalogue = catalogue(1);
        let manifest = Arc::clone(catalogue.manifests.values().next().unwrap());
        let mut raw = *manifest.id().as_bytes();
        raw[31] ^= 1;
        let twin = ModelId::from_bytes(&raw).unwrap();
        catalogue.manifests.insert(twin, manifest.clone());
        let mut candidates = vec![manifest.id(), twin];
        candidates.sort();
        let text = twin.to_hex()[..40].to_owned();
        assert_eq!(catalogue.resolve(&text), Err(ResolveError::Ambiguous { text, candidates }));
        assert_eq!(catalogue.resolve(&twin.to_hex()), Ok(twin));
    }

    #[test]
    fn a_name_is_not_mistaken_for_an_id() {
        for good in ["tiny", "org/tiny-surfer", "Größe 7", "dead"] {
            assert!(is_good_alias(good), "{good}");
        }
        for bad in ["", "surf:x", "deadbeef", " x", "a\nb", &"x".repeat(256)] {
            assert!(!is_good_alias(bad), "{bad}");
        }
    }
}
