//! Who has what of each model that something is wanted of.
//!
//! Peers met before are asked at once; those that the directory names follow. Each is listened to
//! for as long as anything is wanted, a bounded number of them at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use surf_protocol::{Bitmap, ChunkId, Manifest, ModelId, NodeId, manifest::ChunkEntry};
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

/// How long what is lost is looked for that eagerly. After an outage of hours, nobody comes back that fast.
const EAGER: Duration = Duration::from_secs(60);

/// Chunks that nobody has are looked up under their own keys no more often than this.
const LOST_INTERVAL: Duration = Duration::from_secs(5);

/// A peer that does not say what it has is asked again after this, which doubles each time.
const SILENT_FIRST: Duration = Duration::from_secs(1);

/// The longest pause: about one silent peer is tried in a second, each at least once a minute. Where only one
/// has what is wanted, it is found within seconds of its return.
const SILENT_MAX: Duration = Duration::from_secs(60);
const SILENT_MAX_FIRST: Duration = Duration::from_secs(8);
const SILENT_PER_PEER: Duration = Duration::from_secs(1);

/// A peer that broke off sooner than this after it spoke is no better than a silent one.
const SPOKE_MIN: Duration = Duration::from_secs(10);

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
    /// Since when something is lost, and nothing has been found.
    lost_since: Option<Instant>,
    listened: BTreeMap<NodeId, Listened>,
    silent: BTreeMap<NodeId, Silence>,
    /// What somebody has had of it, since something was first wanted.
    pub(super) seen: Bitmap,
    /// Askers who wait to be told who has a chunk.
    pub(super) curious: Vec<(ChunkEntry, oneshot::Sender<Vec<Peer>>)>,
}

/// A peer that is listened to.
struct Listened {
    job: AbortHandle,
    /// When it first said what it has.
    heard: Option<Instant>,
    /// When it was last seen to have something that is wanted, or was asked what it has.
    useful: Instant,
}

/// A peer that did not say what it has.
struct Silence {
    times: u32,
    until: Instant,
    /// Whether it has ever said that it has something.
    had_some: bool,
    /// Whether there was a connection to it, seen last.
    linked: bool,
}

impl Known {
    /// Holders that have been asked what they have and have not answered yet. Those that have fallen silent before
    /// are not waited for.
    pub(super) fn unheard(&self) -> usize {
        let unheard = self.listened.iter().filter(|(_, listened)| listened.heard.is_none());
        unheard.filter(|(peer, _)| !self.silent.contains_key(peer)).count()
    }

    /// Whether somebody who had something of the model has fallen silent, and so may come back with it.
    pub(super) fn somebody_is_away(&self) -> bool {
        self.silent.values().any(|silence| silence.had_some)
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
            known.lost_since = if lost.is_empty() { None } else { known.lost_since.or(Some(now)) };
            let lost_lately = known.lost_since.is_some_and(|since| now < since + EAGER);
            let eager = now < known.since + YOUNG || lost_lately;
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
                if listened.heard.is_none() {
                    listened.heard = Some(now);
                    self.schedule.returned(peer);
                }
                self.schedule.heard(peer);
                if listened.heard.is_some_and(|since| since + SPOKE_MIN <= now) {
                    known.silent.remove(&peer);
                }
                known.seen.insert_all(&has);
                self.schedule.claims(peer, model, has, now);
                if let Some(link) = self.asker.dialer.link(peer) {
                    self.schedule.reached(peer, link, now);
                }
                self.answer_curious(model);
            }
            Report::Silent { model, peer, why } => {
                tracing::debug!(%peer, error = %why.error, "does not say what it has");
                let had_some = self.on_silent(model, peer, now);
                match why.error {
                    RequestError::Lied(_) => self.on_command(Command::Lied { peer }),
                    // What cannot be reached now is tried again where it was, or where it is named next.
                    RequestError::Dial(_) | RequestError::Stalled(_) if had_some => (),
                    RequestError::Dial(_) | RequestError::Stalled(_) => self.forget(peer),
                    RequestError::Refused(_)
                    | RequestError::Malformed(_)
                    | RequestError::Unproven(_)
                    | RequestError::Unreadable(_) => (),
                }
                self.answer_curious(model);
            }
        }
    }

    /// Listens no longer to a peer, and says when to try again. Returns whether it has ever said that it has something.
    fn on_silent(&mut self, model: ModelId, peer: NodeId, now: Instant) -> bool {
        let has = self.schedule.unclaim(peer, model);
        let Some(known) = self.models.get_mut(&model) else { return false };
        let heard = known.listened.remove(&peer).and_then(|listened| listened.heard);
        let linked = self.asker.dialer.link(peer).is_some();
        let silence =
            known.silent.entry(peer).or_insert(Silence { times: 0, until: now, had_some: false, linked });
        // One that spoke for a while and broke off is tried again at once, and then less and less often.
        let spoke = heard.is_some_and(|since| since + SPOKE_MIN <= now);
        let times = if spoke { 0 } else { silence.times };
        let had_some = silence.had_some || has;
        *silence = Silence { times: times + 1, until: now, had_some, linked };
        let longest = (SILENT_PER_PEER * known.silent.len() as u32).clamp(SILENT_MAX_FIRST, SILENT_MAX);
        let pause = (SILENT_FIRST * 2u32.saturating_pow(times.min(16))).min(longest);
        if let Some(silence) = known.silent.get_mut(&peer) {
            silence.until = now + pause;
        }
        if KNOWN_PEERS_MAX < known.silent.len()
            && let Some(most) =
                known.silent.iter().max_by_key(|(_, silence)| silence.times).map(|(&id, _)| id)
        {
            known.silent.remove(&most);
        }
        had_some
    }

    /// Listens again to those whose pause is over, or who have a connection to us again.
    pub(super) fn listen_again(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (&model, known) in &mut self.models {
            if self.schedule.wanted(model) == 0 && known.curious.is_empty() {
                continue;
            }
            for (&peer, silence) in &mut known.silent {
                if known.listened.contains_key(&peer) {
                    continue;
                }
                if !silence.linked && self.asker.dialer.link(peer).is_some() {
                    (silence.linked, silence.times, silence.until) = (true, 0, silence.until.min(now));
                    self.schedule.heard(peer);
                    due.push((model, peer));
                } else if silence.had_some && silence.until <= now {
                    due.push((model, peer));
                }
            }
        }
        due.into_iter().for_each(|(model, peer)| self.listen(model, peer, now));
    }

    /// Somebody begins to want `model`: what failed before says nothing about now.
    pub(super) fn afresh(&mut self, model: ModelId) {
        let now = Instant::now();
        self.schedule.afresh();
        let wanted = self.schedule.wanted(model) != 0;
        if let Some(known) = self.models.get_mut(&model) {
            // Those that were met are asked with the next look-up, which is due at once.
            (known.looked, known.lost_since) = (None, None);
            if wanted {
                // Others wait for those who may come back.
                known.silent.retain(|_, silence| silence.had_some);
                known.silent.values_mut().for_each(|silence| (silence.times, silence.until) = (0, now));
            } else {
                known.silent.clear();
                known.seen = Bitmap::none(known.seen.len());
            }
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
        known.listened.insert(peer, Listened { job: job.abort_handle(), heard: None, useful: now });
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
            lost_since: None,
            listened: BTreeMap::new(),
            silent: BTreeMap::new(),
            seen: Bitmap::none(manifest.chunks().len()),
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
