//! Every chunk of a model that is not here is fetched and kept.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use surf_protocol::Manifest;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    fetch::{Fetcher, Traffic},
    source::{ModelSource, SourceError, Urgency},
    store::Store,
};

/// Wishes open at once: enough for the scheduler to choose among, few enough to cost nothing.
const WISHES: usize = 256;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);

/// How far a pull is.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Bytes of the model that are here.
    pub bytes: u64,
    /// Bytes of the model.
    pub total: u64,
    /// What has come since the pull began.
    pub traffic: Traffic,
    /// How long it has taken.
    pub took: Duration,
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A chunk could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Chunks came and could not be kept.
    #[error("what came could not be kept: {0}")]
    Unkept(String),
}

/// Fetches what is missing of `manifest` and tells `progress` how it goes. What has come stays, also
/// if the future is dropped.
pub async fn pull(
    store: &Store,
    fetcher: &Fetcher,
    manifest: &Arc<Manifest>,
    mut progress: impl FnMut(&Pull),
) -> Result<Pull, PullError> {
    let _lease = store.lease(manifest.chunks().iter().map(|chunk| chunk.id));
    let (started, before) = (Instant::now(), fetcher.traffic(manifest.id()).await?);
    let total = manifest.size();
    let missing: Vec<_> =
        manifest.chunks().iter().copied().filter(|chunk| !store.contains(chunk.id)).collect();
    let mut bytes = total - missing.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>();
    let model = fetcher.model(Arc::clone(manifest));
    let model = &model;
    let mut arriving = stream::iter(missing)
        .map(|chunk| async move { model.chunk(chunk, Urgency::Background).await.map(|_| chunk) })
        .buffer_unordered(WISHES);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = async |bytes| -> Result<Pull, PullError> {
        let traffic = fetcher.traffic(manifest.id()).await?.since(&before);
        match &traffic.unkept {
            Some(why) => Err(PullError::Unkept(why.clone())),
            None => Ok(Pull { bytes, total, traffic, took: started.elapsed() }),
        }
    };
    loop {
        tokio::select! {
            arrived = arriving.next() => match arrived {
                Some(arrived) => bytes += u64::from(arrived?.size),
                None => return state(bytes).await,
            },
            _ = ticks.tick() => progress(&state(bytes).await?),
        }
    }
}
