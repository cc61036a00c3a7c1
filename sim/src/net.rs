//! Nodes, their links, and everything that can go wrong on the way.
//!
//! A node has an up-link: bytes leave it one piece after another at its rate, however many ask, and
//! arrive a delay later. Down-links are not limited. Who has what is known to everyone at once; the
//! DHT is libp2p's and has its own tests.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use surf_node::{
    fetch::{Body, DialError, Dialer, Directory, DirectoryError, Key, Peer},
    source::{Library, Memory},
};
use surf_protocol::{
    ModelId, NodeId, range,
    wire::{Refusal, Request, encode_bitmap},
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::trace::Trace;

/// Bytes that leave a node at once, like a window of packets.
const PIECE: usize = 16 * 1024;

/// How a node behaves towards those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Does what it should.
    Honest,
    /// Sends other bytes than it should.
    Lies,
    /// Sends half of what it should, then nothing.
    Stalls,
    /// Breaks off half-way.
    HangsUp,
    /// Announces 2^60 bytes.
    Boasts,
}

/// All nodes, and the links between them.
#[derive(Debug)]
pub struct Net {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    dice: ChaCha8Rng,
    trace: Trace,
    nodes: BTreeMap<NodeId, Node>,
}

#[derive(Debug)]
struct Node {
    library: Arc<Memory>,
    manner: Manner,
    /// Bytes per second that leave it.
    rate: u64,
    /// When the up-link is free again.
    free: Instant,
    sent: u64,
    banned_by: u32,
}

impl Net {
    /// An empty network whose dice are seeded with `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        let (dice, nodes) = (ChaCha8Rng::seed_from_u64(seed), BTreeMap::new());
        Arc::new(Self { state: Mutex::new(State { dice, trace: Trace::start(), nodes }) })
    }

    /// Adds a node that gives what `library` holds, at `rate` bytes per second.
    pub fn add(&self, id: NodeId, library: Arc<Memory>, manner: Manner, rate: u64) {
        let node = Node { library, manner, rate, free: Instant::now(), sent: 0, banned_by: 0 };
        self.state().nodes.insert(id, node);
    }

    /// Takes a node off the network: whoever asks it gets an error.
    pub fn remove(&self, id: NodeId) {
        self.state().nodes.remove(&id);
    }

    /// The network as `id` sees it.
    pub fn seen_by(self: &Arc<Self>, id: NodeId) -> Arc<View> {
        Arc::new(View { net: Arc::clone(self), me: id })
    }

    /// Bytes of bodies that have left `id`.
    pub fn sent(&self, id: NodeId) -> u64 {
        self.state().nodes.get(&id).map_or(0, |node| node.sent)
    }

    /// How many nodes have banned `id`.
    pub fn banned_by(&self, id: NodeId) -> u32 {
        self.state().nodes.get(&id).map_or(0, |node| node.banned_by)
    }

    /// Adds to the trace.
    pub fn event(&self, what: &str) {
        self.state().trace.event(what);
    }

    /// How many events there were, and their hash.
    pub fn trace(&self) -> (u64, String) {
        self.state().trace.finish()
    }

    /// When the next `bytes` from `id` arrive, or nothing if it is gone.
    fn transmit(&self, id: NodeId, bytes: usize) -> Option<Instant> {
        let mut state = self.state();
        let delay = Duration::from_micros(state.dice.random_range(500..2_000));
        let node = state.nodes.get_mut(&id)?;
        let start = node.free.max(Instant::now());
        node.free = start + Duration::from_secs_f64(bytes as f64 / node.rate as f64);
        node.sent += bytes as u64;
        Some(node.free + delay)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }
}

/// The network as one node sees it: its directory and its dialer.
#[derive(Debug)]
pub struct View {
    net: Arc<Net>,
    me: NodeId,
}

impl Directory for View {
    fn announce(&self, _: ModelId, _: Vec<Key>) -> BoxFuture<'_, Result<(), DirectoryError>> {
        Box::pin(async { Ok(()) })
    }

    fn providers(&self, key: Key) -> BoxFuture<'_, Result<Vec<Peer>, DirectoryError>> {
        Box::pin(async move {
            let delay = self.net.state().dice.random_range(5..50);
            sleep(Duration::from_millis(delay)).await;
            let others: Vec<(NodeId, Arc<Memory>)> = {
                let state = self.net.state();
                let others = state.nodes.iter().filter(|(id, _)| **id != self.me);
                others.map(|(id, node)| (*id, Arc::clone(&node.library))).collect()
            };
            let mut found = Vec::new();
            for (id, library) in others {
                let has = match key {
                    Key::Model(model) => library.have(model).await.is_ok_and(|has| has.is_some()),
                    Key::Chunk(chunk) => library.ids().contains(&chunk),
                    Key::Group(_) => false,
                };
                found.extend(has.then(|| Peer { id, addrs: vec![SocketAddr::from(([10, 0, 0, 1], 1))] }));
            }
            self.net.event(&format!("{:?} looks up {key:?}", self.me));
            Ok(found)
        })
    }
}

impl Dialer for View {
    fn ask(&self, peer: &Peer, request: Request) -> BoxFuture<'_, Result<Result<Body, Refusal>, DialError>> {
        let id = peer.id;
        Box::pin(async move {
            let Some(arrives) = self.net.transmit(id, 100) else { return Err(gone(id)) };
            sleep_until(arrives).await;
            self.net.event(&format!("{:?} asks {id:?} for {request:?}", self.me));
            let (library, manner) = match self.net.state().nodes.get(&id) {
                Some(node) => (Arc::clone(&node.library), node.manner),
                None => return Err(gone(id)),
            };
            Ok(match answer(&library, &request).await {
                None => Err(Refusal::NotHere),
                Some(bytes) => Ok(self.body(id, &request, bytes, manner)),
            })
        })
    }

    fn ban(&self, peer: NodeId) {
        self.net.event(&format!("{:?} bans {peer:?}", self.me));
        if let Some(node) = self.net.state().nodes.get_mut(&peer) {
            node.banned_by += 1;
        }
    }
}

impl View {
    fn body(&self, from: NodeId, request: &Request, bytes: Bytes, manner: Manner) -> Body {
        let is_chunk = matches!(request, Request::Chunk(_));
        let size = bytes.len() as u64;
        let (size, bytes) = match manner {
            Manner::Lies if is_chunk => (size, bytes.iter().map(|byte| !byte).collect()),
            Manner::Boasts => (1 << 60, bytes),
            _ => (size, bytes),
        };
        let half = bytes.len() / 2;
        let net = Arc::clone(&self.net);
        let pieces = stream::unfold((net, bytes, 0), move |(net, bytes, sent)| async move {
            if sent == bytes.len() {
                return None;
            }
            match manner {
                Manner::Stalls if is_chunk && half <= sent => std::future::pending::<()>().await,
                Manner::HangsUp if is_chunk && half <= sent => {
                    return Some((Err(gone(from)), (net, Bytes::new(), 0)));
                }
                _ => (),
            }
            let piece = bytes.slice(sent..bytes.len().min(sent + PIECE));
            let Some(arrives) = net.transmit(from, piece.len()) else {
                return Some((Err(gone(from)), (net, Bytes::new(), 0)));
            };
            sleep_until(arrives).await;
            let sent = sent + piece.len();
            Some((Ok(piece), (net, bytes, sent)))
        });
        Body { size, pieces: pieces.boxed() }
    }
}

async fn answer(library: &Memory, request: &Request) -> Option<Bytes> {
    match request {
        Request::Manifest(model) => library.manifest(*model).await.ok()?,
        Request::Have(model) => Some(encode_bitmap(&library.have(*model).await.ok()??).into()),
        Request::Chunk(id) => library.serve(*id).await.ok()?,
        Request::Range { id, range } => {
            let chunk = library.serve(*id).await.ok()??;
            Some(range::encode(&chunk, range.clone()).ok()?.into())
        }
    }
}

fn gone(id: NodeId) -> DialError {
    DialError { addr: format!("{id:?}"), cause: "it is gone".to_owned() }
}

/// A manifest of one file of `chunks` chunks of `size` bytes, and a memory that holds them all.
pub fn model(seed: u64, chunks: u32, size: usize) -> (surf_protocol::Manifest, Memory) {
    use surf_protocol::{Chunk, FileEntry, Manifest, manifest};
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let memory = Memory::default();
    let entries: Vec<manifest::ChunkEntry> = (0..chunks)
        .map(|_| {
            let mut bytes = vec![0; size];
            dice.fill_bytes(&mut bytes);
            let chunk = Chunk::of(bytes.into());
            memory.put(chunk.clone());
            manifest::ChunkEntry { id: chunk.id(), size: size as u32 }
        })
        .collect();
    let file = FileEntry {
        path: "weights".to_owned(),
        size: u64::from(chunks) * size as u64,
        blake3: [0; 32],
        sha256: [0; 32],
        chunks: entries,
    };
    let parts = manifest::Parts { format: manifest::FORMAT, files: vec![file], ..Default::default() };
    let manifest = Manifest::new(parts).expect("a sound manifest");
    memory.put_manifest(manifest.clone());
    (manifest, memory)
}
