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

use super::{contact, records::Records};

/// Our own DHT: we share no records with other libp2p networks.
pub(super) const KAD: StreamProtocol = StreamProtocol::new("/surf/kad/1");

const IDENTIFY: &str = "/surf/id/1";

/// How long others keep what we announce. A node that dies is named this long at most.
const RECORD_LIFE: Duration = Duration::from_secs(30 * 60);

/// How long after it went out a key goes out again: twice within its life, should one get lost.
pub(super) const ANNOUNCE_AGAIN: Duration = Duration::from_secs(12 * 60);

/// How long a question to the DHT may take, and one peer's answer to it.
const QUERY_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// Peers that a query asks at once. More than Kademlia's three: the dead ones among them wait for
/// their timeouts, and the living should not wait for those.
const QUERY_PARALLEL: NonZeroUsize = NonZeroUsize::new(6).expect("not zero");

/// Connections. Each costs some 100 KB.
const LIMITS: [u32; 5] = [128, 128, 512, 1024, 4];

/// Kademlia says who has what, identify tells it where peers listen, ping whether they live, mDNS who
/// is near, contact where chunks are.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) kad: kad::Behaviour<Records>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) contact: contact::Behaviour,
}

impl Behaviour {
    pub(super) fn new(keypair: &Keypair, mdns: bool) -> Self {
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
            limits: connection_limits::Behaviour::new(limits),
            kad: kad(me),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::default(),
            mdns: mdns.then(|| multicast(me)).flatten().into(),
            contact: contact::behaviour(),
        }
    }
}

fn kad(me: PeerId) -> kad::Behaviour<Records> {
    let mut config = kad::Config::new(KAD);
    config.set_query_timeout(QUERY_TIME_MAX);
    config.set_substreams_timeout(ANSWER_TIME_MAX);
    config.set_parallelism(QUERY_PARALLEL);
    config.set_provider_record_ttl(Some(RECORD_LIFE));
    // `announcements` repeats them, at a bounded rate; libp2p would do it all at once.
    config.set_provider_publication_interval(None);
    // There are no other records.
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
