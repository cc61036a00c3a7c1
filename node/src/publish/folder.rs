//! A folder or file of the user's becomes a model: cut, hashed, and kept where it is or copied.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use surf_chunker::{CutError, Options, Sink};
use surf_protocol::{Chunk, ChunkId, Manifest, ModelId};
use tokio::{runtime, task::spawn_blocking};

use super::export;
use crate::{
    api::{Amount, PublishRequest, Published, sentence},
    store::{Lease, Store, StoreError},
};

/// Why a folder could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The path cannot be used at all.
    #[error("cannot publish {path}: {cause}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        cause: io::Error,
    },
    /// It would share what belongs to nodes alone.
    #[error("{path:?} {what}; publish a folder without it")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The name means another model.
    #[error("the name {name:?} means {before}; use force to move it to {after}")]
    NameTaken {
        /// The name.
        name: String,
        /// What it means.
        before: ModelId,
        /// What it would mean.
        after: ModelId,
    },
    /// What is in the folder cannot be published.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The chunks could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// Cuts the folder or file that `request` names and keeps the result in `store`. By default bytes
/// stay where they are, and the store remembers where that is.
///
/// `progress` is called from several threads.
pub async fn folder(
    store: &Store,
    request: &PublishRequest,
    progress: impl Fn(Amount) + Send + Sync + 'static,
) -> Result<(Arc<Manifest>, Published), PublishError> {
    let path = PathBuf::from(&request.path);
    let path = spawn_blocking(move || {
        std::fs::canonicalize(&path).map_err(|cause| PublishError::Path { path, cause })
    })
    .await
    .map_err(|_| PublishError::Stopped)??;
    let options = Options { follow_links: request.follow_links };
    let cutting = Cutting {
        copy_to: request.copy.then(|| (store.clone(), runtime::Handle::current())),
        progress,
        done: AtomicU64::new(0),
        kept: Mutex::default(),
    };
    // What was copied stays at least until the model that it is of is known.
    let Cut { manifest, groups, places, copied, fault, _leases } =
        spawn_blocking(move || cutting.cut(&path, &options)).await.map_err(|_| PublishError::Stopped)??;
    name_is_free(store, request, manifest.id())?;
    store.share_manifest(Arc::clone(&manifest)).await?;
    let (new_chunks, new_bytes) = if request.copy {
        copied
    } else {
        let referenced = store.reference(&manifest, places).await?;
        (referenced.chunks, referenced.bytes)
    };
    if let Some(name) = &request.name {
        store.set_alias(name, manifest.id()).await?;
    }
    let published = Published {
        model: manifest.id().to_string(),
        name: request.name.clone(),
        files: manifest.files().len(),
        tensors: manifest.tensors().len(),
        groups,
        chunks: manifest.chunks().len(),
        new_chunks,
        bytes: manifest.files().iter().map(|file| file.size).sum(),
        new_bytes,
        notices: notices(&manifest, &request.path).into_iter().chain(fault.map(unrunnable)).collect(),
        quantized: None,
    };
    Ok((manifest, published))
}

/// Fails if the name that `request` gives means another model than `after` and may not be moved.
fn name_is_free(store: &Store, request: &PublishRequest, after: ModelId) -> Result<(), PublishError> {
    let Some(name) = request.name.as_ref().filter(|_| !request.force) else { return Ok(()) };
    match store.named(name) {
        Some(before) if before != after => Err(PublishError::NameTaken { name: name.clone(), before, after }),
        _ => Ok(()),
    }
}

/// What the publisher should know of a model that cannot be run.
pub(crate) fn unrunnable(why: impl AsRef<str>) -> String {
    format!("the model cannot run: {}", sentence(why.as_ref()))
}

/// What the publisher should know.
fn notices(manifest: &Manifest, path: &str) -> Vec<String> {
    let files = manifest.files();
    let empty = match files.len() {
        0 => Some(format!("{path:?} holds no files, so there is nothing in the model")),
        _ if files.iter().all(|file| file.size == 0) => {
            Some(format!("all files of {path:?} are empty, so there is nothing in the model"))
        }
        _ => None,
    };
    let harmful = files.iter().find_map(|file| Some((&file.path, export::harm(&file.path, false)?)));
    let harmful = harmful.map(|(path, why)| format!("nobody can export {path:?}: {why}"));
    empty.into_iter().chain(harmful).collect()
}

/// One cutting, as a sink of its chunks.
struct Cutting<P> {
    copy_to: Option<(Store, runtime::Handle)>,
    progress: P,
    done: AtomicU64,
    kept: Mutex<Kept>,
}

/// What was copied.
#[derive(Debug, Default)]
struct Kept {
    /// Chunks that were not here before.
    new: HashSet<ChunkId>,
    /// Their bytes.
    bytes: u64,
    /// None of what was copied makes room for the rest.
    leases: Vec<Lease>,
}

/// What came of it.
struct Cut {
    manifest: Arc<Manifest>,
    /// Groups of what is loaded of it.
    groups: usize,
    /// Where each file is.
    places: Vec<(u32, PathBuf)>,
    /// Chunks that were copied and new, and their bytes.
    copied: (usize, u64),
    /// Why the model cannot be run.
    fault: Option<String>,
    _leases: Vec<Lease>,
}

impl<P: Fn(Amount) + Send + Sync> Cutting<P> {
    fn cut(self, path: &Path, options: &Options) -> Result<Cut, PublishError> {
        let listed = surf_chunker::list(path, options)?;
        let total = listed.iter().map(|file| file.size).sum();
        let sink = Counted { cutting: &self, total };
        let checkpoint = surf_chunker::open(path, options, &sink)?;
        let manifest = Arc::clone(checkpoint.manifest());
        let real: BTreeMap<&str, &PathBuf> =
            listed.iter().map(|file| (file.path.as_str(), &file.real)).collect();
        let files = manifest.files().iter().zip(0..);
        let places = files.filter_map(|(file, at)| Some((at, (*real.get(file.path.as_str())?).clone())));
        let places = places.collect();
        let Kept { new, bytes, leases } = self.kept.into_inner().expect("no panics while held");
        let fault = checkpoint.fault().map(str::to_owned);
        let (groups, copied) = (checkpoint.groups().len(), (new.len(), bytes));
        Ok(Cut { manifest, groups, places, copied, fault, _leases: leases })
    }
}

struct Counted<'a, P> {
    cutting: &'a Cutting<P>,
    total: u64,
}

impl<P: Fn(Amount) + Send + Sync> Sink for Counted<'_, P> {
    fn chunk(&self, chunk: &Chunk, _: &Path, _: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let size = chunk.bytes().len() as u64;
        if let Some((store, runtime)) = &self.cutting.copy_to {
            let lease = store.lease([chunk.id()]);
            let is_new = runtime.block_on(store.put(chunk.clone()))?;
            let mut kept = self.cutting.kept.lock().expect("no panics while held");
            kept.leases.push(lease);
            if is_new {
                kept.new.insert(chunk.id());
                kept.bytes += size;
            }
        }
        let bytes = self.cutting.done.fetch_add(size, Ordering::Relaxed) + size;
        (self.cutting.progress)(Amount { bytes, total: self.total });
        Ok(())
    }
}
