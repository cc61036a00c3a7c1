//! Bytes from peer to peer over QUIC. The only user of `quinn`.
//!
//! One [`Endpoint`] both serves and asks, on one UDP port. Both ends of every connection prove the
//! key that the DHT knows them by. One request per stream, one reply, then the stream ends; see
//! [`surf_protocol::wire`]. In a private swarm both ends prove its key before that (`proof.rs`). Nothing here verifies chunks, chooses peers or retries: that is
//! [`fetch`](crate::fetch). What a stranger can make us hold is bounded, in `limits.rs`.

mod bodies;
mod body;
mod budget;
mod client;
mod congestion;
mod dial;
mod limits;
mod peers;
mod proof;
mod rates;
mod server;
mod settings;
mod socket;
mod tunnel;
mod turns;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use surf_protocol::NodeId;
use tokio::sync::mpsc;

use crate::{
    config,
    fetch::{Incoming, Route, Tunnel, rate::Limits},
    identity::Identity,
    members::Members,
    source::Library,
};

pub use client::Client;
use proof::Prover;

/// The data plane of this node. Cloning it gives another handle of the same.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    identity: Identity,
    peers: Arc<peers::Peers>,
    prover: Option<Arc<Prover>>,
    client: Arc<Client>,
    limits: Limits,
    server: Arc<OnceLock<Arc<server::Server>>>,
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
    /// From where it was last seen. `None` if only through tunnels.
    pub addr: Option<SocketAddr>,
    /// By which way it is or was last reached.
    pub route: Route,
    /// Bytes of UDP payload sent to it since the node started; through tunnels, bytes of messages.
    pub sent: u64,
    /// The same received from it.
    pub received: u64,
    /// Bytes per second sent to it over the last seconds.
    pub rate_up: u64,
    /// Bytes per second received from it over the last seconds.
    pub rate_down: u64,
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
    /// The peer is not let in: it has not proven the swarm key, or a list says so. No words go with it.
    pub(super) const NOT_LET_IN: VarInt = VarInt::from_u32(4);
}

impl Endpoint {
    /// Binds the UDP socket. From then on, peers can be asked; [`Endpoint::serve`] lets them ask us.
    /// Must be called in a tokio runtime.
    pub fn bind(
        identity: &Identity,
        config: &config::Transfer,
        members: &Members,
    ) -> Result<Self, BindError> {
        let addr = config.listen;
        let quinn = socket::bind(addr).map_err(|cause| BindError { addr, cause: cause.into() })?;
        let limits = Limits::new(&config.limits);
        let peers = Arc::new(peers::Peers::new(config.limits.connections, members.access.clone()));
        tokio::spawn(peers::Peers::measure(Arc::downgrade(&peers)));
        let prover = members.key.as_ref().map(|key| Arc::new(Prover::new(key, identity.node_id())));
        let client = Client::new(
            quinn.clone(),
            identity.clone(),
            Arc::clone(&peers),
            Arc::clone(&limits.down),
            prover.clone(),
        );
        let (client, server) = (Arc::new(client), Arc::default());
        Ok(Self { quinn, identity: identity.clone(), peers, prover, client, limits, server })
    }

    /// Whether this node deals with `peer`, over whatever carries the bytes: the lists let it in, and it is
    /// not banned. Says nothing about the swarm key, which every connection proves for itself.
    pub fn lets_in(&self, peer: NodeId) -> bool {
        self.peers.lets_in(peer).is_ok()
    }

    /// Where the endpoint is bound. The port is the real one.
    pub fn local_addr(&self) -> SocketAddr {
        self.quinn.local_addr().expect("a bound socket has an address")
    }

    /// From now on, answers peers out of `library`, until [`Endpoint::close`] or the end of the
    /// runtime.
    pub fn serve(&self, library: Arc<dyn Library>) -> Result<(), BindError> {
        let failed = |cause| BindError { addr: self.local_addr(), cause };
        let alpn = proof::alpn(self.prover.as_deref());
        let tls = self.identity.server_tls_for(alpn).map_err(|cause| failed(cause.into()))?;
        self.quinn.set_server_config(Some(settings::serving(tls)));
        let (peers, up) = (Arc::clone(&self.peers), Arc::clone(&self.limits.up));
        let server = Arc::new(server::Server::new(library, peers, up, self.prover.clone()));
        // Whoever comes through tunnels shares the limits of the first.
        let _ = self.server.set(Arc::clone(&server));
        tokio::spawn(server.accept(self.quinn.clone()));
        Ok(())
    }

    /// From now on, asks peers that cannot be dialled by way of `tunnel`, and answers what is asked on
    /// `incoming`, if [`Endpoint::serve`] was called before. `bulk`: chunks may go through relays.
    pub fn tunnel(&self, tunnel: Arc<dyn Tunnel>, incoming: mpsc::Receiver<Incoming>, bulk: bool) {
        self.client.tunnel(tunnel);
        if let Some(server) = self.server.get() {
            tokio::spawn(Arc::clone(server).tunnels(incoming, bulk));
        }
    }

    /// The half that asks.
    pub fn dialer(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// How much may move. What is changed here holds at once.
    pub fn limits(&self) -> &Limits {
        &self.limits
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
