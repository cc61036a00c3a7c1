//! What can go wrong between a prompt and its continuation.

use std::sync::Arc;

use surf_chunker::Group;

use super::budget::readable;
use crate::weights::WeightsError;

/// The engine could not load a model, or could not answer.
///
/// Cheap to clone: one failure is given to every request that it ends.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// A model that this program cannot run.
    #[error("model type {model_type:?} is not supported; supported are {supported}")]
    Unsupported {
        /// What `config.json` says.
        model_type: String,
        /// The ones that are.
        supported: String,
    },
    /// A model whose weights are not what they should be.
    #[error("{0}")]
    Weightless(String),
    /// A model whose weights nobody here can read.
    #[error("{}", no_weights(.found))]
    NoWeights {
        /// Some of the files that hold them, by their names.
        found: Vec<String>,
    },
    /// A file of the model is missing or is not what it should be.
    #[error("{file}: {reason}")]
    File {
        /// Which file of the repository.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of `config.json` that cannot be.
    #[error("config.json: {field} {reason}")]
    Config {
        /// The field, with dots between levels.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that is not what the configuration says.
    #[error("tensor {name:?} {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model lacks a part that its configuration promises.
    #[error("the model has no {0}")]
    NoGroup(Group),
    /// What was asked for is not available on this machine or in this build.
    #[error("{0}")]
    Device(String),
    /// A model of which not even one token fits into memory.
    #[error(
        "{cause}: one token takes {} beside the weights, and {} of memory (--memory) leave {}",
        readable(*.needed), readable(*.memory), readable(*.allowed)
    )]
    TooWide {
        /// What makes it so wide.
        cause: String,
        /// Bytes that one token takes.
        needed: u64,
        /// Bytes that it may take.
        allowed: u64,
        /// Bytes of the memory budget.
        memory: u64,
    },
    /// What a request takes does not fit into memory, even if it is alone.
    #[error("{what} takes {} beside the weights; the memory budget (--memory) has {} for it", readable(*.needed), readable(*.allowed))]
    NoMemory {
        /// What takes it.
        what: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that it may take.
        allowed: u64,
    },
    /// A fault of the program: a panic, whose text is in the log.
    #[error("{0} failed because of a fault in this program; its log says more")]
    Panicked(&'static str),
    /// A request that cannot be answered, through no fault of the model.
    #[error("{0}")]
    Request(String),
    /// Too many requests wait already.
    #[error("{0} requests wait already; try again later")]
    Busy(usize),
    /// The one who asked did not take what it was sent.
    #[error("the client took nothing for {0} s")]
    Stalled(u64),
    /// Parameters could not be had.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor operation failed.
    #[error("computing: {}", in_a_line(.0))]
    Compute(Arc<candle_core::Error>),
    /// The model's output is not a number.
    #[error("the model computed values that are not finite")]
    NotFinite,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

fn no_weights(found: &[String]) -> String {
    match found {
        [] => "it has no weights".to_owned(),
        _ => format!(
            "the weights in {} are in a format that this program does not compute with",
            found.join(", ")
        ),
    }
}

/// What a library's `error` says, without the stack that follows it where RUST_BACKTRACE is set.
pub(super) fn in_a_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(Arc::new(error))
    }
}

impl EngineError {
    pub(crate) fn no_memory(what: impl ToString, needed: u64, allowed: u64) -> Self {
        Self::NoMemory { what: what.to_string(), needed, allowed }
    }

    pub(crate) fn config(field: impl ToString, reason: impl ToString) -> Self {
        Self::Config { field: field.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn file(file: impl ToString, reason: impl ToString) -> Self {
        Self::File { file: file.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn tensor(name: impl ToString, reason: impl ToString) -> Self {
        Self::Tensor { name: name.to_string(), reason: reason.to_string() }
    }
}
