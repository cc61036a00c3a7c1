//! A published file that is not what it was: which of its chunks are still there?
//!
//! A bit that flipped, a cut end or a new date cost only the chunks that differ. Those are fetched again,
//! into the store, as long as most of the file is as it was: a file that differs all over was replaced by
//! its owner, who did not ask for the old one back.

use std::sync::Arc;

use surf_protocol::{Chunk, ChunkId, ModelId, manifest::ChunkEntry};

use super::{
    StoreError,
    disk::Disk,
    files::{self, Stamp},
    holdings::UserFile,
    notes::FileNote,
    open::file_chunks,
};

/// What is left of a file.
struct Left {
    stamp: Stamp,
    good: Vec<(u64, ChunkEntry)>,
    bad: Vec<(u64, ChunkEntry)>,
}

impl Disk {
    /// Refers again to what is still right in `file`. Returns the chunks to be had again.
    pub(super) fn recheck(&self, file: &UserFile) -> Vec<ChunkId> {
        let path = file.path.display();
        let Some(left) = self.left(file) else {
            tracing::warn!(%path, model = %file.model, "a published file is gone; publish it again when it is back");
            return Vec::new();
        };
        let (good, bad) = (left.good.len(), left.bad.len());
        let replaced = good < bad;
        let lost: Vec<_> = left.bad.iter().map(|(_, entry)| entry.id).collect();
        if let Err(error) = self.refer_again(file, left) {
            tracing::warn!(%path, %error, "a published file that has changed is no longer used");
        }
        let model: ModelId = file.model;
        match (bad, replaced) {
            (0, _) => tracing::info!(%path, "a published file has another date but the same bytes"),
            (_, true) => {
                tracing::warn!(%path, %model, good, bad, "a published file was replaced; publish it again")
            }
            (_, false) => {
                tracing::warn!(%path, %model, good, bad, "a published file has changed; fetching what it held")
            }
        }
        if replaced { Vec::new() } else { lost }
    }

    /// Hashes every chunk of the file. `None` if there is no such file, or it goes on changing.
    fn left(&self, file: &UserFile) -> Option<Left> {
        let manifest = self.catalogue().manifests.get(&file.model).cloned()?;
        let stamp = Stamp::at(&file.path).ok()?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (offset, entry) in file_chunks(&manifest, file.file) {
            let inside = offset + u64::from(entry.size) <= stamp.size;
            let read = if inside {
                files::read_range(&file.path, stamp, offset, entry.size).map(Some)
            } else {
                Ok(None)
            };
            match read {
                Ok(bytes) => match bytes.is_some_and(|bytes| Chunk::verify(entry.id, bytes).is_ok()) {
                    true => good.push((offset, entry)),
                    false => bad.push((offset, entry)),
                },
                Err(error) if files::is_unreadable(&error) => bad.push((offset, entry)),
                Err(_) => return None,
            }
        }
        Some(Left { stamp, good, bad })
    }

    fn refer_again(&self, file: &UserFile, left: Left) -> Result<(), StoreError> {
        let Left { stamp, good, bad } = left;
        let bad = bad.into_iter().map(|(offset, _)| offset).collect();
        let note = FileNote { file: file.file, path: file.path.clone(), stamp, bad };
        let mut ours = false;
        self.change_note(&self.writing(), file.model, |of_model| {
            // What was published again meanwhile has a note of its own.
            let same = |old: &&mut FileNote| old.file == file.file && old.stamp == file.stamp;
            if let Some(old) = of_model.files.iter_mut().find(same) {
                *old = note;
                ours = true;
            }
        })?;
        if ours {
            let again = UserFile::new(file.model, file.file, file.path.clone(), stamp);
            self.holdings().set_ranges(&[(Arc::new(again), good)]);
            self.changed();
        }
        Ok(())
    }
}
