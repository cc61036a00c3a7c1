//! Strangers that connect to a node's data plane, ask for as much as they may, and read nothing of it, or hardly
//! anything. Each has a key of its own and grants the smallest windows, so that what it asks for waits at the node.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::VarInt;
use surf_node::identity::Identity;
use surf_protocol::{
    ChunkId, ModelId, NodeId,
    wire::{self, Request},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::bench::Failed;

/// Bytes that each stream grants unread, and streams that a connection has open.
const WINDOW: u32 = 2048;
const STREAMS: usize = 64;

/// How long a stranger waits for one more stream before it looks whether its connection is still there.
const OPENING: Duration = Duration::from_millis(500);

/// What strangers ask for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Whole chunks, in turn.
    Chunks(Vec<ChunkId>),
    /// The first so many bytes of chunks, with their proofs.
    Ranges(Vec<ChunkId>, u32),
    /// A manifest.
    Manifest(ModelId),
    /// What is held of a model.
    Holdings(ModelId),
}

/// Strangers at work. They leave when this is dropped.
#[derive(Debug)]
pub struct Flood {
    strangers: JoinSet<()>,
}

/// How strangers ask.
#[derive(Clone, Debug)]
pub struct Manners {
    /// How many there are.
    pub strangers: usize,
    /// Connections that each has.
    pub connections: usize,
    /// Bytes per second that each stream takes.
    pub takes: u64,
    /// What they want.
    pub wanted: Wanted,
}

impl Wanted {
    fn request(&self, nth: usize) -> Request {
        match self {
            Self::Chunks(chunks) => Request::Chunk(chunks[nth % chunks.len()]),
            Self::Ranges(chunks, bytes) => {
                Request::Range { id: chunks[nth % chunks.len()], range: 0..*bytes }
            }
            Self::Manifest(model) => Request::Manifest(*model),
            Self::Holdings(model) => Request::Have(*model),
        }
    }
}

impl Flood {
    /// Lets strangers loose on `peer` at `addr`, and waits until each has asked for something.
    pub async fn begin(peer: NodeId, addr: SocketAddr, manners: &Manners) -> Result<Self, Failed> {
        let mut strangers = JoinSet::new();
        let (asked, mut asking) = tokio::sync::mpsc::channel(1);
        for _ in 0..manners.strangers {
            let identity = Identity::generate();
            for _ in 0..manners.connections {
                let config = dialling(&identity, peer)?;
                strangers.spawn(stranger(config, addr, manners.clone(), asked.clone()));
            }
        }
        for _ in 0..manners.strangers * manners.connections {
            let _connection = asking.recv().await;
        }
        Ok(Self { strangers })
    }

    /// How many are still at it.
    pub fn len(&self) -> usize {
        self.strangers.len()
    }

    /// Whether all have given up.
    pub fn is_empty(&self) -> bool {
        self.strangers.is_empty()
    }
}

fn dialling(identity: &Identity, peer: NodeId) -> Result<quinn::ClientConfig, Failed> {
    let tls = identity.client_tls(peer).map_err(|error| Failed::to("make a certificate", error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(3)));
    transport.stream_receive_window(VarInt::from_u32(WINDOW));
    transport.receive_window(VarInt::from_u32(WINDOW * STREAMS as u32));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// One connection: asks until it is ended, and connects again.
async fn stranger(
    config: quinn::ClientConfig,
    addr: SocketAddr,
    manners: Manners,
    asked: tokio::sync::mpsc::Sender<()>,
) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let Ok(endpoint) = quinn::Endpoint::client(any) else { return };
    let mut nth = 0;
    loop {
        let connecting = endpoint.connect_with(config.clone(), addr, "surf");
        let Ok(connecting) = connecting else { return };
        let Ok(connection) = connecting.await else {
            sleep(OPENING).await;
            continue;
        };
        let mut kept = Vec::new();
        while connection.close_reason().is_none() {
            if let Ok(Ok((mut send, recv))) = timeout(OPENING, connection.open_bi()).await {
                // Whatever fails here shows in the next round.
                let _ = send.write_all(&wire::encode_request(&manners.wanted.request(nth))).await;
                let _ = send.finish();
                nth += 1;
                kept.push(recv);
                let _ = asked.try_send(());
            }
            if manners.takes != 0 {
                trickle(&mut kept, manners.takes).await;
            }
        }
    }
}

/// Takes what a second grants from each stream.
async fn trickle(streams: &mut [quinn::RecvStream], takes: u64) {
    let begun = Instant::now();
    for stream in &mut *streams {
        let some = usize::try_from(takes).unwrap_or(usize::MAX);
        let _ = timeout(Duration::from_millis(1), stream.read_chunk(some, true)).await;
    }
    sleep(Duration::from_secs(1).saturating_sub(begun.elapsed())).await;
}
