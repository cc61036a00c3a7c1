//! Where chunks come from, and what this node gives to others.
//!
//! A local cache, a folder, a bucket, a web server and a crowd of peers differ in everything except
//! the question asked of them. [`ChunkSource`] is that question for one chunk, [`ModelSource`] is
//! the same question from someone who runs a model and waits, and [`Library`] is the other side:
//! what peers may ask of us.

mod memory;
mod telling;

#[cfg(test)]
pub(crate) mod conformance;

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_protocol::{Bitmap, Chunk, ChunkId, ModelId, VerifiedRange, manifest::ChunkEntry};
use tokio::sync::watch;

pub use memory::Memory;
pub use telling::{HEARTBEAT, Telling};

/// Something that may have chunks.
///
/// # Contract
///
/// - `Ok(None)` means "not here", and is cheap and ordinary. `Err` means "could not tell".
/// - The result is a [`Chunk`], so it has been checked; a source cannot hand out bad bytes.
/// - A source never reads more than `chunk.size` bytes, whatever the other side sends.
/// - Dropping the future is always safe: at worst the work is lost.
/// - There are no default methods. A wrapper that forgets one must not compile.
pub trait ChunkSource: fmt::Debug + Send + Sync {
    /// The chunk `chunk.id`, if it is here.
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>>;
}

/// A source that is asked when no peer has a chunk, and that has manifests too: enough to begin with a model's
/// id and nothing else.
///
/// # Contract
///
/// - [`Origin::manifest`] reads at most [`MANIFEST_SIZE_MAX`](surf_protocol::limits::MANIFEST_SIZE_MAX) bytes.
///   They are not checked: the caller hashes them.
/// - `Ok(None)` and `Err` mean what they mean for [`ChunkSource`].
pub trait Origin: ChunkSource {
    /// What people call it: its URL, without a password.
    fn name(&self) -> String;

    /// What should be the encoded manifest of `model`, if it is here.
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>>;
}

/// A source that also keeps what it is given.
///
/// # Contract
///
/// - When [`Keeper::keep`] returns `Ok`, the chunk survives a crash and [`ChunkSource::get`] finds it.
/// - [`Keeper::contains`] is fast: it may be asked for every chunk of a model at once.
/// - Chunks that lie in files come from [`Keeper::get_in_place`] only.
pub trait Keeper: ChunkSource {
    /// The chunk `chunk.id`, if it is here, for who computes with it: where its bytes lie, if that is a
    /// file that tells [when it has changed](Chunk::is_unchanged).
    fn get_in_place(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>>;

    /// Keeps `chunk`.
    fn keep(&self, chunk: Chunk) -> BoxFuture<'_, Result<(), SourceError>>;

    /// Whether a chunk is here.
    fn contains(&self, id: ChunkId) -> bool;
}

/// The chunks of one model, for someone who computes with them.
///
/// # Contract
///
/// - The same chunk asked for twice at once is fetched once.
/// - A chunk asked for again with more urgency is moved forward.
/// - Dropping the future withdraws the wish; what has arrived by then is kept.
pub trait ModelSource: fmt::Debug + Send + Sync {
    /// A chunk of the model, in memory. Waits while anyone who may have it can be asked.
    fn chunk(&self, chunk: ChunkEntry, urgency: Urgency) -> BoxFuture<'_, Result<Chunk, SourceError>>;

    /// The same, in memory or in a file, as it lies: ask it [afterwards](Chunk::is_unchanged) whether what
    /// was computed with it counts.
    fn chunk_in_place(
        &self,
        chunk: ChunkEntry,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<Chunk, SourceError>>;

    /// Some bytes of a chunk, without the rest. From the chunk, if that is here.
    fn range(
        &self,
        chunk: ChunkEntry,
        range: Range<u32>,
    ) -> BoxFuture<'_, Result<VerifiedRange, SourceError>>;
}

/// How soon a chunk is needed. The smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Inference needs it, after everything with a smaller number.
    Deadline(u64),
    /// It should come, some time.
    Background,
}

/// What this node gives to its peers.
///
/// # Contract
///
/// - Bytes given out by [`Library::serve`] are right: they were hashed, and are in memory where nothing
///   changes them. The asker verifies them again, and bans who sends anything else.
/// - They take memory: [`Library::size`] tells how much, without reading anything.
/// - `Ok(None)` means "not here".
pub trait Library: fmt::Debug + Send + Sync {
    /// The encoded manifest of `model`.
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>>;

    /// A count that goes up whenever what is here changes.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Which chunks of `model` are here, by its manifest's chunk list.
    fn have(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>>;

    /// How many bytes a chunk has, if it is here. Fast, and reads none of them.
    fn size(&self, id: ChunkId) -> Option<usize>;

    /// The bytes of a chunk.
    fn serve(&self, id: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>>;
}

/// A source that could not tell whether it has the chunk, or that everyone failed to give it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// Nobody who can be reached has it.
    #[error("nobody reachable holds chunk {0}")]
    Missing(ChunkId),
    /// Somebody has had it, and does not give it now: they may come back.
    #[error("nobody who has had chunk {0} gives it now")]
    Gone(ChunkId),
    /// The manifest is wrong, whoever was asked: bytes with this hash have another size than it says.
    #[error("the manifest of {model} is wrong about chunk {id}: it says {says} bytes, and there are {is}")]
    WrongSize {
        /// Whose manifest.
        model: ModelId,
        /// The chunk.
        id: ChunkId,
        /// Bytes that the manifest says.
        says: u32,
        /// Bytes that there are.
        is: u32,
    },
    /// A source failed.
    #[error("{origin}: {cause}")]
    Failed {
        /// Which source, in words.
        origin: String,
        /// What went wrong. `Arc`, so that one failure can be given to every waiter.
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl SourceError {
    /// The failure `cause` of the source called `origin`.
    pub fn failed(origin: impl ToString, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { origin: origin.to_string(), cause: Arc::from(cause.into()) }
    }
}
