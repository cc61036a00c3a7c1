//! One model at a time, ready to run.
//!
//! The memory budget belongs to whoever runs, so another model is loaded only when nobody uses the
//! one that is (`host`): a request for it waits a while for that, and is told that the node is busy after.

mod files;
mod host;

use std::{any::Any, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_chunker::Checkpoint;
use surf_protocol::{Manifest, ModelId};
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use self::host::{Host, Removing};
use super::{Node, NodeError};
use crate::{
    api::{CacheStats, Checked, GroupCache, LoadedModel},
    engine::{self, Engine, EngineError},
    publish::{ModelHost, announcer::Wanting},
    source::ModelSource,
    store::Lease,
    weights::Streamed,
};

/// The model that is ready to run, if one is.
#[derive(Debug, Default)]
pub(super) struct Slot {
    host: Host<Loaded>,
}

/// A model in memory, as far as it has come.
#[derive(Debug)]
pub(super) struct Loaded {
    id: ModelId,
    engine: Engine,
    weights: Arc<Streamed>,
    memory: u64,
    /// Chunks in use are not evicted.
    _lease: Lease,
    /// And others who want them know us.
    _wanting: Wanting,
}

/// A model whose weights can be asked for.
#[derive(Debug)]
struct Prepared {
    checkpoint: Arc<Checkpoint>,
    files: engine::Files,
    source: Arc<dyn ModelSource>,
    lease: Lease,
    wanting: Wanting,
}

/// A generation under way: its events, and the model that must stay as long as they come.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<engine::Event>,
    loaded: Arc<Loaded>,
}

impl Generation {
    /// The next event. `None` after the last.
    pub async fn next(&mut self) -> Option<engine::Event> {
        self.events.recv().await
    }

    /// The bytes of one token by itself; see [`Engine::token_bytes`].
    pub fn token_bytes(&self, id: u32, first: bool) -> Vec<u8> {
        self.loaded.engine.token_bytes(id, first)
    }

    /// What of the weights was in memory, so far.
    pub fn cache(&self) -> CacheStats {
        self.loaded.cache()
    }
}

impl Node {
    /// Continues a prompt.
    pub async fn generate(&self, model: &str, request: engine::Request) -> Result<Generation, NodeError> {
        let loaded = self.loaded(model).await?;
        let events = loaded.engine.generate(request).await?;
        Ok(Generation { events, loaded })
    }

    /// What the model makes of every position of each of `rows`.
    pub async fn forward(
        &self,
        model: &str,
        rows: Vec<engine::Row>,
    ) -> Result<Vec<engine::Output>, NodeError> {
        let loaded = self.loaded(model).await?;
        Ok(loaded.engine.forward(rows).await?)
    }

    /// Each of `texts` as a vector.
    pub async fn embed(&self, model: &str, texts: &[engine::Prompt]) -> Result<engine::Embedded, NodeError> {
        let (loaded, texts) = (self.loaded(model).await?, texts.to_vec());
        aside(async move { loaded.engine.embed(&texts).await }).await
    }

    /// Runs recorded inputs and compares with the recorded outputs, a safetensors file.
    pub async fn check(&self, model: &str, expected: Bytes, tolerance: f64) -> Result<Checked, NodeError> {
        let loaded = self.loaded(model).await?;
        let model = loaded.id.to_string();
        let checked = aside(async move { loaded.engine.check(&expected, tolerance as f32).await }).await?;
        Ok(Checked {
            model,
            compared: checked.compared as u64,
            max_abs_err: checked.max_abs_err.into(),
            max_rel_err: checked.max_rel_err.into(),
            argmax_agree: checked.argmax_agree,
            greedy_agree: checked.greedy_agree,
            pass: checked.pass,
        })
    }

    /// Frees the memory of `model`, which is to be removed, if it is loaded and nobody uses it. It is not
    /// loaded as long as what is returned is there.
    pub(super) async fn unload(&self, model: ModelId) -> Result<Removing<Loaded>, NodeError> {
        self.parts.loaded.host.remove(model).await
    }

    async fn loaded(&self, model: &str) -> Result<Arc<Loaded>, NodeError> {
        let manifest = self.manifest(model).await?;
        let (host, id) = (&self.parts.loaded.host, manifest.id());
        host.get(id, self.prepared(manifest), |prepared| self.load(prepared)).await
    }

    /// What of a model is read before its weights. Fails if it cannot be run.
    async fn prepared(&self, manifest: Arc<Manifest>) -> Result<Prepared, NodeError> {
        let id = manifest.id();
        let wanting = self.parts.wanted.want(id);
        let lease = self.parts.store.lease(manifest.chunks().iter().map(|chunk| chunk.id));
        let source: Arc<dyn ModelSource> = Arc::new(self.parts.fetcher.model(Arc::clone(&manifest)));
        let checkpoint = Arc::new(files::checkpoint(&source, manifest).await?);
        let read = async {
            engine::runnable(&checkpoint)?;
            files::all(&*source, &checkpoint, &self.parts.config.engine).await
        };
        let files = read.await.map_err(|error| match error {
            NodeError::Invalid(why) => NodeError::Invalid(format!("the model {id} cannot run: {why}")),
            other => other,
        })?;
        Ok(Prepared { checkpoint, files, source, lease, wanting })
    }

    async fn load(&self, prepared: Prepared) -> Result<Loaded, NodeError> {
        let Prepared { checkpoint, files, source, lease, wanting } = prepared;
        let config = self.parts.config.engine;
        let runtime = Handle::current();
        let journal = Arc::clone(&self.parts.journal);
        let id = checkpoint.manifest().id();
        let loading = spawn_blocking(move || {
            let shares = engine::shares(&files, &checkpoint, &config)?;
            let weights = Streamed::new(checkpoint, source, shares.weights, runtime, Arc::clone(&journal));
            let weights = Arc::new(weights);
            let engine = Engine::load(&files, Arc::clone(&weights) as _, &config, journal)?;
            Ok::<_, NodeError>((engine, weights))
        });
        let (engine, weights) = loading.await.map_err(|error| fault(&error))??;
        Ok(Loaded { id, engine, weights, memory: config.memory, _lease: lease, _wanting: wanting })
    }
}

/// Why work on a thread of its own has no result. The text of a panic goes to the log.
fn fault(error: &tokio::task::JoinError) -> NodeError {
    tracing::error!(%error, "loading a model failed because of a fault in this program");
    let why = "loading the model failed because of a fault in this program; its log says more";
    NodeError::Failed(why.to_owned())
}

impl ModelHost for Node {
    fn alone(&self) -> BoxFuture<'_, Result<Box<dyn Any + Send>, String>> {
        Box::pin(async move {
            let alone = self.parts.loaded.host.alone().await.map_err(|error| error.to_string())?;
            Ok(Box::new(alone) as _)
        })
    }
}

impl Slot {
    /// What is loaded, in the words of the API.
    pub(super) fn view(&self) -> Option<LoadedModel> {
        let loaded = self.host.current()?;
        let stats = loaded.weights.stats();
        Some(LoadedModel {
            model: loaded.id.to_string(),
            device: loaded.engine.device().to_owned(),
            memory: loaded.memory,
            resident_groups: stats.groups.iter().filter(|group| group.resident).count(),
            groups: stats.groups.len(),
            // The host and this function hold it too.
            active: Arc::strong_count(&loaded).saturating_sub(2),
            passes: stats.passes,
        })
    }
}

impl Loaded {
    fn cache(&self) -> CacheStats {
        let stats = self.weights.stats();
        let per_group: Vec<GroupCache> = stats
            .groups
            .iter()
            .map(|group| GroupCache {
                group: group.group.clone(),
                hits: group.hits,
                ready: group.ready,
                misses: group.misses,
                bytes: group.bytes,
            })
            .collect();
        CacheStats {
            passes: stats.passes,
            hits: per_group.iter().map(|group| group.hits).sum(),
            ready: per_group.iter().map(|group| group.ready).sum(),
            misses: per_group.iter().map(|group| group.misses).sum(),
            per_group,
            resident_bytes: stats.resident_bytes,
        }
    }
}

/// Does `work`, which computes between its waits for longer than a worker of the runtime may be kept from
/// its connections. Dropping the future ends it at its next wait.
async fn aside<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, NodeError> {
    let (left, runtime) = (CancellationToken::new(), Handle::current());
    let _left = left.clone().drop_guard();
    let working = spawn_blocking(move || runtime.block_on(left.run_until_cancelled(work)));
    let done = working.await.map_err(|error| fault(&error))?;
    Ok(done.unwrap_or(Err(EngineError::Stopped))?)
}
