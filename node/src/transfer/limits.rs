//! What a peer may make us hold or wait for, in one place, each with its reason.

use std::time::Duration;

use surf_protocol::limits::{CHUNK_SIZE_MAX, MANIFEST_SIZE_MAX, STREAMS_PER_PEER_MAX};

/// The part of all connections that others cannot take: a quarter, so that a crowd that wants something
/// from us cannot keep us from asking somebody.
pub(super) const DIALLED_SHARE: usize = 4;

/// The part of what others can take from which on a stranger has to show that its address is its own
/// before we work for it: a quarter.
pub(super) const EASY_SHARE: usize = 4;

/// Connections that one peer may have to us. It needs one; the others cover reconnecting.
pub(super) const ACCEPTED_PER_PEER: usize = 4;

/// Streams through tunnels that others may have open to us, and one peer of them: as many as on the one
/// connection that it would have if it could dial us.
pub(super) const TUNNELLED_MAX: usize = 512;
pub(super) const TUNNELLED_PER_PEER: usize = STREAMS_PER_PEER_MAX as usize;

/// How long after the last stream through it a tunnel is still how a peer is reached.
pub(super) const TUNNEL_KEPT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// Peers that are remembered as banned. The first banned go first.
pub(super) const BANNED_MAX: usize = 4096;

/// Peers without a connection whose traffic is remembered.
pub(super) const REMEMBERED_MAX: usize = 1024;

/// Bytes that one peer may have asked for and not yet received. What is being sent is held as one for all:
/// [`BODIES_MAX`].
pub(super) const OUTSTANDING_PER_PEER: usize = 64 * 1024 * 1024;

/// Requests of one peer that may wait for others of its own to be done. Beyond this it is told to
/// ask again later, and can ask somebody else instead.
pub(super) const WAITING_PER_PEER: usize = 48;

/// How long such a request may wait before it is told the same.
pub(super) const WAITING_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a request may wait for its turn to be served before it is told to ask again. Somebody who
/// takes nothing is cut off before that.
pub(super) const TURN_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes of bodies that are held while they are sent, for all peers together: room for the largest manifest beside
/// as many chunks as a fast line has under way.
pub(super) const BODIES_MAX: usize = 96 * 1024 * 1024;

/// How long a request waits for such room before it is told to ask again.
pub(super) const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a peer may take nothing of a body while others wait for room.
pub(super) const STALL_WANTED: Duration = Duration::from_secs(1);

/// Answers too small to need a turn that a peer may have without having taken them: few until it has taken one.
pub(super) const SMALL_FIRST: usize = 8;
pub(super) const SMALL_MAX: usize = STREAMS_PER_PEER_MAX as usize;

/// Models of which a peer may listen at a time to what is here: each is a bitmap here, and a frame on its way.
pub(super) const TOLD_PER_PEER_MAX: usize = 32;

/// Refusals that a peer is told at once, and how far apart the rest are: whoever asks again and again for what it is
/// refused would keep us busy with saying so.
pub(super) const REFUSALS_AT_ONCE: u32 = 16;
pub(super) const REFUSAL_PACE: Duration = Duration::from_millis(100);

/// A connection that has been of no use for this long makes room for a new one, where there are too many.
pub(super) const USELESS: Duration = Duration::from_secs(5);

/// How long connecting may take, over all addresses of a peer.
pub(super) const DIAL_TIME_MAX: Duration = Duration::from_secs(5);

/// How long the other end of a connection of a private swarm may take to prove the swarm key. It is two
/// packets.
pub(super) const PROOF_TIME_MAX: Duration = Duration::from_secs(3);

/// Connections to us that have not proven the swarm key yet, from the first packet on. They do not count
/// as connections that a user's limit allows: strangers cannot take the places of members. Beyond this, the next is refused.
pub(super) const UNPROVEN_MAX: usize = 128;

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

const _: () = assert!(STALL.as_secs() < TURN_TIME_MAX.as_secs());
const _: () = assert!(CHUNK_SIZE_MAX < OUTSTANDING_PER_PEER);
const _: () = assert!(MANIFEST_SIZE_MAX <= OUTSTANDING_PER_PEER, "the largest body must fit");
const _: () = assert!(MANIFEST_SIZE_MAX < BODIES_MAX, "and something beside it");
