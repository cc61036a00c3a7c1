//! Getting chunks: from the store, else from peers, else from an origin.
//!
//! What this needs from the outside are two traits, so that the simulator can run this very code
//! against a network it controls: [`Directory`] says who may have something, [`Dialer`] gets bytes
//! from one peer. Neither is trusted.

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use surf_protocol::{
    ChunkId, ModelId, NodeId,
    wire::{Refusal, Request},
};

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
