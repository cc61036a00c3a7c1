//! Nodes, their links, and everything that can go wrong on the way.
//!
//! A link has two directions, each a queue with a rate (`lane`). Bytes travel in pieces: a piece waits for
//! its turn at the sender's up-link, takes half a round trip, and waits for its turn at the receiver's
//! down-link. A transfer has as many pieces under way as fill its path, so transfers that meet at a link share it
//! equally, as connections on the Internet roughly do. Loss is not played out packet by packet: a
//! link that loses is a slower link. Chunks between two nodes go one after the other, as they do in the
//! node's QUIC connections.
//!
//! - `lane`: one direction of a link. Pure.
//! - `view`: the network as one node sees it: what the code under test talks to.
//! - `carry`: how bytes get from one node to another.
//! - `directory`: who said where that they have what; `announcing`: when each node says it.
//! - `service`: when a request has its turn at the node that serves it.
//! - `shelf`, `evict`: what a node keeps.
//! - `ledger`: what each node asked for and got, and the rules that must never be broken.

mod announcing;
mod carry;
mod directory;
mod evict;
mod lane;
mod ledger;
mod service;
mod shelf;
mod view;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use surf_protocol::NodeId;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub use shelf::{Room, Shelf};
pub use view::View;

use self::{announcing::Announcer, directory::Records, lane::Lane, ledger::Ledger, service::Serving};
use crate::{
    model::Model,
    trace::{Event, Trace},
};

/// How a node behaves towards those who ask it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manner {
    /// Does what it should.
    #[default]
    Honest,
    /// Sends other bytes than it should.
    Lies,
    /// Sends half of what it should, then nothing.
    Stalls,
    /// Breaks off half-way.
    HangsUp,
    /// Announces 2^60 bytes.
    Boasts,
    /// Says that it has everything, and gives nothing.
    Pretends,
}

/// A node to be.
#[derive(Clone, Debug)]
pub struct Place {
    /// How it behaves.
    pub manner: Manner,
    /// Bytes per second that leave it.
    pub up: u64,
    /// Bytes per second that reach it.
    pub down: u64,
    /// Its row in the table of round trips.
    pub region: usize,
    /// Its group in the scenario; partitions divide groups.
    pub group: usize,
    /// What it may keep.
    pub room: Room,
}

/// What is the same for all nodes.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Round trips between regions.
    pub round_trips: Vec<Vec<Duration>>,
    /// How long a look-up takes, about.
    pub look_up: Duration,
    /// Providers of a key that one look-up names.
    pub providers_max: usize,
    /// When some groups cannot reach the others.
    pub partitions: Vec<(Range<Duration>, BTreeSet<usize>)>,
    /// How long a node may get nothing while somebody could give it something.
    pub patience: Duration,
}

/// A rule was broken: a bug, and how to see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The seed of the run.
    pub seed: u64,
    /// When, in simulated time.
    pub at: Duration,
    /// The node, if it is one node's.
    pub node: Option<usize>,
    /// What was broken.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at, node, what } = self;
        let node = node.map_or(String::new(), |node| format!("node {node} "));
        write!(f, "seed {seed}, at {:.4} s: {node}{what}", at.as_secs_f64())
    }
}

/// All nodes, and the links between them.
#[derive(Debug)]
pub struct Net {
    seed: u64,
    start: Instant,
    model: Arc<Model>,
    weather: Weather,
    state: Mutex<State>,
    breach: watch::Sender<Option<Breach>>,
    unfinished: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    dice: ChaCha8Rng,
    trace: Trace,
    sites: Vec<Site>,
    numbers: HashMap<NodeId, usize>,
    records: Records,
    connected: BTreeSet<(usize, usize)>,
}

#[derive(Debug)]
struct Site {
    id: NodeId,
    place: Place,
    shelf: Arc<Shelf>,
    up: Lane,
    down: Lane,
    /// Counts arrivals and departures: odd while it is here.
    life: u64,
    /// Notified when that changes. (Not a `watch`: that wakes those who wait by dice of its own.)
    changed: Arc<Notify>,
    /// Whether it left without a word.
    silent: bool,
    serving: Serving,
    ledger: Ledger,
    banned_by: u32,
}

impl Site {
    fn is_here(&self) -> bool {
        self.life % 2 == 1
    }

    fn begin_or_end_life(&mut self) {
        self.life += 1;
        self.changed.notify_waiters();
    }
}

/// How one node has done.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Tally {
    /// Seconds until it had the first tenth of its chunks in order.
    pub tenth_s: Option<f64>,
    /// Bytes that left it.
    pub sent: u64,
    /// Bytes of chunks that reached it.
    pub received: u64,
    /// Of these, whole chunks that it already had.
    pub duplicate: u64,
    /// Of these, bytes that were of no use: wrong, or broken off.
    pub wasted: u64,
    /// Times that it was told that nobody has a chunk.
    pub gave_up: u64,
    /// Nodes that banned it.
    pub banned_by: u32,
}

impl Net {
    /// An empty network whose dice are seeded with `seed`.
    pub fn new(seed: u64, model: Arc<Model>, weather: Weather, trace: Trace) -> Arc<Self> {
        let state = State {
            dice: ChaCha8Rng::seed_from_u64(seed),
            trace,
            sites: Vec::new(),
            numbers: HashMap::new(),
            records: Records::default(),
            connected: BTreeSet::new(),
        };
        Arc::new(Self {
            seed,
            start: Instant::now(),
            model,
            weather,
            state: Mutex::new(state),
            breach: watch::Sender::new(None),
            unfinished: watch::Sender::new(0),
        })
    }

    /// Adds a node, which is not there yet, and says its number.
    pub fn add(&self, place: Place) -> usize {
        let now = Instant::now();
        let mut state = self.state();
        let number = state.sites.len();
        let id = NodeId(*blake3::hash(&number.to_le_bytes()).as_bytes());
        state.numbers.insert(id, number);
        state.sites.push(Site {
            id,
            shelf: Arc::new(Shelf::new(Arc::clone(&self.model), place.room)),
            up: Lane::new(place.up, now),
            down: Lane::new(place.down, now),
            life: 0,
            changed: Arc::default(),
            silent: false,
            serving: Serving::default(),
            ledger: Ledger::new(self.model.chunks(), self.model.chunk_size(), now),
            banned_by: 0,
            place,
        });
        number
    }

    /// A node is there from now on. The network as it sees it.
    pub fn arrive(self: &Arc<Self>, node: usize) -> Arc<View> {
        let mut state = self.state();
        let now = Instant::now();
        let site = &mut state.sites[node];
        site.begin_or_end_life();
        site.ledger.starts(now);
        site.serving = Serving::default();
        let (id, life, shelf) = (site.id, site.life, Arc::clone(&site.shelf));
        state.connected.retain(|&(_, other)| other != node);
        state.trace.event(Event::Joins { node });
        drop(state);
        let announcer = Announcer::start(Arc::clone(self), node, life);
        Arc::new(View { net: Arc::clone(self), me: node, id, life, shelf, announcer })
    }

    /// A node is gone from now on; `silently`, as if its plug had been pulled.
    pub fn depart(&self, node: usize, silently: bool) {
        let mut state = self.state();
        let now = Instant::now();
        let site = &mut state.sites[node];
        site.silent = silently;
        site.up.clear(now);
        site.down.clear(now);
        site.begin_or_end_life();
        state.connected.retain(|&(a, b)| a != node && (b != node || silently));
        state.trace.event(Event::Leaves { node, silently });
    }

    /// What a node keeps.
    pub fn shelf(&self, node: usize) -> Arc<Shelf> {
        Arc::clone(&self.state().sites[node].shelf)
    }

    /// Everything on a node's shelf is lost, and may come again.
    pub fn clear(&self, node: usize) {
        let mut state = self.state();
        let site = &mut state.sites[node];
        site.shelf.clear();
        (0..self.model.chunks()).for_each(|at| site.ledger.lost(at));
    }

    /// A node wants these chunks, and the run is not over before it has them.
    pub fn expect(&self, node: usize) {
        let mut state = self.state();
        (0..self.model.chunks()).for_each(|at| state.sites[node].ledger.wants(at));
        self.unfinished.send_modify(|count| *count += 1);
    }

    /// A node has a chunk that it wanted.
    pub fn got(&self, node: usize, at: usize) {
        self.state().sites[node].ledger.got(at, Instant::now());
    }

    /// A node was told that nobody has a chunk.
    pub fn gave_up(&self, node: usize, chunk: usize) {
        let mut state = self.state();
        state.sites[node].ledger.gave_up += 1;
        state.trace.event(Event::GivesUp { node, chunk });
    }

    /// A node has everything it wanted.
    pub fn finished(&self, node: usize) {
        let mut state = self.state();
        let ledger = &mut state.sites[node].ledger;
        if ledger.finished.is_none() {
            ledger.finished = Some(Instant::now());
            state.trace.event(Event::Finished { node });
            self.unfinished.send_modify(|count| *count -= 1);
        }
    }

    /// Ends when all have what they want.
    pub async fn all_finished(&self) {
        let mut unfinished = self.unfinished.subscribe();
        // The sender is ours, so there is no error.
        let _ = unfinished.wait_for(|count| *count == 0).await;
    }

    /// When the first rule is broken.
    pub async fn breached(&self) -> Breach {
        let mut breach = self.breach.subscribe();
        loop {
            if let Some(breach) = breach.borrow_and_update().clone() {
                return breach;
            }
            if breach.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Says that a rule was broken.
    pub fn breach(&self, node: Option<usize>, what: String) {
        let breach = Breach { seed: self.seed, at: self.start.elapsed(), node, what };
        self.breach.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(breach);
            is_first
        });
    }

    /// Checks that nobody has waited too long for something that could be had.
    pub fn check_progress(&self) {
        let now = Instant::now();
        let mut state = self.state();
        for node in 0..state.sites.len() {
            let site = &state.sites[node];
            let ledger = &site.ledger;
            if !site.is_here() || ledger.wanted().count() == 0 || !self.could_get(&state, node, now) {
                state.sites[node].ledger.progressed = now;
                continue;
            }
            let waited = now - ledger.progressed;
            if self.weather.patience < waited {
                let missing = ledger.wanted().count();
                let what = format!(
                    "got nothing for {:.1} s, wants {missing} chunks, and somebody has one",
                    waited.as_secs_f64()
                );
                self.breach(Some(node), what);
            }
        }
    }

    /// Seconds since the start at which each finished node had everything.
    pub fn finish_times(&self) -> Vec<(usize, f64)> {
        let state = self.state();
        let sites = state.sites.iter().enumerate();
        let times =
            sites.filter_map(|(node, site)| Some((node, (site.ledger.finished? - self.start).as_secs_f64())));
        times.collect()
    }

    /// Bytes that have left these nodes.
    pub fn sent(&self, nodes: &[usize]) -> u64 {
        let state = self.state();
        nodes.iter().map(|&node| state.sites[node].up.passed()).sum()
    }

    /// How a node has done.
    pub fn tally(&self, node: usize) -> Tally {
        let state = self.state();
        let Site { ledger, up, banned_by, .. } = &state.sites[node];
        let tenth = ledger.tenth.map(|at| (at - self.start).as_secs_f64());
        Tally {
            tenth_s: tenth,
            sent: up.passed(),
            received: ledger.received,
            duplicate: ledger.duplicate,
            wasted: ledger.wasted(),
            gave_up: ledger.gave_up,
            banned_by: *banned_by,
        }
    }

    /// How many events there were, and their hash.
    pub fn trace(&self) -> (u64, String) {
        self.state().trace.finish()
    }

    /// Whether somebody who is honest and can be reached has something that `node` wants.
    fn could_get(&self, state: &State, node: usize, now: Instant) -> bool {
        let wanted = state.sites[node].ledger.wanted();
        let honest = |(_, site): &(usize, &Site)| site.place.manner == Manner::Honest && site.is_here();
        let others = state.sites.iter().enumerate().filter(honest);
        let mut reachable =
            others.filter(|&(other, _)| other != node && self.cut(state, node, other, now).is_none());
        reachable.any(|(_, site)| {
            let has = site.shelf.has();
            (0..wanted.len()).any(|at| wanted.contains(at) && has.contains(at))
        })
    }

    /// Until when `a` and `b` cannot reach each other, if they cannot.
    fn cut(&self, state: &State, a: usize, b: usize, now: Instant) -> Option<Instant> {
        let since = now - self.start;
        let [a, b] = [a, b].map(|node| state.sites[node].place.group);
        let divides = |(during, groups): &&(Range<Duration>, BTreeSet<usize>)| {
            during.contains(&since) && groups.contains(&a) != groups.contains(&b)
        };
        self.weather.partitions.iter().filter(divides).map(|(during, _)| self.start + during.end).max()
    }

    /// How long a packet takes from `a` to `b`: half a round trip, a tenth more or less.
    fn latency(&self, state: &mut State, a: usize, b: usize) -> Duration {
        let [a, b] = [a, b].map(|node| state.sites[node].place.region);
        self.weather.round_trips[a][b].mul_f64(state.dice.random_range(0.45..0.55))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }
}
