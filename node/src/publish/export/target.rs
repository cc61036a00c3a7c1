//! A folder that is written to, held open, so that nothing below it leads elsewhere.
//!
//! Every step down is by one name that is no link. A file is written beside its place, under a name of ours,
//! and locked: what is there without a lock was left by a node that was killed, and goes.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use surf_chunker::PARTIAL_PREFIX;

use super::ExportError;

/// As other programs make files and folders: the user's mask takes away what they do not want.
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o777);

/// A folder, open.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, if it is there. It may be a link: that is the user's choice.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, ExportError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd: Arc::new(fd), path: path.to_owned() })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(path, error)),
        }
    }

    /// The same, made if it is not there.
    pub(super) fn make(path: &Path) -> Result<Self, ExportError> {
        let error = |cause| ExportError::File { path: path.to_owned(), cause };
        fs::create_dir_all(path).map_err(error)?;
        Self::open(path)?.ok_or_else(|| error(io::ErrorKind::NotFound.into()))
    }

    /// The folder `name` in this one, if it is there.
    pub(super) fn enter(&self, name: &str) -> Result<Option<Self>, ExportError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd: Arc::new(fd), path })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) if self.is_link(name) => Err(ExportError::Link(path)),
            Err(Errno::NOTDIR) => Err(ExportError::InTheWay(path)),
            Err(error) => Err(failed(&path, error)),
        }
    }

    /// The same, made if it is not there.
    pub(super) fn enter_or_make(&self, name: &str) -> Result<Self, ExportError> {
        match rustix::fs::mkdirat(&self.fd, name, FOLDER_MODE) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(error) => return Err(failed(&self.path.join(name), error)),
        }
        let gone = || failed(&self.path.join(name), Errno::NOENT);
        self.enter(name)?.ok_or_else(gone)
    }

    /// The file `name` in this folder, to be read, if it is there.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>, ExportError> {
        let path = self.path.join(name);
        // A pipe must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(ExportError::Link(path)),
            Err(Errno::NXIO) => return Err(ExportError::InTheWay(path)),
            Err(error) => return Err(failed(&path, error)),
        };
        let metadata = file.metadata().map_err(|cause| ExportError::File { path: path.clone(), cause })?;
        if metadata.is_file() { Ok(Some(file)) } else { Err(ExportError::InTheWay(path)) }
    }

    /// Where it is, for people.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its file system takes names as Windows does.
    pub(super) fn is_of_windows(&self) -> bool {
        super::names::is_of_windows(&*self.fd)
    }

    fn is_link(&self, name: &str) -> bool {
        self.kind(name).is_some_and(|(kind, _)| kind == FileType::Symlink)
    }

    /// What stands there, and its size.
    fn kind(&self, name: &str) -> Option<(FileType, u64)> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((FileType::from_raw_mode(stat.st_mode), stat.st_size.try_into().unwrap_or(0)))
    }

    /// Removes what nodes that were killed have left here.
    pub(super) fn sweep(&self) {
        let Ok(entries) = Dir::read_from(&*self.fd) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !name.to_bytes().starts_with(PARTIAL_PREFIX.as_bytes()) {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let Ok(file) = rustix::fs::openat(&self.fd, name, flags, Mode::empty()) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // If it cannot be removed, it is in nobody's way.
                let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
            }
        }
    }
}

/// A file that is being written beside its place. Gone when dropped.
pub(super) struct Partial {
    folder: Folder,
    file: File,
    /// What it is called meanwhile; empty once it has its own name.
    temporary: String,
    name: String,
}

impl Partial {
    /// Begins the file `name` in `folder`.
    pub(super) fn create(folder: Folder, name: &str) -> Result<Self, ExportError> {
        let temporary = format!("{PARTIAL_PREFIX}{:016x}", rand::random::<u64>());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder.fd, temporary.as_str(), flags, FILE_MODE);
        let file = file.map_err(|error| failed(&folder.path.join(name), error))?;
        // Where files cannot be locked, they are not swept either.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { folder, file: File::from(file), temporary, name: name.to_owned() })
    }

    /// Where it will be.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.file.write_all(bytes).map_err(|cause| ExportError::File { path: self.path(), cause })
    }

    /// Gives it its name, unless something stands there. An empty file there is replaced: it holds nothing, and
    /// may be the place that [`Partial::claim`] has taken before the node was killed.
    pub(super) fn finish(mut self) -> Result<(), ExportError> {
        let (fd, from, to) = (&self.folder.fd, self.temporary.as_str(), self.name.as_str());
        let placed = match rustix::fs::renameat_with(fd, from, fd, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link(),
            other => other,
        };
        let placed = match placed {
            Err(Errno::EXIST) if self.folder.kind(to) == Some((FileType::RegularFile, 0)) => {
                rustix::fs::renameat(fd, from, fd, to)
            }
            other => other,
        };
        match placed {
            Ok(()) => {
                self.temporary.clear();
                Ok(())
            }
            Err(Errno::EXIST) => Err(ExportError::InTheWay(self.path())),
            Err(error) => Err(failed(&self.path(), error)),
        }
    }

    /// The same where a file cannot be renamed without replacing another.
    fn link(&self) -> Result<(), Errno> {
        let (fd, from, to) = (&self.folder.fd, self.temporary.as_str(), self.name.as_str());
        match rustix::fs::linkat(fd, from, fd, to, AtFlags::empty()) {
            // The temporary name goes too; if it cannot, the next export removes it.
            Ok(()) => {
                let _ = rustix::fs::unlinkat(fd, from, AtFlags::empty());
                Ok(())
            }
            Err(Errno::EXIST) => Err(Errno::EXIST),
            Err(_) => self.claim(),
        }
    }

    /// The same where there are no hard links either: takes the place with an empty file, and replaces that.
    fn claim(&self) -> Result<(), Errno> {
        let (fd, from, to) = (&self.folder.fd, self.temporary.as_str(), self.name.as_str());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        drop(rustix::fs::openat(fd, to, flags, FILE_MODE)?);
        rustix::fs::renameat(fd, from, fd, to).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(fd, to, AtFlags::empty());
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.temporary.is_empty() {
            let _ = rustix::fs::unlinkat(&self.folder.fd, self.temporary.as_str(), AtFlags::empty());
        }
    }
}

fn failed(path: &Path, error: Errno) -> ExportError {
    ExportError::File { path: path.to_owned(), cause: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(folder: &Folder, bytes: &[u8]) -> Partial {
        let mut partial = Partial::create(folder.clone(), "a").unwrap();
        partial.append(bytes).unwrap();
        partial
    }

    fn names(path: &Path) -> Vec<String> {
        let names =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    /// Each way to give a file its name, as if the better ones were not there.
    #[test]
    fn every_way_to_place_a_file_replaces_nothing() {
        for way in [Partial::link as fn(&Partial) -> _, Partial::claim] {
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::make(dir.path()).unwrap();
            assert_eq!(way(&partial(&folder, b"one")), Ok(()));
            assert_eq!(way(&partial(&folder, b"two")), Err(Errno::EXIST));
            assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"one");
            assert_eq!(names(dir.path()), ["a"]);
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path()).unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        partial(&folder, b"one").finish().unwrap();
        let error = partial(&folder, b"two").finish().unwrap_err();
        assert!(matches!(error, ExportError::InTheWay(_)), "{error}");
        assert_eq!(
            (fs::read(dir.path().join("a")).unwrap(), names(dir.path())),
            (b"one".to_vec(), vec!["a".into()])
        );
    }

    #[test]
    fn only_what_nobody_writes_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path()).unwrap();
        let writing = partial(&folder, b"one");
        for name in [".surf-export-0123", ".surf-other", "b"] {
            fs::write(dir.path().join(name), "left").unwrap();
        }
        folder.sweep();
        let mut left = names(dir.path());
        left.sort();
        let mut expected = [writing.temporary.clone(), ".surf-other".to_owned(), "b".to_owned()];
        expected.sort();
        assert_eq!(left, expected);
        writing.finish().unwrap();
    }
}
