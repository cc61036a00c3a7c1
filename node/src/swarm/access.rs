//! Which peers may be connected: asked before dialling, and right after either side's handshake, before any
//! protocol gets to see the connection.

use std::{convert::Infallible, task};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy::ConnectionHandler,
    },
};

use crate::{identity::node_id, members::Access};

/// Refuses connections with peers that the lists do not let in.
pub(super) struct Behaviour {
    access: Access,
}

#[derive(Debug, thiserror::Error)]
#[error("the lists of peers do not let in {0}")]
struct NotLetIn(PeerId);

impl Behaviour {
    pub(super) fn new(access: Access) -> Self {
        Self { access }
    }

    fn check(&self, peer: PeerId) -> Result<(), ConnectionDenied> {
        // A key of another kind than ours stands in no list.
        let let_in = node_id(peer).map_or(self.access.allow.is_empty(), |id| self.access.lets_in(id));
        if let_in { Ok(()) } else { Err(ConnectionDenied::new(NotLetIn(peer))) }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<ConnectionHandler, ConnectionDenied> {
        self.check(peer).map(|()| ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        peer.map_or(Ok(()), |peer| self.check(peer)).map(|()| Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<ConnectionHandler, ConnectionDenied> {
        self.check(peer).map(|()| ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut task::Context<'_>) -> task::Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        task::Poll::Pending
    }
}
