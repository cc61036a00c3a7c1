//! Where things are in the store's folder, and the few ways in which files are read and written.
//!
//! A file appears under its name whole or not at all: it is written in `incoming/`, then renamed.
//! Chunk files and manifests never change once they have their name.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use surf_chunker::open_regular;
use surf_protocol::{ChunkId, ModelId};

/// The places in the store's folder.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of the store in `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder that holds everything.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Locked as long as a process uses the folder.
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// sled's folder.
    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// Files on their way to their name. Emptied when the store opens.
    pub(super) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Chunk files, in a folder for each first byte of the hash.
    pub(super) fn chunks(&self) -> PathBuf {
        self.root.join("chunks")
    }

    /// The file of a chunk.
    pub(super) fn chunk(&self, id: ChunkId) -> PathBuf {
        let hex = id.to_hex();
        self.chunks().join(&hex[..2]).join(hex)
    }

    /// Encoded manifests.
    pub(super) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// The file of a manifest.
    pub(super) fn manifest(&self, model: ModelId) -> PathBuf {
        self.manifests().join(model.to_hex())
    }

    /// What the user said about models.
    pub(super) fn notes(&self) -> PathBuf {
        self.root.join("notes")
    }

    /// What the user said about one model.
    pub(super) fn note(&self, model: ModelId) -> PathBuf {
        self.notes().join(format!("{}.json", model.to_hex()))
    }

    /// How far the scrubbing is.
    pub(super) fn scrub(&self) -> PathBuf {
        self.root.join("scrub.json")
    }

    /// The names that the user gave to models.
    pub(super) fn aliases(&self) -> PathBuf {
        self.root.join("aliases.json")
    }

    /// Writes `bytes` and gives them the name `place`. When this returns, the file survives the end
    /// of the process; the returned handle is there for syncing it against the end of the power.
    ///
    /// Past the page cache where the system can: who waits for a chunk has it in memory already, and a
    /// model that is pulled must not push out what the machine works with.
    pub(super) fn write(&self, place: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut file = tempfile::NamedTempFile::new_in(self.incoming())?;
        let written = write_past_cache(file.as_file(), bytes)?;
        file.seek(SeekFrom::Start(written as u64))?;
        file.write_all(&bytes[written..])?;
        match file.persist(place) {
            Ok(file) => Ok(file),
            Err(missing) if missing.error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(place.parent().expect("places are in folders of the store"))?;
                Ok(missing.file.persist(place)?)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// As [`Layout::write`], and synced. For the few small files that cannot be fetched again.
    pub(super) fn write_synced(&self, place: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.incoming())?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(place)?;
        File::open(place.parent().expect("places are in folders of the store"))?.sync_all()
    }
}

/// Writes what it can of `bytes` to the beginning of `file` without leaving them in the page cache. Returns
/// how many were written: fewer than all where the system or the file system cannot do it.
#[cfg(target_os = "linux")]
fn write_past_cache(file: &File, bytes: &[u8]) -> io::Result<usize> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};

    /// `RWF_DONTCACHE`, since Linux 6.14: pages are dropped as soon as they are written.
    const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
    let mut written = 0;
    while written < bytes.len() {
        match pwritev2(file, &[io::IoSlice::new(&bytes[written..])], written as u64, DONT_CACHE) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Ok(more) => written += more,
            Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}

#[cfg(not(target_os = "linux"))]
fn write_past_cache(_: &File, _: &[u8]) -> io::Result<usize> {
    Ok(0)
}

/// Whether writing failed because there is no room on the disk, or no more than this user may have.
pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// All bytes of one of our own files, copied, so that nothing that happens to the file changes them.
pub(super) fn read(path: &Path, size: u32) -> io::Result<Bytes> {
    let mut file = open_regular(path)?;
    let found = file.metadata()?.len();
    if found != u64::from(size) {
        return Err(wrong_size(found, size));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    (&mut file).take(size.into()).read_to_end(&mut bytes)?;
    match bytes.len() == size as usize {
        true => Ok(bytes.into()),
        false => Err(wrong_size(bytes.len() as u64, size)),
    }
}

/// As [`read`], from the disk and not from what the system remembers of it, where it lets us.
pub(super) fn read_from_disk(path: &Path, size: u32) -> io::Result<Bytes> {
    forget_cached(path, 0, size);
    let bytes = read(path, size);
    // A look at everything must not push out what the machine works with.
    forget_cached(path, 0, size);
    bytes
}

/// Has the system forget what it remembers of part of a file. Where it does not, reading shows less.
pub(super) fn forget_cached(path: &Path, offset: u64, size: u32) {
    #[cfg(target_os = "linux")]
    if let Ok(file) = open_regular(path) {
        use rustix::fs::{Advice, fadvise};
        let _ = fadvise(&file, offset, std::num::NonZeroU64::new(size.into()), Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (path, offset, size);
}

/// Whether the disk could not read what it holds: a bad sector, say.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    #[cfg(unix)]
    let unreadable = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    #[cfg(not(unix))]
    let unreadable = false;
    unreadable
}

pub(super) fn wrong_size(found: u64, size: u32) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{found} bytes instead of {size}"))
}

/// Whether a file cannot be changed because nothing there can: the disk is full, or may not be written.
pub(super) fn is_unwritable(error: &io::Error) -> bool {
    is_disk_full(error)
        || matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// How a user's file looked when it was cut. If any of it differs, the bytes are not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Bytes.
    pub(super) size: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub(super) mtime_ns: i64,
    /// Which file it is, where the system numbers them.
    pub(super) inode: u64,
}

impl Stamp {
    /// How the file at `path` looks now. Follows links.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&fs::metadata(path)?))
    }

    fn of(metadata: &fs::Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let mtime_ns = since.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0);
        Self { size: metadata.len(), mtime_ns, inode: inode(metadata) }
    }
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

/// Bytes of a user's file, copied, because that file may change at any time. An error if it is not
/// the file that `stamp` was taken of, before or after reading.
pub(super) fn read_range(path: &Path, stamp: Stamp, offset: u64, size: u32) -> io::Result<Bytes> {
    let changed = || io::Error::new(io::ErrorKind::InvalidData, "the file has changed");
    let mut file = open_regular(path)?;
    if Stamp::of(&file.metadata()?) != stamp {
        return Err(changed());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.seek(SeekFrom::Start(offset))?;
    (&mut file).take(size.into()).read_to_end(&mut bytes)?;
    if bytes.len() != size as usize || Stamp::of(&file.metadata()?) != stamp {
        return Err(changed());
    }
    Ok(bytes.into())
}
