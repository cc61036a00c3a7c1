//! How the disk is used, and what it has lost.

use serde::{Deserialize, Serialize};

/// What the store holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes in chunk files of our own.
    pub used: u64,
    /// Bytes that `used` may grow to.
    pub quota: u64,
    /// Bytes that stay in users' own files.
    pub referenced: u64,
    /// Chunks, wherever their bytes are.
    pub chunks: u64,
    /// Beyond so many bytes of `used`, chunks are evicted. Below the quota; still lower if the disk has
    /// no room for the quota.
    #[serde(default)]
    pub high: u64,
    /// Down to so many.
    #[serde(default)]
    pub low: u64,
    /// Bytes that are free on the disk, if the system tells.
    #[serde(default)]
    pub free: Option<u64>,
    /// Bytes hashed since the node started, to find out whether what is on the disk is good.
    #[serde(default)]
    pub hashed: u64,
    /// Chunks that were found damaged or gone since the node started.
    #[serde(default)]
    pub damaged: u64,
    /// How far the scrubbing is, unless it is off.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
}

/// The scrubbing: everything is read and hashed once in a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// In how many seconds everything is read once.
    pub period_s: u64,
    /// How much of this round is done, from 0 to 1.
    pub done: f64,
    /// When the last round ended, in seconds since 1970.
    pub finished: Option<u64>,
    /// Bytes read since the node started.
    pub bytes: u64,
    /// Chunks that it has found bad since then.
    pub bad: u64,
}
