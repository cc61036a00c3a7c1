//! Finding out who has what of one model: the slow way, through the directory, and then from each
//! holder itself, for as long as anything is wanted.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, stream};
use surf_protocol::{Bitmap, ChunkId, Manifest, ModelId, NodeId};
use tokio::sync::mpsc;

use super::{
    Directory, Key, Peer,
    request::{Asker, Failed},
};

/// Keys looked up at the same time.
const LOOKED_UP_AT_ONCE: usize = 32;

/// Keys of stems, and then of chunks, looked up in one look-up. What is left waits for the next.
const STEM_KEYS_MAX: usize = 16;
const CHUNK_KEYS_MAX: usize = 32;

/// What is found, as it is found.
#[derive(Debug)]
pub(super) enum Report {
    /// These peers are said to have something of a model.
    Named { model: ModelId, peers: Vec<Peer> },
    /// These peers are said to have these chunks.
    Found { chunks: Vec<ChunkId>, peers: Vec<Peer> },
    /// The look-up is over.
    Over { model: ModelId },
    /// A peer says what it has of a model.
    Claim { model: ModelId, peer: NodeId, has: Bitmap },
    /// A peer does not say, or no longer says, what it has of a model.
    Silent { model: ModelId, peer: NodeId, why: Failed },
}

/// One question to the directory about one model.
#[derive(Debug)]
pub(super) struct LookUp {
    pub(super) directory: Arc<dyn Directory>,
    pub(super) manifest: Arc<Manifest>,
    /// Chunks that nobody is known to have: they may be part of another model too.
    pub(super) lost: Vec<ChunkId>,
    pub(super) reports: mpsc::Sender<Report>,
}

impl LookUp {
    /// Reports everything it finds, and that it is over. Ends early if nobody listens.
    pub(super) async fn run(self) {
        let model = self.manifest.id();
        let peers = self.directory.providers(Key::Model(model)).await.unwrap_or_default();
        let _ = self.reports.send(Report::Named { model, peers }).await;
        let directory = &self.directory;
        let mut looking = stream::iter(self.keys())
            .map(|(key, chunks)| async move {
                let peers = directory.providers(key).await.unwrap_or_default();
                Report::Found { chunks, peers }
            })
            .buffer_unordered(LOOKED_UP_AT_ONCE);
        while let Some(found) = looking.next().await {
            let _ = self.reports.send(found).await;
        }
        let _ = self.reports.send(Report::Over { model }).await;
    }

    /// Under which keys to look for what is lost: a model that shares a layer with another is found under
    /// the key of its stem, and any other shared chunk under its own.
    fn keys(&self) -> Vec<(Key, Vec<ChunkId>)> {
        let lost: BTreeSet<ChunkId> = self.lost.iter().copied().collect();
        let stems = self.manifest.stems().into_iter().filter_map(|chunks| {
            let ids = chunks.into_iter().map(|at| self.manifest.chunks()[at as usize].id);
            let ids: Vec<ChunkId> = ids.collect();
            let wanted: Vec<ChunkId> = ids.iter().copied().filter(|id| lost.contains(id)).collect();
            (!wanted.is_empty()).then(|| (Key::stem(ids), wanted))
        });
        let chunks = self.lost.iter().map(|&chunk| (Key::Chunk(chunk), vec![chunk]));
        stems.take(STEM_KEYS_MAX).chain(chunks.take(CHUNK_KEYS_MAX)).collect()
    }
}

/// Listens to what `peer` has of a model, until it is silent or nobody wants to know.
pub(super) async fn listen(asker: Asker, peer: Peer, manifest: Arc<Manifest>, reports: mpsc::Sender<Report>) {
    let model = manifest.id();
    let heard = async {
        let mut listening = asker.holdings(&peer, &manifest).await?;
        loop {
            let has = listening.next().await?.clone();
            if reports.send(Report::Claim { model, peer: peer.id, has }).await.is_err() {
                return Ok(());
            }
        }
    };
    let heard: Result<(), Failed> = heard.await;
    if let Err(why) = heard {
        let _ = reports.send(Report::Silent { model, peer: peer.id, why }).await;
    }
}
