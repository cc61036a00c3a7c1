//! What happens in the network, and what the task does about it.

use std::{collections::HashSet, time::Duration};

use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    identify,
    kad::{self, GetClosestPeersOk, GetProvidersOk, GetRecordOk, PutRecordError, QueryResult},
    mdns, ping, request_response,
    swarm::{DialError, ListenError, SwarmEvent},
};
use rand::seq::IteratorRandom;
use tokio::time::Instant;
use tracing::{debug, trace};

use super::{
    super::{
        addrs,
        behaviour::{BehaviourEvent, KAD},
        clock_unix,
        crowd::Guard,
        meter, names,
        twins::End,
    },
    Met, REPLICAS, Task,
};

/// Addresses that a peer may put into our routing table.
const LISTEN_ADDRS_MAX: usize = 16;

/// Providers that one answer may name. A node of ours tells 8.
const TOLD_MAX: usize = 20;

/// With so many peers, those that multicast finds are no longer dialled: the DHT knows them.
const ENOUGH_PEERS: usize = 64;

impl Task {
    pub(in crate::swarm) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id, endpoint, num_established, connection_id, ..
            } => {
                self.seeds.connected(connection_id, &peer_id);
                self.on_connected(peer_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { peer_id, endpoint, num_established, cause, .. } => {
                debug!(peer = %peer_id, ?cause, left = num_established, "connection closed");
                self.on_disconnected(peer_id, &endpoint, num_established == 0);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, connection_id } => {
                self.not_joined(connection_id, &error);
                if let Some(peer) = peer_id {
                    self.on_not_connected(peer, &error);
                }
            }
            SwarmEvent::IncomingConnection { send_back_addr, .. } => self.knocked(&send_back_addr),
            SwarmEvent::IncomingConnectionError { error: ListenError::LocalPeerId { .. }, .. } => {
                self.twins.seen(End::Accepted, Instant::now());
            }
            SwarmEvent::IncomingConnectionError { .. } => self.twins.visited(Instant::now()),
            SwarmEvent::NewListenAddr { address, .. } if addrs::is_relayed(&address) => {}
            SwarmEvent::NewListenAddr { address, .. } => self.listens_on(&address),
            SwarmEvent::ExternalAddrConfirmed { address } => self.confirmed(&address),
            SwarmEvent::ExpiredListenAddr { address, .. } if addrs::is_relayed(&address) => {}
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                let still = self.swarm.listeners().any(|other| addrs::ip(other) == addrs::ip(&address));
                if !still && addrs::ip(&address).is_some_and(|ip| self.ours.remove(ip)) {
                    self.tell_everyone();
                }
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                if !self.lost_place(listener_id)
                    && let Err(error) = reason
                {
                    tracing::warn!(?addresses, %error, "no longer listening");
                }
            }
            other => trace!(?other, "swarm event"),
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, connection_id }) => {
                self.introduced(peer_id, connection_id, &info);
                self.on_identified(peer_id, &info);
            }
            BehaviourEvent::Reach(event) => self.on_reach(event),
            BehaviourEvent::Contact(event) => self.on_contact(event),
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                if let Some(met) = self.peers.get_mut(&peer) {
                    met.rtt = Some(rtt);
                }
            }
            BehaviourEvent::Ping(ping::Event { connection, result: Err(ping::Failure::Timeout), peer }) => {
                // TCP would take a quarter of an hour to find out.
                debug!(%peer, "says nothing any more");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                for (peer, _) in gone {
                    self.swarm.behaviour_mut().crowd.unguard(&peer, Guard::Near);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, addr) in near(found, self.is_private) {
                    self.swarm.behaviour_mut().crowd.guard(peer, Guard::Near);
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
            if let ConnectedPoint::Listener { send_back_addr, .. } = endpoint {
                self.visited(send_back_addr);
            }
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
        let now = Instant::now();
        let lasted = self.peers.remove(&peer).map_or(Duration::ZERO, |met| now - met.since);
        if self.neighbours.remove(&peer) {
            self.count_neighbours(false);
        }
        self.meeting.failed(&peer, now);
        self.lookups.gone(&peer);
        self.parted(&peer);
        self.count_peers();
        self.left(&peer, now, lasted);
    }

    /// `peer` was dialled, and there is no connection.
    fn on_not_connected(&mut self, peer: PeerId, error: &DialError) {
        debug!(%peer, %error, "not connected");
        // Another of its addresses may be right; each that is not is left out from now on.
        let news = self.swarm.behaviour().kad.is_news(peer, error);
        let again = news && self.meeting.is_under_way(&peer);
        if !(self.peers.contains_key(&peer) || again && self.find(peer).is_ok()) {
            self.meeting.failed(&peer, Instant::now());
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: &identify::Info) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        if !info.protocols.contains(&KAD) {
            return self.is_foreign(&peer);
        }
        self.seeds.proven(&peer);
        // Another host's loopback is ours, where it is not.
        let near = self.peers.get(&peer).is_some_and(|met| met.addrs.iter().any(addrs::is_loopback));
        let reachable = info.listen_addrs.iter().filter(|addr| near || !addrs::is_loopback(addr));
        for addr in reachable.take(LISTEN_ADDRS_MAX) {
            self.swarm.behaviour_mut().kad.add_address(&peer, addr.clone());
        }
        let alone = self.neighbours.is_empty();
        if !self.neighbours.insert(peer) {
            return;
        }
        self.count_neighbours(true);
        if alone {
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
                self.meeting.failed(&peer, Instant::now());
            }
            other => trace!(?other, "contact event"),
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        let (id, result, step, stats) = match event {
            kad::Event::OutboundQueryProgressed { id, result, step, stats } => (id, result, step, stats),
            kad::Event::InboundRequest { request } => return self.on_request(request),
            other => return trace!(?other, "kad event"),
        };
        // Looking round counts for each of its queries, everything else once, for all of its messages.
        let cost = meter::messages(&stats);
        if self.announcing.contains(&id) {
            self.meter.announced(cost);
            self.announcements.charge(cost);
        } else if step.last || matches!(result, QueryResult::Bootstrap(_)) {
            self.meter.asked(cost);
        }
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                // Now, not at the end: as long as the query runs, Kademlia remembers the addresses that
                // came with these names.
                let few = providers.into_iter().sample(&mut rand::rng(), TOLD_MAX);
                for peer in self.lookups.found(id, few) {
                    if peer != *self.swarm.local_peer_id() && self.book.look(&peer).is_none() {
                        self.meeting.named(peer, Instant::now());
                    }
                }
            }
            QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { peers, .. })) if step.last => {
                self.on_located(id, peers);
            }
            QueryResult::GetClosestPeers(Err(_)) => self.on_located(id, Vec::new()),
            QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
                if let Some((_, answers)) = self.naming.get_mut(&id)
                    && answers.len() < names::ANSWERS_MAX
                    && names::is_small(&found.record.value)
                {
                    answers.push(found.record.value);
                }
            }
            QueryResult::PutRecord(result) => {
                let taken = match result {
                    Ok(_) => REPLICAS.get(),
                    Err(
                        PutRecordError::QuorumFailed { success, .. }
                        | PutRecordError::Timeout { success, .. },
                    ) => success.len(),
                };
                if let Some(reply) = self.putting.remove(&id) {
                    let _ = reply.send(taken);
                }
            }
            other => trace!(?other, "query progressed"),
        }
        if step.last {
            self.lookups.ended(id);
            self.announcing.remove(&id);
            if let Some((reply, answers)) = self.naming.remove(&id) {
                drop(reply.send(answers));
            }
        }
    }

    /// Somebody asks or tells us something. What they tell is kept only here, and only if it is good.
    fn on_request(&mut self, request: kad::InboundRequest) {
        self.meter.answered(&request);
        match request {
            kad::InboundRequest::AddProvider { record: Some(record) } => {
                let provider = record.provider;
                let source = self.source(&provider);
                let records = self.swarm.behaviour_mut().kad.store_mut();
                if let Err(error) = records.offer(record, source, Instant::now().into_std()) {
                    debug!(peer = %provider, %error, "not kept");
                }
            }
            kad::InboundRequest::PutRecord { source, record: Some(record), .. } => {
                let from = Some(self.source(&source));
                let names = &mut self.swarm.behaviour_mut().kad.store_mut().names;
                if let Err(error) = names.offer(&record.key, &record.value, from, clock_unix()) {
                    debug!(peer = %source, %error, "a name not kept");
                }
            }
            other => trace!(?other, "answered"),
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
            self.meeting.failed(&wanted, Instant::now());
        }
    }
}

/// Those of the nodes that multicast has found that may be of our swarm: whoever speaks QUIC is of an open
/// one. (One of another private swarm looks like ours until it is dialled.)
fn near(found: Vec<(PeerId, Multiaddr)>, is_private: bool) -> Vec<(PeerId, Multiaddr)> {
    let speaks_quic = found.iter().filter(|(_, addr)| is_private && addrs::is_quic(addr));
    let others: HashSet<_> = speaks_quic.map(|(peer, _)| *peer).collect();
    found.into_iter().filter(|(peer, _)| !others.contains(peer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_node_leaves_alone_who_speaks_quic() {
        let [open, ours] = [PeerId::random(), PeerId::random()];
        let found = [
            (open, "/ip4/10.0.0.1/tcp/1"),
            (ours, "/ip4/10.0.0.2/tcp/1"),
            (open, "/ip4/10.0.0.1/udp/1/quic-v1"),
        ];
        let found: Vec<_> = found.map(|(peer, addr)| (peer, addr.parse().unwrap())).into();
        assert_eq!(near(found.clone(), true), [found[1].clone()]);
        assert_eq!(near(found.clone(), false), found);
    }
}
