//! Which chunk to ask of which peer next, and when to ask somebody else.
//!
//! Pure: no clock, no I/O. Time comes in as a value, dice as a seed, and ties have an order, so the
//! node and the simulator run the same code and a seed is a whole run.
//!
//! - Order (`order`): what inference needs next by deadline; everything else rarest first, ties by
//!   the dice, so that a herd of nodes does not want the same chunk at the same time.
//! - Peer (`choose`): of those that have the chunk and have room, one by the dice, weighted by how
//!   soon each would be done: round trip + (bytes it owes + size) / measured rate.
//! - Room (`peer`): a peer owes at most its bandwidth times its delay, and one request until it has
//!   delivered, so a liar wastes one chunk.
//! - Moving (`choose`): a request that waits in a slow peer's queue goes to an idle one that has the
//!   chunk too; when nothing else is left to ask, the last are asked twice and the loser is cancelled.
//! - Failure (`peer`): a peer that fails is left alone for a time that grows from half a second to a minute;
//!   a connection, a word from it or a new pull ends that. One that stalls is asked only for what nobody else
//!   has, for a time that grows from half a minute. One that sent wrong bytes is never asked again.

mod choose;
mod limits;
mod order;
mod outlook;
mod peer;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use surf_protocol::{Bitmap, ChunkId, ModelId, NodeId, manifest::ChunkEntry};
use tokio::time::Instant;

pub use self::outlook::{Holder, HolderState, Outlook};
use self::{limits::ELSEWHERE_PAUSE, order::Line, peer::PeerState};
use super::Link;
use crate::source::Urgency;

/// A request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its number.
    pub flight: u64,
    /// The chunk to ask for.
    pub chunk: ChunkEntry,
    /// The model that it is wanted for.
    pub model: ModelId,
    /// The peer to ask.
    pub peer: NodeId,
    /// A request that this one replaces: cancel it. It has ended already, as far as the schedule goes.
    pub replaces: Option<u64>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The chunk came, and its bytes are what they should be.
    Delivered,
    /// The peer says that it does not have it.
    NotHere,
    /// The peer has just given it to another, and would rather give us something else.
    Elsewhere,
    /// The peer has too much to do.
    Busy,
    /// The peer could not be reached, or broke off.
    Failed,
    /// The peer answered that it cannot give it.
    Refused,
    /// There is a way to the peer, which may not carry chunks.
    Barred,
    /// The peer sent nothing for too long.
    Stalled,
    /// The peer sent other bytes than those asked for.
    Lied,
    /// We did not want it any more.
    Cancelled,
}

/// All wishes, and what is known of the peers that may fulfil them.
#[derive(Debug)]
pub struct Schedule {
    dice: ChaCha8Rng,
    wants: BTreeMap<ChunkId, Want>,
    /// How many wants each model has.
    wanted: BTreeMap<ModelId, usize>,
    /// All wants, in order.
    line: Line,
    flights: BTreeMap<u64, Flight>,
    next_flight: u64,
    peers: BTreeMap<NodeId, PeerState>,
    claims: BTreeMap<ModelId, BTreeMap<NodeId, Bitmap>>,
    /// Holders of single chunks, found under the chunk's own key.
    found: HashMap<ChunkId, BTreeSet<NodeId>>,
}

#[derive(Debug)]
struct Want {
    chunk: ChunkEntry,
    model: ModelId,
    position: usize,
    urgency: Urgency,
    /// What the dice said: decides between equals.
    order: u64,
    flights: Vec<u64>,
    /// Peers that would rather not give it now, and until when.
    elsewhere: Vec<(NodeId, Instant)>,
}

#[derive(Debug)]
struct Flight {
    chunk: ChunkId,
    peer: NodeId,
    size: u64,
    received: u64,
    started: Instant,
    /// When bytes came last.
    progress: Instant,
}

impl Schedule {
    /// Nothing wanted, nobody known.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: ChaCha8Rng::seed_from_u64(seed),
            wants: BTreeMap::new(),
            wanted: BTreeMap::new(),
            line: Line::default(),
            flights: BTreeMap::new(),
            next_flight: 0,
            peers: BTreeMap::new(),
            claims: BTreeMap::new(),
            found: HashMap::new(),
        }
    }

    /// Adds a wish, or makes an earlier one more urgent. `position` is the chunk's in the model's
    /// chunk list.
    pub fn want(&mut self, model: ModelId, position: usize, chunk: ChunkEntry, urgency: Urgency) {
        let order = self.dice.next_u64();
        let want = self.wants.entry(chunk.id).or_insert_with(|| {
            *self.wanted.entry(model).or_default() += 1;
            let (flights, elsewhere) = (Vec::new(), Vec::new());
            Want { chunk, model, position, urgency, order, flights, elsewhere }
        });
        want.urgency = want.urgency.min(urgency);
        self.line.is_old();
    }

    /// Takes a wish back. Returns the requests for it, which should be cancelled.
    #[must_use]
    pub fn forget(&mut self, id: ChunkId, now: Instant) -> Vec<u64> {
        self.found.remove(&id);
        let Some(want) = self.wants.remove(&id) else { return Vec::new() };
        *self.wanted.get_mut(&want.model).expect("counted when wanted") -= 1;
        for &flight in &want.flights {
            self.land(flight, Outcome::Cancelled, now);
        }
        want.flights
    }

    /// Forgets who has what of `model`, of which nothing may be wanted.
    pub fn forget_model(&mut self, model: ModelId) {
        self.claims.remove(&model);
        self.wanted.remove(&model);
    }

    /// `peer` says which chunks of `model` it has.
    pub fn claims(&mut self, peer: NodeId, model: ModelId, has: Bitmap, now: Instant) {
        if !self.peer(peer, now).lied {
            self.claims.entry(model).or_default().insert(peer, has);
            self.line.is_stale();
        }
    }

    /// `peer` no longer says what it has of `model`: it is gone, most likely. Returns whether it had something.
    pub fn unclaim(&mut self, peer: NodeId, model: ModelId) -> bool {
        let had = self.claims.get_mut(&model).and_then(|claims| claims.remove(&peer));
        had.is_some_and(|had| 0 < had.count())
    }

    /// `peer` says that it has the chunk `id`.
    pub fn found(&mut self, peer: NodeId, id: ChunkId, now: Instant) {
        if !self.peer(peer, now).lied && self.wants.contains_key(&id) {
            self.found.entry(id).or_default().insert(peer);
        }
    }

    /// `peer` has said something, or has a connection to us: if it could not be reached, it can be now.
    pub fn heard(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.heard();
        }
    }

    /// `peer` is back after a time in which it was gone.
    pub fn returned(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.returned();
        }
    }

    /// Somebody begins to want something: whatever failed before is tried again at once.
    pub fn afresh(&mut self) {
        self.peers.values_mut().for_each(PeerState::afresh);
    }

    /// Something that `peer` was asked outside this schedule ended so.
    pub fn judged(&mut self, peer: NodeId, outcome: Outcome, now: Instant) {
        self.peer(peer, now).judge(outcome, now);
    }

    /// How `peer` is reached.
    pub fn reached(&mut self, peer: NodeId, link: Link, now: Instant) {
        self.peer(peer, now).reached(link);
    }

    /// So many bytes of a request have come by now, all in all.
    pub fn progress(&mut self, flight: u64, received: u64, now: Instant) {
        let Some(flight) = self.flights.get_mut(&flight) else { return };
        let grown = received.min(flight.size).saturating_sub(flight.received);
        if 0 < grown {
            flight.received += grown;
            flight.progress = now;
        }
        let peer = flight.peer;
        self.peer(peer, now).came(grown, now);
    }

    /// A request ended. Unless the chunk was delivered, it is wanted again. Returns the requests that
    /// are of no use any more: cancel them.
    #[must_use]
    pub fn ended(&mut self, flight: u64, outcome: Outcome, now: Instant) -> Vec<u64> {
        if outcome == Outcome::Delivered {
            let size = self.flights.get(&flight).map_or(0, |flight| flight.size);
            self.progress(flight, size, now);
        }
        let Some(Flight { chunk, peer, .. }) = self.land(flight, outcome, now) else { return Vec::new() };
        if let Some(want) = self.wants.get_mut(&chunk) {
            want.flights.retain(|other| *other != flight);
        }
        match outcome {
            Outcome::Delivered => return self.forget(chunk, now),
            // It may be the one chunk that it cannot give: others are asked, and it is asked for others.
            Outcome::NotHere | Outcome::Refused => self.disclaim(chunk, peer),
            Outcome::Elsewhere => {
                if let Some(want) = self.wants.get_mut(&chunk) {
                    want.elsewhere.retain(|(_, until)| now < *until);
                    want.elsewhere.push((peer, now + ELSEWHERE_PAUSE));
                }
            }
            Outcome::Lied => return self.lied(peer, now),
            Outcome::Busy | Outcome::Barred | Outcome::Failed | Outcome::Stalled | Outcome::Cancelled => (),
        }
        Vec::new()
    }

    /// Wishes that nobody known can fulfil, and nobody is working on; in order.
    pub fn stranded(&mut self, now: Instant) -> Vec<(ModelId, ChunkEntry)> {
        let line = self.in_line(now);
        let wants = line.iter().filter_map(|id| self.wants.get(id));
        let idle = wants.filter(|want| want.flights.is_empty());
        let stranded = idle.filter(|want| self.holders(want).next().is_none());
        stranded.map(|want| (want.model, want.chunk)).collect()
    }

    /// Whether somebody says that it has the chunk at `position`, and may yet give it.
    pub fn may_come(&self, model: ModelId, position: usize) -> bool {
        self.claimants(model, position).any(|id| self.peers[&id].may_give())
    }

    /// How many peers are known to have each of the first `chunks` chunks of `model`.
    pub fn copies(&self, model: ModelId, chunks: usize) -> Vec<u8> {
        let claims = self.claims.get(&model);
        let holders = |at: usize| claims.into_iter().flatten().filter(|(_, has)| has.contains(at)).count();
        (0..chunks).map(|at| u8::try_from(holders(at)).unwrap_or(u8::MAX)).collect()
    }

    /// Peers that have a part of `model`, and so are fetching it too; ordered by id.
    pub fn herd(&self, model: ModelId) -> Vec<NodeId> {
        let claims = self.claims.get(&model).into_iter().flatten();
        claims.filter(|(_, has)| !has.is_full()).map(|(&id, _)| id).collect()
    }

    /// The peers that claim a chunk, the quickest first, with those left alone at the end.
    pub fn ranked(&self, model: ModelId, position: usize, now: Instant) -> Vec<NodeId> {
        let mut ranked: Vec<NodeId> = self.claimants(model, position).collect();
        let rank = |id: &NodeId| {
            let state = &self.peers[id];
            let left_alone = state.paused_until(now).is_some() || state.blacklisted_until(now).is_some();
            (left_alone, state.expected(0) / state.preference(), *id)
        };
        ranked.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).expect("rates are numbers"));
        ranked
    }

    /// Whether anything is wanted.
    pub fn is_idle(&self) -> bool {
        self.wants.is_empty()
    }

    /// Whether the chunk `id` is asked for as `model` describes it.
    pub fn is_wanted_for(&self, id: ChunkId, model: ModelId) -> bool {
        self.wants.get(&id).is_some_and(|want| want.model == model)
    }

    /// How many chunks are wanted of `model`.
    pub fn wanted(&self, model: ModelId) -> usize {
        self.wanted.get(&model).copied().unwrap_or(0)
    }

    /// Whether `peer` claims something of `model` that is wanted.
    pub fn has_wanted(&self, peer: NodeId, model: ModelId) -> bool {
        let has = self.claims.get(&model).and_then(|claims| claims.get(&peer));
        has.is_some_and(|has| {
            self.wants.values().any(|want| want.model == model && has.contains(want.position))
        })
    }

    /// `peer` has sent wrong bytes: it is not asked again. Returns the requests to it: cancel them.
    #[must_use]
    pub fn lied(&mut self, peer: NodeId, now: Instant) -> Vec<u64> {
        self.peer(peer, now).lied = true;
        self.claims.values_mut().for_each(|claims| drop(claims.remove(&peer)));
        self.found.values_mut().for_each(|holders| {
            holders.remove(&peer);
        });
        let flights = std::mem::take(&mut self.peer(peer, now).flights);
        for &number in &flights {
            if let Some(flight) = self.land(number, Outcome::Cancelled, now)
                && let Some(want) = self.wants.get_mut(&flight.chunk)
            {
                want.flights.retain(|other| *other != number);
            }
        }
        self.line.is_stale();
        flights
    }

    /// Whether `peer` has sent wrong bytes.
    pub fn has_lied(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|state| state.lied)
    }

    /// Whether `peer` claims anything, or is being asked.
    pub fn is_useful(&self, peer: NodeId) -> bool {
        let claims = self.claims.values().any(|claims| claims.contains_key(&peer));
        let found = self.found.values().any(|holders| holders.contains(&peer));
        claims || found || self.peers.get(&peer).is_some_and(|state| !state.flights.is_empty())
    }

    /// Forgets a peer that is not [useful](Self::is_useful), unless it is a liar.
    pub fn forget_peer(&mut self, peer: NodeId) {
        if !self.is_useful(peer) && !self.has_lied(peer) {
            self.peers.remove(&peer);
        }
    }

    /// Takes a request out of the books of its peer. The want keeps its number.
    fn land(&mut self, number: u64, outcome: Outcome, now: Instant) -> Option<Flight> {
        let flight = self.flights.remove(&number)?;
        self.peer(flight.peer, now).end(number, flight.size - flight.received, outcome, now);
        Some(flight)
    }

    fn holders(&self, want: &Want) -> impl Iterator<Item = NodeId> {
        let found = self.found.get(&want.chunk.id).into_iter().flatten().copied();
        let claimed = self.claimants(want.model, want.position);
        claimed.chain(found).filter(|id| self.peers[id].is_counted_on())
    }

    fn claimants(&self, model: ModelId, position: usize) -> impl Iterator<Item = NodeId> {
        let claims = self.claims.get(&model).into_iter().flatten();
        claims.filter(move |(_, has)| has.contains(position)).map(|(id, _)| *id)
    }

    fn disclaim(&mut self, chunk: ChunkId, peer: NodeId) {
        if let Some(want) = self.wants.get(&chunk)
            && let Some(has) = self.claims.get_mut(&want.model).and_then(|claims| claims.get_mut(&peer))
        {
            has.remove(want.position);
        }
        if let Some(found) = self.found.get_mut(&chunk) {
            found.remove(&peer);
        }
    }

    fn peer(&mut self, id: NodeId, now: Instant) -> &mut PeerState {
        self.peers.entry(id).or_insert_with(|| PeerState::unknown(now))
    }
}

#[cfg(test)]
mod tests;
