//! Why the store could not do what was asked. Every error names the folder, file or model.

use std::{io, path::PathBuf};

use surf_protocol::ModelId;

use super::files::is_disk_full;

/// Why the store could not do what was asked. That a chunk is not here is no error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the folder open.
    #[error("another surf-node uses the data folder {}; stop it or choose another folder", dir.display())]
    InUse {
        /// The store's folder.
        dir: PathBuf,
    },
    /// The folder cannot be made or written.
    #[error("cannot use {} as a data folder: {cause}", dir.display())]
    Folder {
        /// The store's folder.
        dir: PathBuf,
        /// What the file system said.
        #[source]
        cause: io::Error,
    },
    /// The disk is full, whatever the quota says.
    #[error("the disk that holds {} is full; free some space or lower --cache-size", path.display())]
    Disk {
        /// The file that could not be written.
        path: PathBuf,
        /// What the file system said.
        #[source]
        cause: io::Error,
    },
    /// The disk has little room left, that others need.
    #[error(
        "the disk that holds {} is nearly full: {free} bytes are free, of which the last {reserve} are left to \
         others, and nothing more may be evicted; free some space", dir.display()
    )]
    NearlyFull {
        /// The store's folder.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// A file failed in another way.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        cause: io::Error,
    },
    /// The quota does not suffice, and nothing more may be evicted.
    #[error(
        "the cache of {quota} bytes is full of pinned chunks and chunks in use: {need} more bytes are needed; \
         unpin a model or raise --cache-size"
    )]
    Full {
        /// Bytes that were to be written.
        need: u64,
        /// Bytes that the chunk files may take.
        quota: u64,
    },
    /// A published file is not what its manifest says.
    #[error("{} is no longer the file that was cut: it has {found} bytes instead of {expected}", path.display())]
    Changed {
        /// The user's file.
        path: PathBuf,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// A path that cannot be written down.
    #[error("the path {} is not Unicode; rename it, or publish with --copy", .0.display())]
    NotUnicode(PathBuf),
    /// The manifest has no file of that number.
    #[error("model {model} has no file number {file}")]
    NoSuchFile {
        /// The model.
        model: ModelId,
        /// Position in the manifest's list.
        file: u32,
    },
    /// A name that would be taken for an id, or is empty, too long or unprintable.
    #[error(
        "{0:?} cannot be the name of a model: it must be 1 to 255 printable characters, and not look like an id"
    )]
    BadAlias(String),
    /// The store has no manifest of that name.
    #[error("model {0} is not in the store")]
    NoSuchModel(ModelId),
    /// The runtime is shutting down, or the work died. What was asked may or may not have been done.
    #[error("the store was stopped in the middle of its work")]
    Stopped,
}

impl StoreError {
    /// The failure `cause` at `path`.
    pub(super) fn file(path: impl Into<PathBuf>, cause: io::Error) -> Self {
        let path = path.into();
        match is_disk_full(&cause) {
            true => Self::Disk { path, cause },
            false => Self::File { path, cause },
        }
    }
}

/// Why text names no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nothing here is called that.
    #[error("no model here is called {0:?}")]
    Unknown(String),
    /// Several models start with these digits.
    #[error("{text:?} could be any of {}", candidates.iter().map(ModelId::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The models that it could be, in order.
        candidates: Vec<ModelId>,
    },
    /// Not as many digits as an id has, and nothing here starts with them.
    #[error("no model here is called {text:?}; a model's id has 64 digits, and this has {digits}")]
    Digits {
        /// What was asked for.
        text: String,
        /// How many there are.
        digits: usize,
    },
    /// Too few digits to mean a model by.
    #[error("{0:?} is too short for a model id: give at least 8 digits")]
    TooShort(String),
}
