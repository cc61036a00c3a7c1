//! Files with secrets: the node's key, the key of a swarm. They are made once, whole or not at all, with
//! a mode that lets nobody else read them; and what somebody else can read is not taken for a secret.

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// A file with a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read or written.
    #[error("cannot read or write the key file {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// Others may read the file, so the secret may not be only ours.
    #[error("the key file {path} can be read by other users (mode {mode:03o}): run chmod 600 on it", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl SecretError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Io { path: path.to_owned(), cause }
    }
}

/// What the file at `path` holds, up to `size_max` bytes.
pub fn read(path: &Path, size_max: u64) -> Result<Vec<u8>, SecretError> {
    let failed = SecretError::io(path);
    let file = fs::File::open(path).map_err(&failed)?;
    refuse_exposed(path, &file.metadata().map_err(&failed)?)?;
    let mut bytes = Vec::new();
    file.take(size_max).read_to_end(&mut bytes).map_err(&failed)?;
    Ok(bytes)
}

/// Makes the file at `path`, which must not be there yet, and its folder. The secret is written under a
/// temporary name that only we can read: a crash cannot leave half a key behind.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), SecretError> {
    let write = || {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(SecretError::io(path))
}

#[cfg(unix)]
fn refuse_exposed(path: &Path, about: &fs::Metadata) -> Result<(), SecretError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(SecretError::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn refuse_exposed(_: &Path, _: &fs::Metadata) -> Result<(), SecretError> {
    Ok(())
}
