//! A folder becomes a model of fewer bits, and what that costs is measured.
//!
//! - `mix`: which tensor becomes what. Pure.
//! - `plan`: what becomes of each file.
//! - `write`: the new files, tensor by tensor, in memory that does not depend on the model.
//! - `measure`: the same text, read by both models.
//!
//! New files are written beside the store, in a folder that goes with the work, cut like any others, and copied into
//! the store. What is not quantised stays byte for byte as it is. Of weights in other formats, and of copies of the
//! same weights, nothing is published.

mod measure;
mod mix;
mod plan;
#[cfg(test)]
mod tests;
mod write;

use std::{
    any::Any,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::BoxFuture;
use surf_chunker::Options;
use surf_protocol::Manifest;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

pub use mix::Kind;
pub use plan::Unsuitable;
pub use write::WriteError;

use super::folder::{PublishError, folder};
use crate::{
    api::{Amount, PublishPhase, PublishProgress, PublishRequest, Published, Quality, Quantized},
    config,
    store::Store,
};
use plan::Plan;
use write::Writer;

/// The folder for what is being written, in the node's data folder.
pub(super) const FOLDER: &str = "quantizing";

/// Why a quantised model could not be published.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// There is no such way to quantise.
    #[error("{0}")]
    Kind(String),
    /// The folder cannot be quantised.
    #[error("{path:?} cannot be quantised: {why}")]
    Unsuitable {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: Unsuitable,
    },
    /// It would not fit.
    #[error("the quantised model needs {needed} bytes {place}, which has room for {room}")]
    NoRoom {
        /// Bytes that it takes.
        needed: u64,
        /// Where.
        place: &'static str,
        /// Bytes that there are.
        room: u64,
    },
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What was written could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// How to quantise, and with what.
#[derive(Clone, Debug)]
pub struct Quantizing {
    /// The node's data folder.
    pub data_dir: PathBuf,
    /// How models are run, to measure them.
    pub engine: config::Engine,
    /// Whoever else runs models in the same memory.
    pub host: Option<Arc<dyn ModelHost>>,
}

/// Whoever runs models in the memory in which what was quantised is to be measured.
pub trait ModelHost: fmt::Debug + Send + Sync {
    /// Waits until nothing runs, and runs nothing until what is returned is dropped; or says why not.
    fn alone(&self) -> BoxFuture<'_, Result<Box<dyn Any + Send>, String>>;
}

/// Removes what work that was cut off has left in the node's data folder.
pub fn sweep(data_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(data_dir.join(FOLDER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Publishes the folder that `request` names, quantised as it says. `progress` is called from several threads.
pub async fn quantized(
    store: &Store,
    request: &PublishRequest,
    quantizing: &Quantizing,
    progress: impl Fn(PublishProgress) + Clone + Send + Sync + 'static,
) -> Result<(Arc<Manifest>, Published), QuantizeError> {
    let kind = request.quantize.as_deref().unwrap_or_default().parse().map_err(QuantizeError::Kind)?;
    let tell = |phase| {
        let progress = progress.clone();
        move |amount| progress(PublishProgress { phase, amount })
    };
    let (path, options) = (PathBuf::from(&request.path), Options { follow_links: request.follow_links });
    let made = Making { store: store.clone(), data_dir: quantizing.data_dir.clone(), path, options };
    let work = Work::default();
    let stopped = Arc::clone(&work.stopped);
    let telling = tell(PublishPhase::Quantizing);
    let made = spawn_blocking(move || made.make(kind, &stopped, &telling));
    let made = made.await.map_err(|_| PublishError::Stopped)??;

    let folders = &made.folder;
    let (before, after) = (folders.path().join(BEFORE), folders.path().join(AFTER));
    let request_after = PublishRequest {
        path: after.to_string_lossy().into_owned(),
        name: request.name.clone(),
        force: request.force,
        copy: true,
        follow_links: true,
        ..PublishRequest::default()
    };
    let (manifest, mut published) = folder(store, &request_after, tell(PublishPhase::Publishing)).await?;
    let mut quantized = Quantized {
        kind: kind.name().to_owned(),
        tensors: made.plan.tensors,
        bytes_before: made.plan.bytes_before,
        bytes_after: published.bytes,
        ..Quantized::default()
    };
    if !request.no_measure {
        let telling = tell(PublishPhase::Measuring);
        let total = made.plan.bytes_before + published.bytes;
        telling(Amount { bytes: 0, total });
        let halfway = || telling(Amount { bytes: made.plan.bytes_before, total });
        match measured(&before, &after, quantizing, halfway).await {
            Ok(quality) => quantized.quality = Some(quality),
            Err(why) => quantized.unmeasured = Some(why),
        }
    }
    published.quantized = Some(quantized);
    Ok((manifest, published))
}

/// What quantising cost, measured in the memory that models run in; or why that is not known.
async fn measured(
    before: &Path,
    after: &Path,
    quantizing: &Quantizing,
    halfway: impl FnOnce(),
) -> Result<Quality, String> {
    let _alone = match &quantizing.host {
        Some(host) => Some(host.alone().await?),
        None => None,
    };
    let measured = measure::measure(before, after, &quantizing.engine, halfway).await;
    measured.map_err(|error| error.to_string())
}

/// Where the model is linked to as it was, and where it is written as it becomes.
const BEFORE: &str = "before";
const AFTER: &str = "after";

/// Work under way. When whoever waits for it goes away, it stops.
#[derive(Debug, Default)]
struct Work {
    stopped: Arc<AtomicBool>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// What is made of a folder, and where.
struct Making {
    store: Store,
    data_dir: PathBuf,
    path: PathBuf,
    options: Options,
}

/// A model before and after, in a folder that goes with this.
struct Made {
    plan: Plan,
    folder: TempDir,
}

impl Making {
    fn make(
        &self,
        kind: Kind,
        stopped: &AtomicBool,
        progress: &dyn Fn(Amount),
    ) -> Result<Made, QuantizeError> {
        let contents = surf_chunker::contents(&self.path, &self.options).map_err(PublishError::from)?;
        let unsuitable = |why| QuantizeError::Unsuitable { path: self.path.clone(), why };
        let plan = Plan::new(contents, kind).map_err(unsuitable)?;
        self.check_room(&plan)?;
        let folder = self.folder()?;
        let originals = plan.rewritten.iter().map(|rewritten| &rewritten.file).chain(&plan.kept);
        write::link(originals, &folder.path().join(BEFORE))?;
        let mut writer = Writer { stopped, progress, done: 0, total: plan.read() };
        writer.write(&plan, &folder.path().join(AFTER))?;
        Ok(Made { plan, folder })
    }

    /// The new files are on the disk twice for a while: as they were written, and as chunks.
    fn check_room(&self, plan: &Plan) -> Result<(), QuantizeError> {
        let (usage, after) = (self.store.usage(), plan.bytes_after());
        if usage.high < after {
            let place = "in the store (--cache-size)";
            return Err(QuantizeError::NoRoom { needed: after, place, room: usage.high });
        }
        match (usage.free, after + plan.written()) {
            (Some(room), needed) if room < needed => {
                Err(QuantizeError::NoRoom { needed, place: "on the disk of the store", room })
            }
            _ => Ok(()),
        }
    }

    fn folder(&self) -> Result<TempDir, WriteError> {
        let path = self.data_dir.join(FOLDER);
        let failed = |cause| WriteError::File { path: path.clone(), cause };
        fs::create_dir_all(&path).map_err(failed)?;
        tempfile::tempdir_in(&path).map_err(failed)
    }
}
