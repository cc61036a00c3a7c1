//! Writing models to origins.

use serde::{Deserialize, Serialize};

/// What to write to an origin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginSyncRequest {
    /// A model id, a prefix of one, an alias, or a signed name.
    pub model: String,
    /// The folder to write to, as a `file://` URL on the node's machine.
    pub url: String,
}

/// A model is at an origin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OriginSynced {
    /// Its id.
    pub model: String,
    /// Chunks of the model.
    pub chunks: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Chunks that were not there, or were damaged.
    pub new_chunks: u64,
    /// Bytes in them.
    pub new_bytes: u64,
}
