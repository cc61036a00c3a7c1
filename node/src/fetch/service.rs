//! Which waiting request a node serves next, and which it sends elsewhere.
//!
//! Pure: no clock, no I/O. Time comes in as a value, so the node and the simulator run the same code.
//! Every request that [`Service::ask`] takes is in the end named by [`Service::start`], to be served
//! or refused, unless [`Service::ended`] withdraws it before.
//!
//! - A few at a time, each at full speed: a whole chunk can be passed on, half of one cannot. How many
//!   is measured (`slots`).
//! - Slots go by what peers take (`share`). A peer that takes far less than its slots could carry does not
//!   hold them, and owes what they could have carried: until it has taken that, it gets one request at a time,
//!   behind all who take. So does a newcomer until it has taken its first.
//! - Newcomers are tried a few at a time beside the others, and more of them when those that were tried took
//!   nothing: that costs no line. A hundred who read nothing delay the next by a few seconds, once.
//! - Of those who take, the peer that was given least goes first; what was given long ago hardly counts. Whoever
//!   has waited too long goes before everyone.
//! - While all slots are busy, a chunk that has just gone to one peer is refused to the others once,
//!   so that they get it from there, and what leaves here is what nobody else has yet.
//! - Who would wait too long is told so at once, and can ask somebody else.

mod recent;
mod share;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use surf_protocol::{ChunkId, NodeId, limits::STREAMS_PER_PEER_MAX, wire::Refusal};
use tokio::time::Instant;

use self::{
    recent::Recent,
    share::{Measure, Seen, Share},
    slots::Slots,
};

/// Answers of fewer bytes than this are not queued at all: they would wait longer than they take.
pub const QUEUED_MIN: u64 = 64 * 1024;

/// How often to call [`Service::start`] while anything waits, if nothing else happens: a receiver that
/// has fallen silent is noticed by the time that passes.
pub const TICK: Duration = Duration::from_millis(100);

/// Requests that one peer may have waiting: as many as it may have open on a connection.
const WAITING_PER_PEER_MAX: usize = STREAMS_PER_PEER_MAX as usize;

/// Requests that may wait altogether. Each is a record. Peers that are not able share half of it, but for one each.
const WAITING_MAX: usize = 2048;

/// Requests of one peer that are served at a time, stuck ones included.
const SERVED_PER_PEER_MAX: usize = 16;

/// Peers that are tried out at a time, if those before them took nothing.
const TRIED_MAX: usize = 32;

/// Who is not able and has waited for this long is tried although all slots are busy,
const TRY_AFTER: Duration = Duration::from_secs(1);

/// as long as no more than this many times the slots are used.
const OVERCOMMIT: f64 = 1.5;

/// How long the best rate of the line counts half.
const BEST_HALF_LIFE: Duration = Duration::from_secs(60);

/// Fewer bytes than these under way never keep the next from starting: small chunks would leave the
/// line idle while their receivers acknowledge.
const UNDER_WAY_MIN: u64 = 1024 * 1024;

/// A receiver that takes nothing for this long holds no slot. One that was killed and is back soon
/// waits this long for what its former self was given.
const STUCK: Duration = Duration::from_millis(500);

/// The same on a slow line, on which nobody's turn to take something comes that soon: the more are served on it, the
/// later, and were they taken for stuck, still more would be.
const STUCK_MAX: Duration = Duration::from_secs(3);

/// What a receiver is expected to take at a time.
const TAKEN: f64 = 64.0 * 1024.0;

/// A peer that has waited this long since it was last served goes first. More than [`WAIT_MAX`]: it
/// should not have to. Counted by peer, or who asks for more at once would get more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who would wait longer than this is told to ask somebody else. Less than askers wait for an answer.
const WAIT_MAX: Duration = Duration::from_secs(6);

/// For this long after a chunk was given away, others are sent there.
const JUST_GIVEN: Duration = Duration::from_secs(5);

/// Who was sent elsewhere for a chunk and asks again within this time is served: it may have nobody else.
const TOLD: Duration = Duration::from_secs(10);

/// Who asks again sooner than this is told the same: no chunk can have got anywhere else meanwhile.
const TOLD_AGAIN: Duration = Duration::from_secs(1);

/// Chunks, and peers per chunk, that are remembered for that.
const RECENT_MAX: usize = 4096;

/// Peers whose share is remembered although they want nothing now.
const PEERS_MAX: usize = 1024;

/// A request, by the order in which it came.
pub type Ticket = u64;

/// A request for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub peer: NodeId,
    /// The chunk, if it is a whole one: what the peer could pass on.
    pub chunk: Option<ChunkId>,
    /// Bytes of the answer.
    pub size: u64,
}

/// All requests that wait or are being served.
#[derive(Debug)]
pub struct Service {
    next: Ticket,
    waiting: BTreeMap<Ticket, Waiting>,
    served: BTreeMap<Ticket, Served>,
    peers: BTreeMap<NodeId, Share>,
    /// To whom each chunk went last.
    given: Recent<ChunkId, NodeId>,
    /// Who was sent elsewhere for what.
    told: Recent<(NodeId, ChunkId), ()>,
    /// Sent elsewhere while they waited, and not yet told.
    refused: VecDeque<Ticket>,
    slots: Slots,
    /// The best rate of the line, by then. What it carries now may be what stuck receivers let it.
    best: (f64, Option<Instant>),
    /// Peers that may be tried at a time beside those that the slots allow: grows while those tried take nothing.
    extra: usize,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    since: Instant,
    /// Has been sent elsewhere before.
    insists: bool,
}

#[derive(Debug)]
struct Served {
    request: Request,
    sent: u64,
}

/// How the line is used.
struct Use {
    /// Slots held by those who take, and how many are tried out.
    moving: f64,
    untried: usize,
    /// Bytes that those have yet to take.
    left: u64,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            next: 0,
            waiting: BTreeMap::new(),
            served: BTreeMap::new(),
            peers: BTreeMap::new(),
            given: Recent::new(RECENT_MAX),
            told: Recent::new(RECENT_MAX),
            refused: VecDeque::new(),
            slots: Slots::default(),
            best: (0., None),
            extra: 0,
        }
    }
}

/// What happens. After each of these, call [`Service::start`] until it returns nothing.
impl Service {
    /// Queues a request, or refuses it.
    pub fn ask(&mut self, request: Request, now: Instant) -> Result<Ticket, Refusal> {
        self.forget_somebody(request.peer, now);
        let share = self.peers.entry(request.peer).or_insert_with(|| Share::new(now));
        // One may always wait, as long as there is room at all.
        let few = share.is_able() || share.waiting.is_empty();
        let most = if few { WAITING_MAX } else { WAITING_MAX / 2 };
        if most <= self.waiting.len() || WAITING_PER_PEER_MAX <= share.waiting.len() {
            return Err(Refusal::Busy);
        }
        let insists = self.was_told(&request, now);
        if self.is_full(now) {
            if self.belongs_elsewhere(&request, insists, now) {
                return Err(Refusal::Elsewhere);
            }
            if self.would_wait_too_long(&request, now) {
                return Err(Refusal::Busy);
            }
        }
        let ticket = self.next;
        self.next += 1;
        let share = self.peers.get_mut(&request.peer).expect("just put there");
        share.waiting.insert(ticket);
        share.waiting_bytes += request.size;
        self.waiting.insert(ticket, Waiting { request, since: now, insists });
        Ok(ticket)
    }

    /// The next request to serve or to refuse, if it is time for one. A refused one is over; one that
    /// is served must be [ended](Service::ended).
    pub fn start(&mut self, now: Instant) -> Option<(Ticket, Result<(), Refusal>)> {
        self.passed(now);
        if let Some(ticket) = self.refused.pop_front() {
            return Some((ticket, Err(Refusal::Elsewhere)));
        }
        if self.waiting.is_empty() {
            return None;
        }
        let ticket = self.first(now)?;
        let Waiting { request, .. } = self.leave_queue(ticket).expect("it was waiting");
        let share = self.peers.get_mut(&request.peer).expect("there while anything waits");
        share.start(request.size, now);
        self.served.insert(ticket, Served { request, sent: 0 });
        if let Some(chunk) = request.chunk {
            self.given.insert(chunk, request.peer, now);
            if self.is_full(now) {
                self.send_others_elsewhere(chunk, now);
            }
        }
        Some((ticket, Ok(())))
    }

    /// `bytes` more of a request have left.
    pub fn sent(&mut self, ticket: Ticket, bytes: u64, now: Instant) {
        let Some(served) = self.served.get_mut(&ticket) else { return };
        let before = served.left();
        served.sent += bytes;
        let share = self.peers.get_mut(&served.request.peer).expect("there while it is served");
        share.promised -= before - served.left();
        share.took(bytes, now);
        self.slots.sent(bytes);
        self.passed(now);
    }

    /// Nothing of a request can leave, because of a limit of ours: that is no fault of the peer's.
    pub fn held(&mut self, ticket: Ticket, now: Instant) {
        if let Some(served) = self.served.get(&ticket)
            && let Some(share) = self.peers.get_mut(&served.request.peer)
        {
            share.held(now);
        }
    }

    /// A request is over: the peer has all it asked for, or, unless `whole`, nobody wants it any more.
    pub fn ended(&mut self, ticket: Ticket, whole: bool, now: Instant) {
        if self.leave_queue(ticket).is_some() {
            return;
        }
        self.refused.retain(|refused| *refused != ticket);
        let Some(served) = self.served.remove(&ticket) else { return };
        let Request { peer, chunk, .. } = served.request;
        let share = self.peers.get_mut(&peer).expect("there while it is served");
        share.served -= 1;
        share.promised -= served.left();
        if whole {
            share.got_all();
        }
        let Some(chunk) = chunk else { return };
        match whole {
            true => self.given.insert(chunk, peer, now),
            // Nobody can get it there.
            false if self.given.value(&chunk) == Some(&peer) => self.given.remove(&chunk),
            false => (),
        }
    }
}

/// What there is.
impl Service {
    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many requests are being served.
    pub fn serving(&self) -> usize {
        self.served.len()
    }

    /// How many are served at a time.
    pub fn slots(&self) -> usize {
        self.slots.count()
    }

    /// Bytes per second that leave while requests wait, if that was measured.
    pub fn rate(&self) -> Option<f64> {
        self.slots.rate()
    }
}

/// Deciding.
impl Service {
    /// Time has passed: what peers took meanwhile is looked at.
    fn passed(&mut self, now: Instant) {
        self.slots.passed(!self.waiting.is_empty(), now);
        let best = self.best(now).max(self.slots.rate().unwrap_or(0.));
        self.best = (best, Some(now));
        let measure = self.measure(now);
        for share in self.peers.values_mut().filter(|share| 0 < share.served) {
            let untried = share.is_untried();
            match share.look(measure, now) {
                Seen::Slow if untried => self.extra = (2 * self.extra).clamp(2, TRIED_MAX),
                Seen::Takes if !share.is_able() => self.extra /= 2,
                Seen::Nothing | Seen::Takes | Seen::Slow => (),
            }
        }
    }

    fn best(&self, now: Instant) -> f64 {
        let age = self.best.1.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.best.0 * (-age.as_secs_f64() / BEST_HALF_LIFE.as_secs_f64()).exp2()
    }

    fn measure(&self, now: Instant) -> Measure {
        let best = self.best(now);
        // How long a receiver may take nothing: twice the time until its turn comes, if all take as much.
        let moving = self.served.len().min(SERVED_PER_PEER_MAX) as f64;
        let turn = if best < 1. { 0. } else { 2. * TAKEN * moving / best };
        let patience = Duration::from_secs_f64(turn.min(STUCK_MAX.as_secs_f64())).max(STUCK);
        Measure { slot: best / self.slots.count() as f64, patience }
    }

    fn used(&self, now: Instant) -> Use {
        let measure = self.measure(now);
        let mut used = Use { moving: 0., untried: 0, left: 0 };
        for share in self.peers.values().filter(|share| 0 < share.served) {
            let slots = share.slots(measure);
            match share.is_untried() {
                true => used.untried += 1,
                false => used.moving += slots,
            }
            if 0. < slots {
                used.left += share.promised;
            }
        }
        used
    }

    /// Whether as many are served as should be.
    fn is_full(&self, now: Instant) -> bool {
        self.is_filled(&self.used(now), 0.)
    }

    fn is_filled(&self, used: &Use, untried: f64) -> bool {
        // A little less than a whole slot is a rate that was measured on a noisy line.
        self.slots.count() as f64 <= used.moving + untried + 0.5 && UNDER_WAY_MIN <= used.left
    }

    /// The waiting request whose turn it is, if it is somebody's.
    fn first(&self, now: Instant) -> Option<Ticket> {
        let used = self.used(now);
        let able = if self.is_filled(&used, 0.) { None } else { self.first_able(now) };
        let Some((class, tried)) = self.first_unable(&used, now) else { return able };
        match able {
            // A newcomer was given least of all.
            Some(able) if class != 1 => Some(able),
            _ => Some(tried),
        }
    }

    /// Of those who take what they ask for, whose turn it is.
    fn first_able(&self, now: Instant) -> Option<Ticket> {
        let able = self.peers.values().filter(|share| share.is_able() && share.served < SERVED_PER_PEER_MAX);
        let able = able.filter_map(|share| Some((share, *share.waiting.first()?)));
        let turn = |(share, ticket): (&Share, Ticket)| {
            let since = self.waiting[&ticket].since;
            let since = share.started.map_or(since, |started| started.max(since));
            let patient = now.saturating_duration_since(since) < PATIENCE;
            // Of those who have waited too long, who has waited longest.
            (patient, if patient { share.total(now) } else { 0. }, if patient { now } else { since }, ticket)
        };
        let order = |a: &(bool, f64, Instant, Ticket), b: &(bool, f64, Instant, Ticket)| {
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)).then(a.3.cmp(&b.3))
        };
        able.map(turn).min_by(order).map(|(.., ticket)| ticket)
    }

    /// Of the others, who is tried next: one request of each at a time, and few of them at a time. With its class.
    fn first_unable(&self, used: &Use, now: Instant) -> Option<(u8, Ticket)> {
        let others = self.peers.values().filter(|share| !share.is_able() && share.served == 0);
        let others = others.filter_map(|share| Some((share, *share.waiting.first()?)));
        let (class, _, ticket) =
            others.map(|(share, ticket)| (share.class(now), share.started, ticket)).min()?;
        let (slots, untried) = (self.slots.count() as f64, used.untried as f64);
        let able_wait = self.peers.values().any(|share| share.is_able() && !share.waiting.is_empty());
        // While others wait, half of the slots at most are for trying.
        let share = if able_wait { (slots / 2.).max(1.) } else { f64::INFINITY };
        let waited = now.saturating_duration_since(self.waiting[&ticket].since);
        let may = !self.is_filled(used, untried) && untried < share
            || used.untried < self.extra && !self.is_filled(used, 0.)
            || TRY_AFTER <= waited && used.untried < self.extra.max(2) && used.moving < OVERCOMMIT * slots;
        may.then_some((class, ticket))
    }

    /// Whether the peer has been sent elsewhere for this lately, and long enough ago to have tried.
    fn was_told(&self, request: &Request, now: Instant) -> bool {
        let told = request.chunk.and_then(|chunk| self.told.age(&(request.peer, chunk), now));
        told.is_some_and(|age| (TOLD_AGAIN..TOLD).contains(&age))
    }

    /// Whether to send the peer to another that has the chunk by now; if so, remembers that it was.
    fn belongs_elsewhere(&mut self, request: &Request, insists: bool, now: Instant) -> bool {
        let Some(chunk) = request.chunk.filter(|_| !insists) else { return false };
        // Who takes nothing passes nothing on.
        let takes = |peer: &NodeId| self.peers.get(peer).is_none_or(Share::may_take);
        let to_another = self.given.value(&chunk).is_some_and(|peer| *peer != request.peer && takes(peer));
        if !to_another || self.given.age(&chunk, now).is_none_or(|age| JUST_GIVEN <= age) {
            return false;
        }
        let told = (request.peer, chunk);
        if self.told.age(&told, now).is_none_or(|age| TOLD <= age) {
            self.told.insert(told, (), now);
        }
        true
    }

    /// A chunk was given to somebody: whoever waits for it will find it there sooner.
    fn send_others_elsewhere(&mut self, chunk: ChunkId, now: Instant) {
        let waiting = self.waiting.iter().filter(|(_, waiting)| waiting.request.chunk == Some(chunk));
        let all: Vec<_> =
            waiting.map(|(&ticket, waiting)| (ticket, waiting.request, waiting.insists)).collect();
        for (ticket, request, insists) in all {
            if self.belongs_elsewhere(&request, insists, now) {
                self.leave_queue(ticket);
                self.refused.push_back(ticket);
            }
        }
    }

    /// Whether `request` would wait longer than it should: for what is under way, for what its peer
    /// asked before, and for what others are given until they have had as much. Who takes nothing is not waited for.
    fn would_wait_too_long(&self, request: &Request, now: Instant) -> bool {
        let mine = &self.peers[&request.peer];
        // One may always wait. Else a peer that finds us busy whenever it asks would never be served.
        let (Some(rate), false) = (self.slots.rate(), mine.waiting.is_empty()) else { return false };
        let level = mine.total(now) + (mine.waiting_bytes + request.size) as f64;
        let before = |(peer, share): (&NodeId, &Share)| {
            let waiting = match *peer == request.peer {
                true => share.waiting_bytes as f64,
                false => (level - share.total(now)).clamp(0., share.waiting_bytes as f64),
            };
            waiting + share.promised as f64
        };
        let counts = |(peer, share): &(&NodeId, &Share)| **peer == request.peer || share.is_able();
        let ahead: f64 = self.peers.iter().filter(counts).map(before).sum();
        WAIT_MAX.as_secs_f64() * rate < ahead
    }

    fn leave_queue(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        let share = self.peers.get_mut(&waiting.request.peer).expect("there while anything waits");
        share.waiting.remove(&ticket);
        share.waiting_bytes -= waiting.request.size;
        Some(waiting)
    }

    /// Makes room for the share of one more peer, if there are too many that want nothing.
    fn forget_somebody(&mut self, newcomer: NodeId, now: Instant) {
        if self.peers.len() < PEERS_MAX || self.peers.contains_key(&newcomer) {
            return;
        }
        let idle = self.peers.iter().filter(|(_, share)| share.is_idle());
        let worth = |share: &Share| share.worth(now);
        let least = idle.min_by(|(_, a), (_, b)| {
            let (a, b) = (worth(a), worth(b));
            (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2))
        });
        let least = least.map(|(&id, _)| id);
        if let Some(id) = least {
            self.peers.remove(&id);
        }
    }
}

impl Served {
    fn left(&self) -> u64 {
        self.request.size.saturating_sub(self.sent)
    }
}
