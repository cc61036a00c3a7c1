//! Origins: a folder or a web server that is asked when no peer has a chunk.
//!
//! An origin knows nothing of swarms. It holds files under names that follow from what is in them:
//!
//! ```text
//!   manifests/<64 hexadecimal digits of the model id>       the encoded manifest
//!   chunks/<first 2 digits>/<64 digits of the chunk id>     the chunk's bytes
//! ```
//!
//! That is also how the store lays out its folder. [`sync()`] writes such a folder, [`Object`] reads one.

mod failure;
mod object;
mod sync;

pub use object::{Object, OpenError};
pub use sync::{SyncError, Synced, folder, sync};

use surf_protocol::{ChunkId, ModelId};

/// Where an origin has a chunk.
fn chunk_path(id: ChunkId) -> String {
    let hex = id.to_hex();
    format!("chunks/{}/{hex}", &hex[..2])
}

/// Where an origin has a manifest.
fn manifest_path(model: ModelId) -> String {
    format!("manifests/{}", model.to_hex())
}
