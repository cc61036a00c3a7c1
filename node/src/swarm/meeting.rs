//! Providers that a look-up has named and that we have not met: who is dialled when.
//!
//! Names cost nothing, and dialling one that leads nowhere takes seconds. So those never tried come first, by the dice,
//! because whoever has invented most names should not be dialled first; then those that failed, longest ago first. What
//! waits and what is remembered is bounded. Pure, but for the dice: time is an argument.
//!
//! The arithmetic: 256 invented names of hosts that do not answer, and an honest one among them. 96 are dialled at once,
//! for 3 s each: the honest one has its turn within 8 s, after 4 s on average. Where the names are refused, at once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use libp2p::PeerId;
use rand::RngExt;
use tokio::time::Instant;

/// Peers that are dialled, or asked for their contact, at once. libp2p has room for 256.
const AT_ONCE: usize = 96;

/// How long one of them keeps others waiting. It may still answer afterwards.
const TURN: Duration = Duration::from_secs(3);

/// How long after it failed one is tried again, if it is named.
const AGAIN: Duration = Duration::from_secs(2);

/// Peers that wait, and of which it is remembered that they failed.
const WAITING_MAX: usize = 2048;
const FAILED_MAX: usize = 4096;

/// Peers to be met.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    fresh: VecDeque<PeerId>,
    again: VecDeque<PeerId>,
    /// Those in either that have not been met meanwhile.
    waiting: HashSet<PeerId>,
    /// Until when it has its turn.
    under_way: HashMap<PeerId, Instant>,
    failed: HashMap<PeerId, Instant>,
}

impl Meeting {
    /// A look-up has named `peer`, which we have not met.
    pub(super) fn named(&mut self, peer: PeerId, now: Instant) {
        if self.is_coming(&peer) || WAITING_MAX <= self.fresh.len() + self.again.len() {
            return;
        }
        match self.failed.get(&peer) {
            Some(at) if now < *at + AGAIN => return,
            Some(_) => self.again.push_back(peer),
            None => {
                self.fresh.push_back(peer);
                let other = rand::rng().random_range(0..self.fresh.len());
                let last = self.fresh.len() - 1;
                self.fresh.swap(other, last);
            }
        }
        self.waiting.insert(peer);
    }

    /// The peer to dial or ask next, if there is room. Counts as begun.
    pub(super) fn next(&mut self, now: Instant) -> Option<PeerId> {
        if AT_ONCE <= self.under_way.len() {
            let late: Vec<_> =
                self.under_way.iter().filter(|(_, until)| **until <= now).map(|(peer, _)| *peer).collect();
            late.iter().for_each(|peer| self.failed(peer, now));
        }
        if AT_ONCE <= self.under_way.len() {
            return None;
        }
        loop {
            let peer = self.fresh.pop_front().or_else(|| self.again.pop_front())?;
            if self.waiting.remove(&peer) {
                self.under_way.insert(peer, now + TURN);
                return Some(peer);
            }
        }
    }

    /// Whether `peer` waits for its turn or has it.
    pub(super) fn is_coming(&self, peer: &PeerId) -> bool {
        self.is_under_way(peer) || self.waiting.contains(peer)
    }

    /// Whether `peer` is being dialled or asked.
    pub(super) fn is_under_way(&self, peer: &PeerId) -> bool {
        self.under_way.contains_key(peer)
    }

    /// `peer` is met.
    pub(super) fn met(&mut self, peer: &PeerId) {
        self.under_way.remove(peer);
        self.failed.remove(peer);
        self.waiting.remove(peer);
    }

    /// `peer` cannot be met now.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) {
        if self.under_way.remove(peer).is_some() {
            if FAILED_MAX <= self.failed.len() {
                self.failed.clear();
            }
            self.failed.insert(*peer, now);
        }
    }

    /// When [`Meeting::next`] may have something even if nothing happens.
    pub(super) fn wake(&self) -> Option<Instant> {
        let waits = !self.waiting.is_empty();
        waits.then(|| self.under_way.values().min().copied()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(meeting: &mut Meeting, now: Instant) -> Vec<PeerId> {
        std::iter::from_fn(|| meeting.next(now)).collect()
    }

    #[test]
    fn those_never_tried_come_first_and_those_that_failed_come_again() {
        let (mut meeting, now) = (Meeting::default(), Instant::now());
        let [dead, fresh] = [PeerId::random(), PeerId::random()];
        meeting.named(dead, now);
        assert_eq!(all(&mut meeting, now), [dead]);
        meeting.failed(&dead, now);
        meeting.named(dead, now + AGAIN / 2);
        assert!(!meeting.is_coming(&dead), "not at once");
        meeting.named(dead, now + AGAIN);
        meeting.named(fresh, now + AGAIN);
        meeting.named(fresh, now + AGAIN);
        assert_eq!(all(&mut meeting, now + AGAIN), [fresh, dead]);
        meeting.met(&dead);
        assert!(!meeting.is_coming(&dead) && meeting.is_coming(&fresh));
    }

    #[test]
    fn many_invented_names_do_not_keep_an_honest_one_waiting_for_long() {
        let (mut meeting, begin) = (Meeting::default(), Instant::now());
        let honest = PeerId::random();
        (0..255).for_each(|_| meeting.named(PeerId::random(), begin));
        meeting.named(honest, begin);
        let (mut now, mut dialled) = (begin, HashSet::new());
        while !dialled.contains(&honest) {
            let next = all(&mut meeting, now);
            assert!(next.len() <= AT_ONCE);
            dialled.extend(next);
            now = meeting.wake().unwrap_or(now);
        }
        assert!(now <= begin + 3 * TURN);
        (0..10_000).for_each(|_| meeting.named(PeerId::random(), now));
        assert!(meeting.fresh.len() <= WAITING_MAX);
    }
}
