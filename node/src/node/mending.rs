//! Fetches again what the disk has lost: chunks that were found damaged, whoever found them, and
//! manifests that could not be read at the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use surf_protocol::{ChunkId, Manifest, ModelId};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    fetch::Fetcher,
    journal::{Event, Journal},
    publish::announcer::Wanted,
    source::{ModelSource, Urgency},
    store::Store,
};

/// Chunks asked for at once. What nobody has takes some seconds to find out.
const AT_ONCE: usize = 256;

/// How long to wait before what nobody had is asked for again; twice as long each further time.
const WAIT: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Everything that mending takes.
#[derive(Clone, Debug)]
pub(super) struct Mending {
    pub(super) store: Store,
    pub(super) fetcher: Fetcher,
    pub(super) wanted: Arc<Wanted>,
    pub(super) journal: Arc<Journal>,
}

impl Mending {
    /// Runs until it is dropped.
    pub(super) async fn run(self) {
        tokio::join!(self.chunks(), self.manifests());
    }

    async fn chunks(&self) {
        let mut lost = BTreeSet::new();
        let mut wait = WAIT;
        let mut again = Instant::now();
        loop {
            tokio::select! {
                found = self.store.lost() => {
                    for chunk in found {
                        self.journal.record(Event::ChunkLost { chunk: chunk.to_hex() });
                        lost.insert(chunk);
                    }
                    wait = WAIT;
                }
                () = sleep_until(again), if !lost.is_empty() => wait = (2 * wait).min(WAIT_MAX),
            }
            self.mend(&mut lost).await;
            again = Instant::now() + wait;
        }
    }

    /// Fetches what can be had of `lost`. What is here, or belongs to no model here, is no longer lost.
    async fn mend(&self, lost: &mut BTreeSet<ChunkId>) {
        let mut wanted: BTreeMap<ModelId, (Arc<Manifest>, Vec<_>)> = BTreeMap::new();
        let manifests = self.store.manifests();
        lost.retain(|&id| {
            let of = manifests.iter().find_map(|manifest| Some((manifest, manifest.position(id)?)));
            let Some((manifest, at)) = of.filter(|_| !self.store.contains(id)) else { return false };
            let (_, chunks) =
                wanted.entry(manifest.id()).or_insert_with(|| (Arc::clone(manifest), Vec::new()));
            chunks.push(manifest.chunks()[at]);
            true
        });
        for (model, (manifest, chunks)) in wanted {
            let _wanting = self.wanted.want(model);
            let source = self.fetcher.model(manifest);
            let source = &source;
            let fetched = stream::iter(chunks)
                .map(|chunk| async move { (chunk.id, source.chunk(chunk, Urgency::Background).await) })
                .buffer_unordered(AT_ONCE);
            tokio::pin!(fetched);
            while let Some((id, got)) = fetched.next().await {
                match got {
                    // What could not be kept is tried again.
                    Ok(_) if self.store.contains(id) => {
                        tracing::info!(chunk = %id, "a damaged chunk was fetched again");
                        self.journal.record(Event::ChunkMended { chunk: id.to_hex() });
                        lost.remove(&id);
                    }
                    Ok(_) => (),
                    Err(error) => {
                        tracing::warn!(chunk = %id, %error, "a damaged chunk could not be fetched again yet")
                    }
                }
            }
        }
    }

    async fn manifests(&self) {
        let mut wait = WAIT;
        loop {
            let lost = self.store.lost_manifests();
            if lost.is_empty() {
                return;
            }
            for model in lost {
                match self.fetcher.manifest(model).await {
                    Ok(Some(manifest)) => match self.store.put_manifest(&manifest).await {
                        Ok(()) => tracing::info!(%model, "a damaged manifest was fetched again"),
                        Err(error) => tracing::warn!(%model, %error, "a manifest cannot be kept"),
                    },
                    Ok(None) => tracing::debug!(%model, "nobody reachable has the manifest"),
                    Err(_) => return,
                }
            }
            sleep(wait).await;
            wait = (2 * wait).min(WAIT_MAX);
        }
    }
}
