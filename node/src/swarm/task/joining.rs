//! Becoming, and staying, part of a swarm; and noticing that another process does so with this node's identity.

use std::time::Duration;

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use surf_protocol::Contact;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    super::{addrs, bootstrap::Retry, twins::End},
    Task,
};

/// With fewer neighbours than this, the nodes that the user named are dialled as if we were alone.
const FEW: usize = 4;

/// Peers of earlier that are dialled at once by a node that is alone.
const REMEMBERED: usize = 32;

/// After such a sleep no connection is left: the others have given them up.
const SLEPT_LONG: Duration = Duration::from_secs(30);

/// How often a peer is handed what another has signed for it, at most, within so much time; and how many peers are
/// remembered for that. Their answers are records again, so this is what ends it.
const HANDED_MAX: u32 = 8;
const HANDED_WITHIN: Duration = Duration::from_secs(60);
const HANDED_PEERS_MAX: usize = 256;

/// Addresses that the user named and that lead to this node, or to another with its identity.
#[derive(Debug)]
pub(super) struct Own {
    addrs: Vec<Multiaddr>,
    retry: Retry,
    tries: usize,
}

/// How often they are dialled: within half a minute, often enough to be sure.
const OWN_TRIES: usize = 8;

impl Own {
    pub(super) fn new(addrs: Option<Vec<Multiaddr>>, now: Instant) -> Self {
        Self { addrs: addrs.unwrap_or_default(), retry: Retry::new(now), tries: OWN_TRIES }
    }

    fn is_over(&self) -> bool {
        self.addrs.is_empty() || self.tries == 0
    }
}

impl Task {
    /// Dials whom it is time to dial.
    pub(super) fn join(&mut self, now: Instant) {
        for (peer, addr) in self.seeds.due(now, self.neighbours.len() < FEW) {
            // By itself: see `bootstrap`.
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected);
            let opts = opts.addresses(vec![addr.clone()]).build();
            let connection = opts.connection_id();
            self.seeds.dialled(connection, peer, addr);
            if let Err(error) = self.swarm.dial(opts) {
                self.not_joined(connection, &error);
            }
        }
        if self.neighbours.is_empty() && self.retry.is_due(now, true) {
            self.look_round();
        }
        if !self.own.is_over() && self.own.retry.is_due(now, true) {
            self.own.tries -= 1;
            let listening: Vec<_> = self.swarm.listeners().cloned().collect();
            for addr in self.own.addrs.clone() {
                let plain: Multiaddr = addr.iter().filter(|part| !is_peer(part)).collect();
                if !listening.contains(&plain)
                    && let Err(error) = self.swarm.dial(DialOpts::unknown_peer_id().address(plain).build())
                {
                    debug!(%addr, %error, "own address not dialled");
                }
            }
        }
        if self.twins.appears(now) {
            self.warn_of_twin(None);
        }
    }

    /// When [`Task::join`] has something to do.
    pub(super) fn wake_to_join(&self) -> Option<Instant> {
        let alone = self.neighbours.is_empty().then(|| self.retry.wake());
        let own = (!self.own.is_over()).then(|| self.own.retry.wake());
        [self.seeds.wake(), alone, own, self.twins.wake()].into_iter().flatten().min()
    }

    /// Dials those that we knew, and those that multicast knows.
    fn look_round(&mut self) {
        let behaviour = self.swarm.behaviour_mut();
        let mut known: Vec<PeerId> = Vec::new();
        if let Some(mdns) = behaviour.mdns.as_ref() {
            known.extend(mdns.discovered_nodes().take(REMEMBERED));
        }
        for bucket in behaviour.kad.kbuckets() {
            let left = REMEMBERED.saturating_sub(known.len());
            known.extend(bucket.iter().take(left).map(|entry| *entry.node.key.preimage()));
        }
        for peer in known {
            if let Err(error) = self.dial(peer, Vec::new()) {
                debug!(%peer, %error, "not dialled again");
            }
        }
    }

    /// Somebody wants something, or the network may be back: if we are alone, that should not last.
    pub(super) fn hurry_if_alone(&mut self, now: Instant) {
        if self.neighbours.is_empty() {
            self.seeds.hurry(now);
            self.retry.hurry(now);
        }
    }

    /// This process has slept. Others may have forgotten us, and what we told them.
    pub(super) fn awake(&mut self, now: Instant, slept: Duration) {
        info!(seconds = slept.as_secs(), "awake again after a sleep: joining anew");
        if SLEPT_LONG <= slept {
            let peers: Vec<_> = self.peers.keys().copied().collect();
            for peer in peers {
                // It may be gone already.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
        self.announcements.repeat_all();
        self.seeds.hurry(now);
        self.retry.hurry(now);
    }

    /// Dialling ended without a connection.
    pub(super) fn not_joined(&mut self, connection: ConnectionId, error: &DialError) {
        let us = *self.swarm.local_peer_id();
        if matches!(error, DialError::LocalPeerId { .. })
            || matches!(error, DialError::WrongPeerId { obtained, .. } if *obtained == us)
        {
            self.twins.seen(End::Dialled, Instant::now());
        }
        if let Some(said) = self.seeds.failed(connection, error) {
            warn!("{said}");
        }
    }

    /// `peer`, which is connected, is no node of our swarm.
    pub(super) fn is_foreign(&mut self, peer: &PeerId) {
        if let Some(said) = self.seeds.foreign(peer) {
            warn!("{said}");
        }
    }

    /// The last connection with `peer` is gone.
    pub(super) fn left(&mut self, peer: &PeerId, now: Instant, lasted: Duration) {
        if let Some(said) = self.seeds.parted(peer, now, lasted) {
            warn!("{said}");
        }
        self.handed.remove(peer);
        if self.neighbours.is_empty() {
            self.retry.parted(now, lasted);
        }
    }

    /// Somebody comes from `addr`. It may be ourselves.
    pub(super) fn knocked(&mut self, addr: &Multiaddr) {
        let ip = addrs::ip(addr);
        if addrs::is_loopback(addr) || self.swarm.listeners().any(|ours| addrs::ip(ours) == ip) {
            self.twins.visited(Instant::now());
        }
    }

    /// `peer` has signed two records. If it has more than one connection with us, there may be two of it: hands each
    /// what the other has signed.
    pub(super) fn hand_over(&mut self, peer: PeerId, records: [Vec<u8>; 2]) {
        let now = Instant::now();
        let connections = self.peers.get(&peer).map_or(0, |met| met.addrs.len());
        if connections < 2 || (HANDED_PEERS_MAX <= self.handed.len() && !self.handed.contains_key(&peer)) {
            return;
        }
        let (since, times) = self.handed.entry(peer).or_insert((now, 0));
        if *since + HANDED_WITHIN <= now {
            (*since, *times) = (now, 0);
        }
        if HANDED_MAX <= *times {
            return;
        }
        *times += 1;
        for record in records {
            // libp2p takes one connection after the other.
            for _ in 0..connections {
                self.swarm.behaviour_mut().contact.send_request(&peer, record.clone());
            }
        }
    }

    /// `peer` hands us a contact record with our signature.
    pub(super) fn handed_ours(&mut self, peer: PeerId, contact: &Contact) {
        if self.ours.is_from_another(contact.sequence) {
            debug!(%peer, "knows another node with our identity");
            self.warn_of_twin(contact.addrs.first().map(ToString::to_string));
        }
    }

    fn warn_of_twin(&mut self, at: Option<String>) {
        if at.is_some() && !self.twins.is_news() {
            return;
        }
        let at = at.map_or_else(String::new, |at| format!(", with its data plane at {at}"));
        warn!(
            "another node runs with this node's identity{at}: others reach now one and now the other. \
             Was the data folder copied? Stop one of them, or delete identity.key in the copy"
        );
        // The other should learn of it too.
        self.ours.renew();
        self.tell_everyone();
    }
}

fn is_peer(part: &libp2p::multiaddr::Protocol<'_>) -> bool {
    matches!(part, libp2p::multiaddr::Protocol::P2p(_))
}
