//! The task that owns the libp2p swarm.
//!
//! Three rules keep it small. It never waits for anyone: replies are `oneshot`, so sending cannot
//! block. It never decides: ranking, retrying and timing out belong to `fetch`; what to announce and
//! when to answer are pure, beside this file. And it holds no bytes of chunks.

mod events;
mod joining;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    kad::{QueryId, Quorum, Record, RecordKey},
    swarm::{
        DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use surf_protocol::{NodeId, SignedContact, SignedName};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    Command, Neighbours, PeerInfo, addrs,
    announcements::{Announcements, BOUNDS, Step},
    behaviour::{Behaviour, REPLICAS},
    book::Book,
    bootstrap::{Nodes, Retry, Seeds},
    clock::Clock,
    clock_unix,
    contact::Ours,
    crowd::Guard,
    fair::Place,
    lookups::{Lookups, Whereabouts},
    meeting::Meeting,
    meter::Meter,
    names, reach,
    records::{self, Source},
    twins::Twins,
};
use crate::{
    fetch::{Key, Route},
    identity::node_id,
};

/// Keys that are on their way out at once: dead neighbours make each take seconds, and a burst should not
/// flood the living.
const ANNOUNCING_MAX: usize = 16;

/// How often expired records of others are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// The longest the task sleeps: it should notice soon that the machine has slept.
const NAP_MAX: Duration = Duration::from_secs(5);

/// How long closing all connections may take, and how long what says so needs to get out.
const GOODBYE: Duration = Duration::from_millis(500);
const LAST_WORDS: Duration = Duration::from_millis(20);

/// What others see of the task.
pub(super) type Counts = (Arc<AtomicUsize>, Arc<Meter>, watch::Sender<Neighbours>);

/// Who asks for a name, and the records that were answered so far.
type Naming = (oneshot::Sender<Vec<Vec<u8>>>, Vec<Vec<u8>>);

pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    connected: Arc<AtomicUsize>,
    pub(super) meter: Arc<Meter>,
    pub(super) seeds: Seeds,
    /// When to dial again those that we knew, while we are alone.
    retry: Retry,
    /// Addresses that the user named, with this node's own id.
    own: joining::Own,
    clock: Clock,
    pub(super) twins: Twins,
    /// Since when, and how often, a peer was handed what another process may have signed for it.
    handed: HashMap<PeerId, (Instant, u32)>,
    pub(super) ours: Ours,
    peers: BTreeMap<PeerId, Met>,
    /// Connected peers that take part in the DHT.
    neighbours: HashSet<PeerId>,
    told_neighbours: watch::Sender<Neighbours>,
    book: Book,
    lookups: Lookups,
    meeting: Meeting,
    /// Queries for the addresses of providers.
    locating: HashMap<QueryId, PeerId>,
    pub(super) announcements: Announcements,
    announcing: HashSet<QueryId>,
    /// Names on their way out, and questions for names with what was answered so far.
    putting: HashMap<QueryId, oneshot::Sender<usize>>,
    naming: HashMap<QueryId, Naming>,
    swept: Instant,
    /// Whether there is a swarm key.
    is_private: bool,
    pub(super) reach: reach::State,
}

/// A connected peer.
struct Met {
    since: Instant,
    addrs: Vec<Multiaddr>,
    rtt: Option<Duration>,
}

impl Task {
    pub(super) fn new(
        mut swarm: Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        (connected, meter, told_neighbours): Counts,
        mut bootstrap: Nodes,
        ours: Ours,
        reach: reach::State,
        is_private: bool,
    ) -> Self {
        let now = Instant::now();
        // One list for all nodes of a swarm is convenient.
        let own = joining::Own::new(bootstrap.remove(swarm.local_peer_id()), now);
        let seeds = Seeds::new(bootstrap, now);
        seeds.peers().for_each(|peer| swarm.behaviour_mut().crowd.guard(peer, Guard::Named));
        Self {
            swarm,
            commands,
            connected,
            meter,
            seeds,
            retry: Retry::new(now),
            own,
            clock: Clock::new(now, clock_unix()),
            twins: Twins::default(),
            handed: HashMap::new(),
            ours,
            peers: BTreeMap::new(),
            neighbours: HashSet::new(),
            told_neighbours,
            book: Book::default(),
            lookups: Lookups::default(),
            meeting: Meeting::default(),
            locating: HashMap::new(),
            announcements: Announcements::new(BOUNDS, now),
            announcing: HashSet::new(),
            putting: HashMap::new(),
            naming: HashMap::new(),
            swept: now,
            is_private,
            reach,
        }
    }

    /// The swarm listens on `addr`.
    pub(super) fn listens_on(&mut self, addr: &Multiaddr) {
        if addrs::is_link_local(addr) {
            return;
        }
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
        // The network may be back.
        self.hurry_if_alone(Instant::now());
    }

    pub(super) async fn run(mut self) {
        let mut wake = Instant::now();
        loop {
            let now = Instant::now();
            if let Some(slept) = self.clock.away(now, clock_unix(), wake) {
                self.awake(now, slept);
            }
            self.work(now);
            wake = self.wake(now);
            tokio::select! {
                // Our own questions before the network's: a stranger cannot starve us.
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Leave { reply }) => {
                        self.leave().await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(command) => self.on_command(command),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Hangs up on everybody.
    async fn leave(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error says that it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
            // The last words are on their way in tasks of their own.
            sleep(LAST_WORDS).await;
        };
        let _ = timeout(GOODBYE, closing).await;
    }

    /// Does what is due, whatever woke us.
    fn work(&mut self, now: Instant) {
        self.join(now);
        let behaviour = self.swarm.behaviour_mut();
        for peer in behaviour.kad.take_heard() {
            behaviour.crowd.useful(&peer);
        }
        while let Some(key) = self.lookups.next() {
            let query = self.swarm.behaviour_mut().kad.get_providers(record_key(&key));
            self.lookups.begun(key, query, now);
        }
        while let Some(peer) = self.meeting.next(now) {
            self.meet(peer, now);
        }
        self.settle(now);
        while self.announcing.len() < ANNOUNCING_MAX
            && let Some(step) = self.announcements.next(now)
        {
            self.announce(step);
        }
        self.reach_out(now);
        if self.swept + SWEEP <= now {
            self.swept = now;
            let records = self.swarm.behaviour_mut().kad.store_mut();
            records.sweep(now.into_std());
            records.names.sweep(clock_unix());
        }
    }

    fn wake(&self, now: Instant) -> Instant {
        let room = self.announcing.len() < ANNOUNCING_MAX;
        let wakes = [
            self.wake_to_join(),
            self.lookups.wake(now),
            self.meeting.wake(),
            room.then(|| self.announcements.wake(now)).flatten(),
        ];
        wakes.into_iter().flatten().min().unwrap_or(now + NAP_MAX).min(now + NAP_MAX)
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Announce { model, keys } => self.announcements.set(model, keys, Instant::now()),
            Command::Providers { key, reply } => {
                self.hurry_if_alone(Instant::now());
                self.lookups.ask(key, reply, Instant::now());
            }
            // Whoever no longer waits for a reply need not get one.
            Command::Peers { reply } => drop(reply.send(self.infos())),
            Command::Dial { addr, reply } => {
                let dialled = self.swarm.dial(addr).map_err(|error| error.to_string());
                drop(reply.send(dialled));
            }
            Command::Reachable { reply } => drop(reply.send(self.reachable())),
            // The loop has taken it.
            Command::Leave { reply } => drop(reply),
            Command::Open { peer, bulk, reply } => self.open(peer, bulk, reply),
            Command::PutName { name, reply } => self.put_name(&name, reply),
            Command::Name { key, reply } => {
                self.hurry_if_alone(Instant::now());
                let query = self.swarm.behaviour_mut().kad.get_record(names::record_key(&key));
                self.naming.insert(query, (reply, Vec::new()));
            }
        }
    }

    fn put_name(&mut self, name: &SignedName, reply: oneshot::Sender<usize>) {
        let is_alone = self.neighbours.is_empty();
        let kad = &mut self.swarm.behaviour_mut().kad;
        let (key, value) = (names::record_key(&name.full().key()), name.encode());
        if let Err(error) = kad.store_mut().names.offer(&key, &value, None, clock_unix()) {
            debug!(name = %name.full(), %error, "not kept here");
        }
        if is_alone {
            // A connection is not enough: the DHT asks whom identify has introduced.
            let _ = reply.send(0);
            return self.hurry_if_alone(Instant::now());
        }
        match kad.put_record(Record::new(key, value), Quorum::All) {
            Ok(query) => drop(self.putting.insert(query, reply)),
            Err(error) => {
                debug!(name = %name.full(), %error, "not put");
                let _ = reply.send(0);
            }
        }
    }

    fn announce(&mut self, step: Step) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        match step {
            Step::Withdraw(key) => kad.stop_providing(&record_key(&key)),
            Step::Announce(key) => match kad.start_providing(record_key(&key)) {
                Ok(query) => drop(self.announcing.insert(query)),
                Err(error) => {
                    debug!(?error, ?key, "not announced");
                    self.announcements.charge(0);
                }
            },
        }
    }

    /// Dials `peer` at `addrs` and wherever Kademlia knows it to be. It is no error if it is being
    /// dialled already.
    fn dial(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), DialError> {
        let addrs = self.swarm.behaviour().kad.sift(peer, addrs);
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

    /// Sees to it that we learn where the data plane of `peer` is, which a look-up has named.
    fn meet(&mut self, peer: PeerId, now: Instant) {
        if self.peers.contains_key(&peer) {
            self.exchange_contacts(&peer);
        } else if let Err(error) = self.find(peer) {
            debug!(%peer, %error, "provider not dialled");
            self.meeting.failed(&peer, now);
        }
    }

    /// Dials `peer` wherever it is known to be, else asks the DHT where that is.
    pub(super) fn find(&mut self, peer: PeerId) -> Result<(), DialError> {
        let addrs = self.swarm.behaviour_mut().kad.store_mut().addrs(&peer);
        match self.dial(peer, addrs) {
            Err(DialError::NoAddresses) => {
                if !self.locating.values().any(|wanted| *wanted == peer) {
                    let query = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
                    self.locating.insert(query, peer);
                }
                Ok(())
            }
            dialled => dialled,
        }
    }

    /// Keeps the contact record `bytes`, if it is the one of `peer`, which sent it.
    fn keep_contact(&mut self, peer: PeerId, bytes: &[u8]) {
        let direct = |met: &Met| met.addrs.iter().find(|addr| !addrs::is_relayed(addr)).and_then(addrs::ip);
        let seen_at = self.peers.get(&peer).and_then(direct);
        let kept = match SignedContact::decode(bytes) {
            Ok(signed) if Some(signed.contact().node) == node_id(peer) => {
                let other = self.book.met(peer, (signed.contact(), bytes), seen_at);
                let behaviour = self.swarm.behaviour_mut();
                behaviour.crowd.useful(&peer);
                behaviour.kad.store_mut().met(&peer);
                if let Some(other) = other {
                    self.hand_over(peer, [bytes.to_vec(), other]);
                }
                true
            }
            Ok(signed) if Some(signed.contact().node) == node_id(*self.swarm.local_peer_id()) => {
                self.handed_ours(peer, signed.contact());
                false
            }
            Ok(_) => {
                debug!(%peer, "sent somebody else's contact");
                false
            }
            Err(error) => {
                debug!(%peer, %error, "sent no contact");
                false
            }
        };
        if kept {
            self.meeting.met(&peer);
        } else {
            self.meeting.failed(&peer, Instant::now());
        }
    }

    /// What is known of `peer`, which offers something for us to keep.
    fn source(&self, peer: &PeerId) -> Source {
        let place = self.swarm.behaviour().crowd.place(peer).unwrap_or(Place::UNKNOWN);
        Source { node: node_id(*peer), place, met: self.book.look(peer).is_some() }
    }

    fn exchange_contacts(&mut self, peer: &PeerId) {
        let record = self.ours.encoded();
        self.swarm.behaviour_mut().contact.send_request(peer, record);
    }

    pub(super) fn tell_everyone(&mut self) {
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
            None if meeting.is_coming(peer) => Whereabouts::Coming,
            None => Whereabouts::Unknown,
        });
    }

    fn count_peers(&self) {
        self.connected.store(self.peers.len(), Ordering::Relaxed);
    }

    fn count_neighbours(&self, came: bool) {
        let now = self.neighbours.len();
        self.told_neighbours.send_modify(|told| {
            *told = Neighbours { now, came: told.came + u64::from(came) };
        });
    }

    fn infos(&self) -> Vec<PeerInfo> {
        let info = |(peer, met): (&PeerId, &Met)| {
            let data_addrs = self.book.look(peer).map_or_else(Vec::new, |peer| peer.addrs.clone());
            let addrs = met.addrs.iter().map(ToString::to_string).collect();
            let route = self.route(peer).unwrap_or(Route::Direct);
            Some(PeerInfo { id: node_id(*peer)?, addrs, data_addrs, route, rtt: met.rtt, since: met.since })
        };
        let mut infos: Vec<_> = self.peers.iter().filter_map(info).collect();
        infos.sort_by_key(|info: &PeerInfo| -> NodeId { info.id });
        infos
    }
}

/// Where in the DHT `key` stands. What kind it is comes first: records live longer for some than for others.
fn record_key(key: &Key) -> RecordKey {
    let kind = match key {
        Key::Model(_) => records::MODEL,
        Key::Stem(_) => records::GROUP,
        Key::Chunk(_) => records::CHUNK,
    };
    RecordKey::from([&[kind], &key.as_bytes()[..]].concat())
}
