//! Every upper bound of the protocol, in one place.
//!
//! A peer is a stranger, and so is a file. Nothing that arrives from one may choose how much memory,
//! time or disk we spend; each constant says what it bounds and why it has the value it has.

/// Bytes in a chunk. The chunker makes them smaller; whoever cuts otherwise is bounded by this.
pub const CHUNK_SIZE_MAX: usize = 8 * 1024 * 1024;

/// Bytes in an encoded manifest. A 700 GB mixture of experts in 90,000 chunks and as many tensors
/// needs about 15 MiB.
pub const MANIFEST_SIZE_MAX: usize = 64 * 1024 * 1024;

/// Chunks a manifest may name: one for each 2 MiB of 2 TiB. Bounds bitmaps too.
pub const MANIFEST_CHUNKS_MAX: usize = 1 << 20;

/// Tensors a manifest may list, of all files together: five copies of a mixture of experts with 92,000. An
/// empty one takes ten bytes, and 140 in memory.
pub const MANIFEST_TENSORS_MAX: usize = 1 << 19;

/// Bytes in the path of a published file, as most file systems bound them.
pub const PATH_SIZE_MAX: usize = 1024;

/// Dimensions of a tensor. Nobody uses more than six.
pub const TENSOR_RANK_MAX: usize = 16;

/// Bytes in an encoded request. It names one chunk or model and a range, so it is tiny.
pub const REQUEST_SIZE_MAX: usize = 256;

/// Bytes in an encoded reply header: a size, or a reason for refusing.
pub const REPLY_HEADER_SIZE_MAX: usize = 256;

/// Bytes in encoded holdings: one bit for each chunk, and its length. A list of changes is shorter.
pub const HOLDINGS_SIZE_MAX: usize = MANIFEST_CHUNKS_MAX / 8 + 16;

/// Addresses in a contact record. A host with more interfaces than this names its first.
pub const CONTACT_ADDRS_MAX: usize = 16;

/// Bytes in an encoded signed contact record.
pub const CONTACT_SIZE_MAX: usize = 1024;

/// Bytes in a name, as people write it.
pub const NAME_TEXT_SIZE_MAX: usize = 128;

/// Bytes in an encoded signed name: the name, and some 150 of ids, numbers and signature.
pub const NAME_SIZE_MAX: usize = 512;

/// Seconds that a signed name may be good for when it is taken. Publishers renew theirs every few hours;
/// what nobody renews should go, and nobody should be made to keep anything for good.
pub const NAME_LIFE_MAX_S: u64 = 7 * 24 * 3600;

/// Requests a peer may have open at once on one connection. Enough to keep a fast link full with
/// chunks, few enough that a greedy peer holds little of our memory.
pub const STREAMS_PER_PEER_MAX: u32 = 64;

const _: () = assert!(REQUEST_SIZE_MAX < CHUNK_SIZE_MAX);
const _: () = assert!(CHUNK_SIZE_MAX <= u32::MAX as usize, "chunk sizes are sent as u32");
