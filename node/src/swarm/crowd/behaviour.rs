//! Keeps the tables: closes who gives way, and knows who is guarded.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
        dummy::ConnectionHandler,
    },
};
use tokio::time::Instant;

use super::{super::fair::Place, Member, PLACES, gives_way};

/// Why a peer is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::swarm) enum Guard {
    /// The user named it.
    Named,
    /// We have a place at it.
    Relay,
    /// It has a place at us.
    Relayed,
    /// Multicast found it.
    Near,
}

/// Peers that are guarded for each reason, so that enough places are left that are free to whoever comes: a quarter of
/// a table at most is guarded. Whom the user names is not counted.
const GUARDED_MAX: usize = 40;

/// Peers with which something is being transferred over the control plane, and how many streams that takes.
#[derive(Clone, Debug, Default)]
pub(in crate::swarm) struct Busy {
    streams: Arc<Mutex<HashMap<PeerId, usize>>>,
}

/// One such stream, until it is dropped.
#[derive(Debug)]
pub(in crate::swarm) struct InUse {
    busy: Busy,
    peer: PeerId,
}

impl Busy {
    /// A stream with `peer` is in use.
    pub(in crate::swarm) fn with(&self, peer: PeerId) -> InUse {
        *self.streams.lock().expect("no panics while held").entry(peer).or_default() += 1;
        InUse { busy: self.clone(), peer }
    }

    fn is_with(&self, peer: &PeerId) -> bool {
        self.streams.lock().expect("no panics while held").contains_key(peer)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut streams = self.busy.streams.lock().expect("no panics while held");
        if let Some(count) = streams.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.peer);
            }
        }
    }
}

/// The tables of connections.
#[derive(Default)]
pub(in crate::swarm) struct Behaviour {
    incoming: Table,
    outgoing: Table,
    guarded: HashMap<PeerId, BTreeSet<Guard>>,
    busy: Busy,
    closing: VecDeque<(PeerId, ConnectionId)>,
}

type Table = HashMap<ConnectionId, (PeerId, Member)>;

impl Behaviour {
    pub(in crate::swarm) fn new(busy: Busy) -> Self {
        Self { busy, ..Self::default() }
    }

    /// Something useful came of the connections with `peer`.
    pub(in crate::swarm) fn useful(&mut self, peer: &PeerId) {
        let now = Instant::now();
        for (member, entry) in self.incoming.values_mut().chain(self.outgoing.values_mut()) {
            if member == peer {
                entry.useful = Some(now);
            }
        }
    }

    /// From now on `peer` does not give way.
    pub(in crate::swarm) fn guard(&mut self, peer: PeerId, why: Guard) {
        let guarded = self.guarded.values().filter(|guards| guards.contains(&why)).count();
        if why == Guard::Named || guarded < GUARDED_MAX {
            self.guarded.entry(peer).or_default().insert(why);
        }
    }

    /// `peer` is no longer guarded for this reason.
    pub(in crate::swarm) fn unguard(&mut self, peer: &PeerId, why: Guard) {
        if let Some(guards) = self.guarded.get_mut(peer) {
            guards.remove(&why);
            if guards.is_empty() {
                self.guarded.remove(peer);
            }
        }
    }

    /// Where `peer` comes from, if it is connected.
    pub(in crate::swarm) fn place(&self, peer: &PeerId) -> Option<Place> {
        let mut all = self.incoming.values().chain(self.outgoing.values());
        all.find(|(member, _)| member == peer).map(|(_, member)| member.place)
    }

    /// `newcomer` is in the table. If that is too full now, somebody else goes.
    fn make_room(&mut self, newcomer: ConnectionId, is_incoming: bool) {
        let table = if is_incoming { &mut self.incoming } else { &mut self.outgoing };
        if table.len() <= PLACES {
            return;
        }
        let (guarded, busy) = (&self.guarded, &self.busy);
        let may_go = |(id, (peer, _)): &(&ConnectionId, &(PeerId, Member))| {
            **id != newcomer && !guarded.contains_key(peer) && !busy.is_with(peer)
        };
        let members: Vec<_> = table.iter().filter(may_go).map(|(id, (_, member))| (*id, *member)).collect();
        // Where all are guarded or busy, the newcomer goes.
        let gone = gives_way(&members, PLACES, Instant::now(), &mut rand::rng()).unwrap_or(newcomer);
        if let Some((peer, _)) = table.remove(&gone) {
            tracing::debug!(%peer, "gives way to a newcomer");
            self.closing.push_back((peer, gone));
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<ConnectionHandler, ConnectionDenied> {
        Ok(ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<ConnectionHandler, ConnectionDenied> {
        Ok(ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                let place = Place::of(endpoint.get_remote_address());
                let member = Member { place, since: Instant::now(), useful: None };
                let is_incoming = endpoint.is_listener();
                let table = if is_incoming { &mut self.incoming } else { &mut self.outgoing };
                table.insert(connection_id, (peer_id, member));
                self.make_room(connection_id, is_incoming);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.incoming.remove(&connection_id);
                self.outgoing.remove(&connection_id);
            }
            _other => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        self.closing.pop_front().map_or(Poll::Pending, |(peer_id, connection)| {
            let connection = CloseConnection::One(connection);
            Poll::Ready(ToSwarm::CloseConnection { peer_id, connection })
        })
    }
}
