//! The way to a peer whose data plane cannot be dialled: a stream over the control plane, on which the very
//! same request and reply go as on a connection of the data plane. One request per stream.
//!
//! What opens and accepts such streams is the swarm, what speaks on them is the transfer; this is all they
//! know of each other.

use std::fmt;

use futures::{
    future::BoxFuture,
    io::{AsyncRead, AsyncWrite},
};
use surf_protocol::NodeId;

use super::{DialError, Link, Route};

/// Bytes in both directions. Closing ends what we send; dropping cancels.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Opens streams to peers.
///
/// # Contract
///
/// - The stream leads to who has proven to be `peer`.
/// - For a `bulk` request the way may carry chunks: it is direct or was opened through the NAT, or this node
///   and the relay's owner both allow chunks through relays. Otherwise it is an error that says so.
/// - Answers within some seconds. Dropping the future is always safe.
pub trait Tunnel: fmt::Debug + Send + Sync {
    /// A new stream to `peer`, over the best connection of the control plane that there is or that can be
    /// made.
    fn open(&self, peer: NodeId, bulk: bool) -> BoxFuture<'_, Result<Tunnelled, DialError>>;
}

/// A stream to a peer.
pub struct Tunnelled {
    /// The bytes.
    pub stream: Box<dyn Duplex>,
    /// By which way it goes. Never shorter than the truth.
    pub link: Link,
}

impl fmt::Debug for Tunnelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnelled").field("link", &self.link).finish_non_exhaustive()
    }
}

/// A stream that a peer has opened to ask something.
pub struct Incoming {
    /// Who has proven to be at the other end.
    pub peer: NodeId,
    /// The bytes.
    pub stream: Box<dyn Duplex>,
    /// By which way they come.
    pub route: Route,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("peer", &self.peer)
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}
