//! A swarm of a given shape, run to its end.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use surf_node::{
    config,
    fetch::{Fetcher, Parts, Traffic},
    journal::Journal,
    source::{Memory, ModelSource, Urgency},
};
use surf_protocol::{Manifest, NodeId};
use tokio::time::Instant;

use crate::net::{Manner, Net, model};

/// Wishes that a download has open at once, as a node's `pull` has.
const WISHES: usize = 256;

/// Seeds that hold a model, and nodes that want it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How each seed behaves. The first is the only one that must be honest for all to end well.
    pub seeds: Vec<Manner>,
    /// How many nodes download.
    pub downloaders: u8,
    /// Chunks in the model.
    pub chunks: u32,
    /// Bytes in a chunk.
    pub chunk_size: usize,
    /// Bytes per second that leave each node.
    pub rate: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Simulated time until the last node had everything.
    pub took: Duration,
    /// What came for each node, from where, and what was wasted.
    pub traffic: Vec<Traffic>,
    /// Bytes that left each seed.
    pub seeds_sent: Vec<u64>,
    /// How many nodes banned each seed.
    pub seeds_banned_by: Vec<u32>,
    /// Events, and their hash.
    pub trace: (u64, String),
}

impl Scenario {
    /// Runs on a paused clock. Everyone gets everything, or this says who did not.
    pub fn run(&self, seed: u64) -> Result<Outcome, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        runtime.block_on(self.run_on_this_clock(seed))
    }

    async fn run_on_this_clock(&self, seed: u64) -> Result<Outcome, String> {
        let net = Net::new(seed);
        let (manifest, full) = model(seed, self.chunks, self.chunk_size);
        let (manifest, full) = (Arc::new(manifest), Arc::new(full));
        let seeds: Vec<NodeId> = (0..self.seeds.len() as u8).map(|i| NodeId([i + 1; 32])).collect();
        for (id, manner) in seeds.iter().zip(&self.seeds) {
            net.add(*id, Arc::clone(&full), *manner, self.rate);
        }
        let start = Instant::now();
        let downloads = (0..self.downloaders).map(|i| {
            let id = NodeId([100 + i; 32]);
            download(Arc::clone(&net), id, Arc::clone(&manifest), self.rate, seed ^ u64::from(i))
        });
        let traffic = futures::future::try_join_all(downloads).await?;
        Ok(Outcome {
            took: start.elapsed(),
            traffic,
            seeds_sent: seeds.iter().map(|&id| net.sent(id)).collect(),
            seeds_banned_by: seeds.iter().map(|&id| net.banned_by(id)).collect(),
            trace: net.trace(),
        })
    }
}

/// One node that joins with nothing but its name, gets everything, and gives what it has meanwhile.
async fn download(
    net: Arc<Net>,
    id: NodeId,
    manifest: Arc<Manifest>,
    rate: u64,
    seed: u64,
) -> Result<Traffic, String> {
    let memory = Arc::new(Memory::default());
    memory.put_manifest(Manifest::clone(&manifest));
    net.add(id, Arc::clone(&memory), Manner::Honest, rate);
    let view = net.seen_by(id);
    let parts = Parts {
        keeper: Arc::clone(&memory) as _,
        directory: Arc::clone(&view) as _,
        dialer: view,
        origins: Vec::new(),
        journal: Arc::new(Journal::default()),
        seed,
    };
    let fetcher = Fetcher::start(parts, &config::Fetch::default());
    let model = fetcher.model(Arc::clone(&manifest));
    let mut arriving = stream::iter(manifest.chunks())
        .map(|&chunk| model.chunk(chunk, Urgency::Background))
        .buffer_unordered(WISHES);
    while let Some(arrived) = arriving.next().await {
        let chunk = arrived.map_err(|error| format!("seed {seed}: {id:?}: {error}"))?;
        net.event(&format!("{id:?} has {}", chunk.id()));
    }
    fetcher.traffic(manifest.id()).await.map_err(|error| error.to_string())
}
