//! The handle through which the node asks for what it does not have.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures::{StreamExt, stream};
use surf_protocol::{Chunk, Manifest, ModelId, NodeId, VerifiedRange, manifest::ChunkEntry};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};

use super::{
    Dialer, Directory, Key, Model, Peer, Standing, Traffic,
    buffers::Buffers,
    request::{Asker, Failed, RequestError, checked_manifest},
    schedule::Outcome,
    task::{Command, Task, Wish},
};
use crate::{
    config,
    journal::Journal,
    source::{Keeper, Origin, SourceError, Urgency},
};

/// Questions waiting for the fetching task. Beyond this, askers wait.
const COMMANDS_MAX: usize = 1024;

/// How long peers are asked for a manifest before origins are asked too.
const ORIGINS_AFTER: Duration = Duration::from_millis(1500);

/// Peers asked for a manifest at the same time. One that is gone must not hold up one that is there.
const MANIFESTS_AT_ONCE: usize = 4;

/// A way to ask for chunks. Cloning it is cheap; fetching ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Fetcher {
    commands: mpsc::Sender<Command>,
    keeper: Arc<dyn Keeper>,
    directory: Arc<dyn Directory>,
    asker: Asker,
    origins: Arc<[Arc<dyn Origin>]>,
}

/// What fetching is made of.
#[derive(Debug)]
pub struct Parts {
    /// Asked first, and given what comes.
    pub keeper: Arc<dyn Keeper>,
    /// Says who may have what.
    pub directory: Arc<dyn Directory>,
    /// Gets bytes from a peer.
    pub dialer: Arc<dyn Dialer>,
    /// Asked when no peer has a chunk, in this order.
    pub origins: Vec<Arc<dyn Origin>>,
    /// Told what arrives.
    pub journal: Arc<Journal>,
    /// Who this node is.
    pub me: NodeId,
    /// Seed of the dice.
    pub seed: u64,
}

impl Fetcher {
    /// Starts the task that fetches.
    pub fn start(parts: Parts, config: &config::Fetch) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let asker =
            Asker { dialer: Arc::clone(&parts.dialer), stall: config.stall, buffers: Buffers::default() };
        let (keeper, directory) = (Arc::clone(&parts.keeper), Arc::clone(&parts.directory));
        let origins = parts.origins.clone().into();
        tokio::spawn(Task::new(parts, asker.clone(), config, receiver).run());
        Self { commands, keeper, directory, asker, origins }
    }

    /// One model, for someone who computes with it.
    pub fn model(&self, manifest: Arc<Manifest>) -> Model {
        // If there is no room for it, the task is far from idle, and tries everyone anyway.
        let _ = self.commands.try_send(Command::Afresh { model: manifest.id() });
        Model::new(self.clone(), Arc::clone(&self.keeper), manifest)
    }

    /// The manifest of `model`: from a peer, or from an origin if no peer gives it within a moment. `None`
    /// if nobody who can be reached has it; an error if an origin could not tell, or if it is no manifest that
    /// this node can read: then nobody else can have another.
    pub async fn manifest(&self, model: ModelId) -> Result<Option<Manifest>, SourceError> {
        if self.origins.is_empty() {
            return self.manifest_of_peers(model).await;
        }
        // A node that has just started has yet to meet the peers that spare the origin.
        let deadline = Instant::now() + ORIGINS_AFTER;
        let mut peers = Box::pin(self.manifest_of_peers(model));
        while Instant::now() < deadline {
            if let Ok(answer) = timeout_at(deadline, &mut peers).await {
                if let Some(manifest) = answer? {
                    return Ok(Some(manifest));
                }
                peers = Box::pin(self.manifest_of_peers(model));
                sleep(ORIGINS_AFTER / 10).await;
            }
        }
        match self.manifest_of_origins(model).await {
            Ok(Some(manifest)) => Ok(Some(manifest)),
            Ok(None) => peers.await,
            Err(error) => peers.await?.map_or(Err(error), |manifest| Ok(Some(manifest))),
        }
    }

    async fn manifest_of_origins(&self, model: ModelId) -> Result<Option<Manifest>, SourceError> {
        let mut failure = None;
        for origin in self.origins.iter() {
            let got = match origin.manifest(model).await {
                Ok(Some(bytes)) => checked_manifest(model, bytes).await.map_err(|why| {
                    SourceError::failed(origin.name(), format!("what it has as the manifest is none: {why}"))
                }),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match got {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    async fn manifest_of_peers(&self, model: ModelId) -> Result<Option<Manifest>, SourceError> {
        let named = self.directory.providers(Key::Model(model)).await;
        let named = named.map_err(|error| SourceError::failed("swarm", error))?;
        let known = self.command(|reply| Command::Known { reply }).await?;
        let mut peers = named;
        for peer in known {
            if peers.iter().all(|other| other.id != peer.id) {
                peers.push(peer);
            }
        }
        let mut asking = stream::iter(peers)
            .map(|peer| async move {
                let answer = self.asker.manifest(&peer, model).await;
                (peer, answer)
            })
            .buffer_unordered(MANIFESTS_AT_ONCE);
        while let Some((peer, answer)) = asking.next().await {
            match answer {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(Failed { error: RequestError::Unreadable(error), .. }) => {
                    return Err(SourceError::failed(format!("the manifest of {model}"), error));
                }
                Err(failed) => {
                    tracing::debug!(peer = %peer.id, error = %failed.error, "no manifest");
                    self.blame(&peer, &failed.error).await?;
                }
            }
        }
        Ok(None)
    }

    /// What has come for `model` so far.
    pub async fn traffic(&self, model: ModelId) -> Result<Traffic, SourceError> {
        self.command(|reply| Command::Traffic { model, reply }).await
    }

    /// How the fetching of `model` stands.
    pub async fn standing(&self, model: ModelId) -> Result<Standing, SourceError> {
        self.command(|reply| Command::Standing { model, reply }).await
    }

    /// How many peers are known to have each chunk of `model`, in the order of its manifest.
    pub async fn copies(&self, model: ModelId) -> Result<Vec<u8>, SourceError> {
        self.command(|reply| Command::Copies { model, reply }).await
    }

    /// Models of which something is wanted now.
    pub async fn wanted(&self) -> Result<Vec<ModelId>, SourceError> {
        self.command(|reply| Command::Wanted { reply }).await
    }

    pub(super) async fn chunk(
        &self,
        manifest: &Arc<Manifest>,
        chunk: ChunkEntry,
        urgency: Urgency,
    ) -> Result<Chunk, SourceError> {
        let manifest = Arc::clone(manifest);
        self.command(|reply| Command::Want(Wish { manifest, chunk, urgency, reply })).await?
    }

    /// Some bytes of a chunk from a peer. `None` if no peer gave them.
    pub(super) async fn range(
        &self,
        manifest: &Arc<Manifest>,
        chunk: ChunkEntry,
        range: std::ops::Range<u32>,
    ) -> Result<Option<VerifiedRange>, SourceError> {
        let manifest = Arc::clone(manifest);
        let model = manifest.id();
        let holders = self.command(|reply| Command::Holders { manifest, chunk, reply }).await?;
        for peer in holders {
            let answer = match self.asker.range(&peer, chunk, range.clone()).await {
                Err(Failed { error: RequestError::Unproven(_), .. }) => {
                    self.settle(&peer, model, chunk, range.clone()).await?
                }
                answer => answer,
            };
            match answer {
                Ok(range) => {
                    let (bytes, start) = (range.bytes().len() as u64, range.range().start);
                    self.send(Command::RangeCame { model, chunk, start, bytes, peer: peer.id }).await?;
                    return Ok(Some(range));
                }
                Err(failed) => self.blame(&peer, &failed.error).await?,
            }
        }
        Ok(None)
    }

    /// A range did not fit the manifest: finds out from the whole chunk who is wrong, the peer or the manifest.
    async fn settle(
        &self,
        peer: &Peer,
        model: ModelId,
        chunk: ChunkEntry,
        range: std::ops::Range<u32>,
    ) -> Result<Result<VerifiedRange, Failed>, SourceError> {
        let whole = match self.asker.chunk(peer, chunk, &AtomicU64::default()).await {
            Ok(whole) => whole,
            Err(failed) => return Ok(Err(failed)),
        };
        let is = whole.bytes().len() as u32;
        if is != chunk.size {
            let error = SourceError::WrongSize { model, id: chunk.id, says: chunk.size, is };
            self.send(Command::Refuse { model, error: error.clone() }).await?;
            return Err(error);
        }
        // It has the chunk, and sent something else.
        self.blame(peer, &RequestError::Lied("a range of another chunk".to_owned())).await?;
        VerifiedRange::of(&whole, range).map(Ok).map_err(|error| SourceError::failed("fetch", error))
    }

    /// Has a peer that lied dropped, and one that failed left alone for a while.
    async fn blame(&self, peer: &Peer, error: &RequestError) -> Result<(), SourceError> {
        let outcome = error.outcome();
        if outcome == Outcome::Lied {
            tracing::warn!(?peer, %error, "a peer sent wrong bytes and is dropped");
            return self.send(Command::Lied { peer: peer.id }).await;
        }
        self.send(Command::Judged { peer: peer.id, outcome }).await
    }

    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, SourceError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| stopped())
    }

    async fn send(&self, command: Command) -> Result<(), SourceError> {
        self.commands.send(command).await.map_err(|_| stopped())
    }
}

fn stopped() -> SourceError {
    SourceError::failed("fetch", "the node is stopping")
}
