//! Who belongs to the swarm, as values: the key that its members share, and lists of peers.
//!
//! One [`Members`] goes to both planes, so that neither can be open where the other is closed. How the
//! key is proven is theirs: `swarm/listen.rs` and `transfer/proof.rs`.

mod access;
mod key;

pub use access::Access;
pub use key::{NotASwarmKey, SwarmKey, SwarmKeyError};

/// Who belongs to the swarm. By default, whoever comes.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// What every node of a private swarm has. `None`: the swarm is open.
    pub key: Option<SwarmKey>,
    /// Which peers this node deals with.
    pub access: Access,
}
