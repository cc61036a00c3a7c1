//! What the engine may ask for.
//!
//! [`Weights`] is all that `engine` knows of the rest of the node. It blocks, and it speaks of
//! tensors, not of chunks, peers or files; so a model runs the same from memory, from disk, or from
//! a swarm, and its tests need none of them.

mod ahead;
mod chunks;
mod experts;
mod held;
mod layout;
mod plan;
mod rows;
mod streamed;
mod tensors;

use std::{collections::HashMap, fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use surf_chunker::{Checkpoint, Group};
use surf_protocol::{Chunk, Dtype};

use crate::source::SourceError;

pub use experts::ExpertStats;
pub use streamed::{GroupStats, Stats, Streamed};

/// Where a model gets its parameters.
///
/// What returns bytes blocks until they are here; call it from a thread that may block.
pub trait Weights: fmt::Debug + Send + Sync {
    /// The table of contents.
    fn checkpoint(&self) -> &Checkpoint;

    /// The tensors of `group`.
    ///
    /// Asking for a group is also the hint that the ones after it come next, in the order of
    /// [`Checkpoint::groups`], and that the previous streamed one has been used and may go. Routed experts
    /// stand beside that order: they are [expected](Weights::expect), and fetched when they are.
    fn group(&self, group: &Group) -> Result<Arc<Tensors>, WeightsError>;

    /// The tensors of `group` if they are here now. Says nothing about what is wanted next.
    fn ready(&self, group: &Group) -> Option<Arc<Tensors>>;

    /// Says that the routed `experts` of a block will be asked for now, in this order: they are fetched all
    /// at once. What is not one of the model's is passed over.
    fn expect(&self, experts: &[Group]);

    /// Says that these `experts`, of the block after that, may be chosen then: they are fetched behind what
    /// is certain.
    fn guess(&self, experts: &[Group]);

    /// Rows of the table `tensor`, in the order asked for: a tensor of `rows.len()` by the table's
    /// other dimensions. Fetches no more of the table than these rows need, unless the table is
    /// needed whole anyway.
    fn rows(&self, tensor: &str, rows: &[u32]) -> Result<RawTensor, WeightsError>;

    /// One of the runs of rows that [`Tensors::runs`] says `tensor` comes in.
    ///
    /// They are visited in their order, after their group, and like a group: asking for one is the hint
    /// that the next ones come next, and that the previous streamed one may go.
    fn run(&self, tensor: &str, rows: &Range<usize>) -> Result<RawTensor, WeightsError>;

    /// Says whether all that was handed out since the last time that this was `over` is what it should be. If
    /// not, what was computed with it does not count: ask for everything again, which is fetched anew where
    /// it must be.
    fn settle(&self, over: bool) -> bool;
}

/// The tensors of one group.
#[derive(Debug, Default)]
pub struct Tensors {
    /// By their names in the manifest.
    pub tensors: HashMap<String, RawTensor>,
    /// Tables of the group that are not among them, because they never are in memory whole, and the runs
    /// of rows in which they [come](Weights::run), from their first row to their last.
    pub runs: HashMap<String, Vec<Range<usize>>>,
    /// Whether they stay in memory from pass to pass, so that what is made of them may too.
    pub resident: bool,
    /// Chunks that they lie in, of those that are mapped files: these may change.
    pub mapped: Arc<[Chunk]>,
}

/// A tensor in host memory, not yet on any device.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian elements. A large tensor comes in several pieces, each a run of whole rows (of
    /// the outermost dimension), so that it need not be joined before it is used; a tensor whose
    /// single row exceeds a chunk is joined into one piece. Alignment is not promised.
    pub pieces: Vec<Bytes>,
}

/// Parameters could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WeightsError {
    /// The model has no such group.
    #[error("the model has no {0}")]
    NoSuchGroup(Group),
    /// The model has no such tensor.
    #[error("the model has no tensor {0:?}")]
    NoSuchTensor(String),
    /// A row past the end of its table.
    #[error("tensor {tensor:?} has {rows} rows; row {row} was asked for")]
    NoSuchRow {
        /// The table.
        tensor: String,
        /// How many rows it has.
        rows: usize,
        /// The row.
        row: u32,
    },
    /// Rows that are no run of their table.
    #[error("tensor {tensor:?} does not come in a run of rows from {} to {}", .rows.start, .rows.end)]
    NoSuchRun {
        /// The table.
        tensor: String,
        /// The rows.
        rows: Range<usize>,
    },
    /// The bytes did not come.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What was handed out changed on the disk, again and again.
    #[error("chunk files of the model go on changing while they are computed with")]
    Unsettled,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}
