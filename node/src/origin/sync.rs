//! Writes a model where nodes without peers can find it: its chunks and its manifest, as an origin holds them.
//!
//! Every file appears under its name only when it is whole, and the manifest comes last: who finds it finds the
//! chunks. What is there already is read and hashed, kept if it is right, and replaced if not, so syncing again
//! repairs.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use surf_chunker::read_regular;
use surf_protocol::{Chunk, Manifest, ModelId, limits::MANIFEST_SIZE_MAX, manifest::ChunkEntry};
use tokio::task::spawn_blocking;
use url::Url;

use super::{chunk_path, manifest_path, object::shown};
use crate::source::{ModelSource, SourceError, Urgency};

/// Chunks read ahead of the one being written.
const AHEAD: usize = 4;

/// How the files are called while they are written.
const TEMPORARY: &str = ".surf-origin-";

/// A temporary file this old was left by a process that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Why a model could not be written to an origin.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The URL names nothing that can be written to.
    #[error("cannot write to {0}: name a folder (a path or a file:// URL), and have a web server serve it")]
    Url(String),
    /// A file could not be written or read.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// A chunk could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Chunks of the model that were not there.
    pub new_chunks: u64,
    /// Bytes in them.
    pub new_bytes: u64,
}

/// The folder that `url` names.
pub fn folder(url: &str) -> Result<PathBuf, SyncError> {
    let parsed = Url::parse(url).map_err(|_| SyncError::Url(format!("{url:?}")))?;
    let folder = (parsed.scheme() == "file").then(|| parsed.to_file_path().ok()).flatten();
    folder.ok_or_else(|| SyncError::Url(shown(&parsed)))
}

/// Writes the model of `manifest` to `folder`, with chunks from `model`. Tells `progress` of the bytes done.
pub async fn sync(
    model: &dyn ModelSource,
    manifest: &Manifest,
    folder: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Synced, SyncError> {
    let (mut synced, mut done) = (Synced::default(), 0);
    clean(folder, manifest).await?;
    let mut arriving = stream::iter(manifest.chunks().to_vec())
        .map(|chunk| async move {
            let path = folder.join(chunk_path(chunk.id));
            if holds(&path, chunk).await? {
                return Ok((chunk, None));
            }
            Ok::<_, SyncError>((chunk, Some((path, model.chunk(chunk, Urgency::Background).await?))))
        })
        .buffered(AHEAD);
    while let Some(arrived) = arriving.next().await {
        let (chunk, missing) = arrived?;
        if let Some((path, chunk)) = missing {
            synced.new_chunks += 1;
            synced.new_bytes += chunk.bytes().len() as u64;
            write(path, chunk.bytes().clone()).await?;
        }
        done += u64::from(chunk.size);
        progress(done);
    }
    let path = folder.join(manifest_path(manifest.id()));
    let bytes = manifest.encode();
    if !holds_manifest(&path, manifest.id()).await? {
        write(path, bytes.into()).await?;
    }
    Ok(synced)
}

/// Whether `chunk` is at `path` and is right.
async fn holds(path: &Path, chunk: ChunkEntry) -> Result<bool, SyncError> {
    let right = move |bytes: Bytes| Chunk::verify(chunk.id, bytes).is_ok();
    matches(path, u64::from(chunk.size)..=u64::from(chunk.size), right).await
}

async fn holds_manifest(path: &Path, model: ModelId) -> Result<bool, SyncError> {
    matches(path, 1..=MANIFEST_SIZE_MAX as u64, move |bytes| ModelId::of(&bytes) == model).await
}

/// Whether a file of one of `sizes` bytes is at `path`, and `right`.
async fn matches(
    path: &Path,
    sizes: std::ops::RangeInclusive<u64>,
    right: impl FnOnce(Bytes) -> bool + Send + 'static,
) -> Result<bool, SyncError> {
    let path = path.to_owned();
    blocking(move || match fs::symlink_metadata(&path) {
        Ok(there) if there.is_file() && sizes.contains(&there.len()) => {
            let bytes = read_regular(&path, *sizes.end()).map_err(|cause| SyncError::File { path, cause })?;
            Ok(right(bytes.into()))
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(SyncError::File { path, cause }),
    })
    .await
}

async fn write(path: PathBuf, bytes: Bytes) -> Result<(), SyncError> {
    blocking(move || put(&path, &bytes).map_err(|cause| SyncError::File { path, cause })).await
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().expect("every file of an origin stands in a folder");
    fs::create_dir_all(dir)?;
    let mut file = tempfile::Builder::new();
    // A web server reads it, as another user.
    #[cfg(unix)]
    file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let mut file = file.prefix(TEMPORARY).tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    file.persist(path)?;
    Ok(())
}

/// Removes what a killed process left where files of `manifest` are to be.
async fn clean(folder: &Path, manifest: &Manifest) -> Result<(), SyncError> {
    let paths = manifest.chunks().iter().map(|chunk| chunk_path(chunk.id));
    let paths = paths.chain([manifest_path(manifest.id())]).map(|path| folder.join(path));
    let dirs: BTreeSet<PathBuf> = paths.filter_map(|path| path.parent().map(Path::to_owned)).collect();
    blocking(move || {
        for path in dirs.into_iter().filter(|dir| dir.is_dir()) {
            remove_abandoned(&path).map_err(|cause| SyncError::File { path, cause })?;
        }
        Ok(())
    })
    .await
}

/// Removes what a killed process left in `dir`.
fn remove_abandoned(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY));
        let age = |time: SystemTime| time.elapsed().unwrap_or_default();
        if ours && ABANDONED_AFTER < age(entry.metadata()?.modified()?) {
            // Another process may have been sooner.
            drop(fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SyncError> + Send + 'static,
) -> Result<T, SyncError> {
    spawn_blocking(work).await.map_err(|_| SyncError::Stopped)?
}
