//! Which chunk to ask of which peer next.
//!
//! Pure: no clock, no I/O. Time comes in as a value, dice as a seed, and ties have an order, so the
//! node and the simulator run the same code and a seed is a whole run.
//!
//! - Order: deadlines first, the nearest before the farther; everything else in an order of the
//!   dice, so that a herd of nodes does not want the same chunk at the same time.
//! - Peer: of those that claim the chunk and have room, the one expected to finish it first.
//! - Room: a peer has at most `IN_FLIGHT_BYTES_MAX` outstanding, fewer when it is slow, so that
//!   what becomes urgent does not wait behind what is not.
//! - Trust: a peer gets one request until it has delivered, so a liar wastes one chunk.
//! - Failure: a peer that fails is left alone for a while that doubles each time; one that lies is
//!   never asked again; a chunk goes back to its place in the queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use surf_protocol::{Bitmap, ChunkId, ModelId, NodeId, manifest::ChunkEntry};
use tokio::time::Instant;

use crate::source::Urgency;

/// Bytes outstanding at one peer: four of the largest chunks keep a fast link full while one is
/// being verified and written.
const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;

/// Bytes outstanding at all peers together: what an empty node may hold in memory for a download.
const IN_FLIGHT_BYTES_TOTAL_MAX: u64 = 64 << 20;

/// Requests outstanding at one peer, for models of many small chunks.
const IN_FLIGHT_REQUESTS_MAX: usize = 32;

/// A peer's window is what it delivers in this time, so that an urgent chunk waits no longer.
const WINDOW: Duration = Duration::from_millis(500);

/// Bytes per second assumed of a peer not yet measured: fast enough to be tried early.
const RATE_UNKNOWN: f64 = 16e6;

/// A rate is measured over no less than this, or until nothing is under way any more.
const MEASURE_MIN: Duration = Duration::from_millis(50);

/// How long a peer is left alone after its first failure; doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// The longest a peer is left alone.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Failures in a row after which a peer is taken for gone, until it says again what it has.
const FAILURES_MAX: u32 = 3;

/// Failures in a row after which it is not believed any more: it may answer questions and still give
/// nothing, and whoever waits for it should be told in the end.
const FAILURES_BELIEVED_MAX: u32 = 6;

/// Queue entries looked at for one assignment. The first ones matter; the rest can wait a turn.
const LOOK_MAX: usize = 512;

/// What to ask, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The chunk.
    pub chunk: ChunkEntry,
    /// The model that it is wanted for.
    pub model: ModelId,
    /// The peer to ask.
    pub peer: NodeId,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The chunk came, and its bytes are what they should be.
    Delivered,
    /// The peer says that it does not have it.
    NotHere,
    /// The peer could not be reached, broke off, stalled, or was busy.
    Failed,
    /// The peer sent other bytes than those asked for.
    Lied,
}

/// All wishes, and what is known of the peers that may fulfil them.
#[derive(Debug)]
pub struct Schedule {
    dice: ChaCha8Rng,
    wants: BTreeMap<ChunkId, Want>,
    /// How many wants each model has.
    wanted: BTreeMap<ModelId, usize>,
    /// Wants that nobody is working on, in order.
    queue: BTreeSet<(Urgency, u64, ChunkId)>,
    peers: BTreeMap<NodeId, PeerState>,
    claims: BTreeMap<ModelId, BTreeMap<NodeId, Bitmap>>,
    /// Holders of single chunks, found under the chunk's own key.
    found: HashMap<ChunkId, BTreeSet<NodeId>>,
    in_flight_bytes: u64,
    arrivals: u64,
}

#[derive(Debug)]
struct Want {
    chunk: ChunkEntry,
    model: ModelId,
    position: usize,
    urgency: Urgency,
    order: u64,
    asked: Option<NodeId>,
}

#[derive(Debug)]
struct PeerState {
    rate: f64,
    in_flight: usize,
    in_flight_bytes: u64,
    failures: u32,
    /// Has said what it has since it last failed.
    answers: bool,
    paused_until: Option<Instant>,
    /// Has delivered at least once.
    proven: bool,
    lied: bool,
    measured_since: Instant,
    measured_bytes: u64,
}

impl Schedule {
    /// Nothing wanted, nobody known.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: ChaCha8Rng::seed_from_u64(seed),
            wants: BTreeMap::new(),
            wanted: BTreeMap::new(),
            queue: BTreeSet::new(),
            peers: BTreeMap::new(),
            claims: BTreeMap::new(),
            found: HashMap::new(),
            in_flight_bytes: 0,
            arrivals: 0,
        }
    }

    /// Adds a wish, or makes an earlier one more urgent. `position` is the chunk's in the model's
    /// chunk list.
    pub fn want(&mut self, model: ModelId, position: usize, chunk: ChunkEntry, urgency: Urgency) {
        self.arrivals += 1;
        let order = match urgency {
            Urgency::Deadline(_) => self.arrivals,
            Urgency::Background => self.dice.next_u64(),
        };
        let want = self.wants.entry(chunk.id).or_insert_with(|| {
            *self.wanted.entry(model).or_default() += 1;
            Want { chunk, model, position, urgency, order, asked: None }
        });
        if want.asked.is_some() {
            want.urgency = want.urgency.min(urgency);
            return;
        }
        self.queue.remove(&want.place());
        if urgency < want.urgency {
            (want.urgency, want.order) = (urgency, order);
        }
        self.queue.insert(want.place());
    }

    /// Takes a wish back. A request that is under way is not ended by this.
    pub fn forget(&mut self, id: ChunkId) {
        self.found.remove(&id);
        if let Some(want) = self.wants.remove(&id) {
            self.queue.remove(&want.place());
            *self.wanted.get_mut(&want.model).expect("counted when wanted") -= 1;
        }
    }

    /// Forgets who has what of `model`, of which nothing may be wanted.
    pub fn forget_claims(&mut self, model: ModelId) {
        self.claims.remove(&model);
        self.wanted.remove(&model);
    }

    /// `peer` says which chunks of `model` it has. A peer that answers is there, and is tried again
    /// however often it has failed, up to a limit. Lies are not forgiven.
    pub fn claims(&mut self, peer: NodeId, model: ModelId, has: Bitmap, now: Instant) {
        let state = self.peer(peer, now);
        if state.lied {
            return;
        }
        state.answers = true;
        self.claims.entry(model).or_default().insert(peer, has);
    }

    /// `peer` says that it has the chunk `id`.
    pub fn found(&mut self, peer: NodeId, id: ChunkId, now: Instant) {
        if !self.peer(peer, now).lied && self.wants.contains_key(&id) {
            self.found.entry(id).or_default().insert(peer);
        }
    }

    /// The next request to make, if there is a wish that somebody with room may fulfil.
    pub fn assign(&mut self, now: Instant) -> Option<Assignment> {
        if IN_FLIGHT_BYTES_TOTAL_MAX <= self.in_flight_bytes
            || !self.peers.values().any(|peer| peer.has_room(now))
        {
            return None;
        }
        let (place, peer) = self.queue.iter().take(LOOK_MAX).find_map(|place| {
            let want = &self.wants[&place.2];
            Some((*place, self.best_holder(want, now)?))
        })?;
        self.queue.remove(&place);
        let want = self.wants.get_mut(&place.2).expect("queued wants are wanted");
        want.asked = Some(peer);
        let assignment = Assignment { chunk: want.chunk, model: want.model, peer };
        let size = u64::from(assignment.chunk.size);
        self.in_flight_bytes += size;
        self.peer(peer, now).start(size, now);
        Some(assignment)
    }

    /// A request ended. Unless the chunk was delivered, it is queued again.
    pub fn ended(&mut self, assignment: &Assignment, outcome: Outcome, now: Instant) {
        let (id, size) = (assignment.chunk.id, u64::from(assignment.chunk.size));
        self.in_flight_bytes -= size;
        self.peer(assignment.peer, now).end(size, outcome, now);
        match outcome {
            Outcome::Delivered => return self.forget(id),
            Outcome::NotHere => self.disclaim(assignment),
            Outcome::Failed => (),
            Outcome::Lied => self.drop_claims(assignment.peer),
        }
        if let Some(want) = self.wants.get_mut(&id) {
            want.asked = None;
            self.queue.insert(want.place());
        }
    }

    /// Wishes that nobody known can fulfil, and nobody is working on.
    pub fn stranded(&self) -> Vec<(ModelId, ChunkEntry)> {
        let queued = self.queue.iter().map(|place| &self.wants[&place.2]);
        let stranded = queued.filter(|want| self.holders(want).next().is_none());
        stranded.map(|want| (want.model, want.chunk)).collect()
    }

    /// When a peer that is left alone may be asked again, if anything waits for one.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() {
            return None;
        }
        self.peers.values().filter_map(|peer| peer.paused_until).filter(|&until| now < until).min()
    }

    /// The peers that claim a chunk, the quickest first, with those left alone at the end.
    pub fn ranked(&self, model: ModelId, position: usize, now: Instant) -> Vec<NodeId> {
        let mut ranked: Vec<NodeId> = self.claimants(model, position).collect();
        let rank = |id: &NodeId| {
            let state = &self.peers[id];
            (state.is_paused(now), state.failures, state.expected(0), *id)
        };
        ranked.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).expect("rates are numbers"));
        ranked
    }

    /// Whether anything is wanted.
    pub fn is_idle(&self) -> bool {
        self.wants.is_empty()
    }

    /// How many chunks are wanted of `model`.
    pub fn wanted(&self, model: ModelId) -> usize {
        self.wanted.get(&model).copied().unwrap_or(0)
    }

    /// `peer` has sent wrong bytes elsewhere, in a manifest or a range: it is not asked again.
    pub fn lied(&mut self, peer: NodeId, now: Instant) {
        self.peer(peer, now).lied = true;
        self.drop_claims(peer);
    }

    /// Whether `peer` has sent wrong bytes.
    pub fn has_lied(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|state| state.lied)
    }

    /// Whether `peer` claims anything, or is being asked.
    pub fn is_useful(&self, peer: NodeId) -> bool {
        let claims = self.claims.values().any(|claims| claims.contains_key(&peer));
        let found = self.found.values().any(|holders| holders.contains(&peer));
        claims || found || self.peers.get(&peer).is_some_and(|state| state.in_flight != 0)
    }

    /// Forgets a peer that is not [useful](Self::is_useful), unless it is a liar.
    pub fn forget_peer(&mut self, peer: NodeId) {
        if !self.is_useful(peer) && !self.has_lied(peer) {
            self.peers.remove(&peer);
        }
    }

    fn best_holder(&self, want: &Want, now: Instant) -> Option<NodeId> {
        let open = self.holders(want).map(|id| (id, &self.peers[&id])).filter(|(_, peer)| peer.has_room(now));
        open.map(|(id, peer)| (peer.expected(want.chunk.size.into()), id))
            .min_by(|a, b| a.partial_cmp(b).expect("rates are numbers"))
            .map(|(_, id)| id)
    }

    fn holders(&self, want: &Want) -> impl Iterator<Item = NodeId> {
        let found = self.found.get(&want.chunk.id).into_iter().flatten().copied();
        let claimed = self.claimants(want.model, want.position);
        claimed.chain(found).filter(|id| self.peers[id].is_there())
    }

    fn claimants(&self, model: ModelId, position: usize) -> impl Iterator<Item = NodeId> {
        let claims = self.claims.get(&model).into_iter().flatten();
        claims.filter(move |(_, has)| has.contains(position)).map(|(id, _)| *id)
    }

    fn disclaim(&mut self, assignment: &Assignment) {
        if let Some(want) = self.wants.get(&assignment.chunk.id)
            && let Some(has) =
                self.claims.get_mut(&want.model).and_then(|claims| claims.get_mut(&assignment.peer))
        {
            has.remove(want.position);
        }
        if let Some(found) = self.found.get_mut(&assignment.chunk.id) {
            found.remove(&assignment.peer);
        }
    }

    fn drop_claims(&mut self, peer: NodeId) {
        self.claims.values_mut().for_each(|claims| drop(claims.remove(&peer)));
        self.found.values_mut().for_each(|holders| {
            holders.remove(&peer);
        });
    }

    fn peer(&mut self, id: NodeId, now: Instant) -> &mut PeerState {
        self.peers.entry(id).or_insert_with(|| PeerState::unknown(now))
    }
}

impl Want {
    fn place(&self) -> (Urgency, u64, ChunkId) {
        (self.urgency, self.order, self.chunk.id)
    }
}

impl PeerState {
    fn unknown(now: Instant) -> Self {
        Self {
            rate: RATE_UNKNOWN,
            in_flight: 0,
            in_flight_bytes: 0,
            failures: 0,
            answers: true,
            paused_until: None,
            proven: false,
            lied: false,
            measured_since: now,
            measured_bytes: 0,
        }
    }

    /// Seconds until `size` more bytes would be here.
    fn expected(&self, size: u64) -> f64 {
        (self.in_flight_bytes + size) as f64 / self.rate
    }

    fn is_there(&self) -> bool {
        self.failures < FAILURES_MAX || self.answers && self.failures < FAILURES_BELIEVED_MAX
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    fn has_room(&self, now: Instant) -> bool {
        let window = (self.rate * WINDOW.as_secs_f64()) as u64;
        let busy = window.min(IN_FLIGHT_BYTES_MAX) <= self.in_flight_bytes && 0 < self.in_flight;
        let requests_max = if self.proven { IN_FLIGHT_REQUESTS_MAX } else { 1 };
        !self.lied && !self.is_paused(now) && !busy && self.in_flight < requests_max
    }

    fn start(&mut self, size: u64, now: Instant) {
        if self.in_flight == 0 {
            (self.measured_since, self.measured_bytes) = (now, 0);
        }
        self.in_flight += 1;
        self.in_flight_bytes += size;
    }

    fn end(&mut self, size: u64, outcome: Outcome, now: Instant) {
        self.in_flight -= 1;
        self.in_flight_bytes -= size;
        match outcome {
            Outcome::Delivered => {
                (self.failures, self.paused_until, self.proven) = (0, None, true);
                self.measured_bytes += size;
                let took = now - self.measured_since;
                if MEASURE_MIN <= took || (self.in_flight == 0 && !took.is_zero()) {
                    let rate = self.measured_bytes as f64 / took.as_secs_f64();
                    self.rate = (self.rate + rate) / 2.0;
                    (self.measured_since, self.measured_bytes) = (now, 0);
                }
            }
            Outcome::NotHere => (),
            // Requests that were under way together fail together; that is one failure.
            Outcome::Failed if self.is_paused(now) => (),
            Outcome::Failed => {
                let pause = (PAUSE_FIRST * 2u32.saturating_pow(self.failures.min(16))).min(PAUSE_MAX);
                self.paused_until = Some(now + pause);
                self.failures = self.failures.saturating_add(1);
                self.answers = false;
            }
            Outcome::Lied => self.lied = true,
        }
    }
}

#[cfg(test)]
mod tests;
