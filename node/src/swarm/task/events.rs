//! What happens in the network, and what the task does about it.

use libp2p::{
    PeerId,
    core::ConnectedPoint,
    identify,
    kad::{self, GetClosestPeersOk, GetProvidersOk, QueryResult},
    mdns, ping, request_response,
    swarm::SwarmEvent,
};
use tokio::time::Instant;
use tracing::{debug, trace};

use super::{
    super::{
        addrs,
        behaviour::{BehaviourEvent, KAD},
    },
    Met, Task,
};

/// Addresses that a peer may put into our routing table.
const LISTEN_ADDRS_MAX: usize = 16;

/// With so many peers, those that multicast finds are no longer dialled: the DHT knows them.
const ENOUGH_PEERS: usize = 64;

impl Task {
    pub(in crate::swarm) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, num_established, .. } => {
                self.on_connected(peer_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { peer_id, endpoint, num_established, cause, .. } => {
                debug!(peer = %peer_id, ?cause, left = num_established, "connection closed");
                self.on_disconnected(peer_id, &endpoint, num_established == 0);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                debug!(%peer, %error, "not connected");
                if !self.peers.contains_key(&peer) {
                    self.meeting.remove(&peer);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => self.listens_on(&address),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                let still = self.swarm.listeners().any(|other| addrs::ip(other) == addrs::ip(&address));
                if !still && addrs::ip(&address).is_some_and(|ip| self.ours.remove(ip)) {
                    self.tell_everyone();
                }
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::warn!(?addresses, %error, "no longer listening");
            }
            other => trace!(?other, "swarm event"),
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, &info);
            }
            BehaviourEvent::Contact(event) => self.on_contact(event),
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                if let Some(met) = self.peers.get_mut(&peer) {
                    met.rtt = Some(rtt);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, addr) in found {
                    if self.peers.len() < ENOUGH_PEERS
                        && let Err(error) = self.dial(peer, vec![addr])
                    {
                        debug!(%peer, %error, "neighbour not dialled");
                    }
                }
            }
            other => trace!(?other, "behaviour event"),
        }
    }

    fn on_connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint, first: bool) {
        let met = self.peers.entry(peer).or_insert_with(|| Met {
            since: Instant::now(),
            addrs: Vec::new(),
            rtt: None,
        });
        met.addrs.push(endpoint.get_remote_address().clone());
        self.count_peers();
        if first {
            self.exchange_contacts(&peer);
        }
    }

    fn on_disconnected(&mut self, peer: PeerId, endpoint: &ConnectedPoint, last: bool) {
        if !last {
            if let Some(met) = self.peers.get_mut(&peer)
                && let Some(at) = met.addrs.iter().position(|addr| addr == endpoint.get_remote_address())
            {
                met.addrs.remove(at);
            }
            return;
        }
        self.peers.remove(&peer);
        self.neighbours.remove(&peer);
        self.meeting.remove(&peer);
        self.lookups.gone(&peer);
        self.count_peers();
        if self.peers.is_empty() {
            self.retry.alone(Instant::now());
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: &identify::Info) {
        if !info.protocols.contains(&KAD) || !self.peers.contains_key(&peer) {
            return;
        }
        // Another host's loopback is ours, where it is not.
        let near = self.peers.get(&peer).is_some_and(|met| met.addrs.iter().any(addrs::is_loopback));
        let reachable = info.listen_addrs.iter().filter(|addr| near || !addrs::is_loopback(addr));
        for addr in reachable.take(LISTEN_ADDRS_MAX) {
            self.swarm.behaviour_mut().kad.add_address(&peer, addr.clone());
        }
        let alone = self.neighbours.is_empty();
        if self.neighbours.insert(peer) && alone {
            // What we said before was said to nobody, or to those who are gone.
            self.announcements.repeat_all();
            if let Err(error) = self.swarm.behaviour_mut().kad.bootstrap() {
                debug!(%error, "cannot look round yet");
            }
        }
    }

    fn on_contact(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.keep_contact(peer, &request);
                let record = self.ours.encoded();
                if self.swarm.behaviour_mut().contact.send_response(channel, record).is_err() {
                    debug!(%peer, "gone before it got our contact");
                }
            }
            Event::Message { peer, message: Message::Response { response, .. }, .. } => {
                self.keep_contact(peer, &response);
            }
            Event::OutboundFailure { peer, error, .. } => {
                debug!(%peer, %error, "no contact exchanged");
                self.meeting.remove(&peer);
            }
            other => trace!(?other, "contact event"),
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else {
            return trace!(?event, "kad event");
        };
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                // Now, not at the end: as long as the query runs, Kademlia remembers the addresses that
                // came with these names.
                for peer in self.lookups.found(id, providers) {
                    self.meet(peer);
                }
            }
            QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { peers, .. })) if step.last => {
                self.on_located(id, peers);
            }
            QueryResult::GetClosestPeers(Err(_)) => self.on_located(id, Vec::new()),
            other => trace!(?other, "query progressed"),
        }
        if step.last {
            self.lookups.ended(id);
            self.announcing.remove(&id);
        }
    }

    /// The search for a provider's addresses is over.
    fn on_located(&mut self, query: kad::QueryId, peers: Vec<kad::PeerInfo>) {
        let Some(wanted) = self.locating.remove(&query) else { return };
        let found = peers.into_iter().find(|peer| peer.peer_id == wanted);
        let dialled = match found {
            Some(peer) if !peer.addrs.is_empty() => self.dial(wanted, peer.addrs).is_ok(),
            _ => self.peers.contains_key(&wanted),
        };
        if !dialled {
            debug!(peer = %wanted, "a provider that nobody knows an address of");
            self.meeting.remove(&wanted);
        }
    }
}
