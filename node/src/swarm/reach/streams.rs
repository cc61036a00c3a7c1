//! Streams for the data plane over the connections of the control plane.
//!
//! Knows of every connection by which way it goes, and so opens each stream on the best one, and says of each
//! that comes in how it came. (`libp2p-stream` picks one of a peer's connections by chance and does not tell
//! which.) Streams that nobody has room for are dropped, not queued.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{ConnectedPoint, Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    multiaddr::Protocol,
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent,
        ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ConnectionEstablished,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    super::{
        addrs,
        crowd::{Busy, InUse},
    },
    Unopened,
    counted::Counted,
};
use crate::{
    fetch::{Incoming, Route},
    identity::node_id,
};

/// The same frames as under this ALPN on the data plane.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/surf/data/2");

/// How long a relayed connection is kept beside a better one: what was begun on it may end.
const RELAYED_BESIDE: Duration = Duration::from_secs(10);

/// How long a connection is kept that was made only to see whether somebody can be dialled.
const PROBE_LIFE: Duration = Duration::from_secs(15);

/// How often it is looked what is no longer needed.
const TIDY: Duration = Duration::from_secs(5);

/// Streams that wait for one connection to take them up. Beyond this, opening fails.
const OPENING_MAX: usize = 64;

/// A stream that was opened, with the way that it goes.
pub(in crate::swarm) type Opened = (Counted, Route);

/// Who waits for a stream.
pub(in crate::swarm) type Reply = oneshot::Sender<Result<Opened, Unopened>>;

/// Opens and accepts streams, and keeps account of connections.
pub(in crate::swarm) struct Streams {
    ways: HashMap<PeerId, Vec<Way>>,
    incoming: mpsc::Sender<Incoming>,
    busy: Busy,
    actions: VecDeque<ToSwarm<Infallible, Open>>,
    tidied: Instant,
}

/// A connection, by the way it goes.
#[derive(Clone, Debug)]
pub(in crate::swarm) struct Way {
    connection: ConnectionId,
    pub(in crate::swarm) route: Route,
    pub(in crate::swarm) since: Instant,
    /// Through whom, if it is relayed and that is known.
    pub(in crate::swarm) relay: Option<PeerId>,
    /// From a port of its own: made to see whether the other can be dialled.
    probe: bool,
    /// Where we dialled it.
    dialled: Option<Multiaddr>,
    /// We did so from the UDP port that we listen on: how we look from there, others may reach us.
    from_our_port: bool,
}

impl Streams {
    pub(super) fn new((incoming, busy): (mpsc::Sender<Incoming>, Busy)) -> Self {
        Self { ways: HashMap::new(), incoming, busy, actions: VecDeque::new(), tidied: Instant::now() }
    }

    /// The best connection to `peer`.
    pub(in crate::swarm) fn best(&self, peer: &PeerId) -> Option<&Way> {
        self.ways.get(peer)?.iter().filter(|way| !way.probe).min_by_key(|way| way.route)
    }

    /// Opens a stream on the best connection to `peer`. The reply is dropped if there is none.
    pub(in crate::swarm) fn open(&mut self, peer: PeerId, reply: Reply) {
        let Some(way) = self.best(&peer) else { return };
        let event = Open { route: way.route, in_use: self.busy.with(peer), reply };
        let handler = NotifyHandler::One(way.connection);
        self.actions.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event });
    }

    /// `peer` sees us as `observed`, on the connection `id`. Returns where we dialled it, if we did.
    pub(in crate::swarm) fn observed(
        &mut self,
        peer: &PeerId,
        id: ConnectionId,
        observed: &Multiaddr,
    ) -> Option<Multiaddr> {
        let way = self.ways.get(peer)?.iter().find(|way| way.connection == id)?;
        if way.from_our_port {
            // identify takes the port that we listen on instead, but the NAT may have chosen another.
            self.actions.push_back(ToSwarm::NewExternalAddrCandidate(observed.clone()));
        }
        way.dialled.clone()
    }

    /// Closes what is no longer needed.
    pub(in crate::swarm) fn tidy(&mut self, now: Instant) {
        if now < self.tidied + TIDY {
            return;
        }
        self.tidied = now;
        for (&peer_id, ways) in &self.ways {
            let old = |way: &Way, age| way.since + age <= now;
            let better =
                ways.iter().any(|way| way.route != Route::Relayed && !way.probe && old(way, RELAYED_BESIDE));
            let over =
                |way: &&Way| (way.probe && old(way, PROBE_LIFE)) || (way.route == Route::Relayed && better);
            for way in ways.iter().filter(over) {
                let connection = CloseConnection::One(way.connection);
                self.actions.push_back(ToSwarm::CloseConnection { peer_id, connection });
            }
        }
    }

    fn established(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let ways = self.ways.entry(peer).or_default();
        let beside_relayed = ways.iter().any(|way| way.route == Route::Relayed);
        let port_use = match endpoint {
            ConnectedPoint::Dialer { port_use, .. } => Some(*port_use),
            ConnectedPoint::Listener { .. } => None,
        };
        let relayed = endpoint.is_relayed();
        let mut addr = endpoint.get_remote_address().clone();
        if addrs::node(&addr).is_some() {
            addr.pop();
        }
        let from_our_port = port_use == Some(PortUse::Reuse) && addrs::is_quic(&addr);
        ways.push(Way {
            connection,
            route: route(endpoint, beside_relayed),
            since: Instant::now(),
            relay: relayed.then(|| relay(endpoint)).flatten(),
            probe: port_use == Some(PortUse::New),
            dialled: (port_use == Some(PortUse::Reuse) && !relayed).then_some(addr),
            from_our_port,
        });
    }

    fn closed(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(ways) = self.ways.get_mut(&peer) {
            ways.retain(|way| way.connection != connection);
            if ways.is_empty() {
                self.ways.remove(&peer);
            }
        }
    }
}

/// By which way a connection goes. One that is made while the peer is known through a relay was made with
/// the relay's help.
fn route(endpoint: &ConnectedPoint, beside_relayed: bool) -> Route {
    if endpoint.is_relayed() {
        return Route::Relayed;
    }
    if beside_relayed {
        return Route::Punched;
    }
    let ip = addrs::ip(endpoint.get_remote_address());
    ip.map_or(Route::Direct, |ip| Route::of(SocketAddr::new(ip, 0)))
}

/// The relay in the address of a relayed connection.
fn relay(endpoint: &ConnectedPoint) -> Option<PeerId> {
    let addr = match endpoint {
        ConnectedPoint::Dialer { address, .. } => address,
        ConnectedPoint::Listener { local_addr, .. } => local_addr,
    };
    let before = addr.iter().take_while(|part| *part != Protocol::P2pCircuit);
    before.filter_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None }).last()
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => self.established(peer_id, connection_id, endpoint),
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.closed(peer_id, connection_id);
            }
            _other => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        Came(stream): THandlerOutEvent<Self>,
    ) {
        let way = self.ways.get(&peer).and_then(|ways| ways.iter().find(|way| way.connection == connection));
        let stream = Counted::new(stream, self.busy.with(peer));
        if let Some(route) = way.map(|way| way.route)
            && let Some(id) = node_id(peer)
            && self.incoming.try_send(Incoming { peer: id, stream: Box::new(stream), route }).is_err()
        {
            tracing::debug!(%peer, "a stream was dropped: too many wait");
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Opens a stream on a connection.
pub(in crate::swarm) struct Open {
    route: Route,
    in_use: InUse,
    reply: Reply,
}

/// A peer has opened a stream.
pub(in crate::swarm) struct Came(Stream);

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("route", &self.route).finish_non_exhaustive()
    }
}

impl fmt::Debug for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Came").finish_non_exhaustive()
    }
}

/// The streams of one connection.
#[derive(Default)]
pub(in crate::swarm) struct Handler {
    to_open: VecDeque<Open>,
    came: VecDeque<Stream>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Came;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, ()> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Open, Came>> {
        if let Some(stream) = self.came.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Came(stream)));
        }
        self.to_open.pop_front().map_or(Poll::Pending, |open| {
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), open);
            Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
        })
    }

    fn on_behaviour_event(&mut self, open: Open) {
        if self.to_open.len() < OPENING_MAX {
            self.to_open.push_back(open);
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Open>,
    ) {
        match event {
            // libp2p bounds how many are being negotiated, and this is emptied before the next is read.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.came.push_back(protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                // Whoever no longer waits for it need not get it.
                let stream = Counted::new(protocol, info.in_use);
                drop(info.reply.send(Ok((stream, info.route))));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let why = match error {
                    StreamUpgradeError::NegotiationFailed => {
                        "the peer does not speak the data plane's protocol here".to_owned()
                    }
                    StreamUpgradeError::Timeout => "the peer did not answer".to_owned(),
                    StreamUpgradeError::Io(error) => error.to_string(),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                drop(info.reply.send(Err(Unopened::Failed(why))));
            }
            _other => {}
        }
    }
}
