//! The files of a model, written byte for byte.
//!
//! A file appears under its name only when it is whole and its SHA-256 is what the manifest says. A
//! file that is there already is left alone if it is the same, and otherwise an error. That, names that
//! would do harm, and the room on the disk are looked at before anything is written.
//!
//! - `names`: which names would do harm.
//! - `target`: folders and files below the one that the user named, without following links.

mod names;
mod target;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};
use surf_protocol::{FileEntry, Manifest};
use tokio::task::spawn_blocking;

pub(super) use self::names::harm;
use self::target::{Folder, Partial};
use crate::{
    api::{Amount, Exported},
    source::{ModelSource, SourceError, Urgency},
};

/// Chunks read ahead of the one being written.
const AHEAD: usize = 4;

/// Bytes read at once from a file that is there already.
const READ_SIZE: usize = 1 << 20;

/// Why a model could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file could not be written or read.
    #[error("{path:?}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// Another file is in the way.
    #[error("{0:?} is there already and is not the model's; move it away or choose another folder")]
    InTheWay(PathBuf),
    /// A link is in the way.
    #[error("{0:?} is a link, and export follows none; remove it or choose another folder")]
    Link(PathBuf),
    /// A file would do harm by its name.
    #[error("the model has a file {path:?}, which is not written here: {why}")]
    Name {
        /// The file's path in the model.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The disk is too small.
    #[error("{dir:?} has room for {room} bytes, and {needed} are to be written")]
    NoRoom {
        /// The folder.
        dir: PathBuf,
        /// Bytes to be written.
        needed: u64,
        /// Bytes that are free.
        room: u64,
    },
    /// The chunks are right and the file is not: the manifest was made wrong.
    #[error("{0:?} does not have the SHA-256 that the manifest says; the model was published wrong")]
    Hash(PathBuf),
    /// A chunk could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// Writes every file of `manifest` into `dir`, with chunks from `model`.
pub async fn export(
    model: &dyn ModelSource,
    manifest: &Arc<Manifest>,
    dir: &Path,
    progress: impl Fn(Amount),
) -> Result<Exported, ExportError> {
    let files = manifest.files();
    let total = files.iter().map(|file| file.size).sum();
    let missing = blocking({
        let (manifest, dir) = (Arc::clone(manifest), dir.to_owned());
        move || missing(&manifest, &dir)
    })
    .await?;
    let root = blocking({
        let dir = dir.to_owned();
        move || Folder::make(&dir)
    })
    .await?;
    let mut done = total - missing.iter().map(|&at| files[at].size).sum::<u64>();
    progress(Amount { bytes: done, total });
    let mut swept = HashSet::new();
    for at in missing {
        let file = &files[at];
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let sweep = swept.insert(folder);
        write(model, file, (&root, sweep), |bytes| progress(Amount { bytes: done + bytes, total })).await?;
        done += file.size;
        progress(Amount { bytes: done, total });
    }
    Ok(Exported { model: manifest.id().to_string(), files: files.len(), bytes: total })
}

/// The positions of files that are not in `dir`, if they can all be written there.
fn missing(manifest: &Manifest, dir: &Path) -> Result<Vec<usize>, ExportError> {
    let root = Folder::open(dir)?;
    let existing = dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(dir);
    let nearest = match &root {
        Some(root) => Some(root.clone()),
        None => Folder::open(existing)?,
    };
    let windows = nearest.is_some_and(|folder| folder.is_of_windows());
    let mut missing = Vec::new();
    for (at, file) in manifest.files().iter().enumerate() {
        if let Some(why) = harm(&file.path, windows) {
            return Err(ExportError::Name { path: file.path.clone(), why });
        }
        let is_there = match &root {
            Some(root) => is_there(root, file)?,
            None => false,
        };
        if !is_there {
            missing.push(at);
        }
    }
    let needed = missing.iter().map(|&at| manifest.files()[at].size).fold(0, u64::saturating_add);
    check_room(dir, existing, needed)?;
    Ok(missing)
}

/// Fails if `needed` bytes do not fit on the disk of `existing`, above or at `dir`.
fn check_room(dir: &Path, existing: &Path, needed: u64) -> Result<(), ExportError> {
    let room = rustix::fs::statvfs(existing).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    match room {
        Ok(room) if room < needed => Err(ExportError::NoRoom { dir: dir.to_owned(), needed, room }),
        // If the system does not tell, writing will.
        _ => Ok(()),
    }
}

/// Whether `file` is in its place below `root` already.
fn is_there(root: &Folder, file: &FileEntry) -> Result<bool, ExportError> {
    let mut folder = root.clone();
    let (folders, name) = split(&file.path);
    for name in folders {
        match folder.enter(name)? {
            Some(inner) => folder = inner,
            None => return Ok(false),
        }
    }
    let Some(mut there) = folder.file(name)? else { return Ok(false) };
    let path = folder.path().join(name);
    let failed = |cause| ExportError::File { path: path.clone(), cause };
    let size = there.metadata().map_err(failed)?.len();
    if size == 0 && 0 < file.size {
        // It holds nothing that could be lost.
        return Ok(false);
    }
    if size == file.size && sha256_of(&mut there).map_err(failed)? == file.sha256 {
        Ok(true)
    } else {
        Err(ExportError::InTheWay(path))
    }
}

/// The folders of a path, and the name in the last.
fn split(path: &str) -> (impl Iterator<Item = &str>, &str) {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    (folders.split('/').filter(|folder| !folder.is_empty()), name)
}

fn sha256_of(file: &mut File) -> io::Result<[u8; 32]> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; READ_SIZE]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            got => hasher.update(&buffer[..got]),
        }
    }
}

/// Writes `file` to its place below `root`. `sweep`: whether to clear up there first.
async fn write(
    model: &dyn ModelSource,
    file: &FileEntry,
    (root, sweep): (&Folder, bool),
    progress: impl Fn(u64),
) -> Result<(), ExportError> {
    let (root, path) = (root.clone(), file.path.clone());
    let begin = move || begin(&root, &path, sweep);
    let mut partial = Some((blocking(begin).await?, Sha256::new()));
    let mut chunks = stream::iter(file.chunks.clone())
        .map(|chunk| model.chunk(chunk, Urgency::Background))
        .buffered(AHEAD);
    let mut written = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        written += chunk.bytes().len() as u64;
        let (mut mine, mut hasher) = partial.take().expect("put back below");
        let append = move || {
            hasher.update(chunk.bytes());
            mine.append(chunk.bytes()).map(|()| (mine, hasher))
        };
        partial = Some(blocking(append).await?);
        progress(written);
    }
    let ((partial, hasher), sha256) = (partial.expect("put back above"), file.sha256);
    blocking(move || match hasher.finalize()[..] == sha256 {
        true => partial.finish(),
        false => Err(ExportError::Hash(partial.path())),
    })
    .await
}

fn begin(root: &Folder, path: &str, sweep: bool) -> Result<Partial, ExportError> {
    let (folders, name) = split(path);
    let mut folder = root.clone();
    for name in folders {
        folder = folder.enter_or_make(name)?;
    }
    if sweep {
        folder.sweep();
    }
    Partial::create(folder, name)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    spawn_blocking(work).await.map_err(|_| ExportError::Stopped)?
}
