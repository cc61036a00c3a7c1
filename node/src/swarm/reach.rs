//! Reaching, and being reached by, nodes behind NAT.
//!
//! - AutoNAT and what else is seen tell whether others can dial us ([`Outlook`], `outlook`).
//! - If they cannot, we keep places at one or two peers that relay (`relays`), and so have addresses that
//!   lead through them. They go out with all our others: through identify, and with what we announce.
//! - Whoever dials such an address meets us through the relay. DCUtR then has both sides dial each other
//!   at the same moment, which opens both NATs, and the relay is needed no more.
//! - Where the data plane cannot be dialled, its requests go over a stream of such a connection (`streams`,
//!   `tunnel`). Chunks go through a relay only if its owner and both ends allow it.
//! - If others can dial us, we relay, within [`circuits`].

mod counted;
mod outlook;
mod relays;
mod sifted;
mod streams;
mod tunnel;

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, autonat,
    core::transport::ListenerId,
    dcutr, identify,
    multiaddr::Protocol,
    relay,
    swarm::{ConnectionId, NetworkBehaviour},
};
use surf_protocol::NodeId;
use tokio::{sync::mpsc, time::Instant};
use tracing::{debug, info, trace};

use self::{outlook::Evidence, relays::Relays, streams::Streams};
use super::{
    addrs,
    crowd::{Busy, Guard},
    task::Task,
};
use crate::{
    config::{Relay, Relaying},
    fetch::{Incoming, Route},
    identity::{libp2p_id, node_id},
};

pub use outlook::Outlook;
pub(super) use sifted::Sifted;
pub(super) use streams::Opened;

/// Streams of peers that wait for the data plane. Beyond this they are dropped, and asked again.
const INCOMING_MAX: usize = 64;

/// How often AutoNAT looks whether there is something to test. The first test waits for it.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// How long after two nodes have met through a relay they may still open a way of their own. Whoever asks
/// something waits for that; most need less than a second.
const PUNCH_TIME: Duration = Duration::from_secs(3);

/// A relay whose circuits carry so much lets chunks pass.
const BULK_MIN: u64 = 1 << 30;

/// Relays of which it is remembered whether they let chunks pass.
const RELAYS_MAX: usize = 256;

/// The protocols behind all this.
#[derive(NetworkBehaviour)]
pub(super) struct Reach {
    relay: relay::Behaviour,
    places: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    tested: autonat::v2::client::Behaviour,
    tests: autonat::v2::server::Behaviour,
    streams: Streams,
}

impl Reach {
    pub(super) fn new(
        me: PeerId,
        places: relay::client::Behaviour,
        config: Relay,
        streams: (mpsc::Sender<Incoming>, Busy),
    ) -> Self {
        let testing = autonat::v2::client::Config::default().with_probe_interval(PROBE_INTERVAL);
        let mut relay = relay::Behaviour::new(me, circuits(config.bulk));
        relay.set_status(Some(status(config.serve == Relaying::Always)));
        Self {
            relay,
            places,
            dcutr: dcutr::Behaviour::new(me),
            tested: autonat::v2::client::Behaviour::new(rand::make_rng(), testing),
            tests: autonat::v2::server::Behaviour::default(),
            streams: Streams::new(streams),
        }
    }
}

/// Streams of peers, from the swarm to the data plane.
pub(super) fn incoming() -> (mpsc::Sender<Incoming>, mpsc::Receiver<Incoming>) {
    mpsc::channel(INCOMING_MAX)
}

/// What we carry for others. Without `bulk`, enough for manifests and for finding a way without us.
fn circuits(bulk: bool) -> relay::Config {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let rate = |limit| NonZeroU32::new(limit).expect("not zero");
    let config = relay::Config {
        // A place costs a connection, which there is anyway.
        max_reservations: 128,
        max_reservations_per_peer: 2,
        reservation_duration: HOUR,
        reservation_rate_limiters: Vec::new(),
        // A circuit costs two streams and their buffers, some 100 KB.
        max_circuits: 128,
        max_circuits_per_peer: 16,
        max_circuit_duration: if bulk { 6 * HOUR } else { HOUR / 2 },
        max_circuit_bytes: if bulk { 64 * BULK_MIN } else { 16 << 20 },
        circuit_src_rate_limiters: Vec::new(),
    };
    // So many at once, and then one in each interval. A whole home may be behind one address.
    config
        .reservation_rate_per_peer(rate(8), Duration::from_secs(30))
        .reservation_rate_per_ip(rate(64), Duration::from_secs(5))
        .circuit_src_per_peer(rate(64), Duration::from_secs(5))
        .circuit_src_per_ip(rate(256), Duration::from_secs(1))
}

fn status(serves: bool) -> relay::Status {
    if serves { relay::Status::Enable } else { relay::Status::Disable }
}

/// What the task knows of how it is reached.
#[derive(Debug)]
pub(super) struct State {
    config: Relay,
    evidence: Evidence,
    outlook: Outlook,
    relays: Relays,
    /// The places that we have or have asked for.
    places: HashMap<ListenerId, PeerId>,
    /// The relays at which we have one.
    met_through: BTreeSet<PeerId>,
    /// Whether relays let chunks pass.
    bulk: HashMap<PeerId, bool>,
}

impl State {
    pub(super) fn new(config: Relay) -> Self {
        Self {
            config,
            evidence: Evidence::default(),
            outlook: Outlook::Unknown,
            relays: Relays::default(),
            places: HashMap::new(),
            met_through: BTreeSet::new(),
            bulk: HashMap::new(),
        }
    }

    /// Whether we relay for others.
    fn serves(&self) -> bool {
        match self.config.serve {
            Relaying::Auto => self.outlook == Outlook::Public,
            Relaying::Always => true,
            Relaying::Never => false,
        }
    }

    /// Whether chunks may go through `relay`, and if not, why not. What is not known, the relay will tell by
    /// closing the circuit.
    fn carries(&self, relay: Option<PeerId>) -> Result<(), &'static str> {
        match relay.and_then(|relay| self.bulk.get(&relay)) {
            _ if !self.config.bulk => {
                Err("only reachable through a relay, which this node does not use for chunks \
                                           (--relay-bulk)")
            }
            Some(false) => Err("only reachable through a relay whose owner lets no chunks pass"),
            Some(true) | None => Ok(()),
        }
    }

    /// Circuits of `relay` carry so many bytes; `None` if they are not bounded.
    fn learned(&mut self, relay: PeerId, bytes: Option<u64>) {
        if self.bulk.len() < RELAYS_MAX || self.bulk.contains_key(&relay) {
            self.bulk.insert(relay, bytes.is_none_or(|bytes| BULK_MIN <= bytes));
        }
    }
}

/// How this node is reached by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// Whether they can dial it.
    pub outlook: Outlook,
    /// The relays through which it can be met.
    pub relays: Vec<NodeId>,
    /// Whether it relays for others.
    pub serves: bool,
    /// What is wrong with nodes that the user named to join through.
    pub unreached: Vec<String>,
    /// Whether another node runs with this node's identity, so that others reach now one and now the other.
    pub shared_identity: bool,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unopened {
    /// There may be one in a moment: the peer is being dialled, or a way through the NAT opened.
    #[error("no connection yet")]
    NotYet,
    /// There is a way, which may not carry chunks.
    #[error("{0}")]
    Barred(&'static str),
    /// There will be none.
    #[error("{0}")]
    Failed(String),
}

impl Task {
    /// How we are reached.
    pub(super) fn reachable(&self) -> Reachable {
        let relays = self.reach.met_through.iter().filter_map(|relay| node_id(*relay)).collect();
        Reachable {
            outlook: self.reach.outlook,
            relays,
            serves: self.reach.serves(),
            unreached: self.seeds.unreached(),
            shared_identity: self.twins.found(),
        }
    }

    /// Does what is due.
    pub(super) fn reach_out(&mut self, now: Instant) {
        let reach = &mut self.swarm.behaviour_mut().reach;
        reach.streams.tidy(now);
        if self.reach.outlook != Outlook::Private {
            return;
        }
        while let Some((relay, addr)) = self.reach.relays.next(now) {
            let addr = addr.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
            match self.swarm.listen_on(addr.clone()) {
                Ok(listener) => drop(self.reach.places.insert(listener, relay)),
                Err(error) => {
                    debug!(%addr, %error, "no place at a relay");
                    self.reach.relays.lost(&relay, now);
                }
            }
        }
    }

    /// Opens a stream to a peer, or begins to connect to it.
    pub(super) fn open(&mut self, node: NodeId, bulk: bool, reply: streams::Reply) {
        let peer = libp2p_id(node);
        let way = self.swarm.behaviour().reach.streams.best(&peer);
        let unopened = match way {
            None => {
                self.find(peer).err().map_or(Unopened::NotYet, |error| Unopened::Failed(error.to_string()))
            }
            Some(way) if way.route == Route::Relayed => {
                let early = Instant::now() < way.since + PUNCH_TIME;
                match self.reach.carries(way.relay) {
                    _ if early => Unopened::NotYet,
                    Err(why) if bulk => Unopened::Barred(why),
                    Ok(()) | Err(_) => return self.swarm.behaviour_mut().reach.streams.open(peer, reply),
                }
            }
            Some(_) => return self.swarm.behaviour_mut().reach.streams.open(peer, reply),
        };
        // Whoever no longer waits need not be told.
        drop(reply.send(Err(unopened)));
    }

    /// By which way `peer` is reached.
    pub(super) fn route(&self, peer: &PeerId) -> Option<Route> {
        self.swarm.behaviour().reach.streams.best(peer).map(|way| way.route)
    }

    /// A connection was made, the first with the peer, which dialled us from `addr`.
    pub(super) fn visited(&mut self, addr: &Multiaddr) {
        self.reach.evidence.visited(addr);
        self.reconsider();
    }

    /// `peer` has told of itself, and how it sees us.
    pub(super) fn introduced(&mut self, peer: PeerId, connection: ConnectionId, info: &identify::Info) {
        let reach = &mut self.swarm.behaviour_mut().reach;
        let dialled = reach.streams.observed(&peer, connection, &info.observed_addr);
        if dialled.is_some() {
            let ours = self.swarm.listeners().filter(|addr| !addrs::is_relayed(addr)).filter_map(addrs::ip);
            self.reach.evidence.seen(&info.observed_addr, ours);
            self.reconsider();
        }
        let told = || info.listen_addrs.iter().find(|addr| addrs::is_quic(addr)).cloned();
        if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
            if let Some(addr) = dialled.or_else(told) {
                self.reach.relays.offered(peer, addr, Instant::now());
            }
        } else {
            self.reach.relays.withdrawn(&peer);
        }
    }

    /// `peer` is gone.
    pub(super) fn parted(&mut self, peer: &PeerId) {
        self.reach.relays.gone(peer);
        self.reach.bulk.remove(peer);
        for why in [Guard::Relay, Guard::Relayed] {
            self.swarm.behaviour_mut().crowd.unguard(peer, why);
        }
    }

    /// A listener was closed. True if it was a place at a relay.
    pub(super) fn lost_place(&mut self, listener: ListenerId) -> bool {
        let relay = self.reach.places.remove(&listener);
        if let Some(relay) = &relay {
            self.reach.met_through.remove(relay);
            self.swarm.behaviour_mut().crowd.unguard(relay, Guard::Relay);
            debug!(%relay, "the place at a relay is lost, or was refused");
            self.reach.relays.lost(relay, Instant::now());
        }
        relay.is_some()
    }

    /// Others can reach us at `addr`.
    pub(super) fn confirmed(&mut self, addr: &Multiaddr) {
        let others = self.swarm.external_addresses().any(|known| !addrs::is_loopback(known));
        if addrs::is_loopback(addr) && others {
            self.swarm.remove_external_address(addr);
        } else if !addrs::is_relayed(addr) && addrs::ip(addr).is_some_and(|ip| self.ours.add(ip)) {
            self.tell_everyone();
        }
    }

    pub(super) fn on_reach(&mut self, event: ReachEvent) {
        use relay::client::Event as Place;
        match event {
            ReachEvent::Tested(autonat::v2::client::Event { tested_addr, result, .. }) => {
                debug!(addr = %tested_addr, ?result, "somebody tried to dial us");
                self.reach.evidence.tried(&tested_addr, result.is_ok());
                self.reconsider();
            }
            ReachEvent::Places(Place::ReservationReqAccepted { relay_peer_id, renewal, limit }) => {
                self.reach.learned(relay_peer_id, limit.and_then(|limit| limit.data_in_bytes()));
                self.reach.met_through.insert(relay_peer_id);
                self.swarm.behaviour_mut().crowd.guard(relay_peer_id, Guard::Relay);
                if !renewal {
                    info!(relay = %relay_peer_id, "others can meet us through a relay");
                    // What we said before was without the address that leads here.
                    self.announcements.repeat_all();
                }
            }
            ReachEvent::Places(Place::OutboundCircuitEstablished { relay_peer_id, limit }) => {
                self.reach.learned(relay_peer_id, limit.and_then(|limit| limit.data_in_bytes()));
            }
            ReachEvent::Relay(relay::Event::ReservationReqAccepted { src_peer_id, .. }) => {
                self.swarm.behaviour_mut().crowd.guard(src_peer_id, Guard::Relayed);
            }
            ReachEvent::Relay(
                relay::Event::ReservationTimedOut { src_peer_id }
                | relay::Event::ReservationClosed { src_peer_id },
            ) => self.swarm.behaviour_mut().crowd.unguard(&src_peer_id, Guard::Relayed),
            ReachEvent::Dcutr(dcutr::Event { remote_peer_id: peer, result }) => match result {
                Ok(_) => debug!(%peer, "a way through the NAT is open"),
                Err(error) => debug!(%peer, %error, "no way through the NAT"),
            },
            other => trace!(?other, "reach event"),
        }
    }

    fn reconsider(&mut self) {
        let outlook = self.reach.evidence.outlook();
        if outlook == self.reach.outlook {
            return;
        }
        info!(?outlook, "whether others can reach this node");
        self.reach.outlook = outlook;
        let serves = self.reach.serves();
        self.swarm.behaviour_mut().reach.relay.set_status(Some(status(serves)));
    }
}
