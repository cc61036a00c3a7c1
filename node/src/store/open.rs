//! Opening: what the files say, beside what the index says.
//!
//! A chunk file that has the size that the index or a manifest gives it is taken as it is: it was
//! whole when it got its name, and is hashed before it is first read. Any other file whose name is a
//! chunk's is hashed now, and kept if its name is right. So nothing that arrived is lost with the index,
//! or with a process that was killed before the index was written, and nothing of a model is hashed
//! for it. The rest goes.

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use surf_chunker::read_regular;
use surf_protocol::{
    ChunkId, Manifest, ModelId,
    limits::{CHUNK_SIZE_MAX, MANIFEST_SIZE_MAX},
    manifest::{ChunkEntry, files_of_format_3},
};

use super::{
    StoreError,
    catalogue::Catalogue,
    files::{self, Layout, Stamp},
    holdings::{Holdings, UserFile},
    index::{Index, Records},
    lost::Lost,
    notes::{Note, decode_aliases},
    older::distinct,
    record::Record,
};

/// Bytes of a text file that we would read. A note names each published file.
const TEXT_SIZE_MAX: u64 = 256 << 20;

/// How the name of a file ends that was set aside.
const DAMAGED: &str = "damaged";

/// Makes the folders, and locks them for this process. On a disk that is full, or that may not be written,
/// what is there is used all the same.
pub(super) fn lock(layout: &Layout) -> Result<File, StoreError> {
    let folder = |cause| StoreError::Folder { dir: layout.root().to_owned(), cause };
    fs::create_dir_all(layout.root()).map_err(folder)?;
    let made = File::options().create(true).truncate(false).write(true).open(layout.lock());
    // What cannot be written may still be locked.
    let lock = made.or_else(|error| match files::is_unwritable(&error) {
        true => File::open(layout.lock()).or_else(|_| File::open(layout.root())),
        false => Err(error),
    });
    let lock = lock.map_err(folder)?;
    match lock.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { dir: layout.root().to_owned() }),
        Err(TryLockError::Error(cause)) => return Err(folder(cause)),
    }
    for dir in [layout.incoming(), layout.chunks(), layout.manifests(), layout.notes()] {
        match fs::create_dir_all(&dir) {
            Err(error) if files::is_unwritable(&error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot make a folder; what is here is used, nothing is kept");
            }
            made => made.map_err(folder)?,
        }
    }
    // Whatever is there was on its way when a process ended. The folder stays: a full disk may have no room
    // for a new one.
    for path in entries(&layout.incoming()) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot remove what was on its way");
        }
    }
    Ok(lock)
}

/// What is in a folder; nothing, if it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Books the chunk files, and makes the index agree with them. Returns how many bytes it hashed.
pub(super) fn chunks(
    layout: &Layout,
    index: &Index,
    mut records: Records,
    catalogue: &Catalogue,
    holdings: &mut Holdings,
) -> Result<u64, StoreError> {
    let mut unknown = Vec::new();
    for (path, name, size) in scan(&layout.chunks())? {
        let Some(id) = name.as_deref().and_then(ChunkId::from_hex).filter(|&id| layout.chunk(id) == path)
        else {
            remove(&path, "it is no chunk");
            continue;
        };
        match records.remove(&id) {
            Some(record) if u64::from(record.size) == size => holdings.adopt(id, record),
            _ if (CHUNK_SIZE_MAX as u64) < size => remove(&path, "it is larger than a chunk"),
            _ => unknown.push((id, size as u32)),
        }
    }
    let sizes = if unknown.is_empty() { HashMap::new() } else { catalogue.chunk_sizes() };
    let (mut whole, doubtful): (Vec<_>, Vec<_>) =
        unknown.into_iter().partition(|(id, size)| sizes.get(id) == Some(size));
    let hashed = doubtful.iter().map(|&(_, size)| u64::from(size)).sum();
    let (found, damaged): (Vec<_>, Vec<_>) =
        doubtful.into_par_iter().partition(|&(id, size)| is_whole(&layout.chunk(id), id, size));
    whole.extend(found);
    damaged.iter().for_each(|&(id, _)| remove(&layout.chunk(id), "its bytes are not what its name says"));
    if !whole.is_empty() {
        tracing::info!(chunks = whole.len(), "found chunk files that the index did not know");
    }
    let adopted = whole.into_iter().map(|(id, size)| (id, Record { size, last_use: 0 }));
    let adopted: Vec<_> = adopted.collect();
    adopted.iter().for_each(|&(id, record)| holdings.adopt(id, record));
    index.insert(adopted);
    let gone = records.into_keys().filter(|&id| !holdings.contains(id));
    index.remove(gone.collect::<Vec<_>>());
    Ok(hashed)
}

/// Reads manifests, notes and names. What cannot be read is logged, and does not keep the rest from
/// being used.
pub(super) fn catalogue(layout: &Layout, index: &Index) -> Result<Catalogue, StoreError> {
    let mut catalogue = Catalogue::default();
    for (path, name, _) in scan(&layout.manifests())? {
        match read_regular(&path, MANIFEST_SIZE_MAX as u64) {
            Ok(bytes) => match name.as_deref().and_then(|name| name.parse().ok()) {
                Some(model) if ModelId::of(&bytes) == model => manifest(&path, &bytes, index, &mut catalogue),
                // It stays until another takes its place: its name is what it can be fetched by.
                Some(model) => {
                    tracing::warn!(%model, "a manifest is damaged; peers are asked for it");
                    catalogue.damaged.insert(model);
                }
                None => remove(&path, "it is no manifest"),
            },
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot read a manifest"),
        }
    }
    for (path, name, _) in scan(&layout.notes())? {
        if path.extension().is_some_and(|extension| extension == DAMAGED) {
            continue;
        }
        let model = name.as_deref().and_then(|name| name.strip_suffix(".json")?.parse::<ModelId>().ok());
        let note = read_regular(&path, TEXT_SIZE_MAX).ok().and_then(|text| Note::decode(&text));
        match model.zip(note) {
            Some((model, note)) => _ = catalogue.notes.insert(model, note),
            None => set_aside(&path),
        }
    }
    let path = layout.aliases();
    match read_regular(&path, TEXT_SIZE_MAX).map(|text| decode_aliases(&text)) {
        Ok(Some(aliases)) => catalogue.aliases = aliases,
        Ok(None) => set_aside(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot read the names of models"),
    }
    Ok(catalogue)
}

/// Adds the manifest in `bytes`, which are those of its name. One that was checked before is not checked again.
fn manifest(path: &Path, bytes: &[u8], index: &Index, catalogue: &mut Catalogue) {
    let id = ModelId::of(bytes);
    let checked = index.is_checked(id);
    let read = if checked { Manifest::decode_again(id, bytes) } else { Manifest::decode(bytes) };
    match (read, files_of_format_3(bytes)) {
        (Ok(manifest), _) => {
            if !checked {
                index.set_checked(id);
            }
            catalogue.manifests.insert(id, Arc::new(manifest));
        }
        (Err(_), Some(files)) => _ = catalogue.older.insert(id, files),
        (Err(_), None) => remove(path, "it is no manifest"),
    }
}

/// Books pins, and the users' files that are still what they were when they were cut.
/// What has changed is looked at again later, which may take a while.
pub(super) fn apply_notes(catalogue: &Catalogue, holdings: &mut Holdings, lost: &Lost) {
    for (&model, note) in &catalogue.notes {
        let manifest = catalogue.manifests.get(&model);
        let older = catalogue.older.get(&model).map(Vec::as_slice);
        let Some(entries) = manifest.map(|manifest| manifest.files()).or(older) else { continue };
        if note.pinned {
            let ids: Vec<_> = entries.iter().flat_map(|file| &file.chunks).map(|chunk| chunk.id).collect();
            holdings.pin(distinct(&ids).into_iter());
        }
        let mut files = Vec::new();
        for at in &note.files {
            if Stamp::at(&at.path).ok() != Some(at.stamp) {
                tracing::warn!(path = %at.path.display(), %model, "a published file is gone or has changed");
                lost.file(Arc::new(UserFile::new(model, at.file, at.path.clone(), at.stamp)));
                continue;
            }
            let file = UserFile::new(model, at.file, at.path.clone(), at.stamp);
            let chunks = entries.get(at.file as usize).map_or(&[][..], |file| &file.chunks);
            let mut chunks = chunks_at(chunks);
            chunks.retain(|(offset, _)| !at.bad.contains(offset));
            files.push((Arc::new(file), chunks));
        }
        holdings.set_ranges(&files);
    }
}

/// The chunks of a file of a manifest, with their offsets. None if there is no such file.
pub(super) fn file_chunks(manifest: &Manifest, file: u32) -> Vec<(u64, ChunkEntry)> {
    chunks_at(manifest.files().get(file as usize).map_or(&[], |file| &file.chunks))
}

/// The chunks of a file, with their offsets.
pub(super) fn chunks_at(chunks: &[ChunkEntry]) -> Vec<(u64, ChunkEntry)> {
    let with_offsets = chunks.iter().scan(0, |end, &entry| {
        let start = *end;
        *end += u64::from(entry.size);
        Some((start, entry))
    });
    with_offsets.collect()
}

fn is_whole(path: &Path, id: ChunkId, size: u32) -> bool {
    files::read(path, size).is_ok_and(|bytes| ChunkId::of(&bytes) == id)
}

/// The files in `dir` and the folders in it: path, name if it is Unicode, size. On all cores: there may
/// be a hundred thousand.
fn scan(dir: &Path) -> Result<Vec<(PathBuf, Option<String>, u64)>, StoreError> {
    let failed = |cause| StoreError::file(dir, cause);
    let (mut found, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, metadata) = (entry.path(), entry.metadata().map_err(failed)?);
        if metadata.is_dir() {
            folders.push(path);
        } else {
            found.push((path, entry.file_name().into_string().ok(), metadata.len()));
        }
    }
    let within = folders.par_iter().map(|folder| scan(folder)).collect::<Result<Vec<_>, _>>()?;
    found.extend(within.into_iter().flatten());
    Ok(found)
}

fn remove(path: &Path, why: &str) {
    tracing::warn!(path = %path.display(), "removing a file: {why}");
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove it");
    }
}

/// The user's words are not thrown away even when they cannot be read.
fn set_aside(path: &Path) {
    let aside = path.with_extension(DAMAGED);
    tracing::warn!(path = %path.display(), aside = %aside.display(), "cannot read a file; setting it aside");
    if let Err(error) = fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "cannot set it aside");
    }
}
