//! What nobody has, from buckets and web servers; and when a wish is given up.
//!
//! When many nodes start at once, each chunk has one that fetches it from the origin: the one that
//! rendezvous hashing names (Thaler and Ravishankar, 1998). The others wait for it, and take a turn
//! themselves when it takes too long.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use surf_protocol::{ChunkId, ModelId, NodeId, manifest::ChunkEntry};
use tokio::time::Instant;

use super::{Arrived, Done, Task};
use crate::{
    fetch::Source,
    source::{Origin, SourceError},
};

/// Chunks that are asked of the origins at once.
const ORIGIN_AT_ONCE: usize = 8;

/// How long each of the nodes that want a chunk has to fetch it from the origin, before it is the
/// next one's turn.
const TURN: Duration = Duration::from_secs(3);

/// Turns that are waited for. Whoever is that far behind has waited long enough.
const TURNS_MAX: u32 = 4;

/// An origin that did not have a chunk, or failed, is asked for it again after this.
const AGAIN: Duration = Duration::from_secs(3);

/// How long a wish is looked for that nobody has, or that those who have it do not give: a node that has just
/// started has yet to meet its peers.
const PATIENCE_UNSEEN: Duration = Duration::from_secs(8);

/// The same, once the origins have said that they cannot give it either.
const PATIENCE_REFUSED: Duration = Duration::from_secs(3);

pub(super) struct Origins {
    me: NodeId,
    all: Arc<Vec<Arc<dyn Origin>>>,
    /// How long a wish waits for holders that have gone.
    patience: Duration,
    asked: BTreeMap<ChunkId, ModelId>,
    stranded: HashMap<ChunkId, Stranded>,
}

/// A wish that nobody known can fulfil.
struct Stranded {
    since: Instant,
    /// Not asked of the origins before.
    again: Instant,
    failure: Option<SourceError>,
}

impl Origins {
    pub(super) fn new(me: NodeId, all: Vec<Arc<dyn Origin>>, patience: Duration) -> Self {
        Self { me, all: Arc::new(all), patience, asked: BTreeMap::new(), stranded: HashMap::new() }
    }

    /// Chunks of `model` that are being fetched from origins.
    pub(super) fn asked_for(&self, model: ModelId) -> usize {
        self.asked.values().filter(|of| **of == model).count()
    }
}

/// How many of `others` come before `me` in fetching `chunk` from the origin.
fn turn(me: NodeId, others: &[NodeId], chunk: ChunkId) -> u32 {
    let weight = |node: NodeId| *blake3::hash(&[&chunk.as_bytes()[..], &node.0].concat()).as_bytes();
    let mine = weight(me);
    others.iter().filter(|&&other| mine < weight(other)).count() as u32
}

impl Task {
    /// Asks the origins for what nobody has, and gives up what nobody will have.
    pub(super) fn ask_origins(&mut self, stranded: &[(ModelId, ChunkEntry)], now: Instant) {
        let ids: BTreeSet<ChunkId> = stranded.iter().map(|(_, chunk)| chunk.id).collect();
        self.origins.stranded.retain(|id, _| ids.contains(id));
        let mut herds: BTreeMap<ModelId, Vec<NodeId>> = BTreeMap::new();
        for &(model, chunk) in stranded {
            let known = &self.models[&model];
            let state = self.origins.stranded.entry(chunk.id).or_insert(Stranded {
                since: now,
                again: now,
                failure: None,
            });
            let looked = !known.looking && known.unheard() == 0 && known.lost.contains(&chunk.id);
            if !looked || self.origins.asked.contains_key(&chunk.id) {
                continue;
            }
            let position = known.manifest.position(chunk.id);
            let may_come = position.is_some_and(|at| {
                let had = known.seen.contains(at) && known.somebody_is_away();
                had || self.schedule.may_come(model, at)
            });
            let patience = match &state.failure {
                _ if may_come => self.origins.patience,
                Some(_) => PATIENCE_REFUSED,
                None => PATIENCE_UNSEEN,
            };
            if state.since + patience <= now && (self.origins.all.is_empty() || state.failure.is_some()) {
                let error = match state.failure.take() {
                    Some(error @ SourceError::Failed { .. }) => error,
                    _ if may_come => SourceError::Gone(chunk.id),
                    _ => SourceError::Missing(chunk.id),
                };
                self.give_up(chunk.id, error, now);
                continue;
            }
            let herd = herds.entry(model).or_insert_with(|| self.schedule.herd(model));
            let turn = turn(self.origins.me, herd, chunk.id).min(TURNS_MAX);
            let due = state.again.max(state.since + TURN * turn) <= now;
            if due && !self.origins.all.is_empty() && self.origins.asked.len() < ORIGIN_AT_ONCE {
                self.ask_origin(model, chunk);
            }
        }
    }

    fn ask_origin(&mut self, model: ModelId, chunk: ChunkEntry) {
        self.origins.asked.insert(chunk.id, model);
        let (origins, keeper) = (Arc::clone(&self.origins.all), Arc::clone(&self.keeper));
        self.jobs.spawn(async move {
            let mut result = Err(SourceError::Missing(chunk.id));
            for origin in origins.iter() {
                match origin.get(chunk).await {
                    Ok(Some(chunk)) => {
                        let kept = keeper.keep(chunk.clone()).await;
                        result = Ok((origin.name(), Arrived { chunk, kept }));
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

    pub(super) fn on_origin(
        &mut self,
        model: ModelId,
        chunk: ChunkEntry,
        result: Result<(String, Arrived), SourceError>,
    ) {
        let now = Instant::now();
        self.origins.asked.remove(&chunk.id);
        match result {
            Ok((name, arrived)) => {
                let flights = self.schedule.forget(chunk.id, now);
                self.cancel(&flights);
                self.on_arrived(model, Source::Origin(name), arrived);
            }
            Err(error) => {
                tracing::debug!(chunk = %chunk.id, %error, "no origin has it");
                if let Some(state) = self.origins.stranded.get_mut(&chunk.id) {
                    (state.again, state.failure) = (now + AGAIN, Some(error));
                }
            }
        }
    }

    fn give_up(&mut self, chunk: ChunkId, error: SourceError, now: Instant) {
        self.origins.stranded.remove(&chunk);
        let flights = self.schedule.forget(chunk, now);
        self.cancel(&flights);
        self.answer(chunk, &Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_has_one_node_that_fetches_it_and_all_agree() {
        let nodes: Vec<NodeId> = (0..8).map(|n| NodeId([n; 32])).collect();
        let mut firsts = BTreeMap::<NodeId, usize>::new();
        for n in 0..800u32 {
            let chunk = ChunkId::of(&n.to_le_bytes());
            let turns = nodes.iter().map(|&me| {
                let others: Vec<NodeId> = nodes.iter().copied().filter(|&other| other != me).collect();
                turn(me, &others, chunk)
            });
            let turns: Vec<u32> = turns.collect();
            let all: BTreeSet<u32> = turns.iter().copied().collect();
            assert_eq!(all.len(), nodes.len(), "everyone has a turn of its own");
            let first = turns.iter().position(|&turn| turn == 0).unwrap();
            *firsts.entry(nodes[first]).or_default() += 1;
        }
        assert!(firsts.len() == 8 && firsts.values().all(|&count| 50 < count), "{firsts:?}");
    }
}
