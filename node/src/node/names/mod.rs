//! Signed names: publishing this node's own, and finding out what others' mean.
//!
//! - [`Node::set_name`] and [`Node::name`] are what the commands use; [`Node::resolve`] is how everything
//!   else understands a model that is written as an id, an alias or `PEER/NAME`.
//! - `book`: what was published and seen, and which record counts.
//! - [`run`]: puts this node's own names into the DHT again, as long as the node runs.

mod book;

use std::{collections::HashMap, sync::Arc, time::Duration};

use surf_protocol::{
    FullName, ModelId, SignedName,
    name::{NotAFullName, check_name},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

pub(super) use self::book::Book;
use self::book::Verdict;
use super::{
    Node, NodeError,
    models::{LOOK_AGAIN, PATIENCE, PATIENCE_AT_START},
};
use crate::{
    api::NameInfo,
    identity::Identity,
    store::ResolveError,
    swarm::{self, Neighbours},
};

/// How long a record is good. A publisher may be away for a weekend.
const LIFE_S: u64 = 48 * 3600;

/// A record that ends within this time is replaced by a new one.
const RENEW_S: u64 = 24 * 3600;

/// How often a record is put again: those who kept it may have gone, and others have come.
const PUT_AGAIN: Duration = Duration::from_secs(4 * 3600);

/// The same, if nobody took it.
const PUT_AGAIN_FAILED: Duration = Duration::from_secs(5);

/// The same, if fewer than all places of a record were filled and somebody has come who may fill one.
const PUT_AGAIN_NEW: Duration = Duration::from_millis(500);

/// How often it is looked whether something is to be put.
const LOOK: Duration = Duration::from_secs(2);

/// How long a publisher waits to hear that others have a record.
const PUT_TIME: Duration = Duration::from_secs(5);

/// How long the meaning of a name is taken for granted by whatever asks again and again.
const FRESH: Duration = Duration::from_secs(1);

/// Meanings that are remembered for that long.
const FRESH_MAX: usize = 256;

/// Everything about names that a node has.
#[derive(Debug)]
pub(super) struct Names {
    identity: Identity,
    swarm: swarm::Handle,
    book: Book,
    /// When each of our own was put last, with its number, and who took it.
    put: std::sync::Mutex<HashMap<String, Put>>,
    fresh: std::sync::Mutex<HashMap<FullName, (Instant, ModelId)>>,
    /// Models that have another id than when they were published, and that id.
    renamed: HashMap<ModelId, ModelId>,
}

#[derive(Clone, Copy, Debug)]
struct Put {
    sequence: u64,
    at: Instant,
    /// How many nodes took it.
    taken: usize,
    /// How many neighbours had come by then.
    came: u64,
}

impl Names {
    pub(super) fn new(
        identity: Identity,
        swarm: swarm::Handle,
        book: Book,
        renamed: Vec<(ModelId, ModelId)>,
    ) -> Self {
        let (put, fresh, renamed) = (Default::default(), Default::default(), renamed.into_iter().collect());
        Self { identity, swarm, book, put, fresh, renamed }
    }

    /// Signs the next record of one of our own names.
    async fn sign(&self, name: &str, model: ModelId) -> Result<SignedName, NodeError> {
        let now = swarm::clock_unix();
        let me = (self.identity.node_id(), name);
        let signed =
            self.book.publish(me, model, (now, now + LIFE_S), |bytes| self.identity.sign(bytes)).await;
        let too_many =
            || NodeError::Invalid("this node has published as many names as a node may".to_owned());
        signed.map_err(|error| NodeError::Failed(error.to_string()))?.ok_or_else(too_many)
    }

    /// Puts a record into the DHT, and notes how that went.
    async fn put(&self, record: SignedName) {
        let (name, sequence) = (record.name().name.clone(), record.name().sequence);
        let came = self.swarm.neighbours().borrow().came;
        let taken = match timeout(PUT_TIME, self.swarm.put_name(record)).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(_)) | Err(_) => 0,
        };
        let put = Put { sequence, at: Instant::now(), taken, came };
        self.put.lock().expect("no panics while held").insert(name, put);
    }

    /// Renews and puts what is due.
    async fn keep_up(&self) {
        for record in self.book.published() {
            let (name, ends) = (record.name(), record.name().expires);
            let model = self.renamed.get(&name.model).copied().unwrap_or(name.model);
            let renewed = if model != name.model || ends < swarm::clock_unix() + RENEW_S {
                match self.sign(&name.name, model).await {
                    Ok(record) => record,
                    Err(error) => {
                        tracing::warn!(name = %record.full(), %error, "a name could not be renewed");
                        continue;
                    }
                }
            } else {
                record
            };
            let put = self.put.lock().expect("no panics while held").get(&renewed.name().name).copied();
            let neighbours = *self.swarm.neighbours().borrow();
            if is_due(put, renewed.name().sequence, neighbours, Instant::now()) {
                self.put(renewed).await;
            }
        }
    }
}

/// Whether a record with this number is to be put. A connected peer is none to put it to until it has said that it
/// takes part in the DHT; one that has come since may be nearer to the name than those who have the record, or be all
/// there is when they have gone.
fn is_due(put: Option<Put>, sequence: u64, neighbours: Neighbours, now: Instant) -> bool {
    let Some(put) = put.filter(|put| put.sequence == sequence) else { return neighbours.now != 0 };
    let has_room = put.taken < swarm::Handle::REPLICAS;
    let again = match put.taken {
        _ if has_room && put.came < neighbours.came => PUT_AGAIN_NEW,
        0 => PUT_AGAIN_FAILED,
        _ => PUT_AGAIN,
    };
    neighbours.now != 0 && put.at + again <= now
}

/// Keeps this node's own names known. Runs until it is dropped.
pub(super) async fn run(names: Arc<Names>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut neighbours = names.swarm.neighbours();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = neighbours.changed() => if changed.is_err() { return },
        }
        names.keep_up().await;
    }
}

impl Node {
    /// Publishes `name` for a model, under this node's key.
    pub async fn set_name(&self, name: &str, model: &str) -> Result<NameInfo, NodeError> {
        check_name(name).map_err(|error| NodeError::Invalid(error.to_string()))?;
        let model = self.resolve(model).await?;
        let names = &self.parts.names;
        let before = names.book.own(name).map(|record| record.name().model);
        let record = names.sign(name, model).await?;
        names.put(record.clone()).await;
        let moved_from = before.filter(|&before| before != model).map(|before| before.to_string());
        Ok(NameInfo { moved_from, ..view(&record) })
    }

    /// What `PEER/NAME` means, asking anew. Remembers the answer, so that no older one counts later.
    pub async fn name(&self, text: &str) -> Result<NameInfo, NodeError> {
        let full: FullName = text.parse().map_err(|error| invalid(text, &error))?;
        Ok(view(&self.look_up(&full, Memory::Kept).await?))
    }

    /// The same, and changes nothing here.
    pub async fn peek_name(&self, text: &str) -> Result<NameInfo, NodeError> {
        let full: FullName = text.parse().map_err(|error| invalid(text, &error))?;
        Ok(view(&self.look_up(&full, Memory::Untouched).await?))
    }

    /// The model that `text` means as far as this node knows, without asking anybody.
    pub(super) fn resolve_here(&self, text: &str) -> Result<ModelId, NodeError> {
        let unknown = match self.parts.store.resolve(text) {
            Ok(id) => return Ok(id),
            Err(error @ ResolveError::Unknown { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let Ok(full) = text.parse::<FullName>() else { return Err(unknown.into()) };
        let book = &self.parts.names.book;
        let own = (full.publisher == self.parts.id).then(|| book.own(&full.name)).flatten();
        match (own, book.weigh(&full, &[], swarm::clock_unix())) {
            (Some(record), _) | (None, Verdict::Current(record, _)) => Ok(record.name().model),
            (None, Verdict::Expired | Verdict::Unknown) => Err(NodeError::NotFound(format!(
                "this node has not looked up the name {full} lately; `name get` or a POST does"
            ))),
        }
    }

    /// The model that `text` means: an id, here or not; an alias; first digits of the id of a model that
    /// is here; or a signed name, `PEER/NAME`.
    pub(super) async fn resolve(&self, text: &str) -> Result<ModelId, NodeError> {
        let unknown = match self.parts.store.resolve(text) {
            Ok(id) => return Ok(id),
            Err(error @ ResolveError::Unknown { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let full: FullName = match text.parse() {
            Ok(full) => full,
            Err(NotAFullName::NoSlash) => return Err(unknown.into()),
            // Aliases may have slashes too, and so have names from elsewhere.
            Err(error @ NotAFullName::Peer(_)) if !text.starts_with("12D3KooW") => {
                return Err(NodeError::NotFound(format!("{unknown}, and {error}")));
            }
            Err(error) => return Err(invalid(text, &error)),
        };
        let fresh = self.parts.names.fresh.lock().expect("no panics while held").get(&full).copied();
        match fresh {
            Some((at, model)) if at.elapsed() < FRESH => Ok(model),
            _ => Ok(self.look_up(&full, Memory::Kept).await?.name().model),
        }
    }

    /// The latest record of a name. This node's own are known without asking; others' are asked for
    /// everywhere, because the latest counts.
    async fn look_up(&self, full: &FullName, memory: Memory) -> Result<SignedName, NodeError> {
        let names = &self.parts.names;
        if full.publisher == self.parts.id {
            let own = names.book.own(&full.name);
            return own.ok_or_else(|| NodeError::NotFound(format!("this node has published no name {full}")));
        }
        let patience = Instant::now().max(self.parts.started + PATIENCE_AT_START) + PATIENCE;
        loop {
            let answers = names.swarm.name(full).await?;
            let now = swarm::clock_unix();
            let verdict = match memory {
                Memory::Kept => names.book.judge(full, &answers, now).await,
                Memory::Untouched => names.book.weigh(full, &answers, now),
            };
            match verdict {
                Verdict::Current(record, _) => {
                    let mut fresh = names.fresh.lock().expect("no panics while held");
                    if FRESH_MAX <= fresh.len() {
                        fresh.retain(|_, (at, _)| at.elapsed() < FRESH);
                    }
                    if fresh.len() < FRESH_MAX {
                        fresh.insert(full.clone(), (Instant::now(), record.name().model));
                    }
                    return Ok(record);
                }
                Verdict::Expired if patience < Instant::now() => {
                    let why = "its last record has expired, and nobody reachable has a later one";
                    return Err(NodeError::NotFound(format!("the name {full}: {why}")));
                }
                Verdict::Unknown if patience < Instant::now() => {
                    return Err(NodeError::NotFound(format!("nobody reachable knows the name {full}")));
                }
                Verdict::Expired | Verdict::Unknown => sleep(LOOK_AGAIN).await,
            }
        }
    }
}

/// Whether a look-up leaves a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// The answer is remembered.
    Kept,
    /// Nothing changes here.
    Untouched,
}

fn view(record: &SignedName) -> NameInfo {
    let name = record.name();
    NameInfo {
        name: name.name.clone(),
        peer: name.publisher.to_string(),
        model: name.model.to_string(),
        sequence: name.sequence,
        expires: name.expires,
        moved_from: None,
    }
}

fn invalid(text: &str, error: &NotAFullName) -> NodeError {
    match error {
        NotAFullName::NoSlash => NodeError::Invalid(format!("{text:?} is no signed name: write PEER/NAME")),
        error => NodeError::Invalid(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_put_at_once_again_when_it_is_old_and_soon_when_nobody_took_it() {
        let at = Instant::now();
        let put = |taken| Some(Put { sequence: 7, at, taken, came: 1 });
        let [none, one] = [0, 1].map(|now| Neighbours { now, came: 1 });
        assert!(is_due(None, 7, one, at));
        assert!(!is_due(None, 7, none, at), "there is nobody to take it");
        assert!(is_due(put(1), 8, one, at), "another record");
        assert!(!is_due(put(1), 7, one, at + PUT_AGAIN / 2));
        assert!(is_due(put(1), 7, one, at + PUT_AGAIN));
        assert!(!is_due(put(0), 7, one, at + PUT_AGAIN_FAILED / 2));
        assert!(is_due(put(0), 7, one, at + PUT_AGAIN_FAILED));
        let another = Neighbours { now: 1, came: 2 };
        assert!(!is_due(put(1), 7, another, at));
        assert!(
            is_due(put(0), 7, another, at + PUT_AGAIN_NEW) && is_due(put(1), 7, another, at + PUT_AGAIN_NEW)
        );
        assert!(!is_due(put(swarm::Handle::REPLICAS), 7, another, at + PUT_AGAIN / 2), "enough have it");
    }
}
