//! Bytes from peer to peer over QUIC. The only user of `quinn`.
//!
//! One [`Endpoint`] both serves and asks, on one UDP port. Both ends of every connection prove the
//! key that the DHT knows them by. One request per stream, one reply, then the stream ends; see
//! [`surf_protocol::wire`]. Nothing here verifies chunks, chooses peers or retries: that is
//! [`fetch`](crate::fetch). What a stranger can make us hold is bounded, in `limits.rs`.

mod body;
mod client;
mod dial;
mod limits;
mod peers;
mod server;
mod settings;
mod socket;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use surf_protocol::NodeId;

use crate::{config, identity::Identity, source::Library};

pub use client::Client;

/// The data plane of this node. Cloning it gives another handle of the same.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    identity: Identity,
    peers: Arc<peers::Peers>,
    client: Arc<Client>,
}

/// The data plane could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot move chunks over UDP {addr}: {cause}")]
pub struct BindError {
    /// Where we tried.
    pub addr: SocketAddr,
    /// What went wrong.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// What has gone to and come from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Who.
    pub id: NodeId,
    /// From where it was last seen.
    pub addr: SocketAddr,
    /// Bytes of UDP payload sent to it since the node started.
    pub sent: u64,
    /// Bytes of UDP payload received from it since the node started.
    pub received: u64,
    /// The round trip, if there is a connection.
    pub rtt: Option<Duration>,
    /// Connections there are now, in both directions.
    pub connections: usize,
}

/// Codes with which connections are closed, for the other side's log.
mod code {
    use quinn::VarInt;

    /// Nobody has used the connection for a while, or the node is stopping.
    pub(super) const DONE: VarInt = VarInt::from_u32(0);
    /// The peer has too many connections here.
    pub(super) const TOO_MANY: VarInt = VarInt::from_u32(1);
    /// The peer has sent wrong bytes.
    pub(super) const BANNED: VarInt = VarInt::from_u32(2);
    /// A stream was given up: its request never came, or its bytes were not taken.
    pub(super) const STALLED: VarInt = VarInt::from_u32(3);
}

impl Endpoint {
    /// Binds the UDP socket. From then on, peers can be asked; [`Endpoint::serve`] lets them ask us.
    /// Must be called in a tokio runtime.
    pub fn bind(identity: &Identity, config: &config::Transfer) -> Result<Self, BindError> {
        let addr = config.listen;
        let quinn = socket::bind(addr).map_err(|cause| BindError { addr, cause: cause.into() })?;
        let peers = Arc::new(peers::Peers::default());
        let client = Arc::new(Client::new(quinn.clone(), identity.clone(), Arc::clone(&peers)));
        Ok(Self { quinn, identity: identity.clone(), peers, client })
    }

    /// Where the endpoint is bound. The port is the real one.
    pub fn local_addr(&self) -> SocketAddr {
        self.quinn.local_addr().expect("a bound socket has an address")
    }

    /// From now on, answers peers out of `library`, until [`Endpoint::close`] or the end of the
    /// runtime.
    pub fn serve(&self, library: Arc<dyn Library>) -> Result<(), BindError> {
        let failed = |cause| BindError { addr: self.local_addr(), cause };
        let tls = self.identity.server_tls().map_err(|cause| failed(cause.into()))?;
        self.quinn.set_server_config(Some(settings::serving(tls)));
        let server = server::Server::new(library, Arc::clone(&self.peers));
        tokio::spawn(Arc::new(server).accept(self.quinn.clone()));
        Ok(())
    }

    /// The half that asks.
    pub fn dialer(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// What has gone to and come from each peer, by both directions' connections; ordered by id.
    pub fn stats(&self) -> Vec<PeerTraffic> {
        self.peers.traffic()
    }

    /// Tells every peer that we are leaving, and waits until they know, or a second has passed.
    pub async fn close(&self) {
        self.quinn.close(code::DONE, b"");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.quinn.wait_idle()).await;
    }
}
