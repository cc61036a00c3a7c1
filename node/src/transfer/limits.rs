//! What a peer may make us hold or wait for, in one place, each with its reason.

use std::time::Duration;

use surf_protocol::limits::{CHUNK_SIZE_MAX, MANIFEST_SIZE_MAX};

/// Connections that others may have to us. Beyond this, the next is refused, not queued.
pub(super) const ACCEPTED_MAX: usize = 512;

/// From here on, a stranger has to show that its address is its own before we work for it.
pub(super) const ACCEPTED_EASILY: usize = ACCEPTED_MAX / 4;

/// Connections that one peer may have to us. It needs one; the others cover reconnecting.
pub(super) const ACCEPTED_PER_PEER: usize = 4;

/// Connections that we may have to others.
pub(super) const DIALLED_MAX: usize = 512;

/// Peers that are remembered as banned. The first banned go first.
pub(super) const BANNED_MAX: usize = 4096;

/// Peers without a connection whose traffic is remembered.
pub(super) const REMEMBERED_MAX: usize = 1024;

/// Bytes that one peer may have asked for and not yet received. Chunks are mapped files, so this
/// is mostly page cache; a manifest or a proof is memory.
pub(super) const OUTSTANDING_PER_PEER: usize = 64 * 1024 * 1024;

/// Requests of one peer that may wait for others of its own to be done. Beyond this it is told to
/// ask again later, and can ask somebody else instead.
pub(super) const WAITING_PER_PEER: usize = 48;

/// How long such a request may wait before it is told the same.
pub(super) const WAITING_TIME_MAX: Duration = Duration::from_secs(10);

/// How long connecting may take, over all addresses of a peer.
pub(super) const DIAL_TIME_MAX: Duration = Duration::from_secs(5);

/// How long an address has for itself before the next is tried beside it.
pub(super) const DIAL_STAGGER: Duration = Duration::from_millis(200);

/// How long a request may take to arrive. It is one packet.
pub(super) const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a peer may take nothing of what it asked for.
pub(super) const STALL: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 15 });

/// Bytes in [`STALL`] that count as progress. Above what keeping a connection alive takes.
pub(super) const STALL_BYTES: u64 = 4 * 1024;

/// How long we keep a connection that we do not use.
pub(super) const UNUSED_MAX: Duration = Duration::from_secs(120);

const _: () = assert!(CHUNK_SIZE_MAX < OUTSTANDING_PER_PEER);
const _: () = assert!(MANIFEST_SIZE_MAX <= OUTSTANDING_PER_PEER, "the largest body must fit");
