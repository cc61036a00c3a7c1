//! Models in and out, and the looking after what is kept: on the thread that calls.
//!
//! Every change of the catalogue is first on disk, then in memory.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use rayon::prelude::*;
use surf_protocol::{ChunkId, Manifest, ModelId};

use super::{
    Freed, Referenced, StoreError, Verified,
    catalogue::is_good_alias,
    disk::{Disk, Look, Manner},
    files::{Layout, Stamp},
    holdings::{Place, PlaceKind, UserFile},
    notes::{FileNote, Note, encode_aliases},
    open::file_chunks,
};

/// The right to change what is in the catalogue.
pub(super) type Writing<'a> = MutexGuard<'a, ()>;

impl Disk {
    /// Keeps a manifest.
    pub(super) fn put_manifest(&self, manifest: Arc<Manifest>) -> Result<(), StoreError> {
        let _writing = self.writing();
        let id = manifest.id();
        if self.catalogue().manifests.contains_key(&id) {
            return Ok(());
        }
        self.write(&self.layout.manifest(id), &manifest.encode(), Layout::write_synced)?;
        self.index.set_checked(id);
        // Counted here, on a thread that may take its time.
        self.groups_of(&manifest);
        let pinned = self.catalogue().is_pinned(id);
        self.catalogue().manifests.insert(id, Arc::clone(&manifest));
        if pinned {
            self.holdings().pin(manifest.chunks().iter().map(|chunk| chunk.id));
        }
        self.changed();
        Ok(())
    }

    /// Refers to files of the user's, instead of what was referred to for them before.
    pub(super) fn reference(
        &self,
        manifest: &Manifest,
        files: Vec<(u32, PathBuf)>,
    ) -> Result<Referenced, StoreError> {
        let model = manifest.id();
        let mut notes = Vec::with_capacity(files.len());
        let mut booked = Vec::with_capacity(files.len());
        for (file, path) in files {
            let note = stamped(manifest, file, &path)?;
            let user_file = UserFile::new(model, file, note.path.clone(), note.stamp);
            booked.push((Arc::new(user_file), file_chunks(manifest, file)));
            notes.push(note);
        }
        let writing = self.writing();
        self.change_note(&writing, model, |note| {
            let replaced: HashSet<_> = notes.iter().map(|note| note.file).collect();
            note.files.retain(|old| !replaced.contains(&old.file));
            note.files.extend(notes);
            note.files.sort_by_key(|note| note.file);
        })?;
        let (chunks, bytes) = self.holdings().set_ranges(&booked);
        self.changed();
        Ok(Referenced { chunks, bytes })
    }

    /// Notes that a chunk in a user's file is not what it was.
    pub(super) fn note_bad(&self, file: &UserFile, offset: u64) {
        let noted = self.change_note(&self.writing(), file.model, |note| {
            // A file that was cut again meanwhile has another stamp, and nothing is known against it.
            let same = |note: &&mut FileNote| note.file == file.file && note.stamp == file.stamp;
            for note in note.files.iter_mut().filter(same) {
                note.bad.push(offset);
            }
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot note that a published file is damaged");
        }
    }

    /// Calls a model by a name, and no other model.
    pub(super) fn set_alias(&self, name: &str, model: ModelId) -> Result<(), StoreError> {
        if !is_good_alias(name) {
            return Err(StoreError::BadAlias(name.to_owned()));
        }
        let _writing = self.writing();
        let mut aliases = self.catalogue().aliases.clone();
        if aliases.insert(name.to_owned(), model) != Some(model) {
            self.write(&self.layout.aliases(), &encode_aliases(&aliases), Layout::write_synced)?;
            self.catalogue().aliases = aliases;
        }
        Ok(())
    }

    /// Protects the chunks of a model from eviction, or no longer.
    pub(super) fn set_pinned(&self, model: ModelId, pinned: bool) -> Result<(), StoreError> {
        let writing = self.writing();
        let manifest = self.manifest(model)?;
        let mut before = pinned;
        self.change_note(&writing, model, |note| before = std::mem::replace(&mut note.pinned, pinned))?;
        let chunks = manifest.chunks().iter().map(|chunk| chunk.id);
        match (before, pinned) {
            (false, true) => self.holdings().pin(chunks),
            (true, false) => self.holdings().unpin(chunks),
            _ => (),
        }
        Ok(())
    }

    /// Removes a model, and the chunk files that no other model names and nobody uses.
    pub(super) fn remove(&self, model: ModelId) -> Result<Freed, StoreError> {
        let writing = self.writing();
        let older = self.catalogue().older.get(&model).cloned();
        let chunks: HashSet<ChunkId> = match older {
            Some(files) => files.iter().flat_map(|file| &file.chunks).map(|chunk| chunk.id).collect(),
            None => self.manifest(model)?.chunks().iter().map(|chunk| chunk.id).collect(),
        };
        remove_file(&self.layout.manifest(model))?;
        remove_file(&self.layout.note(model))?;
        let mut aliases = self.catalogue().aliases.clone();
        aliases.retain(|_, id| *id != model);
        self.write(&self.layout.aliases(), &encode_aliases(&aliases), Layout::write_synced)?;
        let (pinned, needed) = {
            let mut catalogue = self.catalogue();
            catalogue.aliases = aliases;
            catalogue.manifests.remove(&model);
            catalogue.older.remove(&model);
            let note = catalogue.notes.remove(&model);
            (note.is_some_and(|note| note.pinned), catalogue.named_chunks())
        };
        let doomed = |id: &ChunkId| chunks.contains(id) && !needed.contains(id);
        let (gone, bytes) = {
            let mut holdings = self.holdings();
            if pinned {
                holdings.unpin(chunks.iter().copied());
            }
            holdings.forget_ranges(|file, _| file.model == model);
            holdings.take_own_where(doomed)
        };
        drop(writing);
        self.discard(&gone);
        self.changed();
        Ok(Freed { chunks: gone.len(), bytes })
    }

    /// Removes those of `chunks` that belong to no model. The number is that of those under a lease, which stay.
    pub(super) fn sweep(&self, chunks: &HashSet<ChunkId>) -> Result<(Freed, usize), StoreError> {
        let writing = self.writing();
        let named = self.catalogue().named_chunks();
        let unnamed = |id: &ChunkId| chunks.contains(id) && !named.contains(id);
        let (gone, bytes, leased) = {
            let mut holdings = self.holdings();
            let (gone, bytes) = holdings.take_own_where(unnamed);
            (gone, bytes, chunks.iter().filter(|id| unnamed(id) && holdings.is_leased(id)).count())
        };
        drop(writing);
        self.discard(&gone);
        self.changed();
        Ok((Freed { chunks: gone.len(), bytes }, leased))
    }

    /// Removes what belongs to no model, and forgets users' files that are gone or have changed.
    pub(super) fn gc(&self) -> Result<Freed, StoreError> {
        let user_files = self.holdings().user_files();
        for file in user_files {
            if Stamp::at(&file.path).ok() != Some(file.stamp) {
                self.forget_file(&file, "it is gone or has changed");
            }
        }
        let writing = self.writing();
        let damaged = std::mem::take(&mut self.catalogue().damaged);
        for model in damaged {
            if !self.catalogue().manifests.contains_key(&model) {
                remove_file(&self.layout.manifest(model))?;
            }
        }
        self.gc_notes(&writing)?;
        let named = self.catalogue().named_chunks();
        let (gone, bytes) = self.holdings().take_own_where(|id| !named.contains(id));
        drop(writing);
        self.discard(&gone);
        self.changed();
        Ok(Freed { chunks: gone.len(), bytes })
    }

    /// Hashes everything held, or everything held of one model, on all cores. What is wrong is
    /// forgotten; `progress` is told bytes done and bytes in all.
    pub(super) fn verify(
        &self,
        model: Option<ModelId>,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Verified, StoreError> {
        let named: HashSet<ChunkId> = match model {
            None => self.catalogue().named_chunks(),
            Some(model) => self.manifest(model)?.chunks().iter().map(|chunk| chunk.id).collect(),
        };
        let ids = if model.is_none() { self.holdings().ids() } else { named.iter().copied().collect() };
        let held = |ids: &[ChunkId]| -> Vec<_> {
            let with_places = ids.iter().map(|&id| (id, self.holdings().places(id)));
            with_places.filter(|(_, places)| !places.is_empty()).collect()
        };
        let mut bad = self.lost_with_files(&held(&ids));
        let held = held(&ids);
        let total = held.iter().flat_map(|(_, places)| places).map(|place| u64::from(place.size)).sum();
        let (done, checked) = (AtomicU64::new(0), AtomicUsize::new(0));
        let check = |(id, places): (ChunkId, Vec<Place>)| {
            let (mut good, mut bad) = (false, false);
            for place in places {
                match self.read_checked(id, &place, Manner::FromDisk)? {
                    Look::Good(_) => good = true,
                    Look::Bad => bad = true,
                    Look::Gone => (),
                }
                let size = u64::from(place.size);
                progress(done.fetch_add(size, Ordering::Relaxed) + size, total);
            }
            checked.fetch_add(1, Ordering::Relaxed);
            // One good copy is enough.
            Ok((bad && !good).then_some(id))
        };
        let found = held.into_par_iter().with_max_len(1).filter_map(|chunk| check(chunk).transpose());
        let checked_files = bad.len();
        bad.extend(found.collect::<Result<Vec<_>, StoreError>>()?);
        bad.sort_unstable();
        let holdings = self.holdings();
        let missing = named.iter().filter(|id| !holdings.contains(**id)).count();
        Ok(Verified { checked: checked.into_inner() + checked_files, bad, missing })
    }

    /// Looks at published files that are not what they were, and returns which of the chunks `held` went with them.
    fn lost_with_files(&self, held: &[(ChunkId, Vec<Place>)]) -> Vec<ChunkId> {
        let files = held.iter().flat_map(|(_, places)| places).filter_map(|place| match &place.kind {
            PlaceKind::Range { file, .. } => Some((Arc::as_ptr(file), file)),
            PlaceKind::Own { .. } => None,
        });
        let files: Vec<_> = files.collect::<HashMap<_, _>>().into_values().cloned().collect();
        self.look_at_files(&files);
        let holdings = self.holdings();
        held.iter().map(|(id, _)| *id).filter(|&id| !holdings.contains(id)).collect()
    }

    /// Looks whether these files of the user's are what they were. What has changed is hashed, and what is no
    /// longer in it is lost.
    pub(super) fn look_at_files(&self, files: &[Arc<UserFile>]) {
        for file in files {
            if Stamp::at(&file.path).ok() == Some(file.stamp) || file.gone.swap(true, Ordering::Relaxed) {
                continue;
            }
            self.holdings().forget_ranges(|other, _| Arc::ptr_eq(other, file));
            self.recheck(file).into_iter().for_each(|id| self.lost.chunk(id));
            self.changed();
        }
    }

    /// The manifest of a model, or an error that names it.
    fn manifest(&self, model: ModelId) -> Result<Arc<Manifest>, StoreError> {
        self.catalogue().manifests.get(&model).cloned().ok_or(StoreError::NoSuchModel(model))
    }

    /// Notes about models that are not here any more, and about files that are not what they were.
    fn gc_notes(&self, _writing: &Writing<'_>) -> Result<(), StoreError> {
        let notes = self.catalogue().notes.clone();
        for (model, mut note) in notes {
            let known = {
                let catalogue = self.catalogue();
                catalogue.manifests.contains_key(&model) || catalogue.older.contains_key(&model)
            };
            if !known {
                remove_file(&self.layout.note(model))?;
                self.catalogue().notes.remove(&model);
                continue;
            }
            let before = note.files.len();
            note.files.retain(|file| Stamp::at(&file.path).ok() == Some(file.stamp));
            if note.files.len() != before {
                self.write(&self.layout.note(model), &note.encode(), Layout::write_synced)?;
                self.catalogue().notes.insert(model, note);
            }
        }
        Ok(())
    }

    /// Says something about a model, and writes it down.
    pub(super) fn change_note(
        &self,
        _writing: &Writing<'_>,
        model: ModelId,
        change: impl FnOnce(&mut Note),
    ) -> Result<(), StoreError> {
        let before = self.catalogue().notes.get(&model).cloned().unwrap_or_default();
        let mut note = before.clone();
        change(&mut note);
        if note != before {
            self.write(&self.layout.note(model), &note.encode(), Layout::write_synced)?;
            self.catalogue().notes.insert(model, note);
        }
        Ok(())
    }

    /// The right to change what is in the catalogue.
    pub(super) fn writing(&self) -> Writing<'_> {
        self.notebook.lock().expect("no panics while held")
    }
}

fn stamped(manifest: &Manifest, file: u32, path: &Path) -> Result<FileNote, StoreError> {
    let entry = manifest.files().get(file as usize);
    let entry = entry.ok_or(StoreError::NoSuchFile { model: manifest.id(), file })?;
    let failed = |cause| StoreError::file(path, cause);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let stamp = Stamp::at(&absolute).map_err(failed)?;
    if stamp.size != entry.size {
        return Err(StoreError::Changed { path: absolute, expected: entry.size, found: stamp.size });
    }
    if absolute.to_str().is_none() {
        return Err(StoreError::NotUnicode(absolute));
    }
    Ok(FileNote { file, path: absolute, stamp, bad: Vec::new() })
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(StoreError::file(path, cause)),
        _ => Ok(()),
    }
}
