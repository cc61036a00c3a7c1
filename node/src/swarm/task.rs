//! The task that owns the libp2p swarm.
//!
//! Three rules keep it small. It never waits for anyone: replies are `oneshot`, so sending cannot
//! block. It never decides: ranking, retrying and timing out belong to `fetch`; what to announce and
//! when to answer are pure, beside this file. And it holds no bytes of chunks.

mod events;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    kad::{QueryId, RecordKey},
    swarm::{
        DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use surf_protocol::{NodeId, SignedContact};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    Command, KEYS_MAX, PeerInfo, addrs,
    announcements::{Announcements, Bounds, Step},
    behaviour::{ANNOUNCE_AGAIN, Behaviour},
    book::Book,
    bootstrap::{Nodes, Retry},
    contact::Ours,
    lookups::{Lookups, Whereabouts},
};
use crate::{
    fetch::Key,
    identity::{Identity, node_id},
};

/// What is announced at most. See [`Bounds`].
const BOUNDS: Bounds = Bounds { keys: KEYS_MAX, per_second: 50, burst: 200, again: ANNOUNCE_AGAIN };

/// Keys that are on their way out at once: dead neighbours make each take seconds.
const ANNOUNCING_MAX: usize = 64;

/// How often expired records of others are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// The longest the task sleeps.
const NAP_MAX: Duration = Duration::from_secs(60);

pub(super) struct Task {
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    connected: Arc<AtomicUsize>,
    bootstrap: Nodes,
    retry: Retry,
    ours: Ours,
    peers: BTreeMap<PeerId, Met>,
    /// Connected peers that take part in the DHT.
    neighbours: HashSet<PeerId>,
    book: Book,
    lookups: Lookups,
    /// Providers that are being dialled or asked for their contact.
    meeting: HashSet<PeerId>,
    /// Queries for the addresses of providers.
    locating: HashMap<QueryId, PeerId>,
    announcements: Announcements,
    announcing: HashSet<QueryId>,
    swept: Instant,
}

/// A connected peer.
struct Met {
    since: Instant,
    addrs: Vec<Multiaddr>,
    rtt: Option<Duration>,
}

impl Task {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        connected: Arc<AtomicUsize>,
        mut bootstrap: Nodes,
        identity: &Identity,
        data: SocketAddr,
    ) -> Self {
        let now = Instant::now();
        // One list for all nodes of a swarm is convenient; nobody dials itself.
        bootstrap.remove(swarm.local_peer_id());
        Self {
            swarm,
            commands,
            connected,
            bootstrap,
            retry: Retry::new(now),
            ours: Ours::new(identity.clone(), data),
            peers: BTreeMap::new(),
            neighbours: HashSet::new(),
            book: Book::default(),
            lookups: Lookups::default(),
            meeting: HashSet::new(),
            locating: HashMap::new(),
            announcements: Announcements::new(BOUNDS, now),
            announcing: HashSet::new(),
            swept: now,
        }
    }

    /// The swarm listens on `addr`.
    pub(super) fn listens_on(&mut self, addr: &Multiaddr) {
        // Kademlia tells others our external addresses with every key. Until something finds out how we
        // look from outside, they are the addresses of our interfaces; loopback, if there is no other.
        let others = self.swarm.external_addresses().any(|known| !addrs::is_loopback(known));
        if !addrs::is_loopback(addr) || !others {
            self.swarm.add_external_address(addr.clone());
        }
        if !addrs::is_loopback(addr) {
            let loopback: Vec<_> =
                self.swarm.external_addresses().filter(|known| addrs::is_loopback(known)).cloned().collect();
            for addr in loopback {
                self.swarm.remove_external_address(&addr);
            }
        }
        if addrs::ip(addr).is_some_and(|ip| self.ours.add(ip)) {
            self.tell_everyone();
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.work(now);
            let wake = self.wake(now);
            tokio::select! {
                // Our own questions before the network's: a stranger cannot starve us.
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Does what is due, whatever woke us.
    fn work(&mut self, now: Instant) {
        if self.peers.is_empty() && !self.bootstrap.is_empty() && self.retry.is_due(now) {
            for (peer, addrs) in self.bootstrap.clone() {
                if let Err(error) = self.dial(peer, addrs) {
                    debug!(%peer, %error, "bootstrap node not dialled");
                }
            }
        }
        while let Some(key) = self.lookups.next() {
            let query = self.swarm.behaviour_mut().kad.get_providers(record_key(&key));
            self.lookups.begun(key, query, now);
        }
        self.settle(now);
        while self.announcing.len() < ANNOUNCING_MAX
            && let Some(step) = self.announcements.next(now)
        {
            self.announce(step);
        }
        if self.swept + SWEEP <= now {
            self.swept = now;
            self.swarm.behaviour_mut().kad.store_mut().sweep(now.into_std());
        }
    }

    fn wake(&self, now: Instant) -> Instant {
        let alone = self.peers.is_empty() && !self.bootstrap.is_empty();
        let room = self.announcing.len() < ANNOUNCING_MAX;
        let wakes = [
            alone.then(|| self.retry.wake()),
            self.lookups.wake(now),
            room.then(|| self.announcements.wake(now)).flatten(),
        ];
        wakes.into_iter().flatten().min().unwrap_or(now + NAP_MAX).min(now + NAP_MAX)
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Announce { model, keys } => self.announcements.set(model, keys, Instant::now()),
            Command::Providers { key, reply } => self.lookups.ask(key, reply, Instant::now()),
            // Whoever no longer waits for a reply need not get one.
            Command::Peers { reply } => drop(reply.send(self.infos())),
            Command::Dial { addr, reply } => {
                let dialled = self.swarm.dial(addr).map_err(|error| error.to_string());
                drop(reply.send(dialled));
            }
        }
    }

    fn announce(&mut self, step: Step) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        match step {
            Step::Withdraw(key) => kad.stop_providing(&record_key(&key)),
            Step::Announce(key) => match kad.start_providing(record_key(&key)) {
                Ok(query) => drop(self.announcing.insert(query)),
                Err(error) => debug!(?error, ?key, "not announced"),
            },
        }
    }

    /// Dials `peer` at `addrs` and wherever Kademlia knows it to be. It is no error if it is being
    /// dialled already.
    fn dial(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), DialError> {
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addrs)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(opts) {
            Err(DialError::DialPeerConditionFalse(_)) => Ok(()),
            dialled => dialled,
        }
    }

    /// Sees to it that we learn where the data plane of `peer` is, which Kademlia has just named.
    fn meet(&mut self, peer: PeerId) {
        if peer == *self.swarm.local_peer_id()
            || self.book.look(&peer).is_some()
            || !self.meeting.insert(peer)
        {
            return;
        }
        if self.peers.contains_key(&peer) {
            return; // Its contact was asked for when it was connected.
        }
        let addrs = self.swarm.behaviour_mut().kad.store_mut().addrs(&peer);
        match self.dial(peer, addrs) {
            Ok(()) => {}
            Err(DialError::NoAddresses) => {
                let query = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
                self.locating.insert(query, peer);
            }
            Err(error) => {
                debug!(%peer, %error, "provider not dialled");
                self.meeting.remove(&peer);
            }
        }
    }

    /// Keeps the contact record `bytes`, if it is the one of `peer`, which sent it.
    fn keep_contact(&mut self, peer: PeerId, bytes: &[u8]) {
        self.meeting.remove(&peer);
        let seen_at = self.peers.get(&peer).and_then(|met| addrs::ip(met.addrs.first()?));
        match SignedContact::decode(bytes) {
            Ok(signed) if Some(signed.contact().node) == node_id(peer) => {
                self.book.met(peer, signed.contact(), seen_at);
            }
            Ok(_) => debug!(%peer, "sent somebody else's contact"),
            Err(error) => debug!(%peer, %error, "sent no contact"),
        }
    }

    fn exchange_contacts(&mut self, peer: &PeerId) {
        let record = self.ours.encoded();
        self.swarm.behaviour_mut().contact.send_request(peer, record);
    }

    fn tell_everyone(&mut self) {
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.exchange_contacts(&peer);
        }
    }

    fn settle(&mut self, now: Instant) {
        if self.lookups.is_idle() {
            return;
        }
        let (book, meeting, me) = (&mut self.book, &self.meeting, *self.swarm.local_peer_id());
        self.lookups.settle(now, |peer| match book.peer(peer) {
            _ if *peer == me => Whereabouts::Unknown,
            Some(peer) => Whereabouts::Known(peer),
            None if meeting.contains(peer) => Whereabouts::Coming,
            None => Whereabouts::Unknown,
        });
    }

    fn count_peers(&self) {
        self.connected.store(self.peers.len(), Ordering::Relaxed);
    }

    fn infos(&self) -> Vec<PeerInfo> {
        let info = |(peer, met): (&PeerId, &Met)| {
            let data_addrs = self.book.look(peer).map_or_else(Vec::new, |peer| peer.addrs.clone());
            let addrs = met.addrs.iter().map(ToString::to_string).collect();
            Some(PeerInfo { id: node_id(*peer)?, addrs, data_addrs, rtt: met.rtt, since: met.since })
        };
        let mut infos: Vec<_> = self.peers.iter().filter_map(info).collect();
        infos.sort_by_key(|info: &PeerInfo| -> NodeId { info.id });
        infos
    }
}

/// Where in the DHT `key` stands. The kinds need no telling apart: all are hashes of different things.
fn record_key(key: &Key) -> RecordKey {
    match key {
        Key::Model(model) => RecordKey::new(model.as_bytes()),
        Key::Group(group) => RecordKey::new(group),
        Key::Chunk(chunk) => RecordKey::new(chunk.as_bytes()),
    }
}
