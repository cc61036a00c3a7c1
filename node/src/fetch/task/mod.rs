//! The task that owns the schedule.
//!
//! It never waits for anyone: requests, look-ups and origins run as jobs of their own and come back
//! as events. A wish that nobody known can fulfil is looked up once more, then asked of the
//! origins, and only then, after some patience, given up.
//!
//! - here: commands, and requests from their start to their end.
//! - `holders`: who has what of each model that something is wanted of.
//! - `origins`: what nobody has, from buckets and web servers.

mod holders;
mod origins;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use surf_protocol::{Chunk, ChunkId, Manifest, ModelId, NodeId, manifest::ChunkEntry};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use self::{holders::Known, origins::Origins};
use super::{
    Directory, Parts, Peer, Source, Standing, Traffic,
    lookup::Report,
    request::{Asker, Failed},
    schedule::{Assignment, Outcome, Schedule},
};
use crate::{
    config,
    journal::{Event, Journal},
    source::{Keeper, SourceError, Urgency},
};

/// How often things that nobody tells us are looked at: progress, gone askers, due look-ups.
const TICK: Duration = Duration::from_millis(100);

/// The same, while nothing is wanted.
const TICK_IDLE: Duration = Duration::from_secs(1);

/// Reports of look-ups and holders waiting for the task. Beyond this, they wait.
const REPORTS_MAX: usize = 64;

/// What can be asked of the task. Closed on purpose: this is the whole of it.
#[derive(Debug)]
pub(super) enum Command {
    Want(Wish),
    Holders { manifest: Arc<Manifest>, chunk: ChunkEntry, reply: oneshot::Sender<Vec<Peer>> },
    Known { reply: oneshot::Sender<Vec<Peer>> },
    Traffic { model: ModelId, reply: oneshot::Sender<Traffic> },
    Standing { model: ModelId, reply: oneshot::Sender<Standing> },
    Wanted { reply: oneshot::Sender<Vec<ModelId>> },
    Copies { model: ModelId, reply: oneshot::Sender<Vec<u8>> },
    RangeCame { model: ModelId, chunk: ChunkEntry, start: u32, bytes: u64, peer: NodeId },
    Lied { peer: NodeId },
    Judged { peer: NodeId, outcome: Outcome },
    Refuse { model: ModelId, error: SourceError },
    Afresh { model: ModelId },
}

/// A chunk that somebody waits for.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) manifest: Arc<Manifest>,
    pub(super) chunk: ChunkEntry,
    pub(super) urgency: Urgency,
    pub(super) reply: Waiter,
}

type Waiter = oneshot::Sender<Result<Chunk, SourceError>>;

/// Models whose manifests are known to be wrong, at most. After that, one is found out again.
const REFUSED_MAX: usize = 1024;

pub(super) struct Task {
    keeper: Arc<dyn Keeper>,
    directory: Arc<dyn Directory>,
    asker: Asker,
    journal: Arc<Journal>,
    commands: mpsc::Receiver<Command>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    jobs: JoinSet<Done>,
    schedule: Schedule,
    running: BTreeMap<u64, Running>,
    waiters: BTreeMap<ChunkId, Vec<Wish>>,
    /// Models whose manifests are wrong, and about what.
    refused: BTreeMap<ModelId, SourceError>,
    models: BTreeMap<ModelId, Known>,
    peers: BTreeMap<NodeId, Peer>,
    origins: Origins,
    traffic: HashMap<ModelId, Traffic>,
}

/// A request to a peer that is under way.
struct Running {
    assignment: Assignment,
    received: Arc<AtomicU64>,
    job: AbortHandle,
}

/// A job that ended.
enum Done {
    Here { wish: Wish, found: Result<Option<Chunk>, SourceError> },
    Request { flight: u64, result: Result<Arrived, Failed> },
    Origin { model: ModelId, chunk: ChunkEntry, result: Result<(String, Arrived), SourceError> },
}

/// A chunk that came, and whether it could be kept.
struct Arrived {
    chunk: Chunk,
    kept: Result<(), SourceError>,
}

impl Task {
    pub(super) fn new(
        parts: Parts,
        asker: Asker,
        config: &config::Fetch,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let (reporter, reports) = mpsc::channel(REPORTS_MAX);
        Self {
            keeper: parts.keeper,
            directory: parts.directory,
            asker,
            journal: parts.journal,
            commands,
            reports,
            reporter,
            jobs: JoinSet::new(),
            schedule: Schedule::new(parts.seed),
            running: BTreeMap::new(),
            waiters: BTreeMap::new(),
            refused: BTreeMap::new(),
            models: BTreeMap::new(),
            peers: BTreeMap::new(),
            origins: Origins::new(parts.me, parts.origins, config.patience),
            traffic: HashMap::new(),
        }
    }

    /// Runs until the last [`Fetcher`](super::Fetcher) is dropped.
    pub(super) async fn run(mut self) {
        let mut tick = Instant::now();
        loop {
            let now = Instant::now();
            if tick <= now {
                self.tick(now);
                if self.is_idle() {
                    self.asker.buffers.clear();
                }
                tick = now + if self.is_idle() { TICK_IDLE } else { TICK };
            }
            self.start_requests(now);
            tokio::select! {
                biased;
                Some(done) = self.jobs.join_next() => self.on_job(done),
                Some(report) = self.reports.recv() => self.on_report(report),
                command = self.commands.recv() => match command {
                    Some(command) => {
                        // After idling, the next look is due at once.
                        tick = if self.is_idle() { now } else { tick };
                        self.on_command(command);
                    }
                    None => return,
                },
                () = sleep_until(tick) => (),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.schedule.is_idle() && self.models.values().all(|known| known.curious.is_empty())
    }

    /// Looks at everything that changes without telling.
    fn tick(&mut self, now: Instant) {
        for (&flight, running) in &self.running {
            self.schedule.progress(flight, running.received.load(Ordering::Relaxed), now);
            if let Some(link) = self.asker.dialer.link(running.assignment.peer) {
                self.schedule.reached(running.assignment.peer, link, now);
            }
        }
        self.forget_unwaited(now);
        let stranded = self.schedule.stranded(now);
        self.ask_origins(&stranded, now);
        self.look_up(&stranded, now);
        self.listen_again(now);
        self.keep_listening(now);
    }

    /// Forgets wishes whose askers have all gone.
    fn forget_unwaited(&mut self, now: Instant) {
        let mut gone = Vec::new();
        self.waiters.retain(|&id, waiters| {
            waiters.retain(|wish| !wish.reply.is_closed());
            if waiters.is_empty() {
                gone.push(id);
            }
            !waiters.is_empty()
        });
        for id in gone {
            let flights = self.schedule.forget(id, now);
            self.cancel(&flights);
        }
    }
}

/// Requests.
impl Task {
    fn start_requests(&mut self, now: Instant) {
        while let Some(assignment) = self.schedule.assign(now) {
            if let Some(replaced) = assignment.replaces {
                self.cancel(&[replaced]);
            }
            self.request(assignment);
        }
    }

    fn request(&mut self, assignment: Assignment) {
        let Some(peer) = self.peers.get(&assignment.peer).cloned() else {
            // It was forgotten since it said what it has; that is as good as gone.
            let flights = self.schedule.ended(assignment.flight, Outcome::NotHere, Instant::now());
            return self.cancel(&flights);
        };
        let (asker, keeper, flight) = (self.asker.clone(), Arc::clone(&self.keeper), assignment.flight);
        let received = Arc::<AtomicU64>::default();
        let counter = Arc::clone(&received);
        let job = self.jobs.spawn(async move {
            let result = match asker.chunk(&peer, assignment.chunk, &counter).await {
                Ok(chunk) => Ok(Arrived { kept: keeper.keep(chunk.clone()).await, chunk }),
                Err(failed) => Err(failed),
            };
            Done::Request { flight, result }
        });
        self.running.insert(flight, Running { assignment, received, job });
    }

    /// Ends requests that are of no use any more. What has come of them came in vain.
    fn cancel(&mut self, flights: &[u64]) {
        for flight in flights {
            let Some(running) = self.running.remove(flight) else { continue };
            running.job.abort();
            let bytes = running.received.load(Ordering::Relaxed);
            if bytes != 0 {
                let traffic = self.traffic.entry(running.assignment.model).or_default();
                traffic.wasted += bytes;
                traffic.duplicate += bytes;
                let (chunk, from) =
                    (running.assignment.chunk.id.to_hex(), running.assignment.peer.to_string());
                self.journal.record(Event::Wasted { chunk, bytes, from });
            }
        }
    }

    fn on_job(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(done) => self.on_done(done),
            Err(error) if error.is_cancelled() => (),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Here { wish, found: Ok(Some(chunk)) } => drop(wish.reply.send(Ok(chunk))),
            Done::Here { wish, found: Ok(None) } => self.want(wish),
            Done::Here { wish, found: Err(error) } => drop(wish.reply.send(Err(error))),
            Done::Request { flight, result } => {
                // It may have been cancelled a moment too late.
                let Some(Running { assignment, .. }) = self.running.remove(&flight) else { return };
                match result {
                    Ok(arrived) => {
                        let losers = self.schedule.ended(flight, Outcome::Delivered, Instant::now());
                        self.cancel(&losers);
                        self.on_arrived(assignment.model, Source::Peer(assignment.peer), arrived);
                    }
                    Err(failed) => self.on_failed(&assignment, &failed),
                }
            }
            Done::Origin { model, chunk, result } => self.on_origin(model, chunk, result),
        }
    }

    fn on_arrived(&mut self, model: ModelId, from: Source, arrived: Arrived) {
        let bytes = arrived.chunk.bytes().len() as u64;
        self.journal.record(Event::ChunkArrived {
            chunk: arrived.chunk.id().to_hex(),
            bytes,
            from: from.to_string(),
        });
        let traffic = self.traffic.entry(model).or_default();
        traffic.verified(from, bytes);
        if let Err(error) = arrived.kept {
            tracing::debug!(chunk = %arrived.chunk.id(), %error, "a chunk that came could not be kept");
            traffic.unkept = Some(error.to_string());
        }
        self.answer(arrived.chunk.id(), &Ok(arrived.chunk));
    }

    fn on_failed(&mut self, assignment: &Assignment, failed: &Failed) {
        let (peer, error) = (assignment.peer, &failed.error);
        let outcome = error.outcome();
        tracing::debug!(?peer, chunk = %assignment.chunk.id, %error, "request failed");
        let news = outcome == Outcome::Lied && !self.schedule.has_lied(peer);
        let flights = self.schedule.ended(assignment.flight, outcome, Instant::now());
        self.cancel(&flights);
        if news {
            tracing::warn!(?peer, %error, "a peer sent wrong bytes and is dropped");
            self.asker.dialer.ban(peer);
        }
        if failed.wasted != 0 {
            self.traffic.entry(assignment.model).or_default().wasted += failed.wasted;
            let (chunk, from) = (assignment.chunk.id.to_hex(), peer.to_string());
            self.journal.record(Event::Wasted { chunk, bytes: failed.wasted, from });
        }
    }

    fn answer(&mut self, id: ChunkId, answer: &Result<Chunk, SourceError>) {
        for wish in self.waiters.remove(&id).into_iter().flatten() {
            let (model, says) = (wish.manifest.id(), wish.chunk.size);
            let mut answer = answer.clone();
            if let Ok(chunk) = &answer
                && chunk.bytes().len() as u64 != u64::from(says)
            {
                let error = SourceError::WrongSize { model, id, says, is: chunk.bytes().len() as u32 };
                self.refuse(model, error.clone());
                answer = Err(error);
            }
            // The asker may have given up; that is its right.
            drop(wish.reply.send(answer));
        }
    }

    /// The manifest of `model` is wrong: whoever wants something of it is told, now and later.
    fn refuse(&mut self, model: ModelId, error: SourceError) {
        if self.refused.contains_key(&model) {
            return;
        }
        tracing::warn!(%error, "a model is refused");
        if REFUSED_MAX <= self.refused.len() {
            self.refused.pop_first();
        }
        let mut others = Vec::new();
        for wishes in self.waiters.values_mut() {
            let (its, rest): (Vec<_>, Vec<_>) =
                std::mem::take(wishes).into_iter().partition(|wish| wish.manifest.id() == model);
            for wish in its {
                drop(wish.reply.send(Err(error.clone())));
            }
            // What another model wants too must not be fetched as this one describes it.
            others.extend(rest.iter().map(|wish| (Arc::clone(&wish.manifest), wish.chunk, wish.urgency)));
            *wishes = rest;
        }
        self.refused.insert(model, error);
        let now = Instant::now();
        self.forget_unwaited(now);
        for (manifest, chunk, urgency) in others {
            if self.schedule.is_wanted_for(chunk.id, model)
                && let Some(position) = manifest.position(chunk.id)
            {
                let flights = self.schedule.forget(chunk.id, now);
                self.cancel(&flights);
                self.schedule.want(manifest.id(), position, chunk, urgency);
            }
        }
    }
}

/// What is asked.
impl Task {
    fn on_command(&mut self, command: Command) {
        match command {
            Command::Want(wish) => self.on_want(wish),
            Command::Holders { manifest, chunk, reply } => {
                self.known(&manifest).curious.push((chunk, reply));
                self.answer_curious(manifest.id());
            }
            Command::Known { reply } => drop(reply.send(self.peers.values().cloned().collect())),
            Command::Traffic { model, reply } => {
                drop(reply.send(self.traffic.get(&model).cloned().unwrap_or_default()));
            }
            Command::Standing { model, reply } => drop(reply.send(self.standing(model))),
            Command::Wanted { reply } => {
                let wanted = self.models.keys().filter(|model| self.schedule.wanted(**model) != 0);
                drop(reply.send(wanted.copied().collect()));
            }
            Command::Copies { model, reply } => {
                let chunks = self.models.get(&model).map_or(0, |known| known.manifest.chunks().len());
                drop(reply.send(self.schedule.copies(model, chunks)));
            }
            Command::RangeCame { model, chunk, start, bytes, peer } => {
                self.schedule.judged(peer, Outcome::Delivered, Instant::now());
                let (source, from) = (Source::Peer(peer), peer.to_string());
                self.traffic.entry(model).or_default().verified(source, bytes);
                self.journal.record(Event::RangeArrived { chunk: chunk.id.to_hex(), start, bytes, from });
            }
            Command::Lied { peer } => {
                let flights = self.schedule.lied(peer, Instant::now());
                self.cancel(&flights);
                self.asker.dialer.ban(peer);
            }
            Command::Judged { peer, outcome } => self.schedule.judged(peer, outcome, Instant::now()),
            Command::Refuse { model, error } => self.refuse(model, error),
            Command::Afresh { model } => self.afresh(model),
        }
    }

    fn on_want(&mut self, wish: Wish) {
        // It may have come since the asker looked.
        if self.keeper.contains(wish.chunk.id) {
            let keeper = Arc::clone(&self.keeper);
            self.jobs.spawn(async move {
                let found = keeper.get(wish.chunk).await;
                Done::Here { wish, found }
            });
        } else {
            self.want(wish);
        }
    }

    fn want(&mut self, wish: Wish) {
        let (model, chunk) = (wish.manifest.id(), wish.chunk);
        if let Some(error) = self.refused.get(&model) {
            return drop(wish.reply.send(Err(error.clone())));
        }
        let Some(position) = wish.manifest.position(chunk.id) else {
            return drop(wish.reply.send(Err(SourceError::Missing(chunk.id))));
        };
        self.known(&wish.manifest);
        self.schedule.want(model, position, chunk, wish.urgency);
        self.waiters.entry(chunk.id).or_default().push(wish);
    }

    fn standing(&self, model: ModelId) -> Standing {
        let known = self.models.get(&model);
        Standing {
            traffic: self.traffic.get(&model).cloned().unwrap_or_default(),
            outlook: self.schedule.outlook(model, Instant::now()),
            looking: known.is_some_and(|known| known.looking || 0 < known.unheard()),
            at_origin: self.origins.asked_for(model),
        }
    }
}
