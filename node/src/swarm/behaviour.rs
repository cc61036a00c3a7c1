//! The libp2p protocols that this node speaks, and how each is set.

use std::{num::NonZeroUsize, time::Duration};

use libp2p::{
    PeerId, StreamProtocol, connection_limits,
    connection_limits::ConnectionLimits,
    identify,
    identity::Keypair,
    kad, mdns, ping,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{
    access, contact,
    crowd::{self, Busy},
    gate::PENDING_MAX,
    reach::{Reach, Sifted},
    records::Records,
};
use crate::members::Access;

/// Our own DHT: we share no records with other libp2p networks.
pub(super) const KAD: StreamProtocol = StreamProtocol::new("/surf/kad/1");

const IDENTIFY: &str = "/surf/id/1";

/// Nodes that are told of a key, and that a look-up for it asks at least. Kademlia's own twenty would cost more than
/// twice the messages; of eight, half may be gone before a key goes out again.
pub(super) const REPLICAS: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// How long a question to the DHT may take, and one peer's answer to it.
const QUERY_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// Disjoint paths that a query takes, and peers that it asks at once on each: no peer is asked on two paths, so that
/// those who answer with inventions lead astray one path each. Three paths of three: nine peers at once,
/// of which the dead wait for their timeouts without holding up the living. 300 identities that are no nearer to
/// a key than chance makes them are of the 8 nearest of 1,300 with a probability that leaves 6 honest ones on average.
const QUERY_PATHS: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");

/// Connections that are being made by us, that the hard limits allow to be made by others, and that there are, in all and
/// with one peer. The tables in `crowd` and `gate` are smaller, and let somebody go for each newcomer; these limits
/// bound what is about to go. To one peer there may be one through a relay, those that DCUtR makes instead, and
/// those by which AutoNAT tests.
const LIMITS: [u32; 5] =
    [PENDING_MAX as u32 * 2, 256, crowd::PLACES as u32 + 64, 2 * crowd::PLACES as u32 + 128, 8];

/// A peer that does not answer a ping is gone, or its network is: TCP would not notice for a quarter of an hour.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIME_MAX: Duration = Duration::from_secs(15);

/// Kademlia says who has what, identify tells it where peers listen, ping whether they live, mDNS who
/// is near, contact where chunks are; reach is about NAT; crowd says who stays connected.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    access: access::Behaviour,
    limits: connection_limits::Behaviour,
    pub(super) crowd: crowd::Behaviour,
    pub(super) kad: Sifted<kad::Behaviour<Records>>,
    pub(super) identify: Sifted<identify::Behaviour>,
    pub(super) ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) contact: Sifted<contact::Behaviour>,
    pub(super) reach: Reach,
}

impl Behaviour {
    pub(super) fn new(keypair: &Keypair, mdns: bool, access: Access, reach: Reach, busy: Busy) -> Self {
        let me = keypair.public().to_peer_id();
        let identify = identify::Config::new(IDENTIFY.to_owned(), keypair.public())
            .with_agent_version(concat!("surf-node/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_push_listen_addr_updates(true);
        let [pending_in, pending_out, incoming, all, per_peer] = LIMITS.map(Some);
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(pending_in)
            .with_max_pending_outgoing(pending_out)
            .with_max_established_incoming(incoming)
            .with_max_established(all)
            .with_max_established_per_peer(per_peer);
        Self {
            access: access::Behaviour::new(access),
            limits: connection_limits::Behaviour::new(limits),
            crowd: crowd::Behaviour::new(busy),
            kad: Sifted::new(kad(me)),
            identify: Sifted::new(identify::Behaviour::new(identify)),
            ping: ping::Behaviour::new(
                ping::Config::new().with_interval(PING_EVERY).with_timeout(PING_TIME_MAX),
            ),
            mdns: mdns.then(|| multicast(me)).flatten().into(),
            contact: Sifted::new(contact::behaviour()),
            reach,
        }
    }
}

fn kad(me: PeerId) -> kad::Behaviour<Records> {
    let mut config = kad::Config::new(KAD);
    config.set_query_timeout(QUERY_TIME_MAX);
    config.set_substreams_timeout(ANSWER_TIME_MAX);
    config.set_parallelism(QUERY_PATHS);
    config.disjoint_query_paths(true);
    config.set_replication_factor(REPLICAS);
    // `records` says how long what is kept.
    config.set_provider_record_ttl(None);
    // `announcements` repeats them, at a bounded rate; libp2p would do it all at once.
    config.set_provider_publication_interval(None);
    // What others put is looked at first: see `records`.
    config.set_record_filtering(kad::StoreInserts::FilterBoth);
    // Names say themselves how long they are good, and their publishers put them again.
    config.set_record_ttl(None);
    config.set_replication_interval(None);
    config.set_publication_interval(None);
    config.set_caching(kad::Caching::Disabled);
    let mut kad = kad::Behaviour::with_config(me, Records::new(me), config);
    // Whoever can be reached by one of us can be reached by all of us, on one host or network.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

fn multicast(me: PeerId) -> Option<mdns::tokio::Behaviour> {
    match mdns::tokio::Behaviour::new(mdns::Config::default(), me) {
        Ok(mdns) => Some(mdns),
        Err(error) => {
            tracing::warn!(%error, "nodes of the same network are not looked for: multicast is not available");
            None
        }
    }
}
