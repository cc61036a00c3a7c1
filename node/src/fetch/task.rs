//! The task that owns the schedule.
//!
//! It never waits for anyone: requests, look-ups and origins run as jobs of their own and come back
//! as events. A wish that nobody known can fulfil is looked up once more, then asked of the
//! origins, and only then given up.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use surf_protocol::{Chunk, ChunkId, Manifest, ModelId, NodeId, manifest::ChunkEntry};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Directory, Origin, Parts, Peer, Source, Traffic,
    lookup::{LookUp, Report},
    request::{Asker, Failed, RequestError},
    schedule::{Assignment, Outcome, Schedule},
};
use crate::{
    journal::{Event, Journal},
    source::{Keeper, SourceError, Urgency},
};

/// While something is wanted of a model, its holders are looked up again this often: new ones may
/// have come, and those known may have more.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);

/// The same, while something is wanted that nobody known has.
const LOOKUP_INTERVAL_STRANDED: Duration = Duration::from_millis(500);

/// Reports of look-ups waiting for the task. Beyond this, look-ups wait.
const REPORTS_MAX: usize = 64;

/// Peers remembered, to be asked first for the next model.
const KNOWN_PEERS_MAX: usize = 256;

/// Models whose holders are remembered after nothing is wanted of them any more.
const MODELS_MAX: usize = 64;

/// What can be asked of the task. Closed on purpose: this is the whole of it.
#[derive(Debug)]
pub(super) enum Command {
    Want(Wish),
    Holders { manifest: Arc<Manifest>, chunk: ChunkEntry, reply: oneshot::Sender<Vec<Peer>> },
    Known { reply: oneshot::Sender<Vec<Peer>> },
    Traffic { model: ModelId, reply: oneshot::Sender<Traffic> },
    RangeCame { model: ModelId, chunk: ChunkEntry, start: u32, bytes: u64, peer: NodeId },
    Lied { peer: NodeId },
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

pub(super) struct Task {
    keeper: Arc<dyn Keeper>,
    directory: Arc<dyn Directory>,
    asker: Asker,
    origins: Arc<Vec<Origin>>,
    journal: Arc<Journal>,
    commands: mpsc::Receiver<Command>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    jobs: JoinSet<Done>,
    schedule: Schedule,
    waiters: HashMap<ChunkId, Vec<Waiter>>,
    models: BTreeMap<ModelId, Known>,
    peers: BTreeMap<NodeId, Peer>,
    /// Wishes that are with the origins now.
    at_origin: BTreeSet<ChunkId>,
    traffic: HashMap<ModelId, Traffic>,
}

/// What is known of a model's holders, and how.
struct Known {
    manifest: Arc<Manifest>,
    looking: bool,
    /// When the last look-up started.
    looked: Option<Instant>,
    /// Wishes that nobody was known to have when it started: it has looked for these.
    lost: BTreeSet<ChunkId>,
    /// Askers who wait for it to end.
    curious: Vec<(ChunkEntry, oneshot::Sender<Vec<Peer>>)>,
}

/// A job that ended.
enum Done {
    Here { wish: Wish, found: Result<Option<Chunk>, SourceError> },
    Request { assignment: Assignment, result: Result<Arrived, Failed> },
    Origin { model: ModelId, chunk: ChunkEntry, result: Result<(String, Arrived), SourceError> },
}

/// A chunk that came, and whether it could be kept.
struct Arrived {
    chunk: Chunk,
    kept: Result<(), SourceError>,
}

impl Task {
    pub(super) fn new(parts: Parts, asker: Asker, commands: mpsc::Receiver<Command>) -> Self {
        let (reporter, reports) = mpsc::channel(REPORTS_MAX);
        Self {
            keeper: parts.keeper,
            directory: parts.directory,
            asker,
            origins: Arc::new(parts.origins),
            journal: parts.journal,
            commands,
            reports,
            reporter,
            jobs: JoinSet::new(),
            schedule: Schedule::new(parts.seed),
            waiters: HashMap::new(),
            models: BTreeMap::new(),
            peers: BTreeMap::new(),
            at_origin: BTreeSet::new(),
            traffic: HashMap::new(),
        }
    }

    /// Runs until the last [`Fetcher`](super::Fetcher) is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let wake = self.advance(Instant::now());
            tokio::select! {
                biased;
                Some(done) = self.jobs.join_next() => self.on_done(done.expect("jobs do not panic")),
                Some(report) = self.reports.recv() => self.on_report(report),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                () = sleep_until(wake) => (),
            }
        }
    }
}

/// Deciding what to start.
impl Task {
    /// Starts whatever can be started. Returns when to look again, if nothing happens before.
    fn advance(&mut self, now: Instant) -> Instant {
        self.forget_unwaited();
        while let Some(assignment) = self.schedule.assign(now) {
            self.request(assignment);
        }
        let stranded = self.schedule.stranded();
        for &(model, chunk) in &stranded {
            let known = &self.models[&model];
            if !known.looking && known.lost.contains(&chunk.id) && self.at_origin.insert(chunk.id) {
                self.ask_origins(model, chunk);
            }
        }
        self.look_up(&stranded, now);
        let pause = if stranded.is_empty() { LOOKUP_INTERVAL } else { LOOKUP_INTERVAL_STRANDED };
        let wake = self.schedule.next_wake(now);
        wake.map_or(now + pause, |wake| wake.min(now + pause))
    }

    /// Forgets wishes whose askers have all gone.
    fn forget_unwaited(&mut self) {
        let schedule = &mut self.schedule;
        self.waiters.retain(|&id, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                schedule.forget(id);
            }
            !waiters.is_empty()
        });
    }

    fn request(&mut self, assignment: Assignment) {
        let peer = self.peers[&assignment.peer].clone();
        let (asker, keeper) = (self.asker.clone(), Arc::clone(&self.keeper));
        self.jobs.spawn(async move {
            let result = match asker.chunk(&peer, assignment.chunk).await {
                Ok(chunk) => Ok(Arrived { kept: keeper.keep(chunk.clone()).await, chunk }),
                Err(failed) => Err(failed),
            };
            Done::Request { assignment, result }
        });
    }

    fn ask_origins(&mut self, model: ModelId, chunk: ChunkEntry) {
        let (origins, keeper) = (Arc::clone(&self.origins), Arc::clone(&self.keeper));
        self.jobs.spawn(async move {
            let mut result = Err(SourceError::Missing(chunk.id));
            for (name, origin) in origins.iter() {
                match origin.get(chunk).await {
                    Ok(Some(chunk)) => {
                        let kept = keeper.keep(chunk.clone()).await;
                        result = Ok((name.clone(), Arrived { chunk, kept }));
                        break;
                    }
                    Ok(None) => (),
                    // "Nobody has it" is only the truth if everyone could be asked.
                    Err(error) => result = Err(error),
                }
            }
            Done::Origin { model, chunk, result }
        });
    }

    /// Starts the look-ups that are due.
    fn look_up(&mut self, stranded: &[(ModelId, ChunkEntry)], now: Instant) {
        for (&model, known) in &mut self.models {
            let lost: BTreeSet<ChunkId> =
                stranded.iter().filter(|(of, _)| *of == model).map(|(_, chunk)| chunk.id).collect();
            let pause = match () {
                () if !known.curious.is_empty() || !lost.is_subset(&known.lost) => Duration::ZERO,
                () if !lost.is_empty() => LOOKUP_INTERVAL_STRANDED,
                () => LOOKUP_INTERVAL,
            };
            let needed = self.schedule.wanted(model) != 0 || !known.curious.is_empty();
            if !needed || known.looking || known.looked.is_some_and(|last| now < last + pause) {
                continue;
            }
            (known.looking, known.looked, known.lost) = (true, Some(now), lost.clone());
            let look_up = LookUp {
                directory: Arc::clone(&self.directory),
                asker: self.asker.clone(),
                manifest: Arc::clone(&known.manifest),
                known: self.peers.values().cloned().collect(),
                lost,
                reports: self.reporter.clone(),
            };
            tokio::spawn(look_up.run());
        }
    }
}

/// What happens.
impl Task {
    fn on_command(&mut self, command: Command) {
        match command {
            Command::Want(wish) => self.on_want(wish),
            Command::Holders { manifest, chunk, reply } => {
                let known = self.known(&manifest);
                known.curious.push((chunk, reply));
                if known.looked.is_some() && !known.looking {
                    self.answer_curious(manifest.id(), false);
                }
            }
            Command::Known { reply } => drop(reply.send(self.peers.values().cloned().collect())),
            Command::Traffic { model, reply } => {
                drop(reply.send(self.traffic.get(&model).cloned().unwrap_or_default()));
            }
            Command::RangeCame { model, chunk, start, bytes, peer } => {
                let (source, from) = (Source::Peer(peer), peer.to_string());
                self.traffic.entry(model).or_default().verified(source, bytes);
                self.journal.record(Event::RangeArrived { chunk: chunk.id.to_hex(), start, bytes, from });
            }
            Command::Lied { peer } => {
                self.schedule.lied(peer, Instant::now());
                self.asker.dialer.ban(peer);
            }
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
        let Wish { manifest, chunk, urgency, reply } = wish;
        let Some(position) = manifest.position(chunk.id) else {
            return drop(reply.send(Err(SourceError::Missing(chunk.id))));
        };
        self.known(&manifest);
        self.schedule.want(manifest.id(), position, chunk, urgency);
        self.waiters.entry(chunk.id).or_default().push(reply);
    }

    fn on_report(&mut self, report: Report) {
        let now = Instant::now();
        match report {
            Report::Claim { model, peer, has: Ok(has) } => {
                let id = peer.id;
                if self.remember(peer) {
                    self.schedule.claims(id, model, has, now);
                }
                self.answer_curious(model, false);
            }
            Report::Claim { peer, has: Err(failed), .. } => {
                tracing::debug!(peer = %peer.id, error = %failed.error, "does not say what it has");
                if let RequestError::Lied(_) | RequestError::Size { .. } = failed.error {
                    self.on_command(Command::Lied { peer: peer.id });
                }
            }
            Report::Found { chunk, peers } => {
                for peer in peers {
                    let id = peer.id;
                    if self.remember(peer) {
                        self.schedule.found(id, chunk, now);
                    }
                }
            }
            Report::Over { model } => {
                if let Some(known) = self.models.get_mut(&model) {
                    known.looking = false;
                }
                self.answer_curious(model, true);
            }
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Here { wish, found: Ok(None) } => self.want(wish),
            Done::Here { wish, found: Ok(Some(chunk)) } => drop(wish.reply.send(Ok(chunk))),
            Done::Here { wish, found: Err(error) } => drop(wish.reply.send(Err(error))),
            Done::Request { assignment, result: Ok(arrived) } => {
                self.schedule.ended(&assignment, Outcome::Delivered, Instant::now());
                self.on_arrived(assignment.model, Source::Peer(assignment.peer), arrived);
            }
            Done::Request { assignment, result: Err(failed) } => self.on_failed(&assignment, &failed),
            Done::Origin { model, chunk, result } => {
                self.at_origin.remove(&chunk.id);
                self.schedule.forget(chunk.id);
                match result {
                    Ok((name, arrived)) => self.on_arrived(model, Source::Origin(name), arrived),
                    Err(error) => self.answer(chunk.id, &Err(error)),
                }
            }
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
        let outcome = match error {
            RequestError::Refused(surf_protocol::wire::Refusal::NotHere) => Outcome::NotHere,
            RequestError::Lied(_) | RequestError::Size { .. } => Outcome::Lied,
            RequestError::Refused(_) | RequestError::Dial(_) | RequestError::Stalled(_) => Outcome::Failed,
        };
        tracing::debug!(?peer, chunk = %assignment.chunk.id, %error, "request failed");
        let news = outcome == Outcome::Lied && !self.schedule.has_lied(peer);
        self.schedule.ended(assignment, outcome, Instant::now());
        if news {
            tracing::warn!(?peer, %error, "a peer lied and is dropped");
            self.asker.dialer.ban(peer);
        }
        if failed.wasted != 0 {
            self.traffic.entry(assignment.model).or_default().wasted += failed.wasted;
            let (chunk, from) = (assignment.chunk.id.to_hex(), peer.to_string());
            self.journal.record(Event::Wasted { chunk, bytes: failed.wasted, from });
        }
    }

    fn answer(&mut self, id: ChunkId, answer: &Result<Chunk, SourceError>) {
        for waiter in self.waiters.remove(&id).into_iter().flatten() {
            // The asker may have given up; that is its right.
            drop(waiter.send(answer.clone()));
        }
    }

    /// Tells those who wait who has what they ask for: once someone is known, or at the end.
    fn answer_curious(&mut self, model: ModelId, at_end: bool) {
        let Some(known) = self.models.get_mut(&model) else { return };
        for (chunk, reply) in std::mem::take(&mut known.curious) {
            let position = known.manifest.position(chunk.id);
            let ranked =
                position.map(|at| self.schedule.ranked(model, at, Instant::now())).unwrap_or_default();
            if ranked.is_empty() && !at_end {
                known.curious.push((chunk, reply));
            } else {
                let peers = ranked.iter().filter_map(|id| self.peers.get(id).cloned()).collect();
                drop(reply.send(peers));
            }
        }
    }

    fn known(&mut self, manifest: &Arc<Manifest>) -> &mut Known {
        if MODELS_MAX <= self.models.len() && !self.models.contains_key(&manifest.id()) {
            let unused = |(id, known): &(&ModelId, &Known)| self.schedule.wanted(**id) == 0 && !known.looking;
            let oldest = self.models.iter().filter(unused).min_by_key(|(_, known)| known.looked);
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.models.remove(&id);
                self.schedule.forget_claims(id);
            }
        }
        self.models.entry(manifest.id()).or_insert_with(|| Known {
            manifest: Arc::clone(manifest),
            looking: false,
            looked: None,
            lost: BTreeSet::new(),
            curious: Vec::new(),
        })
    }

    /// Remembers where `peer` is, unless too many are in use already.
    fn remember(&mut self, peer: Peer) -> bool {
        if KNOWN_PEERS_MAX <= self.peers.len() && !self.peers.contains_key(&peer.id) {
            let useless = self.peers.keys().find(|&&id| !self.schedule.is_useful(id)).copied();
            let Some(id) = useless else { return false };
            self.peers.remove(&id);
            self.schedule.forget_peer(id);
        }
        self.peers.insert(peer.id, peer);
        true
    }
}
