//! Every chunk of a model that is not here is fetched and kept.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use rand::seq::SliceRandom;
use surf_protocol::{Chunk, Manifest, ModelId, manifest::ChunkEntry};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    fetch::{Fetcher, Model, Standing, Traffic},
    source::{ModelSource, SourceError, Urgency},
    store::{Store, StoreError},
};

/// Wishes open at once: enough for the scheduler to choose among, few enough to cost nothing.
const WISHES: usize = 512;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);

/// What a rate is measured over.
const PACE: Duration = Duration::from_secs(3);

/// How far a pull is.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Bytes of the model that are here.
    pub bytes: u64,
    /// Bytes of the model.
    pub total: u64,
    /// What has come since the pull began.
    pub traffic: Traffic,
    /// Who has the rest, and how that goes.
    pub standing: Standing,
    /// Bytes per second that came over the last seconds.
    pub rate: u64,
    /// How long it has taken.
    pub took: Duration,
}

/// How fast something grows, over the last seconds.
#[derive(Debug, Default)]
struct Pace {
    marks: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// It is `amount` now. Returns by how much it grows each second.
    fn of(&mut self, amount: u64, now: Instant) -> u64 {
        while 2 < self.marks.len() && self.marks[1].0 + PACE <= now {
            self.marks.pop_front();
        }
        self.marks.push_back((now, amount));
        let (since, before) = self.marks[0];
        let took = now.saturating_duration_since(since).as_secs_f64();
        if took < 1e-3 { 0 } else { (amount.saturating_sub(before) as f64 / took) as u64 }
    }
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A chunk could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What is here could not be looked at.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Chunks came and could not be kept.
    #[error("what came could not be kept: {0}")]
    Unkept(String),
    /// The model was removed meanwhile.
    #[error("the model {0} was removed while it was pulled")]
    Removed(ModelId),
}

/// Waits until `chunk` has come. Holders that were there may come back: as long as the asker waits, so does this.
async fn wait_for(model: &Model, chunk: ChunkEntry) -> Result<Chunk, SourceError> {
    loop {
        match model.chunk(chunk, Urgency::Background).await {
            Err(SourceError::Gone(_)) => (),
            came => return came,
        }
    }
}

/// Fetches what is missing of `manifest` and tells `progress` how it goes. Waits for holders that were seen and
/// have gone, for as long as the future is polled. What has come stays, also if it is dropped.
pub async fn pull(
    store: &Store,
    fetcher: &Fetcher,
    manifest: &Arc<Manifest>,
    mut progress: impl FnMut(&Pull),
) -> Result<Pull, PullError> {
    let _lease = store.lease(manifest.chunks().iter().map(|chunk| chunk.id));
    // A published file that is gone holds nothing.
    store.look_at_files().await?;
    let (started, before) = (Instant::now(), fetcher.traffic(manifest.id()).await?);
    let total = manifest.size();
    let mut missing: Vec<_> =
        manifest.chunks().iter().copied().filter(|chunk| !store.contains(chunk.id)).collect();
    // Of a model with more chunks than wishes, not everyone should want the same part first.
    missing.shuffle(&mut rand::rng());
    let mut bytes = total - missing.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>();
    let model = fetcher.model(Arc::clone(manifest));
    let model = &model;
    let mut arriving = stream::iter(missing)
        .map(|chunk| async move { wait_for(model, chunk).await.map(|_| chunk) })
        .buffer_unordered(WISHES);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = Pace::default();
    let mut state = async |bytes| -> Result<Pull, PullError> {
        let standing = fetcher.standing(manifest.id()).await?;
        let traffic = standing.traffic.since(&before);
        if let Some(why) = traffic.unkept {
            return Err(PullError::Unkept(why));
        }
        if store.manifest_of(manifest.id()).is_none() {
            return Err(PullError::Removed(manifest.id()));
        }
        let rate = pace.of(traffic.fetched(), Instant::now());
        Ok(Pull { bytes, total, traffic, standing, rate, took: started.elapsed() })
    };
    loop {
        tokio::select! {
            arrived = arriving.next() => match arrived {
                Some(arrived) => {
                    let chunk = arrived?;
                    // It is under our lease: what is not here now has never been kept.
                    if !store.contains(chunk.id) {
                        let why = fetcher.traffic(manifest.id()).await?.unkept;
                        return Err(PullError::Unkept(why.unwrap_or_else(|| "it was removed".to_owned())));
                    }
                    bytes += u64::from(chunk.size);
                }
                None => return state(bytes).await,
            },
            _ = ticks.tick() => progress(&state(bytes).await?),
        }
    }
}
