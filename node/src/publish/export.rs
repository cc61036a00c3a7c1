//! The files of a model, written byte for byte.
//!
//! A file appears under its name only when it is whole and its SHA-256 is what the manifest says. A
//! file that is there already is left alone if it is the same, and otherwise an error.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};
use surf_protocol::{Chunk, FileEntry, Manifest};
use tokio::task::spawn_blocking;

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
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// Another file is in the way.
    #[error("{0} is there already and is not the model's; move it away or choose another folder")]
    InTheWay(PathBuf),
    /// The chunks are right and the file is not: the manifest was made wrong.
    #[error("{0} does not have the SHA-256 that the manifest says; the model was published wrong")]
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
    manifest: &Manifest,
    dir: &Path,
    progress: impl Fn(Amount),
) -> Result<Exported, ExportError> {
    let total = manifest.files().iter().map(|file| file.size).sum();
    let mut done = 0;
    for file in manifest.files() {
        let path = dir.join(&file.path);
        if !is_there(&path, file).await? {
            write(model, file, &path, |bytes| progress(Amount { bytes: done + bytes, total })).await?;
        }
        done += file.size;
        progress(Amount { bytes: done, total });
    }
    Ok(Exported { model: manifest.id().to_string(), files: manifest.files().len(), bytes: total })
}

/// Whether `file` is at `path` already.
async fn is_there(path: &Path, file: &FileEntry) -> Result<bool, ExportError> {
    let (path, size, sha256) = (path.to_owned(), file.size, file.sha256);
    blocking(move || {
        let failed = |cause| ExportError::File { path: path.clone(), cause };
        let mut there = match File::open(&path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        let metadata = there.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() != size {
            return Err(ExportError::InTheWay(path));
        }
        if sha256_of(&mut there).map_err(failed)? == sha256 {
            Ok(true)
        } else {
            Err(ExportError::InTheWay(path))
        }
    })
    .await
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

async fn write(
    model: &dyn ModelSource,
    file: &FileEntry,
    path: &Path,
    progress: impl Fn(u64),
) -> Result<(), ExportError> {
    let mut partial = Some(
        blocking({
            let path = path.to_owned();
            move || Partial::create(&path)
        })
        .await?,
    );
    let mut chunks = stream::iter(file.chunks.clone())
        .map(|chunk| model.chunk(chunk, Urgency::Background))
        .buffered(AHEAD);
    let mut written = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        written += chunk.bytes().len() as u64;
        let mut mine = partial.take().expect("put back below");
        partial = Some(blocking(move || mine.append(&chunk).map(|()| mine)).await?);
        progress(written);
    }
    let (partial, sha256) = (partial.expect("put back above"), file.sha256);
    blocking(move || partial.finish(sha256)).await
}

/// A file that is being written beside its place.
struct Partial {
    file: tempfile::NamedTempFile,
    hasher: Sha256,
    path: Arc<Path>,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, ExportError> {
        let failed = |cause| ExportError::File { path: path.to_owned(), cause };
        let dir = path.parent().expect("a file stands in a folder");
        fs::create_dir_all(dir).map_err(failed)?;
        let file = tempfile::Builder::new().prefix(".surf-export-").tempfile_in(dir).map_err(failed)?;
        Ok(Self { file, hasher: Sha256::new(), path: Arc::from(path) })
    }

    fn append(&mut self, chunk: &Chunk) -> Result<(), ExportError> {
        self.hasher.update(chunk.bytes());
        let written = self.file.write_all(chunk.bytes());
        written.map_err(|cause| ExportError::File { path: self.path.to_path_buf(), cause })
    }

    fn finish(self, sha256: [u8; 32]) -> Result<(), ExportError> {
        if self.hasher.finalize()[..] != sha256 {
            return Err(ExportError::Hash(self.path.to_path_buf()));
        }
        let failed = |cause| ExportError::File { path: self.path.to_path_buf(), cause };
        make_readable(self.file.as_file()).map_err(failed)?;
        match self.file.persist_noclobber(&self.path) {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(ExportError::InTheWay(self.path.to_path_buf()))
            }
            Err(error) => Err(failed(error.error)),
        }
    }
}

/// Temporary files are private; exported ones are as other programs make them.
fn make_readable(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    spawn_blocking(work).await.map_err(|_| ExportError::Stopped)?
}
