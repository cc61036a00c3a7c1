//! Whom to ask for what.

use rand::RngExt;
use surf_protocol::{Bitmap, ChunkId, ModelId, NodeId};
use tokio::time::Instant;

use super::{Assignment, Flight, Outcome, Schedule, Want, limits::*};
use crate::source::Urgency;

/// A request that another peer could do sooner.
struct Late {
    flight: u64,
    chunk: ChunkId,
    peer: NodeId,
    /// Whether it has not begun and can be moved at no cost.
    waits: bool,
    /// Seconds.
    gain: f64,
}

impl Schedule {
    /// The next request to make, if there is a wish that somebody with room may fulfil.
    pub fn assign(&mut self, now: Instant) -> Option<Assignment> {
        let open = self.open(now);
        if open.is_empty() || self.wants.is_empty() {
            return None;
        }
        let line = self.in_line(now);
        let mut all_asked = true;
        for id in line {
            let Some(want) = self.wants.get(&id).filter(|want| want.flights.is_empty()) else { continue };
            all_asked = false;
            let (model, candidates) = (want.model, self.candidates(want, &open, now));
            if let Some(peer) = self.choose(model, &candidates) {
                return Some(self.start(id, peer, None, now));
            }
        }
        let late = self.latest(&open, all_asked, now)?;
        let replaces = late.waits.then_some(late.flight);
        if late.waits {
            self.take_away(late.flight, now);
        }
        Some(self.start(late.chunk, late.peer, replaces, now))
    }

    /// The peers that may be asked for one more chunk.
    fn open(&self, now: Instant) -> Vec<NodeId> {
        let busy = self.peers.values().filter(|peer| !peer.flights.is_empty());
        let (mut owed, mut rate, mut delay) = (0, 0.0, 0f64);
        for peer in busy {
            owed += peer.owed;
            rate += peer.rate().unwrap_or(0.0);
            delay = delay.max(peer.link.rtt.as_secs_f64());
        }
        let wide = (rate * delay) as u64;
        let enough = wide.clamp(IN_FLIGHT_BYTES_MODEST, IN_FLIGHT_BYTES_TOTAL_MAX);
        let unkept: u64 = self.flights.values().map(|flight| flight.size).sum();
        let all_busy = enough <= owed || enough.max(UNKEPT_BYTES_MODEST) <= unkept;
        let usual = self.wants.values().next().map_or(0, |want| u64::from(want.chunk.size));
        let open = self.peers.iter().filter(|(_, peer)| {
            let slow = peer.flights.is_empty() && SLOW < peer.expected(usual);
            (!all_busy || slow && owed < IN_FLIGHT_BYTES_TOTAL_MAX) && peer.has_room(now)
        });
        open.map(|(&id, _)| id).collect()
    }

    /// Those of `open` that may be asked for a chunk. Peers that have stalled, or that nobody counts on, are
    /// only asked for what nobody else has.
    fn candidates(&self, want: &Want, open: &[NodeId], now: Instant) -> Vec<NodeId> {
        let not_now = |id: &NodeId| want.elsewhere.iter().any(|(peer, until)| peer == id && now < *until);
        let may: Vec<NodeId> =
            open.iter().copied().filter(|id| self.holds(*id, want) && !not_now(id)).collect();
        let may = self.without_seeds(want, may);
        let good = |id: &NodeId| {
            let peer = &self.peers[id];
            peer.is_counted_on() && peer.blacklisted_until(now).is_none()
        };
        if may.iter().any(good) || self.holders(want).any(|id| good(&id)) {
            may.into_iter().filter(good).collect()
        } else {
            may
        }
    }

    /// Leaves out peers that have all of the model, if enough others have the chunk and are not much slower:
    /// what the herd has it passes on, and the seeds give what it has not.
    fn without_seeds(&self, want: &Want, may: Vec<NodeId>) -> Vec<NodeId> {
        let is_seed = |id: &NodeId| self.is_seed(*id, want.model);
        if !may.iter().any(is_seed) {
            return may;
        }
        let size = want.chunk.size.into();
        let others: Vec<f64> =
            self.holders(want).filter(|id| !is_seed(id)).map(|id| self.peers[&id].expected(size)).collect();
        let soonest = others.iter().copied().fold(f64::INFINITY, f64::min);
        let much_sooner = |id: &NodeId| self.peers[id].expected(size) * MUCH_SLOWER < soonest;
        if others.len() < HERD_ENOUGH {
            return may;
        }
        may.into_iter().filter(|id| !is_seed(id) || much_sooner(id)).collect()
    }

    fn is_seed(&self, peer: NodeId, model: ModelId) -> bool {
        let claims = self.claims.get(&model).and_then(|claims| claims.get(&peer));
        claims.is_some_and(Bitmap::is_full)
    }

    fn holds(&self, peer: NodeId, want: &Want) -> bool {
        let claims = self.claims.get(&want.model).and_then(|claims| claims.get(&peer));
        claims.is_some_and(|has| has.contains(want.position))
            || self.found.get(&want.chunk.id).is_some_and(|holders| holders.contains(&peer))
    }

    /// One of `candidates` by the dice: the sooner it would be done, the likelier. One that has not been
    /// measured always has a chance. Who fetches the model too is preferred to who has all of it: only the
    /// latter gives what is rare.
    fn choose(&mut self, model: ModelId, candidates: &[NodeId]) -> Option<NodeId> {
        let weight = |id: &NodeId| {
            let peer = &self.peers[id];
            let seconds = peer.expected(1 << 20) + 1e-3;
            let spared = if 1 < candidates.len() && self.is_seed(*id, model) { SEED_SPARED } else { 1.0 };
            (spared * peer.preference() / (seconds * seconds), peer.rate().is_none())
        };
        let weights: Vec<(f64, bool)> = candidates.iter().map(weight).collect();
        let best = weights.iter().map(|(weight, _)| *weight).fold(0.0, f64::max);
        let weights: Vec<f64> = weights
            .into_iter()
            .map(|(weight, new)| if new { weight.max(best * CHANCE_FLOOR) } else { weight })
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut at = self.dice.random::<f64>() * sum;
        for (id, weight) in candidates.iter().zip(weights) {
            at -= weight;
            if at <= 0.0 {
                return Some(*id);
            }
        }
        candidates.last().copied()
    }

    /// The request that another peer could do soonest before its own. `all_asked`: nothing else is
    /// left to ask, so even what has begun may be asked for twice.
    fn latest(&self, open: &[NodeId], all_asked: bool, now: Instant) -> Option<Late> {
        let mut latest: Option<Late> = None;
        for (&number, flight) in &self.flights {
            let Some(want) = self.wants.get(&flight.chunk).filter(|want| want.flights.len() < ASKED_TWICE)
            else {
                continue;
            };
            if now - flight.started < SETTLED {
                continue;
            }
            let (left, waits) = (self.left(number, flight, now), flight.received == 0);
            let urgent = all_asked || matches!(want.urgency, Urgency::Deadline(_));
            if !waits && !urgent {
                continue;
            }
            for peer in self.candidates(want, open, now) {
                let expected = self.peers[&peer].expected(flight.size);
                let needed = if waits { STEAL_GAIN } else { TWICE_GAIN };
                let gain = left - expected * needed;
                if peer != flight.peer && 0.0 < gain && latest.as_ref().is_none_or(|best| best.gain < gain) {
                    latest = Some(Late { flight: number, chunk: flight.chunk, peer, waits, gain });
                }
            }
        }
        latest
    }

    /// Seconds until a request would be done: what its peer owes up to it, at its rate. If nothing
    /// comes, no less than nothing has come for.
    fn left(&self, number: u64, flight: &Flight, now: Instant) -> f64 {
        let peer = &self.peers[&flight.peer];
        let before = peer.flights.iter().take_while(|other| **other != number);
        let ahead: u64 = before.map(|other| self.flights[other].size - self.flights[other].received).sum();
        let own = flight.size - flight.received;
        let rate = peer.rate().unwrap_or(RATE_UNKNOWN);
        let quiet = (now - flight.progress).as_secs_f64();
        ((ahead + own) as f64 / rate).max(quiet)
    }

    /// Ends a request that waits at a peer, which is thought of as slower from now on.
    fn take_away(&mut self, number: u64, now: Instant) {
        if let Some(flight) = self.land(number, Outcome::Cancelled, now)
            && let Some(want) = self.wants.get_mut(&flight.chunk)
        {
            want.flights.retain(|other| *other != number);
            self.peer(flight.peer, now).waited(flight.size, now - flight.started);
        }
    }

    fn start(&mut self, id: ChunkId, peer: NodeId, replaces: Option<u64>, now: Instant) -> Assignment {
        let number = self.next_flight;
        self.next_flight += 1;
        let want = self.wants.get_mut(&id).expect("only what is wanted is asked for");
        want.flights.push(number);
        let (chunk, model) = (want.chunk, want.model);
        let size = u64::from(chunk.size);
        self.flights
            .insert(number, Flight { chunk: id, peer, size, received: 0, started: now, progress: now });
        self.peer(peer, now).start(number, size, now);
        Assignment { flight: number, chunk, model, peer, replaces }
    }
}
