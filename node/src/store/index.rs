//! The index of chunk files: which there are, how large, when last used. The only user of sled.
//!
//! The files are the truth and the index only spares hashing them again when the store opens, so it
//! may be lost at any time. sled is no longer developed, and answers damage with errors or panics:
//! both are caught when it opens, and it starts anew. While the store runs, a failure of the index is
//! logged and otherwise ignored; files that it does not know are found when the store next opens.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use surf_protocol::{ChunkId, ModelId, manifest::CHECK};

use super::{error::StoreError, files::is_unwritable, record::Record};

/// What sled may keep in memory. Everything it knows is in memory already.
const CACHE_BYTES: u64 = 8 << 20;
/// How old an entry may get before it is on disk.
const FLUSH_EVERY_MS: u64 = 500;
const TREE: &str = "chunks";
const CHECKED: &str = "checked manifests";
/// What the folder of an index that is being thrown away starts with.
const DAMAGED: &str = "index.damaged-";

/// An index; or none, where the disk has no room for one or may not be written.
#[derive(Debug)]
pub(super) struct Index(Option<Open>);

/// An open index.
#[derive(Debug)]
struct Open {
    chunks: sled::Tree,
    /// Manifests that were checked, and by which version of the check.
    checked: sled::Tree,
    /// Set when it could not be written: sled does not recover from that.
    broken: AtomicBool,
    /// Held so that it is closed last.
    _db: sled::Db,
}

/// What an index knows when it opens.
pub(super) type Records = HashMap<ChunkId, Record>;

enum Failure {
    /// The index cannot be used as it is.
    Damaged(String),
    /// Something else is wrong, that starting anew would not mend.
    Outside(sled::Error),
}

impl Index {
    /// Opens the index in `dir`, which no other process uses. A damaged one is thrown away; without one, what
    /// it would know is read from the files.
    pub(super) fn open(dir: &Path) -> Result<(Self, Records), StoreError> {
        remove_damaged(dir);
        let damage = match attempt(dir) {
            Ok(opened) => return Ok(opened),
            Err(Failure::Outside(error)) => return Ok(Self::without(dir, &error.to_string())),
            Err(Failure::Damaged(damage)) => damage,
        };
        tracing::warn!(dir = %dir.display(), %damage, "the index is damaged; rebuilding it from the files");
        let aside = dir.with_file_name(format!("{DAMAGED}{}", std::process::id()));
        match fs::rename(dir, &aside) {
            Err(error) if is_unwritable(&error) => return Ok(Self::without(dir, &error.to_string())),
            moved => moved.map_err(|cause| StoreError::file(dir, cause))?,
        }
        remove_damaged(dir);
        Ok(match attempt(dir) {
            Ok(opened) => opened,
            Err(Failure::Outside(error)) => Self::without(dir, &error.to_string()),
            Err(Failure::Damaged(damage)) => Self::without(dir, &damage),
        })
    }

    fn without(dir: &Path, why: &str) -> (Self, Records) {
        tracing::warn!(dir = %dir.display(), why, "the index cannot be written; going on without it");
        (Self(None), Records::new())
    }

    /// Remembers a chunk file, or a later use of it.
    pub(super) fn insert(&self, entries: impl IntoIterator<Item = (ChunkId, Record)>) {
        let mut batch = sled::Batch::default();
        entries.into_iter().for_each(|(id, record)| batch.insert(id.as_bytes(), &record.encode()));
        self.apply(batch);
    }

    /// Forgets chunk files.
    pub(super) fn remove(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut batch = sled::Batch::default();
        ids.into_iter().for_each(|id| batch.remove(id.as_bytes()));
        self.apply(batch);
    }

    /// Whether the manifest of `model` was checked by this version of the check.
    pub(super) fn is_checked(&self, model: ModelId) -> bool {
        let Some(open) = self.working() else { return false };
        let found = open.checked.get(model.as_bytes()).ok().flatten();
        found.is_some_and(|version| *version == CHECK.to_le_bytes())
    }

    /// Remembers that it was.
    pub(super) fn set_checked(&self, model: ModelId) {
        let Some(open) = self.working() else { return };
        if let Err(error) = open.checked.insert(model.as_bytes(), &CHECK.to_le_bytes()) {
            tracing::warn!(%error, "the index could not be written; a manifest will be checked again");
        }
    }

    /// The index, if there is one that works.
    fn working(&self) -> Option<&Open> {
        self.0.as_ref().filter(|open| !open.broken.load(Ordering::Relaxed))
    }

    fn apply(&self, batch: sled::Batch) {
        let Some(open) = self.working() else { return };
        // Nothing of ours is in there, and it is not asked again.
        let applied = panic::catch_unwind(AssertUnwindSafe(|| open.chunks.apply_batch(batch)));
        let error = match applied {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        open.broken.store(true, Ordering::Relaxed);
        tracing::warn!(%error, "the index could not be written; going on without it");
    }
}

fn attempt(dir: &Path) -> Result<(Index, Records), Failure> {
    wait_for_predecessor(dir);
    // Nothing of ours is left half changed by a panic in there: all of it is made inside.
    match panic::catch_unwind(AssertUnwindSafe(|| open_and_read(dir))) {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::Damaged("sled panicked".to_owned())),
    }
}

fn open_and_read(dir: &Path) -> Result<(Index, Records), Failure> {
    let config =
        sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
    let db = config.open().map_err(Failure::from)?;
    let chunks = db.open_tree(TREE).map_err(Failure::from)?;
    let checked = db.open_tree(CHECKED).map_err(Failure::from)?;
    let mut records = Records::new();
    for entry in &chunks {
        let (key, value) = entry.map_err(Failure::from)?;
        let id = ChunkId::from_bytes(&key);
        let Some((id, record)) = id.zip(Record::decode(&value)) else {
            return Err(Failure::Damaged("a record cannot be read".to_owned()));
        };
        records.insert(id, record);
    }
    let open = Open { chunks, checked, broken: AtomicBool::new(false), _db: db };
    Ok((Index(Some(open)), records))
}

/// sled lets go of its lock from a thread of its own, some time after the last handle is dropped.
/// Nobody but an earlier store of this process can hold it: the store's folder is locked by us.
fn wait_for_predecessor(dir: &Path) {
    if let Ok(file) = File::open(dir.join("db")) {
        // If locks do not work here, sled will say so.
        let _ = file.lock().and_then(|()| file.unlock());
    }
}

fn remove_damaged(dir: &Path) {
    let siblings = dir.parent().and_then(|root| fs::read_dir(root).ok());
    for entry in siblings.into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(DAMAGED)) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "cannot remove a damaged index");
            }
        }
    }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        match &error {
            sled::Error::Io(cause) => match cause.kind() {
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::ReadOnlyFilesystem => Self::Outside(error),
                _ => Self::Damaged(error.to_string()),
            },
            _ => Self::Damaged(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_there_when_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let (kept, gone) = (ChunkId::of(b"kept"), ChunkId::of(b"gone"));
        let record = Record { size: 4, last_use: 9 };
        {
            let (index, records) = Index::open(&path).unwrap();
            assert!(records.is_empty());
            index.insert([(kept, record), (gone, record)]);
            index.remove([gone]);
        }
        let (_index, records) = Index::open(&path).unwrap();
        assert_eq!(records, Records::from([(kept, record)]));
    }

    #[test]
    fn a_damaged_index_starts_anew() {
        for garbage in [&b""[..], b"garbage", &[0xff; 5000]] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("index");
            {
                let (index, _) = Index::open(&path).unwrap();
                index.insert([(ChunkId::of(b"x"), Record { size: 1, last_use: 1 })]);
            }
            for entry in fs::read_dir(&path).unwrap().flatten().filter(|entry| entry.path().is_file()) {
                fs::write(entry.path(), garbage).unwrap();
            }
            let (index, _) = Index::open(&path).unwrap();
            index.insert([(ChunkId::of(b"y"), Record { size: 1, last_use: 1 })]);
            drop(index);
            assert!(Index::open(&path).unwrap().1.contains_key(&ChunkId::of(b"y")));
            let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
            assert_eq!(left, ["index"]);
        }
    }

    #[test]
    fn a_file_where_the_index_should_be_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        fs::write(&path, b"not a folder").unwrap();
        assert!(Index::open(&path).unwrap().1.is_empty());
    }
}
