//! Finding out who has what of one model.
//!
//! Peers met before are asked at once; those that the directory names follow. Chunks that none of
//! them has are looked up under their own keys: they may be part of another model too.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, stream};
use surf_protocol::{Bitmap, ChunkId, Manifest, ModelId};
use tokio::sync::mpsc;

use super::{
    Directory, Key, Peer,
    request::{Asker, Failed},
};

/// Peers asked at the same time what they have, and keys looked up at the same time.
const ASKED_AT_ONCE: usize = 32;

/// Chunks looked up under their own keys in one look-up. The others wait for the next.
const CHUNK_KEYS_MAX: usize = 64;

/// What a look-up found, as it finds it.
#[derive(Debug)]
pub(super) enum Report {
    /// A peer says what it has of a model, or does not.
    Claim { model: ModelId, peer: Peer, has: Result<Bitmap, Failed> },
    /// These peers are said to have a chunk.
    Found { chunk: ChunkId, peers: Vec<Peer> },
    /// The look-up is over.
    Over { model: ModelId },
}

/// One look-up.
#[derive(Debug)]
pub(super) struct LookUp {
    pub(super) directory: Arc<dyn Directory>,
    pub(super) asker: Asker,
    pub(super) manifest: Arc<Manifest>,
    /// Peers to ask before, and besides, those that the directory names.
    pub(super) known: Vec<Peer>,
    /// Chunks that nobody is known to have.
    pub(super) lost: BTreeSet<ChunkId>,
    pub(super) reports: mpsc::Sender<Report>,
}

impl LookUp {
    /// Reports everything it finds, and that it is over. Ends early if nobody listens.
    pub(super) async fn run(mut self) {
        let model = self.manifest.id();
        let known = std::mem::take(&mut self.known);
        let (mut lost, (named, lost_to_known)) = (
            std::mem::take(&mut self.lost),
            tokio::join!(self.directory.providers(Key::Model(model)), self.ask_all(known.clone())),
        );
        lost.retain(|id| !lost_to_known.contains(id));
        let named = named.unwrap_or_default();
        let strangers = named.into_iter().filter(|peer| known.iter().all(|other| other.id != peer.id));
        let held = self.ask_all(strangers.collect()).await;
        lost.retain(|id| !held.contains(id));
        let directory = &self.directory;
        let mut looking = stream::iter(lost.into_iter().take(CHUNK_KEYS_MAX))
            .map(|chunk| async move {
                let peers = directory.providers(Key::Chunk(chunk)).await.unwrap_or_default();
                Report::Found { chunk, peers }
            })
            .buffer_unordered(ASKED_AT_ONCE);
        while let Some(found) = looking.next().await {
            let _ = self.reports.send(found).await;
        }
        drop(looking);
        let _ = self.reports.send(Report::Over { model }).await;
    }

    /// Asks `peers` what they have. Returns the chunks that at least one of them has.
    async fn ask_all(&self, peers: Vec<Peer>) -> BTreeSet<ChunkId> {
        let mut held = BTreeSet::new();
        let asking = stream::iter(peers).map(|peer| async {
            let has = self.asker.have(&peer, &self.manifest).await;
            (peer, has)
        });
        let mut answers = asking.buffer_unordered(ASKED_AT_ONCE);
        while let Some((peer, has)) = answers.next().await {
            if let Ok(has) = &has {
                let chunks = self.manifest.chunks().iter().enumerate();
                held.extend(chunks.filter(|(at, _)| has.contains(*at)).map(|(_, chunk)| chunk.id));
            }
            let _ = self.reports.send(Report::Claim { model: self.manifest.id(), peer, has }).await;
        }
        held
    }
}
