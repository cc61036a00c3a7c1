//! Who is there and who has what: the control plane. The only user of `libp2p`.
//!
//! One task owns the libp2p swarm; [`Handle`] is how everyone else talks to it. The task carries
//! questions and answers of a few hundred bytes: chunks never pass through it, so it is never busy.
//! It waits for nobody and decides nothing: ranking, retrying and fetching are
//! [`fetch`](crate::fetch)'s, which knows this module as a [`Directory`].

mod access;
mod addrs;
pub mod announcements;
mod behaviour;
mod book;
mod bootstrap;
mod clock;
mod contact;
mod crowd;
mod fair;
mod gate;
mod listen;
mod lookups;
mod meeting;
mod meter;
pub(crate) mod names;
mod reach;
mod records;
mod task;
mod twins;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use libp2p::Multiaddr;
use surf_protocol::{FullName, ModelId, NodeId, SignedName};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

pub use self::meter::Load;
use self::meter::Meter;
use crate::{
    config,
    fetch::{Directory, DirectoryError, Incoming, Key, Peer, Route},
    identity::Identity,
    members::Members,
};

pub use reach::{Outlook, Reachable};

/// Commands waiting for the swarm task. Beyond this, callers wait.
const COMMANDS_MAX: usize = 256;

/// Look-ups of one node that are asked at once. Beyond this, callers wait.
const LOOKUPS_MAX: usize = 1024;

/// Keys that a node announces at once: of models, and others. What they may cost is bounded in `announcements`, which
/// makes them far fewer in all but the smallest swarms; these bound memory.
const MODELS_MAX: usize = 1024;
const KEYS_MAX: usize = 1024;

/// A way to talk to the swarm task. Cloning it is cheap; the task ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    lookups: Arc<Semaphore>,
    connected: Arc<AtomicUsize>,
    neighbours: watch::Receiver<Neighbours>,
    meter: Arc<Meter>,
    incoming: Arc<Mutex<Option<mpsc::Receiver<Incoming>>>>,
}

/// Connected peers that take part in the DHT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Neighbours {
    /// How many there are.
    pub(crate) now: usize,
    /// How many have come so far. Whoever comes may know nothing of what was put before.
    pub(crate) came: u64,
}

/// Where the node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Multiaddresses, each ending in `/p2p/…`, QUIC before TCP; in a private swarm, TCP only. Others can join through any of them.
    pub addrs: Vec<String>,
}

/// A peer that we are connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Who.
    pub id: NodeId,
    /// The multiaddresses of the connections to it.
    pub addrs: Vec<String>,
    /// Where its data plane listens; empty until it has told.
    pub data_addrs: Vec<SocketAddr>,
    /// By which way the best of them goes.
    pub route: Route,
    /// The round trip, once it was measured.
    pub rtt: Option<Duration>,
    /// Since when it has been connected.
    pub since: Instant,
}

/// The control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is in use, or is not this host's.
    #[error("cannot listen on {addr}: {}", innermost(&**cause))]
    Address {
        /// Where we tried.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody can be joined through this.
    #[error(transparent)]
    Bootstrap(#[from] BadAddress),
    /// libp2p's transports could not be made from this key, or the name servers not be read.
    #[error("the control plane cannot be set up: {0}")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What the system says: libp2p wraps it in errors whose own words are empty or say less.
fn innermost<'a>(
    error: &'a (dyn std::error::Error + Send + Sync + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut error: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Text that is not the address of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the address of a node, such as /ip4/192.0.2.1/tcp/8470/p2p/12D3Koo…: {cause}")]
pub struct BadAddress {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub cause: String,
}

/// A node was not dialled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no such address.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// Dialling was refused at once.
    #[error("cannot dial {addr}: {cause}")]
    Refused {
        /// The address.
        addr: String,
        /// What libp2p says.
        cause: String,
    },
    /// The node is shutting down.
    #[error(transparent)]
    Stopped(#[from] DirectoryError),
}

/// What can be asked of the swarm task. Closed on purpose: this is the whole of it.
#[derive(Debug)]
enum Command {
    Announce { model: ModelId, keys: Vec<Key> },
    Providers { key: Key, reply: oneshot::Sender<Vec<Peer>> },
    Peers { reply: oneshot::Sender<Vec<PeerInfo>> },
    Dial { addr: Multiaddr, reply: oneshot::Sender<Result<(), String>> },
    PutName { name: SignedName, reply: oneshot::Sender<usize> },
    Name { key: [u8; 32], reply: oneshot::Sender<Vec<Vec<u8>>> },
    Reachable { reply: oneshot::Sender<Reachable> },
    Open { peer: NodeId, bulk: bool, reply: oneshot::Sender<Result<reach::Opened, reach::Unopened>> },
    Leave { reply: oneshot::Sender<()> },
}

/// Starts the swarm task. Returns when the node listens; joining goes on behind. `data` is where this
/// node's data plane is bound, which peers are told.
pub async fn start(
    identity: &Identity,
    config: &config::Swarm,
    members: &Members,
    data: SocketAddr,
) -> Result<(Handle, Listening), ListenError> {
    let is_private = members.key.is_some();
    let nodes = bootstrap::parse(&config.bootstrap, is_private)?;
    let (sender, incoming) = reach::incoming();
    let busy = crowd::Busy::default();
    let mut swarm = listen::build(identity, config, members, (sender, busy)).map_err(ListenError::Setup)?;
    let bound = listen::listen_all(&mut swarm, &config.listen, is_private).await?;
    let listening = Listening { addrs: addrs::complete(&bound.addrs, *swarm.local_peer_id()) };
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let (connected, meter) = (Arc::default(), Arc::default());
    let (told_neighbours, neighbours) = watch::channel(Neighbours::default());
    let counts = (Arc::clone(&connected), Arc::clone(&meter), told_neighbours);
    let ours = contact::Ours::new(identity.clone(), data);
    let reach = reach::State::new(config.relay);
    let mut task = task::Task::new(swarm, receiver, counts, nodes, ours, reach, is_private);
    for addr in &bound.addrs {
        task.listens_on(addr);
    }
    bound.early.into_iter().for_each(|event| task.on_event(event));
    tokio::spawn(task.run());
    let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
    let incoming = Arc::new(Mutex::new(Some(incoming)));
    let handle = Handle { commands, lookups, connected, neighbours, meter, incoming };
    Ok((handle, listening))
}

impl Handle {
    /// Nodes of the DHT that a record goes to.
    pub const REPLICAS: usize = behaviour::REPLICAS.get();

    /// The peers that we are connected to, ordered by id. Empty when the node is shutting down.
    pub async fn peers(&self) -> Vec<PeerInfo> {
        self.ask(|reply| Command::Peers { reply }).await.unwrap_or_default()
    }

    /// Closes all connections, so that peers need not find out that this node is gone. Nothing can be asked after.
    pub async fn leave(&self) {
        let _ = self.ask(|reply| Command::Leave { reply }).await;
    }

    /// How others reach this node. `None` when it is shutting down.
    pub async fn reachable(&self) -> Option<Reachable> {
        self.ask(|reply| Command::Reachable { reply }).await.ok()
    }

    /// How many peers we are connected to.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// The connected peers that take part in the DHT, now and as they change.
    pub(crate) fn neighbours(&self) -> watch::Receiver<Neighbours> {
        self.neighbours.clone()
    }

    /// What the DHT has cost this node so far.
    pub fn load(&self) -> Load {
        self.meter.read()
    }

    /// Whether the control plane has ended, so that nothing can be asked of it.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// The streams by which peers ask for chunks that cannot dial our data plane. Once: later calls get
    /// `None`.
    pub fn incoming(&self) -> Option<mpsc::Receiver<Incoming>> {
        self.incoming.lock().expect("no panics while held").take()
    }

    /// Begins to connect to the node at `multiaddr`, which ends in `/p2p/…`.
    pub async fn dial(&self, multiaddr: &str) -> Result<(), JoinError> {
        let (_, addr) = bootstrap::parse_one(multiaddr)?;
        let dialled = self.ask(|reply| Command::Dial { addr, reply }).await?;
        dialled.map_err(|cause| JoinError::Refused { addr: multiaddr.to_owned(), cause })
    }

    /// Puts one of this node's own names into the DHT. Returns how many other nodes keep it now; it goes to
    /// [`Handle::REPLICAS`] at most.
    pub async fn put_name(&self, name: SignedName) -> Result<usize, DirectoryError> {
        self.ask(|reply| Command::PutName { name, reply }).await
    }

    /// What nodes of the DHT, and this one, keep under the key of `name`: claims, a bounded number of them,
    /// which the asker has to verify.
    pub async fn name(&self, name: &FullName) -> Result<Vec<Vec<u8>>, DirectoryError> {
        let _one = self.lookups.acquire().await.expect("never closed");
        let key = name.key();
        self.ask(|reply| Command::Name { key, reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, DirectoryError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| DirectoryError::Stopped)?;
        answer.await.map_err(|_| DirectoryError::Stopped)
    }
}

/// Seconds since 1970: names are good until a date.
#[expect(clippy::disallowed_methods, reason = "dates in records of others are by the wall clock")]
pub(crate) fn clock_unix() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

impl Directory for Handle {
    fn announce(&self, model: ModelId, keys: Vec<Key>) -> BoxFuture<'_, Result<(), DirectoryError>> {
        Box::pin(async move {
            let sent = self.commands.send(Command::Announce { model, keys }).await;
            sent.map_err(|_| DirectoryError::Stopped)
        })
    }

    fn providers(&self, key: Key) -> BoxFuture<'_, Result<Vec<Peer>, DirectoryError>> {
        Box::pin(async move {
            let _one = self.lookups.acquire().await.expect("never closed");
            self.ask(|reply| Command::Providers { key, reply }).await
        })
    }
}
