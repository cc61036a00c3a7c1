//! Getting chunks: from the store, else from peers, else from an origin.
//!
//! What this needs from the outside are two traits, so that the simulator can run this very code
//! against a network it controls: [`Directory`] says who may have something, [`Dialer`] gets bytes
//! from one peer. Neither is trusted: every byte is verified before anything reads it.
//!
//! - [`schedule`]: which chunk to ask of which peer next. Pure.
//! - [`Fetcher`]: the handle. [`Model`] is the same for one model: what runs it asks.
//! - [`explain()`]: why a download is slow. Pure.
//! - `task`: owns the schedule, starts requests, answers those who wait.
//! - `lookup`: finds out who has what of one model; `holdings`: and keeps up with it.
//! - `request`: one request to one peer, to its end: verified bytes, or why not.
//! - [`rate`]: limits that a user sets, and who waits at them.
//! - [`service`]: which waiting request of others to serve next. Pure.
//! - `traffic`: where every byte came from.
//! - `tunnel`: streams to peers that cannot be dialled, between swarm and transfer.

mod buffers;
mod explain;
mod fetcher;
mod holdings;
mod lookup;
mod model;
pub mod rate;
mod request;
pub mod schedule;
pub mod service;
mod task;
mod traffic;
mod tunnel;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use surf_protocol::{
    ChunkId, ModelId, NodeId,
    wire::{Refusal, Request},
};

pub use explain::{Phase, Reason, explain};
pub use fetcher::{Fetcher, Parts};
pub use model::Model;
pub use schedule::{Holder, HolderState, Outlook};
pub use traffic::{Source, Traffic};
pub use tunnel::{Duplex, Incoming, Tunnel, Tunnelled};

/// How the fetching of one model stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// What has come since the node started.
    pub traffic: Traffic,
    /// What is wanted, and who has it.
    pub outlook: Outlook,
    /// Whether holders are being looked for.
    pub looking: bool,
    /// Chunks that are being fetched from origins.
    pub at_origin: usize,
}

/// A node, and where its data plane may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it must prove to be.
    pub id: NodeId,
    /// Addresses to try, best first.
    pub addrs: Vec<SocketAddr>,
}

/// What the directory is asked about: 32 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Who has anything of a model.
    Model(ModelId),
    /// Who has all of a stem, of whatever model: a hash of its chunks.
    Stem([u8; 32]),
    /// Who has a chunk, whatever model it is of.
    Chunk(ChunkId),
}

impl Key {
    /// The key of a stem that consists of these chunks, in whatever order. Models that share a layer, or an
    /// expert, share its key.
    pub fn stem(chunks: impl IntoIterator<Item = ChunkId>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("surf-node 2026-11 stem");
        for chunk in chunks.into_iter().collect::<BTreeSet<_>>() {
            hasher.update(chunk.as_bytes());
        }
        Self::Stem(*hasher.finalize().as_bytes())
    }

    /// What the directory stores it under.
    pub fn as_bytes(&self) -> &[u8; 32] {
        match self {
            Self::Model(id) => id.as_bytes(),
            Self::Stem(hash) => hash,
            Self::Chunk(id) => id.as_bytes(),
        }
    }
}

/// Who has what.
pub trait Directory: fmt::Debug + Send + Sync {
    /// From now on, says that this node has `keys` of `model`, the most important first, instead of
    /// what was announced for the model before; an empty list withdraws it. Returns at once: keys
    /// go out at a bounded rate, and no more of them than the budget allows.
    fn announce(&self, model: ModelId, keys: Vec<Key>) -> BoxFuture<'_, Result<(), DirectoryError>>;

    /// The peers that say they have `key`, without this node. Claims, not facts. Peers not met before are
    /// met first; the answer comes when all are known that can be found, or enough, or a moment after the
    /// first. So it may lack some: whoever needs more asks again. Nobody is named only if nobody was found.
    fn providers(&self, key: Key) -> BoxFuture<'_, Result<Vec<Peer>, DirectoryError>>;
}

/// The directory could not be asked.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The node is shutting down.
    #[error("the swarm task has ended")]
    Stopped,
}

/// Bytes from one peer.
///
/// # Contract
///
/// - One connection per peer, made when needed, shared by all requests.
/// - `Ok(Err(refusal))` is an answer; `Err` means that there was none.
/// - Nothing is read beyond `Body::size`, nothing is verified, and nothing is buffered beyond a
///   bounded window: a peer that sends into a body that is not read is held back.
/// - Dropping the future or the body cancels the request at the peer.
pub trait Dialer: fmt::Debug + Send + Sync {
    /// Sends `request` to `peer` and waits for the head of the reply.
    fn ask(&self, peer: &Peer, request: Request) -> BoxFuture<'_, Result<Result<Body, Refusal>, DialError>>;

    /// How `peer` is reached, if there is a connection to it. Fast, and dials nobody.
    fn link(&self, peer: NodeId) -> Option<Link>;

    /// Closes the connection to `peer`, if there is one, and refuses it from now on.
    fn ban(&self, peer: NodeId);
}

/// By which way a peer is reached, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// It is on this machine.
    Local,
    /// It is on this network.
    Lan,
    /// Its address can be dialled.
    Direct,
    /// Both sides are behind NAT and opened a way through.
    Punched,
    /// Through a third node.
    Relayed,
}

impl Route {
    /// How an address is reached, as far as it tells.
    pub fn of(addr: SocketAddr) -> Self {
        let private = match addr.ip().to_canonical() {
            ip if ip.is_loopback() => return Self::Local,
            IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
        };
        if private { Self::Lan } else { Self::Direct }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
        })
    }
}

/// A connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// By which way.
    pub route: Route,
    /// The round trip.
    pub rtt: Duration,
}

/// The bytes that follow a reply.
pub struct Body {
    /// How many the peer says it will send. A claim: check it before making room.
    pub size: u64,
    /// The bytes, as they come. Ends after `size`, or with an error before. An empty piece says that
    /// the peer is held back by a limit of ours: that nothing comes is not its fault.
    pub pieces: BoxStream<'static, Result<Bytes, DialError>>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &self.size).finish_non_exhaustive()
    }
}

/// A peer could not be reached, or broke off.
#[derive(Clone, Debug, thiserror::Error)]
#[error("peer at {addr}: {cause}")]
pub struct DialError {
    /// Where we tried, in words.
    pub addr: String,
    /// What went wrong, in words.
    pub cause: String,
    /// Whether there is a way, which may not carry chunks: asking again changes nothing.
    pub barred: bool,
}

impl DialError {
    /// The peer could not be reached at `addr` because of `cause`.
    pub fn new(addr: impl ToString, cause: impl ToString) -> Self {
        Self { addr: addr.to_string(), cause: cause.to_string(), barred: false }
    }
}
