//! Getting chunks: from the store, else from peers, else from an origin.
//!
//! What this needs from the outside are two traits, so that the simulator can run this very code
//! against a network it controls: [`Directory`] says who may have something, [`Dialer`] gets bytes
//! from one peer. Neither is trusted: every byte is verified before anything reads it.
//!
//! - [`schedule`]: which chunk to ask of which peer next. Pure.
//! - [`Fetcher`]: the handle. [`Model`] is the same for one model: what runs it asks.
//! - `task`: owns the schedule, starts requests, answers those who wait.
//! - `lookup`: finds out who has what of one model.
//! - `request`: one request to one peer, to its end: verified bytes, or why not.
//! - `traffic`: where every byte came from.

mod fetcher;
mod lookup;
mod model;
mod request;
pub mod schedule;
mod task;
mod traffic;

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use surf_protocol::{
    ChunkId, Group, ModelId, NodeId,
    wire::{Refusal, Request},
};

pub use fetcher::{Fetcher, Origin, Parts};
pub use model::Model;
pub use traffic::{Source, Traffic};

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
    /// Who has all of a group: a hash of the model and the group.
    Group([u8; 32]),
    /// Who has a chunk, whatever model it is of.
    Chunk(ChunkId),
}

impl Key {
    /// The key of a group of a model.
    pub fn group(model: ModelId, group: &Group) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("surf-node 2026-11 group of a model");
        hasher.update(model.as_bytes());
        hasher.update(group.to_string().as_bytes());
        Self::Group(*hasher.finalize().as_bytes())
    }

    /// What the directory stores it under.
    pub fn as_bytes(&self) -> &[u8; 32] {
        match self {
            Self::Model(id) => id.as_bytes(),
            Self::Group(hash) => hash,
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

    /// The peers that say they have `key`, without this node. Claims, not facts. Complete as far as
    /// the directory knows: peers not met before are met first.
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

    /// Closes the connection to `peer`, if there is one, and refuses it from now on.
    fn ban(&self, peer: NodeId);
}

/// The bytes that follow a reply.
pub struct Body {
    /// How many the peer says it will send. A claim: check it before making room.
    pub size: u64,
    /// The bytes, as they come. Ends after `size`, or with an error before.
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
}
