//! Which files a folder holds, and what each really is on disk.
//!
//! Nothing outside the folder is ever listed, unless the caller follows links or the folder is a
//! snapshot in a Hugging Face cache, whose files are links into the `blobs` beside it. The order of
//! the list, and of the errors, is that of the paths, not that of the file system.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use surf_protocol::limits::PATH_SIZE_MAX;

use crate::{CutError, cut::Options, open_regular};

/// Files and folders looked at, a bound on links that multiply paths. Large models have thousands.
pub(crate) const ENTRIES_MAX: usize = 1 << 20;

/// Folders that tools keep their own state in: a copy of everything, or of what was downloaded when.
const SKIPPED: [&str; 2] = [".git", ".cache"];

/// How files begin that a node is writing, or was when it was killed: they are not the user's.
pub const PARTIAL_PREFIX: &str = ".surf-export-";

/// One file to publish.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Where in the folder, with `/` between parts.
    pub path: String,
    /// The file on disk, absolute and without links.
    pub real: PathBuf,
    /// Bytes in it.
    pub size: u64,
    /// The path as the user sees it, for errors.
    pub(crate) seen: PathBuf,
    pub(crate) stamp: Stamp,
}

/// By which a file is known not to have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where there are such.
    node: (u64, u64),
}

/// The files under `path`, sorted by path; or `path` alone, if it is a file.
///
/// `.git` and `.cache` folders and what nodes were writing are left out; other hidden files are not. The path itself may be a link.
pub fn list(path: &Path, options: &Options) -> Result<Vec<Listed>, CutError> {
    let failed = |source| CutError::Io { path: path.to_owned(), source };
    let root = fs::canonicalize(path).map_err(failed)?;
    let metadata = fs::metadata(&root).map_err(failed)?;
    let mut walk = Walk {
        given: path,
        allowed: [Some(root.clone()), cache_blobs(&root)].into_iter().flatten().collect(),
        follow_links: options.follow_links,
        within: Vec::new(),
        entries: 0,
        files: Vec::new(),
    };
    if metadata.is_dir() {
        walk.folder(&root, path, "")?;
    } else {
        // A path like `x/..` has no name of its own, but is no file either.
        let name = path.file_name().or(root.file_name()).unwrap_or_default();
        walk.file(&metadata, root.clone(), path.to_owned(), plain_path("", name, path)?)?;
    }
    walk.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.files)
}

struct Walk<'a> {
    given: &'a Path,
    /// Folders that links may lead into.
    allowed: Vec<PathBuf>,
    follow_links: bool,
    /// The folders that hold the current one, without links.
    within: Vec<PathBuf>,
    entries: usize,
    files: Vec<Listed>,
}

impl Walk<'_> {
    fn folder(&mut self, real: &Path, seen: &Path, path: &str) -> Result<(), CutError> {
        if self.within.iter().any(|folder| folder == real) {
            return Err(CutError::LinkLoop { link: seen.to_owned() });
        }
        self.within.push(real.to_owned());
        for name in self.names(real, seen)? {
            let seen = seen.join(&name);
            let failed = |source| CutError::Io { path: seen.clone(), source };
            let mut real = real.join(&name);
            let mut metadata = fs::symlink_metadata(&real).map_err(failed)?;
            if metadata.is_symlink() {
                real = self.follow(&real, &seen)?;
                metadata = fs::symlink_metadata(&real).map_err(failed)?;
            }
            let skipped = match metadata.is_dir() {
                true => SKIPPED.iter().any(|skipped| name == *skipped),
                false => name.as_encoded_bytes().starts_with(PARTIAL_PREFIX.as_bytes()),
            };
            if skipped {
                continue;
            }
            let path = plain_path(path, &name, &seen)?;
            match metadata.is_dir() {
                true => self.folder(&real, &seen, &path)?,
                false => self.file(&metadata, real, seen, path)?,
            }
        }
        self.within.pop();
        Ok(())
    }

    fn file(
        &mut self,
        metadata: &fs::Metadata,
        real: PathBuf,
        seen: PathBuf,
        path: String,
    ) -> Result<(), CutError> {
        if !metadata.is_file() {
            return Err(CutError::Special { path: seen });
        }
        self.files.push(Listed { path, real, size: metadata.len(), seen, stamp: Stamp::of(metadata) });
        Ok(())
    }

    /// What is in a folder, sorted.
    fn names(&mut self, real: &Path, seen: &Path) -> Result<Vec<OsString>, CutError> {
        let failed = |source| CutError::Io { path: seen.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(real).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
            self.entries += 1;
            if ENTRIES_MAX < self.entries {
                return Err(CutError::TooMany { path: self.given.to_owned() });
            }
        }
        names.sort();
        Ok(names)
    }

    fn follow(&self, link: &Path, seen: &Path) -> Result<PathBuf, CutError> {
        let target = fs::canonicalize(link)
            .map_err(|source| CutError::LinkBroken { link: seen.to_owned(), source })?;
        let allowed = self.follow_links || self.allowed.iter().any(|folder| target.starts_with(folder));
        if allowed { Ok(target) } else { Err(CutError::LinkLeaves { link: seen.to_owned(), target }) }
    }
}

/// `name` under `path`, if a manifest can hold that.
fn plain_path(path: &str, name: &std::ffi::OsStr, seen: &Path) -> Result<String, CutError> {
    let name = name.to_str().ok_or_else(|| CutError::NotUtf8 { path: seen.to_owned() })?;
    let whole = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    let fits = whole.len() <= PATH_SIZE_MAX && !name.contains('\\');
    if fits { Ok(whole) } else { Err(CutError::Name { path: seen.to_owned() }) }
}

/// The `blobs` of `…/models--ORG--NAME/snapshots/REVISION[/…]`.
fn cache_blobs(root: &Path) -> Option<PathBuf> {
    root.ancestors().find_map(|revision| {
        let snapshots = revision.parent()?;
        let repository = snapshots.parent()?;
        let kind = repository.file_name()?.to_str()?.split_once("--")?.0;
        let cached =
            snapshots.file_name()? == "snapshots" && ["models", "datasets", "spaces"].contains(&kind);
        cached.then(|| repository.join("blobs"))
    })
}

impl Stamp {
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        #[cfg(unix)]
        let node = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let node = (0, 0);
        Self { size: metadata.len(), modified: metadata.modified().ok(), node }
    }
}

impl Listed {
    /// Opens the file, if it is still the one that was listed.
    pub(crate) fn open(&self) -> Result<fs::File, CutError> {
        let file = open_regular(&self.real).map_err(|source| self.failed(source))?;
        self.unchanged(&file)?;
        Ok(file)
    }

    /// Checks that `file`, and what now stands at its path, is still what was listed.
    pub(crate) fn unchanged(&self, file: &fs::File) -> Result<(), CutError> {
        let open = file.metadata().map_err(|source| self.failed(source))?;
        let there = fs::symlink_metadata(&self.real);
        let same = Stamp::of(&open) == self.stamp && there.is_ok_and(|there| Stamp::of(&there) == self.stamp);
        if same { Ok(()) } else { Err(CutError::Changed { file: self.seen.clone() }) }
    }

    /// The error for what happened when reading this file.
    pub(crate) fn failed(&self, source: io::Error) -> CutError {
        match source.kind() {
            // Its size was known: only shrinking can end it early.
            io::ErrorKind::UnexpectedEof => CutError::Changed { file: self.seen.clone() },
            _ => CutError::Io { path: self.seen.clone(), source },
        }
    }
}
