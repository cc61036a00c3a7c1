//! Chunk files that are computed with where they lie: mapped, so that they cost no memory of ours.
//!
//! A mapping shows what the file holds now, not what it held when it was checked. So each remembers how
//! its file looked just before (device, inode, size, times), and [`InFile::is_unchanged`] looks again:
//! whoever computed with the bytes asks before the result counts. A file that shrinks, or that the disk
//! cannot read, would kill the process; [`guard`] puts zeros there instead and marks the mapping.
//!
//! What this cannot notice: a writer that had the page mapped and dirty before we looked (its next
//! write-back moves the time), and a medium that loses bits by itself. The scrubber finds both.

mod guard;

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use surf_chunker::open_regular;
use surf_protocol::chunk::InFile;

use self::guard::Guarded;

/// A file that changed within this time may change again without its times showing it: they are as
/// coarse as the kernel's tick, 10 ms at most.
const YOUNG_NS: i64 = 50_000_000;

/// The same, where times are whole seconds (ext3), or even ones (FAT).
const YOUNG_COARSE_NS: i64 = 3 * NS_PER_S;

const NS_PER_S: i64 = 1_000_000_000;

/// A mapped chunk file.
#[derive(Debug)]
pub(super) struct Mapping {
    bytes: Guarded,
    path: PathBuf,
    look: Look,
}

/// How a file looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

/// The file at `path` of `size` bytes, mapped, and read from the disk on this thread. `None` if it cannot
/// be trusted to show changes, or if there are too many mappings: then read it.
pub(super) fn map(path: &Path, size: u32) -> io::Result<Option<(Bytes, Arc<Mapping>)>> {
    let file = open_regular(path)?;
    let look = Look::of(&file.metadata()?);
    if look.size != u64::from(size) {
        return Err(super::files::wrong_size(look.size, size));
    }
    if size == 0 || look.is_young(now_ns()) {
        return Ok(None);
    }
    let Some(bytes) = Guarded::new(map_file(&file)?) else { return Ok(None) };
    let mapping = Arc::new(Mapping { bytes, path: path.to_owned(), look });
    Ok(Some((Bytes::from_owner(Shared(Arc::clone(&mapping))), mapping)))
}

impl InFile for Mapping {
    fn is_unchanged(&self) -> bool {
        !self.bytes.is_damaged() && Look::at(&self.path).is_ok_and(|look| look == self.look)
    }
}

impl Look {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }

    fn of(metadata: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(NS_PER_S).saturating_add(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change at `now_ns` might leave the times as they are.
    fn is_young(&self, now_ns: i64) -> bool {
        let young = if self.ctime_ns % NS_PER_S == 0 { YOUNG_COARSE_NS } else { YOUNG_NS };
        now_ns.saturating_sub(self.ctime_ns) < young
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the file system's clock, which no simulator moves"
)]
fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// What keeps a mapping alive for those who hold its bytes.
struct Shared(Arc<Mapping>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes.as_ref()
    }
}

#[expect(unsafe_code, reason = "the file may change under the mapping: see the module, and below")]
fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: a change shows as other bytes in a `&[u8]`, which code that only computes with them can
    // bear: any bytes are numbers, nothing is parsed from them, and the result is thrown away. Reading
    // beyond a new end of the file is caught by `guard`. Removing the file's name leaves the mapping whole.
    unsafe { MmapOptions::new().populate().map(file) }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Seek, SeekFrom, Write},
    };

    use super::*;

    const SIZE: usize = 1 << 20;

    /// The mapping of the file at `path`, once it is old enough.
    fn mapped(path: &Path) -> (Bytes, Arc<Mapping>) {
        loop {
            if let Some(found) = map(path, SIZE as u32).unwrap() {
                return found;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_that_shrinks_reads_as_zeros_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..4).map(|at| dir.path().join(at.to_string())).collect();
        paths.iter().for_each(|path| fs::write(path, vec![7; SIZE]).unwrap());
        let maps: Vec<_> = paths.iter().map(|path| mapped(path)).collect();
        for (path, keep) in [(&paths[0], 0), (&paths[1], 1), (&paths[2], SIZE as u64 / 2)] {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(keep).unwrap();
        }
        // From several threads at once: each is caught where it is.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (bytes, _) in &maps[..3] {
                        assert_eq!(bytes[SIZE - 1], 0);
                    }
                });
            }
        });
        let unchanged: Vec<_> = maps.iter().map(|(_, mapping)| mapping.is_unchanged()).collect();
        assert_eq!(unchanged, [false, false, false, true]);
        assert!(maps[0].1.bytes.is_damaged());
        assert!(maps[3].0.iter().all(|byte| *byte == 7));
        // What comes to lie in the same place of the table begins anew.
        drop(maps);
        fs::write(&paths[0], vec![8; SIZE]).unwrap();
        let (bytes, mapping) = mapped(&paths[0]);
        assert!(bytes[SIZE - 1] == 8 && mapping.is_unchanged());
    }

    #[test]
    fn every_change_through_the_file_system_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk");
        let other = dir.path().join("other");
        type Change = fn(&Path, &Path);
        let changes: [Change; 5] = [
            |path, _| {
                let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.seek(SeekFrom::Start(5)).unwrap();
                file.write_all(b"x").unwrap();
            },
            |path, _| {
                // With the time put back.
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                (&file).write_all(b"x").unwrap();
                file.set_modified(before).unwrap();
            },
            |path, _| fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap(),
            |path, other| {
                fs::write(other, vec![7; SIZE]).unwrap();
                fs::rename(other, path).unwrap();
            },
            |path, _| fs::remove_file(path).unwrap(),
        ];
        for (at, change) in changes.iter().enumerate() {
            fs::write(&path, vec![7; SIZE]).unwrap();
            let (bytes, mapping) = mapped(&path);
            assert!(mapping.is_unchanged(), "change {at}");
            change(&path, &other);
            assert!(!mapping.is_unchanged(), "change {at}");
            drop(bytes);
        }
    }

    #[test]
    fn a_young_file_is_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk");
        fs::write(&path, vec![7; SIZE]).unwrap();
        let look = |ctime_ns| Look { ctime_ns, ..Look::at(&path).unwrap() };
        let then = 1_000_000_000_000_000_001;
        assert!(look(then).is_young(then) && look(then).is_young(then + YOUNG_NS - 1));
        assert!(!look(then).is_young(then + YOUNG_NS));
        assert!(look(then).is_young(then - NS_PER_S), "a clock that is behind");
        // Times in whole seconds say less.
        assert!(
            look(then - 1).is_young(then + 2 * NS_PER_S) && !look(then - 1).is_young(then + 4 * NS_PER_S)
        );
        assert!(map(&path, SIZE as u32 + 1).is_err());
    }
}
