//! Real programs in a network of namespaces on this machine: the figures of `docs/benchmarks.md` that
//! need more than one host. Every figure is a command of `surf-sim lab`, and runs other programs for
//! the same job in the same network in the same run.
//!
//! - [`net`]: hosts, and the shaped links between them. Removed whatever happens.
//! - [`relay`]: delay, jitter and loss on the way between two hosts.
//! - [`process`]: programs on hosts.
//! - [`measure`]: what a run took.
//! - [`arena`]: some hosts have a file, others want it; what every program is put into.
//! - [`peers`]: the programs: our own, and those it is compared with.
//! - [`figures`]: one module for each figure.
//! - [`report`]: what comes out: tables, JSON, plots.
//! - [`rogue`]: a peer that means no good.

pub mod arena;
pub mod cli;
pub mod figures;
pub mod flood;
pub mod measure;
pub mod net;
pub mod peers;
pub mod process;
pub mod relay;
pub mod report;
pub mod rogue;

use std::{fs, path::PathBuf};

use net::Rate;

use crate::bench::{Failed, write_noise};

/// What every figure can be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the file that is moved.
    pub size: u64,
    /// What every link carries, unless the figure says otherwise.
    pub rate: Rate,
    /// How many times; medians are reported.
    pub rounds: usize,
    /// `surf-node`.
    pub program: PathBuf,
    /// This program.
    pub this: PathBuf,
    /// Folder for everything that is written on the way. Removed afterwards, but for logs of what failed.
    pub dir: PathBuf,
    /// Where to look for the programs to compare with, before `PATH`.
    pub peers: Option<PathBuf>,
    /// Those to compare with; `None`: all that are found.
    pub compare: Option<Vec<String>>,
}

/// A lab at work: what it was told, and a folder that goes with it.
#[derive(Debug)]
pub struct Lab {
    /// What it was told.
    pub options: Options,
    work: tempfile::TempDir,
}

/// A file to be moved.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The folder that holds it, and nothing else.
    pub folder: PathBuf,
    /// Its name.
    pub name: String,
    /// Bytes in it.
    pub size: u64,
}

impl Payload {
    /// The file.
    pub fn file(&self) -> PathBuf {
        self.folder.join(&self.name)
    }
}

impl Lab {
    /// A lab for `options`.
    pub fn new(options: Options) -> Result<Self, Failed> {
        let work = tempfile::Builder::new().prefix("surf-lab-").tempdir_in(&options.dir)?;
        Ok(Self { options, work })
    }

    /// A new, empty folder for what `name` writes.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Failed> {
        let path = self.work.path().join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        // Programs are started elsewhere too.
        Ok(path.canonicalize()?)
    }

    /// A file of noise: it neither compresses nor repeats, and is the same for the same size.
    pub fn payload(&self, size: u64) -> Result<Payload, Failed> {
        let payload = Payload { folder: self.folder("payload")?, name: "weights.bin".to_owned(), size };
        write_noise(&payload.file(), b"surf-sim lab", size)?;
        Ok(payload)
    }

    /// Says what is going on.
    pub fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}
