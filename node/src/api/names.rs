//! What is said about signed names.

use serde::{Deserialize, Serialize};

/// Which name to publish, and for which model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRequest {
    /// The name.
    pub name: String,
    /// A model id, a prefix of one, an alias, or a signed name.
    pub model: String,
}

/// A signed name, `PEER/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NameInfo {
    /// The name, without the peer.
    pub name: String,
    /// Who published it.
    pub peer: String,
    /// The id of the model that it means.
    pub model: String,
    /// The number of the record. Of two records the larger counts.
    pub sequence: u64,
    /// Until when the record is good, in seconds since 1970. Publishers renew it before.
    pub expires: u64,
    /// The model that the name meant before, if it was set just now and meant another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<String>,
}

/// Which name to look up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookUpRequest {
    /// `PEER/NAME`.
    pub name: String,
}
