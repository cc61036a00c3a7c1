//! What a node keeps: bits over the model's chunk list, within a quota or a disk that is full at some point.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_node::source::{Library, SourceError};
use surf_protocol::{Bitmap, ChunkId, ModelId};
use tokio::sync::watch;

use super::evict;
use crate::model::Model;

/// How much a node may keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// Bytes after which something else must go.
    pub quota: Option<u64>,
    /// Bytes after which writing fails.
    pub disk: Option<u64>,
    /// Whether what is here must stay, as it must while it is being pulled.
    pub leased: bool,
}

/// Chunks of one model, as far as they are here.
#[derive(Debug)]
pub struct Shelf {
    model: Arc<Model>,
    room: Room,
    held: Mutex<Held>,
    /// One for each who listens: those who listen to one are woken by dice that are not ours.
    listeners: Mutex<Vec<watch::Sender<u64>>>,
}

#[derive(Debug)]
struct Held {
    has: Bitmap,
    used: Vec<u64>,
    uses: u64,
}

/// What became of a chunk that was to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is here. Positions of what had to go for it.
    For(Vec<usize>),
    /// There is no room.
    Full,
}

impl Shelf {
    /// An empty shelf.
    pub fn new(model: Arc<Model>, room: Room) -> Self {
        let chunks = model.chunks();
        let held = Held { has: Bitmap::none(chunks), used: vec![0; chunks], uses: 0 };
        Self { model, room, held: Mutex::new(held), listeners: Mutex::default() }
    }

    /// Puts chunks there, whatever the room.
    pub fn put(&self, positions: impl IntoIterator<Item = usize>) {
        let mut held = self.held();
        positions.into_iter().for_each(|at| held.has.insert(at));
        drop(held);
        self.changed();
    }

    /// Takes everything away.
    pub fn clear(&self) {
        self.held().has = Bitmap::none(self.model.chunks());
        self.changed();
    }

    /// Which chunks are here.
    pub fn has(&self) -> Bitmap {
        self.held().has.clone()
    }

    /// Whether one is.
    pub fn contains(&self, at: usize) -> bool {
        self.held().has.contains(at)
    }

    /// Bytes that are here, and may be.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let most = self.room.quota.unwrap_or(u64::MAX).min(self.room.disk.unwrap_or(u64::MAX));
        (self.held().has.count() as u64 * self.model.chunk_size(), most)
    }

    /// Remembers that a chunk was used.
    pub(super) fn touch(&self, at: usize) {
        let mut held = self.held();
        held.uses += 1;
        held.used[at] = held.uses;
    }

    /// Keeps a chunk, if there is room or can be made.
    pub(super) fn keep(&self, at: usize) -> Kept {
        let mut held = self.held();
        let size = self.model.chunk_size();
        let bytes = held.has.count() as u64 * size;
        if self.room.disk.is_some_and(|disk| disk < bytes + size) {
            return Kept::Full;
        }
        let room = (self.room.quota.unwrap_or(u64::MAX), bytes + size);
        let Some(victims) = evict::victims(&self.model, &held.has, &held.used, self.room.leased, room) else {
            return Kept::Full;
        };
        victims.iter().for_each(|&at| held.has.remove(at));
        held.has.insert(at);
        held.uses += 1;
        held.used[at] = held.uses;
        drop(held);
        self.changed();
        Kept::For(victims)
    }

    /// Tells all who listen, in the order in which they began.
    fn changed(&self) {
        let mut listeners = self.listeners();
        listeners.retain(|listener| !listener.is_closed());
        listeners.iter().for_each(|listener| listener.send_modify(|count| *count += 1));
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<watch::Sender<u64>>> {
        self.listeners.lock().expect("no panics while held")
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panics while held")
    }
}

impl Library for Shelf {
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        let found = (model == self.model.manifest().id()).then(|| self.model.encoded().clone());
        Box::pin(async move { Ok(found) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let (listener, changes) = watch::channel(0);
        self.listeners().push(listener);
        changes
    }

    fn have(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>> {
        let found = (model == self.model.manifest().id()).then(|| self.has());
        Box::pin(async move { Ok(found) })
    }

    fn size(&self, id: ChunkId) -> Option<usize> {
        let at = self.model.manifest().position(id).filter(|&at| self.contains(at))?;
        Some(self.model.chunk(at).bytes().len())
    }

    fn serve(&self, id: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        let at = self.model.manifest().position(id).filter(|&at| self.contains(at));
        let found = at.map(|at| self.model.chunk(at).bytes().clone());
        Box::pin(async move { Ok(found) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(room: Room) -> Shelf {
        Shelf::new(Arc::new(Model::random(4, 100, 2)), room)
    }

    #[test]
    fn a_quota_makes_room_and_a_full_disk_does_not() {
        let quota = shelf(Room { quota: Some(300), ..Room::default() });
        assert_eq!([0, 1].map(|at| quota.keep(at)), [Kept::For(vec![]), Kept::For(vec![])]);
        quota.touch(0);
        assert_eq!(quota.keep(2), Kept::For(vec![1]), "what was used longest ago goes");
        assert_eq!(quota.bytes(), (200, 300));
        let disk = shelf(Room { disk: Some(100), ..Room::default() });
        assert_eq!([0, 1].map(|at| disk.keep(at)), [Kept::For(vec![]), Kept::Full]);
        let leased = shelf(Room { quota: Some(100), leased: true, ..Room::default() });
        assert_eq!([0, 1].map(|at| leased.keep(at)), [Kept::For(vec![]), Kept::Full]);
    }
}
