//! What goes when a quota is full: what the node's own policy says.

use surf_node::store::evict::{Candidate, sweep};
use surf_protocol::Bitmap;

use crate::model::Model;

/// Positions of the chunks to remove so that `after` bytes may be here. `None` if they cannot be.
pub(super) fn victims(
    model: &Model,
    has: &Bitmap,
    used: &[u64],
    leased: bool,
    (quota, after): (u64, u64),
) -> Option<Vec<usize>> {
    let candidate = |at: usize| Candidate {
        id: model.entry(at).id,
        size: model.chunk_size(),
        last_use: used[at],
        copies: None,
        protected: leased,
    };
    let candidates = (0..model.chunks()).filter(|&at| has.contains(at)).map(candidate);
    let victims = sweep(candidates, quota, after)?;
    Some(victims.into_iter().filter_map(|id| model.manifest().position(id)).collect())
}
