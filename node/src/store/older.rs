//! Models that an earlier version kept, under manifests of format 3: read from their chunks and cut again.
//!
//! Such a manifest names files and chunks as ours do, so nothing is fetched or asked for: most chunks are the same, the
//! others are made of bytes that are here. Names, pins and references move to the new id. What is not all here
//! stays as it is, protected as before, until it is removed: its chunks serve whoever pulls the model anew.

use std::{
    collections::HashSet,
    fs,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use surf_chunker::cut_file;
use surf_protocol::{
    Chunk, ChunkId, FileEntry, Manifest, ModelId,
    manifest::{ChunkEntry, FORMAT, ManifestError, Parts},
};

use super::{
    StoreError,
    disk::{Disk, Manner},
    open::chunks_at,
};

/// Why a model stays as it is.
#[derive(Debug, thiserror::Error)]
enum Kept {
    #[error("{0} of its chunks are not here")]
    Incomplete(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Cuts the models of `disk` again that are all here. On the thread that calls, and for each as long as reading it takes.
pub(super) fn cut_again(disk: &Arc<Disk>) {
    let older: Vec<_> = disk.catalogue().older.clone().into_iter().collect();
    for (model, files) in older {
        match one(disk, model, &files) {
            Ok(new) => tracing::info!(%model, %new, "a model of an earlier version has a new id"),
            Err(why) => {
                tracing::warn!(%model, %why, "a model of an earlier version stays unused; pull or publish it again");
            }
        }
    }
}

fn one(disk: &Arc<Disk>, model: ModelId, files: &[FileEntry]) -> Result<ModelId, Kept> {
    let ids: Vec<ChunkId> = files.iter().flat_map(|file| &file.chunks).map(|chunk| chunk.id).collect();
    let missing = ids.iter().filter(|id| !disk.holdings().contains(**id)).count();
    if 0 < missing {
        return Err(Kept::Incomplete(missing));
    }
    tracing::info!(%model, "reading a model of an earlier version");
    // Making room for new chunks takes none of these.
    disk.holdings().lease(&ids);
    let made = again(disk, model, files);
    disk.holdings().release(&ids);
    let manifest = Arc::new(made?);
    disk.replace_older(model, files, &manifest)?;
    Ok(manifest.id())
}

/// The manifest of today of `files`, with all its chunks.
fn again(disk: &Arc<Disk>, model: ModelId, files: &[FileEntry]) -> Result<Manifest, Kept> {
    let mut parts = Parts { format: FORMAT, ..Parts::default() };
    let in_place: Vec<u32> = references(disk, model).into_iter().map(|(file, _)| file).collect();
    for (file, at) in files.iter().zip(0..) {
        let reader = Chunks { disk, chunks: chunks_at(&file.chunks), size: file.size, at: 0, last: None };
        // What stands in a file of the user's is referred to there.
        let keep = |chunk: Chunk, _| match in_place.contains(&at) {
            true => Ok(()),
            false => disk.put(&chunk).map(drop).map_err(Kept::from),
        };
        let (entry, mut tensors) = cut_file(&file.path, file.size, &mut BufReader::new(reader), keep)?;
        tensors.iter_mut().for_each(|tensor| tensor.file = at);
        parts.files.push(entry);
        parts.tensors.extend(tensors);
    }
    Ok(Manifest::new(parts)?)
}

/// The files of a model that stand in the user's folders, and have not changed.
pub(super) fn references(disk: &Disk, model: ModelId) -> Vec<(u32, PathBuf)> {
    let whole = disk.holdings().user_files().into_iter().filter(|file| file.model == model);
    whole.map(|file| (file.file, file.path.clone())).collect()
}

/// A file that is read from its chunks.
struct Chunks<'a> {
    disk: &'a Disk,
    /// With the offset of each.
    chunks: Vec<(u64, ChunkEntry)>,
    size: u64,
    at: u64,
    /// The chunk that was read last, and its offset.
    last: Option<(u64, Chunk)>,
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.size <= self.at || buffer.is_empty() {
            return Ok(0);
        }
        let place = self.chunks.partition_point(|(start, _)| *start <= self.at).saturating_sub(1);
        let (start, entry) = *self.chunks.get(place).ok_or(io::ErrorKind::UnexpectedEof)?;
        if self.last.as_ref().is_none_or(|(last, _)| *last != start) {
            let chunk = self.disk.get(entry.id, entry.size, Manner::Copied).map_err(io::Error::other)?;
            let chunk = chunk.ok_or_else(|| io::Error::other(format!("chunk {} is damaged", entry.id)))?;
            self.last = Some((start, chunk));
        }
        let Some((_, chunk)) = &self.last else { return Ok(0) };
        let bytes = &chunk.bytes()[(self.at - start) as usize..];
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Chunks<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Disk {
    /// Gives `manifest` what the user said about the older `model`, and removes that.
    fn replace_older(
        &self,
        model: ModelId,
        files: &[FileEntry],
        manifest: &Arc<Manifest>,
    ) -> Result<(), StoreError> {
        let new = manifest.id();
        self.put_manifest(Arc::clone(manifest))?;
        let places = references(self, model);
        if !places.is_empty() {
            self.reference(manifest, places)?;
        }
        let (names, pinned) = {
            let catalogue = self.catalogue();
            (catalogue.aliases_of(model), catalogue.is_pinned(model))
        };
        if pinned {
            self.set_pinned(new, true)?;
        }
        for name in names {
            self.set_alias(&name, new)?;
        }
        // Only now that everything stands under the new id: a crash before this does it all once more.
        for path in [self.layout.note(model), self.layout.manifest(model)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what is about an old id");
                }
                _ => (),
            }
        }
        let ids: Vec<ChunkId> = files.iter().flat_map(|file| &file.chunks).map(|chunk| chunk.id).collect();
        let needed = {
            let mut catalogue = self.catalogue();
            catalogue.older.remove(&model);
            catalogue.notes.remove(&model);
            catalogue.renamed.push((model, new));
            catalogue.named_chunks()
        };
        let (gone, _) = {
            let mut holdings = self.holdings();
            if pinned {
                holdings.unpin(distinct(&ids).into_iter());
            }
            holdings.forget_ranges(|file, _| file.model == model);
            let old: HashSet<ChunkId> = ids.into_iter().collect();
            holdings.take_own_where(|id| old.contains(id) && !needed.contains(id))
        };
        self.discard(&gone);
        self.changed();
        Ok(())
    }
}

/// Each of `ids` once.
pub(super) fn distinct(ids: &[ChunkId]) -> Vec<ChunkId> {
    let mut distinct = ids.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    distinct
}
