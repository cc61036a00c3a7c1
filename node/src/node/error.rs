//! Why a node could not do what it was asked, sorted by what the asker can do about it.

use surf_protocol::ModelId;

use crate::{
    engine::EngineError,
    fetch::DirectoryError,
    origin::SyncError,
    publish::{ExportError, PublishError, PullError, QuantizeError, WriteError},
    source::SourceError,
    store::{ResolveError, StoreError},
    weights::WeightsError,
};

/// Why a node could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no such thing here, and nobody who can be reached has it.
    #[error("{0}")]
    NotFound(String),
    /// The request asks for something impossible.
    #[error("{0}")]
    Invalid(String),
    /// The name means another model, and nobody said that it may move.
    #[error("{0}")]
    NameTaken(String),
    /// Too much is going on. Ask again later.
    #[error("{0}")]
    Busy(String),
    /// Something failed: a disk, a model, a part of the node.
    #[error("{0}")]
    Failed(String),
}

impl NodeError {
    pub(super) fn not_here(model: ModelId) -> Self {
        Self::NotFound(format!("the model {model} is not on this node"))
    }

    /// No peer has the model, and no origin, or they could not tell because of `failure`. `peers` is how many are
    /// connected.
    pub(super) fn no_manifest(model: ModelId, failure: Option<&SourceError>, peers: usize) -> Self {
        match failure {
            None if peers == 0 => Self::NotFound(format!(
                "nobody reachable has the model {model}; this node is connected to no peer (`status` says more)"
            )),
            None => Self::NotFound(format!("nobody reachable has the model {model}")),
            Some(failure) => Self::NotFound(format!("no peer has the model {model}; {failure}")),
        }
    }
}

impl From<SourceError> for NodeError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Missing(_) | SourceError::Gone(_) => Self::NotFound(error.to_string()),
            SourceError::WrongSize { .. } => Self::Invalid(error.to_string()),
            SourceError::Failed { .. } => Self::Failed(error.to_string()),
        }
    }
}

impl From<ResolveError> for NodeError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Unknown { .. } | ResolveError::Digits { .. } => Self::NotFound(error.to_string()),
            _ => Self::Invalid(error.to_string()),
        }
    }
}

impl From<PullError> for NodeError {
    fn from(error: PullError) -> Self {
        match error {
            PullError::Source(error) => error.into(),
            PullError::Store(_) | PullError::Unkept(_) | PullError::Removed(_) => {
                Self::Failed(error.to_string())
            }
        }
    }
}

impl From<ExportError> for NodeError {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Source(error) => error.into(),
            ExportError::InTheWay(_) | ExportError::Link(_) | ExportError::Name { .. } => {
                Self::Invalid(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<SyncError> for NodeError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Source(error) => error.into(),
            SyncError::Url(_) => Self::Invalid(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<PublishError> for NodeError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Path { .. } | PublishError::Secret { .. } | PublishError::Cut(_) => {
                Self::Invalid(error.to_string())
            }
            PublishError::NameTaken { .. } => Self::NameTaken(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<QuantizeError> for NodeError {
    fn from(error: QuantizeError) -> Self {
        match error {
            QuantizeError::Publish(error) => error.into(),
            QuantizeError::Kind(_)
            | QuantizeError::Unsuitable { .. }
            | QuantizeError::Write(WriteError::Tensor { .. }) => Self::Invalid(error.to_string()),
            QuantizeError::NoRoom { .. } | QuantizeError::Write(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<DirectoryError> for NodeError {
    fn from(error: DirectoryError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<EngineError> for NodeError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Busy(_) => Self::Busy(error.to_string()),
            EngineError::Weights(WeightsError::Source(error)) => error.into(),
            EngineError::Weights(WeightsError::Unsettled | WeightsError::Stopped)
            | EngineError::Compute(_)
            | EngineError::Stalled(_)
            | EngineError::Stopped => Self::Failed(error.to_string()),
            // The model or the request cannot be run as it is; asking again does not help.
            _ => Self::Invalid(error.to_string()),
        }
    }
}
