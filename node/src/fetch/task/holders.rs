//! Who has what of each model that something is wanted of.
//!
//! Peers met before are asked at once; those that the directory names follow. Each is listened to
//! for as long as anything is wanted, a bounded number of them at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use surf_protocol::{ChunkId, Manifest, ModelId, NodeId, manifest::ChunkEntry, wire::Refusal};
use tokio::{sync::oneshot, task::AbortHandle, time::Instant};

use super::{Command, Task};
use crate::fetch::{
    Peer,
    lookup::{LookUp, Report, listen},
    request::RequestError,
};

/// Holders of one model that are listened to, and so may be asked for chunks. More do not make a
/// download faster, and each is a connection.
const LISTENED_MAX: usize = 40;

/// While a download is young, or something is wanted that nobody known has, the directory is asked
/// this often: others may be starting too.
const LOOKUP_INTERVAL_FIRST: Duration = Duration::from_millis(500);
const YOUNG: Duration = Duration::from_secs(6);

/// Later, this often: new holders may have come.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(5);

/// Chunks that nobody has are looked up under their own keys no more often than this.
const LOST_INTERVAL: Duration = Duration::from_secs(5);

/// A peer that does not say what it has is asked again after this, which doubles each time.
const SILENT_FIRST: Duration = Duration::from_secs(1);
const SILENT_MAX: Duration = Duration::from_secs(60);

/// Where there are more, one that has had nothing we want for this long makes room for another.
const USELESS: Duration = Duration::from_secs(1);

/// How long holders are listened to after the last wish: the next often follows soon.
const LINGER: Duration = Duration::from_secs(5);

/// Peers remembered, to be asked first for the next model.
const KNOWN_PEERS_MAX: usize = 256;

/// Models whose holders are remembered after nothing is wanted of them any more.
const MODELS_MAX: usize = 64;

/// What is known of a model's holders, and how.
pub(super) struct Known {
    pub(super) manifest: Arc<Manifest>,
    /// When something was first wanted, this time.
    since: Instant,
    /// When something was last wanted.
    needed: Instant,
    pub(super) looking: bool,
    /// When the last look-up started.
    looked: Option<Instant>,
    /// Wishes that nobody was known to have when it started: it has looked for these.
    pub(super) lost: BTreeSet<ChunkId>,
    lost_looked: Option<Instant>,
    listened: BTreeMap<NodeId, Listened>,
    silent: BTreeMap<NodeId, Silence>,
    /// Whether anyone has had anything of it.
    pub(super) was_held: bool,
    /// Askers who wait to be told who has a chunk.
    pub(super) curious: Vec<(ChunkEntry, oneshot::Sender<Vec<Peer>>)>,
}

/// A peer that is listened to.
struct Listened {
    job: AbortHandle,
    heard: bool,
    /// When it was last seen to have something that is wanted, or was asked what it has.
    useful: Instant,
}

/// A peer that did not say what it has.
struct Silence {
    times: u32,
    until: Instant,
}

impl Known {
    /// Holders that have been asked what they have and have not answered yet.
    pub(super) fn unheard(&self) -> usize {
        self.listened.values().filter(|listened| !listened.heard).count()
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.listened.values().for_each(|listened| listened.job.abort());
    }
}

impl Task {
    /// Starts the look-ups that are due.
    pub(super) fn look_up(&mut self, stranded: &[(ModelId, ChunkEntry)], now: Instant) {
        for (&model, known) in &mut self.models {
            if self.schedule.wanted(model) == 0 && known.curious.is_empty() {
                continue;
            }
            if known.needed + LINGER < now {
                known.since = now;
            }
            known.needed = now;
            let lost: BTreeSet<ChunkId> =
                stranded.iter().filter(|(of, _)| *of == model).map(|(_, chunk)| chunk.id).collect();
            let eager = now < known.since + YOUNG || !lost.is_empty();
            let pause = if eager { LOOKUP_INTERVAL_FIRST } else { LOOKUP_INTERVAL };
            let news = !lost.is_subset(&known.lost) || known.looked.is_none_or(|looked| looked < known.since);
            let due = known.looked.is_none_or(|last| last + pause <= now) || news;
            if known.looking || !due {
                continue;
            }
            let again = known.lost_looked.is_none_or(|last| last + LOST_INTERVAL <= now);
            let look_for: Vec<ChunkId> =
                lost.iter().filter(|id| again || !known.lost.contains(*id)).copied().collect();
            if !look_for.is_empty() {
                known.lost_looked = Some(now);
            }
            (known.looking, known.looked, known.lost) = (true, Some(now), lost);
            let look_up = LookUp {
                directory: Arc::clone(&self.directory),
                manifest: Arc::clone(&known.manifest),
                lost: look_for,
                reports: self.reporter.clone(),
            };
            tokio::spawn(look_up.run());
        }
    }

    /// Stops listening about models of which nothing is wanted any more.
    pub(super) fn keep_listening(&mut self, now: Instant) {
        for (&model, known) in &mut self.models {
            if known.needed + LINGER < now && !known.listened.is_empty() {
                for (peer, listened) in std::mem::take(&mut known.listened) {
                    listened.job.abort();
                    self.schedule.unclaim(peer, model);
                }
            }
        }
    }

    pub(super) fn on_report(&mut self, report: Report) {
        let now = Instant::now();
        match report {
            Report::Named { model, peers } => {
                let met: Vec<NodeId> = self.peers.keys().copied().collect();
                let named: Vec<NodeId> = peers.iter().map(|peer| peer.id).collect();
                peers.into_iter().for_each(|peer| self.remember(peer));
                self.make_room(model, &named, now);
                // Those that are named come first; others may have it all the same.
                named.into_iter().chain(met).for_each(|peer| self.listen(model, peer, now));
            }
            Report::Found { chunks, peers } => {
                for peer in peers {
                    let id = peer.id;
                    self.remember(peer);
                    if self.peers.contains_key(&id) {
                        chunks.iter().for_each(|&chunk| self.schedule.found(id, chunk, now));
                    }
                }
            }
            Report::Over { model } => {
                if let Some(known) = self.models.get_mut(&model) {
                    known.looking = false;
                }
                self.answer_curious(model);
            }
            Report::Claim { model, peer, has } => {
                let Some(known) = self.models.get_mut(&model) else { return };
                let Some(listened) = known.listened.get_mut(&peer) else { return };
                listened.heard = true;
                known.silent.remove(&peer);
                known.was_held |= 0 < has.count();
                self.schedule.claims(peer, model, has, now);
                if let Some(link) = self.asker.dialer.link(peer) {
                    self.schedule.reached(peer, link, now);
                }
                self.answer_curious(model);
            }
            Report::Silent { model, peer, why } => {
                tracing::debug!(%peer, error = %why.error, "does not say what it has");
                self.on_silent(model, peer, now);
                match why.error {
                    RequestError::Lied(_) | RequestError::Size { .. } => {
                        self.on_command(Command::Lied { peer });
                    }
                    RequestError::Refused(Refusal::NotHere) | RequestError::Refused(_) => (),
                    // It cannot be reached: addresses that are named again will be news.
                    RequestError::Dial(_) | RequestError::Stalled(_) => self.forget(peer),
                }
                self.answer_curious(model);
            }
        }
    }

    fn on_silent(&mut self, model: ModelId, peer: NodeId, now: Instant) {
        self.schedule.unclaim(peer, model);
        let Some(known) = self.models.get_mut(&model) else { return };
        let heard = known.listened.remove(&peer).is_some_and(|listened| listened.heard);
        let silence = known.silent.entry(peer).or_insert(Silence { times: 0, until: now });
        // One that has spoken and broke off is tried again at once, and then less and less often.
        let times = if heard { 0 } else { silence.times };
        let pause = SILENT_FIRST * 2u32.saturating_pow(times.min(16));
        *silence = Silence { times: times + 1, until: now + pause.min(SILENT_MAX) };
        if KNOWN_PEERS_MAX < known.silent.len() {
            known.silent.retain(|_, silence| now < silence.until);
        }
    }

    /// Stops listening to peers that have nothing we want, if otherwise there would be no room for those that
    /// are new: in a large crowd most have nothing yet, and the few who have everything must be found.
    fn make_room(&mut self, model: ModelId, named: &[NodeId], now: Instant) {
        let Some(known) = self.models.get_mut(&model) else { return };
        let new = named.iter().filter(|id| !known.listened.contains_key(id)).count();
        let surplus = (known.listened.len() + new).saturating_sub(LISTENED_MAX).min(new);
        for (&peer, listened) in &mut known.listened {
            if self.schedule.has_wanted(peer, model) {
                listened.useful = now;
            }
        }
        let useless = known.listened.iter().filter(|(_, listened)| listened.useful + USELESS <= now);
        let mut useless: Vec<(Instant, NodeId)> =
            useless.map(|(&peer, listened)| (listened.useful, peer)).collect();
        useless.sort_unstable();
        for (_, peer) in useless.into_iter().take(surplus) {
            if let Some(listened) = known.listened.remove(&peer) {
                listened.job.abort();
                self.schedule.unclaim(peer, model);
            }
        }
    }

    /// Listens to what `peer` has of `model`, if there is room and a chance that it says it.
    fn listen(&mut self, model: ModelId, peer: NodeId, now: Instant) {
        let Some(known) = self.models.get_mut(&model) else { return };
        let silent = known.silent.get(&peer).is_some_and(|silence| now < silence.until);
        let full = LISTENED_MAX <= known.listened.len();
        if full || silent || known.listened.contains_key(&peer) || self.schedule.has_lied(peer) {
            return;
        }
        let Some(at) = self.peers.get(&peer).cloned() else { return };
        let manifest = Arc::clone(&known.manifest);
        let job = tokio::spawn(listen(self.asker.clone(), at, manifest, self.reporter.clone()));
        known.listened.insert(peer, Listened { job: job.abort_handle(), heard: false, useful: now });
    }

    /// Tells those who wait who has what they ask for: once someone is known, or when nobody is left
    /// to ask.
    pub(super) fn answer_curious(&mut self, model: ModelId) {
        let Some(known) = self.models.get_mut(&model) else { return };
        let at_end = known.looked.is_some() && !known.looking && known.unheard() == 0;
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

    pub(super) fn known(&mut self, manifest: &Arc<Manifest>) -> &mut Known {
        let now = Instant::now();
        if MODELS_MAX <= self.models.len() && !self.models.contains_key(&manifest.id()) {
            let unused = |(id, known): &(&ModelId, &Known)| self.schedule.wanted(**id) == 0 && !known.looking;
            let oldest = self.models.iter().filter(unused).min_by_key(|(_, known)| known.needed);
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.models.remove(&id);
                self.schedule.forget_model(id);
            }
        }
        self.models.entry(manifest.id()).or_insert_with(|| Known {
            manifest: Arc::clone(manifest),
            since: now,
            needed: now,
            looking: false,
            looked: None,
            lost: BTreeSet::new(),
            lost_looked: None,
            listened: BTreeMap::new(),
            silent: BTreeMap::new(),
            was_held: false,
            curious: Vec::new(),
        })
    }

    /// Remembers where `peer` is, unless too many are in use already.
    fn remember(&mut self, peer: Peer) {
        if KNOWN_PEERS_MAX <= self.peers.len() && !self.peers.contains_key(&peer.id) {
            let useless = self.peers.keys().find(|&&id| !self.schedule.is_useful(id)).copied();
            let Some(id) = useless else { return };
            self.forget(id);
        }
        self.peers.insert(peer.id, peer);
    }

    /// Forgets a peer, if nothing is expected of it.
    fn forget(&mut self, peer: NodeId) {
        if !self.schedule.is_useful(peer) {
            self.peers.remove(&peer);
            self.schedule.forget_peer(peer);
        }
    }
}
