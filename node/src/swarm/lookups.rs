//! Questions put to the DHT and not yet answered.
//!
//! Kademlia answers in instalments, and with names of peers rather than with their addresses. A
//! look-up collects the names and finds out where those peers' data planes are. It answers once: when
//! all is known; or enough is; or a moment after the first is known, because whoever asks has somebody to
//! begin with, and asks again. Whoever asks the same meanwhile gets the same answer. No I/O, time is an argument.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use libp2p::{PeerId, kad::QueryId};
use tokio::{sync::oneshot, time::Instant};

use crate::fetch::{Key, Peer};

/// Queries that run at once. Each talks to some twenty peers.
const RUNNING_MAX: usize = 64;

/// How long an answer is good: those who start together announce themselves within moments, and want to know of
/// each other at once.
const FRESH: Duration = Duration::from_millis(400);

/// Answers that are kept.
const ANSWERS_MAX: usize = 4096;

/// Peers that are enough: nobody waits for more.
const ENOUGH: usize = 16;

/// How long to wait for more once one is known: somebody who has gone should hold up nobody, and those who are
/// there answer within this.
const GRACE: Duration = Duration::from_millis(150);

/// How long to wait for the first.
const PATIENCE_MAX: Duration = Duration::from_secs(5);

/// What is known of where a peer can be asked.
pub(super) enum Whereabouts {
    /// There.
    Known(Peer),
    /// It is being dialled or asked.
    Coming,
    /// It could not be reached.
    Unknown,
}

/// Open look-ups, and recent answers.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    open: HashMap<Key, Lookup>,
    waiting: VecDeque<Key>,
    running: HashMap<QueryId, Key>,
    answers: HashMap<Key, (Instant, Vec<PeerId>)>,
}

#[derive(Debug)]
struct Lookup {
    askers: Vec<oneshot::Sender<Vec<Peer>>>,
    found: BTreeSet<PeerId>,
    /// When the query began.
    begun: Option<Instant>,
    /// When the first peer was known that can be asked.
    known: Option<Instant>,
    ended: bool,
    /// Whether this is an answer of an earlier look-up.
    cached: bool,
}

impl Lookups {
    /// Somebody wants to know who has `key`.
    pub(super) fn ask(&mut self, key: Key, reply: oneshot::Sender<Vec<Peer>>, now: Instant) {
        if let Some(lookup) = self.open.get_mut(&key) {
            lookup.askers.push(reply);
            if lookup.begun.is_some_and(|begun| begun + PATIENCE_MAX <= now) {
                // This one hangs on somebody who does not answer; what it had to say has been said.
                (lookup.begun, lookup.known, lookup.ended) = (None, None, false);
                self.running.retain(|_, running| *running != key);
                self.waiting.push_back(key);
            }
            return;
        }
        let mut lookup = Lookup {
            askers: vec![reply],
            found: BTreeSet::new(),
            begun: None,
            known: None,
            ended: false,
            cached: false,
        };
        match self.answers.get(&key) {
            Some((at, peers)) if now < *at + FRESH => {
                lookup.found.extend(peers);
                lookup.begun = Some(now);
                (lookup.ended, lookup.cached) = (true, true);
            }
            _ => self.waiting.push_back(key),
        }
        self.open.insert(key, lookup);
    }

    /// The next question to put to the DHT, if it is time for one. Those that nobody asks any more
    /// are dropped.
    pub(super) fn next(&mut self) -> Option<Key> {
        while self.running.len() < RUNNING_MAX {
            let key = self.waiting.pop_front()?;
            match self.open.get_mut(&key) {
                Some(lookup) if lookup.askers.iter().any(|asker| !asker.is_closed()) => return Some(key),
                _ => drop(self.open.remove(&key)),
            }
        }
        None
    }

    /// `key` is asked by `query` now.
    pub(super) fn begun(&mut self, key: Key, query: QueryId, now: Instant) {
        self.running.insert(query, key);
        if let Some(lookup) = self.open.get_mut(&key) {
            lookup.begun = Some(now);
        }
    }

    /// An instalment. Returns the peers that were not in an earlier one; none if the query is not
    /// one of ours.
    pub(super) fn found(&mut self, query: QueryId, peers: impl IntoIterator<Item = PeerId>) -> Vec<PeerId> {
        let lookup = self.running.get(&query).and_then(|key| self.open.get_mut(key));
        let Some(lookup) = lookup else { return Vec::new() };
        peers.into_iter().filter(|peer| lookup.found.insert(*peer)).collect()
    }

    /// There will be no more instalments.
    pub(super) fn ended(&mut self, query: QueryId) {
        let lookup = self.running.remove(&query).and_then(|key| self.open.get_mut(&key));
        if let Some(lookup) = lookup {
            lookup.ended = true;
        }
    }

    /// `peer` has gone; answers that name it are no longer good.
    pub(super) fn gone(&mut self, peer: &PeerId) {
        self.answers.retain(|_, (_, peers)| !peers.contains(peer));
    }

    /// Answers whatever can be answered at `now`.
    pub(super) fn settle(&mut self, now: Instant, mut whereabouts: impl FnMut(&PeerId) -> Whereabouts) {
        let answers = &mut self.answers;
        self.open.retain(|key, lookup| {
            let Some(begun) = lookup.begun else { return true };
            if !lookup.askers.is_empty() {
                let (mut known, mut coming) = (Vec::new(), !lookup.ended);
                for peer in &lookup.found {
                    match whereabouts(peer) {
                        Whereabouts::Known(peer) => known.push(peer),
                        Whereabouts::Coming => coming = true,
                        Whereabouts::Unknown => {}
                    }
                }
                // "Nobody" is not remembered: the first who has it should be found at once.
                if lookup.ended && !lookup.cached && !known.is_empty() {
                    remember(answers, *key, now, &lookup.found);
                }
                if !known.is_empty() {
                    lookup.known.get_or_insert(now);
                }
                let enough = !coming || ENOUGH <= known.len();
                if enough || lookup.deadline(begun) <= now {
                    for asker in lookup.askers.drain(..) {
                        // The asker may have given up; that is its right.
                        let _ = asker.send(known.clone());
                    }
                }
            }
            !(lookup.ended && lookup.askers.is_empty())
        });
    }

    /// When [`Lookups::settle`] has something to do even if nothing happens.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let asked = self.open.values().filter(|lookup| !lookup.askers.is_empty());
        let next = asked.filter_map(|lookup| Some(lookup.deadline(lookup.begun?)));
        next.filter(|at| now < *at).min()
    }

    /// Whether anything is open: if not, there is nothing to settle.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }
}

impl Lookup {
    /// When this look-up, begun at `begun`, is answered with what is known.
    fn deadline(&self, begun: Instant) -> Instant {
        let end = begun + PATIENCE_MAX;
        self.known.map_or(end, |known| end.min(known + GRACE))
    }
}

fn remember(
    answers: &mut HashMap<Key, (Instant, Vec<PeerId>)>,
    key: Key,
    now: Instant,
    found: &BTreeSet<PeerId>,
) {
    if ANSWERS_MAX <= answers.len() {
        answers.retain(|_, (at, _)| now < *at + FRESH);
    }
    if answers.len() < ANSWERS_MAX {
        answers.insert(key, (now, found.iter().copied().collect()));
    }
}

#[cfg(test)]
mod tests {
    use libp2p::kad;
    use surf_protocol::{ChunkId, NodeId};

    use super::*;

    fn key(n: u8) -> Key {
        Key::Chunk(ChunkId::of(&[n]))
    }

    fn peer(n: u8) -> Peer {
        Peer { id: NodeId([n; 32]), addrs: Vec::new() }
    }

    fn asked(lookups: &mut Lookups, key: Key, now: Instant) -> oneshot::Receiver<Vec<Peer>> {
        let (reply, answer) = oneshot::channel();
        lookups.ask(key, reply, now);
        answer
    }

    /// Query ids that libp2p gives out; there is no other way to have one.
    fn query_ids(count: usize) -> Vec<QueryId> {
        let me = PeerId::random();
        let mut kad = kad::Behaviour::new(me, kad::store::MemoryStore::new(me));
        (0..count).map(|_| kad.get_closest_peers(PeerId::random())).collect()
    }

    #[test]
    fn instalments_add_up_and_everyone_gets_one_answer() {
        let (now, ids) = (Instant::now(), query_ids(2));
        let (one, two) = (PeerId::random(), PeerId::random());
        let mut lookups = Lookups::default();
        let mut first = asked(&mut lookups, key(1), now);
        assert_eq!(lookups.next(), Some(key(1)));
        lookups.begun(key(1), ids[0], now);
        let mut second = asked(&mut lookups, key(1), now);
        assert_eq!(lookups.next(), None, "the same question is asked once");
        assert_eq!(lookups.found(ids[0], [one]), [one]);
        assert_eq!(lookups.found(ids[0], []), []);
        assert_eq!(lookups.found(ids[0], [one, two]), [two]);
        assert_eq!(lookups.found(ids[1], [two]), [], "nobody asked this");
        lookups.ended(ids[0]);
        lookups.settle(now, |id| if *id == one { Whereabouts::Known(peer(1)) } else { Whereabouts::Coming });
        assert!(first.try_recv().is_err(), "somebody is being met");
        lookups.settle(now, |_| Whereabouts::Known(peer(2)));
        assert_eq!(first.try_recv().unwrap().len(), 2);
        assert_eq!(second.try_recv().unwrap().len(), 2);
        assert!(lookups.is_idle());

        // Again, soon: the same answer, without a query, unless one of them has gone.
        let mut again = asked(&mut lookups, key(1), now + FRESH / 2);
        assert_eq!(lookups.next(), None);
        lookups.settle(now + FRESH / 2, |_| Whereabouts::Known(peer(3)));
        assert_eq!(again.try_recv().unwrap().len(), 2);
        lookups.gone(&two);
        let _third = asked(&mut lookups, key(1), now + FRESH / 2);
        assert_eq!(lookups.next(), Some(key(1)));
    }

    #[test]
    fn patience_ends() {
        let (now, ids) = (Instant::now(), query_ids(2));
        let mut lookups = Lookups::default();
        let mut some = asked(&mut lookups, key(1), now);
        let mut none = asked(&mut lookups, key(2), now);
        for id in &ids {
            let key = lookups.next().unwrap();
            lookups.begun(key, *id, now);
        }
        let known = PeerId::random();
        lookups.found(ids[0], [known, PeerId::random()]);
        lookups.found(ids[1], [PeerId::random()]);
        let whereabouts = |id: &PeerId| {
            if *id == known { Whereabouts::Known(peer(1)) } else { Whereabouts::Coming }
        };
        assert_eq!(lookups.wake(now), Some(now + PATIENCE_MAX));
        let first = now + Duration::from_millis(200);
        lookups.settle(first, whereabouts);
        assert!(some.try_recv().is_err(), "more may come");
        assert_eq!(lookups.wake(first), Some(first + GRACE));
        lookups.settle(first + GRACE - Duration::from_millis(1), whereabouts);
        assert!(some.try_recv().is_err());
        lookups.settle(first + GRACE, whereabouts);
        assert_eq!(some.try_recv().unwrap(), [peer(1)]);
        assert!(none.try_recv().is_err());
        assert_eq!(lookups.wake(first + GRACE), Some(now + PATIENCE_MAX));
        lookups.settle(now + PATIENCE_MAX, whereabouts);
        assert_eq!(none.try_recv().unwrap(), []);
        ids.iter().for_each(|id| lookups.ended(*id));
        lookups.settle(now + PATIENCE_MAX, whereabouts);
        assert!(lookups.is_idle());
    }

    #[test]
    fn a_look_up_that_hangs_is_begun_again_and_the_dead_are_not_remembered() {
        let (now, ids) = (Instant::now(), query_ids(2));
        let (dead, alive) = (PeerId::random(), PeerId::random());
        let whereabouts =
            |id: &PeerId| if *id == alive { Whereabouts::Known(peer(1)) } else { Whereabouts::Coming };
        let mut lookups = Lookups::default();
        let mut first = asked(&mut lookups, key(1), now);
        lookups.next().unwrap();
        lookups.begun(key(1), ids[0], now);
        lookups.found(ids[0], [dead]);
        lookups.settle(now + PATIENCE_MAX, whereabouts);
        assert_eq!(first.try_recv().unwrap(), []);

        let later = now + PATIENCE_MAX;
        let mut second = asked(&mut lookups, key(1), later);
        assert_eq!(lookups.next(), Some(key(1)), "whoever has come since would not be asked");
        lookups.begun(key(1), ids[1], later);
        lookups.ended(ids[0]);
        assert_eq!(lookups.found(ids[1], [dead, alive]), [alive]);
        lookups.ended(ids[1]);
        lookups.settle(later, whereabouts);
        lookups.settle(later + GRACE, whereabouts);
        assert_eq!(second.try_recv().unwrap(), [peer(1)]);
    }

    #[test]
    fn enough_is_enough() {
        let (now, ids) = (Instant::now(), query_ids(1));
        let mut lookups = Lookups::default();
        let mut answer = asked(&mut lookups, key(1), now);
        lookups.next().unwrap();
        lookups.begun(key(1), ids[0], now);
        lookups.found(ids[0], (1..ENOUGH).map(|_| PeerId::random()));
        lookups.settle(now, |_| Whereabouts::Known(peer(1)));
        assert!(answer.try_recv().is_err());
        lookups.found(ids[0], [PeerId::random()]);
        lookups.settle(now, |_| Whereabouts::Known(peer(1)));
        assert_eq!(answer.try_recv().unwrap().len(), ENOUGH, "though the query goes on");
    }

    #[test]
    fn who_has_given_up_costs_no_query() {
        let now = Instant::now();
        let mut lookups = Lookups::default();
        drop(asked(&mut lookups, key(1), now));
        let _asks = asked(&mut lookups, key(2), now);
        assert_eq!(lookups.next(), Some(key(2)));
    }
}
