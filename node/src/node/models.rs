//! What can be done with models: publish, pull, export and the rest.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use bytes::Bytes;
use surf_chunker::Options;
use surf_protocol::{ChunkId, Manifest, ModelId, name::check_name};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{Node, NodeError, view};
use crate::{
    api::{
        Amount, Exported, Freed, ModelDetail, ModelInfo, OriginSynced, PublishPhase, PublishProgress,
        PublishRequest, Published, PullProgress, Pulled, Verified,
    },
    config::Config,
    origin,
    publish::{self, Quantizing},
    source::{Library, ModelSource, Urgency},
};

/// How long a manifest or name that nobody has is looked for: what was published a moment ago takes a moment
/// to be known.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// How much longer after the start, when the first peers have yet to be met.
pub(super) const PATIENCE_AT_START: Duration = Duration::from_secs(5);

/// How long a pull may take to notice that its model is removed.
const LET_GO: Duration = Duration::from_secs(1);

/// The pause between two looks.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Models whose manifests are being asked for.
#[derive(Debug, Default)]
pub(super) struct Asking(Mutex<HashMap<ModelId, Weak<tokio::sync::Mutex<()>>>>);

impl Asking {
    /// What is held by who asks for the manifest of `model`.
    fn turn(&self, model: ModelId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().expect("no panics while held");
        turns.retain(|_, turn| 0 < turn.strong_count());
        let turn = turns.get(&model).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(model, Arc::downgrade(&turn));
        turn
    }
}

/// Keeps the last progress that fits; a slow listener misses some and is waited for by nobody.
fn tell<T>(listener: &mpsc::Sender<T>, progress: T) {
    drop(listener.try_send(progress));
}

impl Node {
    /// Publishes a folder or file of this machine.
    pub async fn publish(
        &self,
        request: PublishRequest,
        progress: mpsc::Sender<PublishProgress>,
    ) -> Result<Published, NodeError> {
        if let Some(name) = &request.name {
            check_name(name).map_err(|error| NodeError::Invalid(error.to_string()))?;
        }
        self.no_secrets(&request).await?;
        let (store, tell) = (&self.parts.store, move |now| tell(&progress, now));
        let (manifest, mut published) = if request.quantize.is_some() {
            let Config { data_dir, engine, .. } = &self.parts.config;
            let host = Some(Arc::new(self.clone()) as _);
            let quantizing = Quantizing { data_dir: data_dir.clone(), engine: *engine, host };
            publish::quantized(store, &request, &quantizing, tell).await?
        } else {
            let tell = move |amount| tell(PublishProgress { phase: PublishPhase::Publishing, amount });
            publish::folder(store, &request, tell).await?
        };
        if published.notices.is_empty()
            && let Err(why) = self.verdict(manifest.id()).await
        {
            published.notices.push(publish::unrunnable(why));
        }
        Ok(published)
    }

    /// Fails if publishing would share what belongs to nodes alone.
    async fn no_secrets(&self, request: &PublishRequest) -> Result<(), NodeError> {
        let secrets = self.secrets();
        let (path, options) = (PathBuf::from(&request.path), Options { follow_links: request.follow_links });
        let looking = spawn_blocking(move || secrets.check(&path, &options));
        Ok(looking.await.map_err(|_| publish::PublishError::Stopped)??)
    }

    fn secrets(&self) -> publish::Secrets {
        let Config { data_dir, store, rpc, .. } = &self.parts.config;
        publish::Secrets::new(data_dir, &store.dir, rpc.token.as_deref())
    }

    /// Fetches everything of a model that is not here.
    pub async fn pull(&self, model: &str, progress: mpsc::Sender<PullProgress>) -> Result<Pulled, NodeError> {
        let waiting = PullProgress { phase: "manifest".to_owned(), ..PullProgress::default() };
        tell(&progress, waiting);
        let manifest = self.manifest(model).await?;
        let _wanting = self.parts.wanted.want(manifest.id());
        let (store, fetcher) = (&self.parts.store, &self.parts.fetcher);
        let listed = view::Listed::new(self, manifest.id().to_string());
        let told = |pull: &publish::Pull| {
            let now = view::pulling(pull, self.held_to());
            listed.update(&now);
            tell(&progress, now);
        };
        let done = publish::pull(store, fetcher, &manifest, told).await;
        let done = done.map_err(|error| match NodeError::from(error) {
            NodeError::NotFound(what) => match self.parts.client.obstacle() {
                Some(why) => NodeError::NotFound(format!("{what}; {why}")),
                None => NodeError::NotFound(what),
            },
            other => other,
        })?;
        Ok(self.pulled(&manifest, &done))
    }

    /// Writes the files of a model into a folder of this machine. Fetches what is not here.
    pub async fn export(
        &self,
        model: &str,
        dir: &Path,
        progress: mpsc::Sender<Amount>,
    ) -> Result<Exported, NodeError> {
        let (secrets, to) = (self.secrets(), dir.to_owned());
        if spawn_blocking(move || secrets.owns(&to)).await.unwrap_or(true) {
            let why = "belongs to the node alone; choose another folder";
            return Err(NodeError::Invalid(format!("{dir:?} {why}")));
        }
        let manifest = self.manifest(model).await?;
        let source = self.parts.fetcher.model(Arc::clone(&manifest));
        let tell = |amount| tell(&progress, amount);
        Ok(publish::export(&source, &manifest, dir, tell).await?)
    }

    /// Writes a model to the folder of an origin. Fetches what is not here.
    pub async fn origin_sync(
        &self,
        model: &str,
        url: &str,
        progress: mpsc::Sender<Amount>,
    ) -> Result<OriginSynced, NodeError> {
        let folder = origin::folder(url)?;
        let manifest = self.manifest(model).await?;
        let source = self.parts.fetcher.model(Arc::clone(&manifest));
        let total = manifest.chunks().iter().map(|chunk| u64::from(chunk.size)).sum();
        let tell = |bytes| tell(&progress, Amount { bytes, total });
        let origin::Synced { new_chunks, new_bytes } =
            origin::sync(&source, &manifest, &folder, tell).await?;
        let (model, chunks) = (manifest.id().to_string(), manifest.chunks().len() as u64);
        Ok(OriginSynced { model, chunks, bytes: total, new_chunks, new_bytes })
    }

    /// Every model whose manifest is here.
    pub async fn models(&self) -> Vec<ModelInfo> {
        let mut models = Vec::new();
        for summary in self.parts.store.models() {
            let verdict = self.verdict(summary.id).await;
            models.push(view::model(summary, verdict));
        }
        models
    }

    /// A model whose manifest is here, with its files and groups. Asks nobody.
    pub async fn model(&self, model: &str) -> Result<ModelDetail, NodeError> {
        let id = self.resolve_here(model)?;
        let summary = self.parts.store.models().into_iter().find(|summary| summary.id == id);
        let (Some(summary), Some(manifest)) = (summary, self.parts.store.manifest_of(id)) else {
            return Err(NodeError::not_here(id));
        };
        let info = view::model(summary, self.verdict(id).await);
        let have = self.parts.store.have(id).await?;
        let detail = move || view::detail(info, manifest, have.as_ref());
        spawn_blocking(detail).await.map_err(|error| NodeError::Failed(error.to_string()))
    }

    /// Protects a model from eviction.
    pub async fn pin(&self, model: &str) -> Result<(), NodeError> {
        Ok(self.parts.store.pin(self.here(model).await?).await?)
    }

    /// Takes [`Node::pin`] back.
    pub async fn unpin(&self, model: &str) -> Result<(), NodeError> {
        Ok(self.parts.store.unpin(self.here(model).await?).await?)
    }

    /// Removes a model from this node. Other models keep the chunks they share with it.
    pub async fn remove(&self, model: &str) -> Result<Freed, NodeError> {
        let model = self.here(model).await?;
        let _removing = self.unload(model).await?;
        let manifest = self.parts.store.manifest_of(model);
        let mut freed = self.parts.store.remove(model).await?.bytes;
        let chunks: HashSet<ChunkId> =
            manifest.iter().flat_map(|manifest| manifest.chunks()).map(|chunk| chunk.id).collect();
        // Whoever pulls it notices soon, and lets go of what has come.
        let deadline = Instant::now() + LET_GO;
        loop {
            let (more, leased) = self.parts.store.sweep(chunks.clone()).await?;
            freed += more.bytes;
            if leased == 0 || deadline < Instant::now() {
                return Ok(Freed { freed_bytes: freed });
            }
            sleep(LET_GO / 20).await;
        }
    }

    /// Removes what belongs to no model here.
    pub async fn gc(&self) -> Result<Freed, NodeError> {
        let freed = self.parts.store.gc().await?;
        Ok(Freed { freed_bytes: freed.bytes })
    }

    /// Hashes what is here, of one model or of all, and fetches again what is bad if told to.
    pub async fn verify(
        &self,
        model: Option<&str>,
        repair: bool,
        progress: mpsc::Sender<Amount>,
    ) -> Result<Verified, NodeError> {
        let model = match model {
            Some(text) => Some(self.here(text).await?),
            None => None,
        };
        let tell = move |bytes, total| tell(&progress, Amount { bytes, total });
        let verified = self.parts.store.verify(model, tell).await?;
        let repaired = if repair { self.repair(&verified.bad).await? } else { 0 };
        let missing = (verified.missing as u64).saturating_sub(repaired);
        Ok(Verified { checked: verified.checked as u64, bad: verified.bad.len() as u64, repaired, missing })
    }

    /// The bytes of one chunk, if it is here.
    pub async fn chunk(&self, id: ChunkId) -> Result<Option<Bytes>, NodeError> {
        Ok(self.parts.store.serve(id).await?)
    }

    /// The manifest of a model that is here or that a peer has.
    pub(super) async fn manifest(&self, model: &str) -> Result<Arc<Manifest>, NodeError> {
        let id = self.resolve(model).await?;
        if let Some(manifest) = self.parts.store.manifest_of(id) {
            return Ok(manifest);
        }
        // A large manifest takes much memory while it is checked: once, for all who ask for it.
        let turn = self.parts.asking.turn(id);
        let _turn = turn.lock().await;
        if let Some(manifest) = self.parts.store.manifest_of(id) {
            return Ok(manifest);
        }
        let began = Instant::now();
        loop {
            let failure = match self.parts.fetcher.manifest(id).await {
                Ok(Some(manifest)) => {
                    let manifest = Arc::new(manifest);
                    self.parts.store.share_manifest(Arc::clone(&manifest)).await?;
                    return Ok(manifest);
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            // Once an origin has answered, waiting for first peers is over.
            let started = if failure.is_some() { began } else { self.parts.started + PATIENCE_AT_START };
            if began.max(started) + PATIENCE < Instant::now() {
                return Err(NodeError::no_manifest(id, failure.as_ref(), self.parts.swarm.connected()));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The id of a model whose manifest is here.
    async fn here(&self, model: &str) -> Result<ModelId, NodeError> {
        let id = self.resolve(model).await?;
        match self.parts.store.manifest_of(id) {
            Some(_) => Ok(id),
            None => Err(NodeError::not_here(id)),
        }
    }

    /// Fetches chunks that a model here names. Returns how many came.
    async fn repair(&self, bad: &[ChunkId]) -> Result<u64, NodeError> {
        let mut repaired = 0;
        for summary in self.parts.store.models() {
            let Some(manifest) = self.parts.store.manifest_of(summary.id) else { continue };
            let source = self.parts.fetcher.model(Arc::clone(&manifest));
            let named = bad.iter().filter_map(|id| manifest.position(*id));
            let lost = named.map(|at| manifest.chunks()[at]);
            for chunk in lost.filter(|chunk| !self.parts.store.contains(chunk.id)) {
                match source.chunk(chunk, Urgency::Background).await {
                    Ok(_) => repaired += 1,
                    Err(error) => tracing::warn!(chunk = %chunk.id, %error, "could not be repaired"),
                }
            }
        }
        Ok(repaired)
    }
}
