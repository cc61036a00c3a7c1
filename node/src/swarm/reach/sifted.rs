//! A behaviour whose addresses lead where they should.
//!
//! Two homes often have the same private addresses. What answers at the address of a peer in another home may
//! be a neighbour, or this very node. libp2p then gives up the whole dial, though another address of the
//! peer, which was dialled at the same time, may have been right. So such addresses are remembered, and
//! left out when the peer is dialled again. (Not those that the user has named: see `bootstrap`.)

use std::{
    collections::{HashMap, HashSet},
    ops::{Deref, DerefMut},
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, DialFailure, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};
use tokio::time::Instant;

use super::super::addrs;

/// How long an address is left out. Laptops move.
const LEFT_OUT: Duration = Duration::from_secs(10 * 60);

/// Addresses that are remembered. When there are more, all are forgotten: each costs one dial.
const MISLEADING_MAX: usize = 4096;

/// A behaviour that leaves out addresses at which others have answered.
pub(in crate::swarm) struct Sifted<B> {
    inner: B,
    /// When it was last found out, and how often.
    misleading: HashMap<(PeerId, Multiaddr), (Instant, u32)>,
    /// Connections that have told the behaviour something.
    talking: HashSet<ConnectionId>,
    /// Peers that have been heard since they were last asked for.
    heard: HashSet<PeerId>,
}

impl<B> Sifted<B> {
    pub(in crate::swarm) fn new(inner: B) -> Self {
        Self { inner, misleading: HashMap::new(), talking: HashSet::new(), heard: HashSet::new() }
    }

    /// `addrs` without those at which somebody else than `peer` has answered.
    pub(in crate::swarm) fn sift(&self, peer: PeerId, mut addrs: Vec<Multiaddr>) -> Vec<Multiaddr> {
        let now = Instant::now();
        addrs.retain(|addr| {
            self.misleading.get(&(peer, plain(addr))).is_none_or(|(last, _)| *last + LEFT_OUT <= now)
        });
        addrs
    }

    /// The peers that have asked or answered something since this was last called.
    pub(in crate::swarm) fn take_heard(&mut self) -> HashSet<PeerId> {
        std::mem::take(&mut self.heard)
    }

    fn misled(&mut self, peer: PeerId, addr: &Multiaddr) {
        if MISLEADING_MAX <= self.misleading.len() {
            self.misleading.clear();
        }
        let now = Instant::now();
        let (last, times) = self.misleading.entry((peer, plain(addr))).or_insert((now, 0));
        *times = if *last + LEFT_OUT <= now { 1 } else { *times + 1 };
        *last = now;
    }

    /// Whether `error` is that an address misleads, which nobody knew: another dial may end better.
    pub(in crate::swarm) fn is_news(&self, peer: PeerId, error: &DialError) -> bool {
        let times = |addr| self.misleading.get(&(peer, plain(addr))).map(|(_, times)| *times);
        misleading(error).and_then(times) == Some(1)
    }
}

/// Without the peer at its end.
fn plain(addr: &Multiaddr) -> Multiaddr {
    let mut addr = addr.clone();
    if addrs::node(&addr).is_some() {
        addr.pop();
    }
    addr
}

/// Where somebody else has answered than who was dialled.
fn misleading(error: &DialError) -> Option<&Multiaddr> {
    match error {
        DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => Some(address),
        _other => None,
    }
}

impl<B> Deref for Sifted<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.inner
    }
}

impl<B> DerefMut for Sifted<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Sifted<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addrs: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let more = self.inner.handle_pending_outbound_connection(connection, peer, addrs, role)?;
        Ok(match peer {
            Some(peer) => self.sift(peer, more),
            None => more,
        })
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(connection, peer, addr, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::DialFailure(DialFailure { peer_id: Some(peer), error, .. }) = &event
            && let Some(addr) = misleading(error)
        {
            self.misled(*peer, addr);
        }
        if let FromSwarm::ConnectionClosed(closed) = &event {
            self.talking.remove(&closed.connection_id);
            self.heard.remove(&closed.peer_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        // The first says that the protocol is spoken there. A stream on which nothing is asked is no use.
        if !self.talking.insert(connection) {
            self.heard.insert(peer);
        }
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use libp2p::multiaddr::Protocol;

    use super::*;

    #[test]
    fn where_another_answered_is_left_out_for_that_peer_alone() {
        let mut sifted = Sifted::new(());
        let (peer, other) = (PeerId::random(), PeerId::random());
        let wrong: Multiaddr = "/ip4/192.168.1.2/udp/8470/quic-v1".parse().unwrap();
        let right: Multiaddr = "/ip4/198.51.100.1/udp/8470/quic-v1".parse().unwrap();
        sifted.misled(peer, &wrong.clone().with(Protocol::P2p(peer)));
        assert_eq!(sifted.sift(peer, vec![wrong.clone(), right.clone()]), std::slice::from_ref(&right));
        let error = DialError::LocalPeerId { address: wrong.clone() };
        assert!(sifted.is_news(peer, &error) && !sifted.is_news(other, &error));
        sifted.misled(peer, &wrong);
        assert!(!sifted.is_news(peer, &error), "nobody dials it again and again");
        assert_eq!(sifted.sift(other, vec![wrong.clone()]), std::slice::from_ref(&wrong));
        (0..MISLEADING_MAX).for_each(|_| sifted.misled(PeerId::random(), &right));
        assert!(sifted.misleading.len() <= MISLEADING_MAX);
    }
}
