//! Everything that can be set. Only `cli` reads flags, files and the environment; each part of the
//! node gets its own part of this by value.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::Deserialize;

use crate::members::Members;

mod units;

pub use units::{NotAQuantity, Rate, Size, Span};

/// Settings of a whole node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that holds everything this node keeps: key, index, chunks.
    pub data_dir: PathBuf,
    /// How chunks are kept.
    pub store: Store,
    /// Who belongs to the swarm. One value for both planes, so that neither is open by mistake.
    pub members: Members,
    /// How the node takes part in the control plane.
    pub swarm: Swarm,
    /// How the node takes part in the data plane.
    pub transfer: Transfer,
    /// How chunks are fetched.
    pub fetch: Fetch,
    /// How models are run.
    pub engine: Engine,
    /// How other programs drive the node.
    pub rpc: Rpc,
}

/// Settings of the chunk store.
#[derive(Clone, Debug)]
pub struct Store {
    /// Folder that holds the index and the chunk files.
    pub dir: PathBuf,
    /// Bytes that the chunk files may take. Ranges of users' own files do not count.
    pub quota: u64,
    /// In what time everything is read and hashed once, if at all.
    pub scrub: Option<Duration>,
}

impl Store {
    /// In what time everything is read once unless told otherwise. Disks lose a sector in years; 100 GB in
    /// 30 days are 40 kB a second.
    pub const SCRUB: Duration = Duration::from_secs(30 * 24 * 3600);
    /// No sooner: a scrubber that never rests is a load test.
    pub const SCRUB_MIN: Duration = Duration::from_secs(60);
}

/// Settings of the control plane.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Where to listen, QUIC and TCP on the same port; in a private swarm, TCP only. Port 0 lets the
    /// system choose. `[::]` means all addresses of both families.
    pub listen: Vec<SocketAddr>,
    /// Multiaddresses of nodes to join through, each ending in `/p2p/…`.
    pub bootstrap: Vec<String>,
    /// Whether to find nodes of the same network by multicast DNS.
    pub mdns: bool,
    /// How the node helps others through NAT.
    pub relay: Relay,
}

/// Settings of relaying: carrying the bytes of two nodes that cannot dial each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    /// Whether to be a relay for others.
    pub serve: Relaying,
    /// Whether chunks may pass: those of others through this node, and this node's own through others.
    pub bulk: bool,
}

/// Whether to be a relay for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relaying {
    /// As soon as it is known that others can reach this node.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Settings of the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Where to listen. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// How much may move, and with how many.
    pub limits: Limits,
}

/// How much may move, over all peers together. The rates can be changed while the node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What is sent to peers.
    pub up: Option<Rate>,
    /// What peers send.
    pub down: Option<Rate>,
    /// What origins send.
    pub origin: Option<Rate>,
    /// Connections of the data plane, in both directions.
    pub connections: usize,
}

impl Limits {
    /// Connections unless told otherwise: a large swarm, and at 32 KiB or so each hardly any memory.
    pub const CONNECTIONS: usize = 512;
    /// Fewer would leave no room for both directions.
    pub const CONNECTIONS_MIN: usize = 8;
}

impl Default for Limits {
    fn default() -> Self {
        Self { up: None, down: None, origin: None, connections: Self::CONNECTIONS }
    }
}

/// Settings of fetching.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// How long a peer may send nothing before its request is moved to another.
    pub stall: Duration,
    /// How long what is wanted waits for holders that have gone, before it fails.
    pub patience: Duration,
    /// URLs of folders, buckets or web servers to ask when no peer has a chunk.
    pub origins: Vec<url::Url>,
}

impl Default for Fetch {
    fn default() -> Self {
        Self { stall: Duration::from_secs(3), patience: Duration::from_secs(30), origins: Vec::new() }
    }
}

/// Settings of inference.
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    /// Bytes that a running model may hold: weights, keys and values, activations.
    pub memory: u64,
    /// What computes.
    pub device: Device,
    /// In what precision activations are kept.
    pub dtype: Precision,
}

/// What computes. Written `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// A GPU if there is one that this program was built for, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// In what precision activations are kept. Weights keep their own. Written `auto`, `f32`, `bf16` or
/// `f16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Precision {
    /// f32, in which all devices compute the same.
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

/// Settings of the RPC.
#[derive(Clone, Debug)]
pub struct Rpc {
    /// Where to listen. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What clients must present as `Authorization: Bearer …`. Needed off loopback.
    pub token: Option<String>,
}

/// Text that names no choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct NotAChoice {
    text: String,
    expected: &'static str,
}

impl FromStr for Device {
    type Err = NotAChoice;

    fn from_str(text: &str) -> Result<Self, NotAChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                text.strip_prefix("cuda:").and_then(|number| number.parse().ok()).map(Self::Cuda).ok_or(
                    NotAChoice { text: text.to_owned(), expected: "a device: auto, cpu, cuda or cuda:N" },
                )
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Precision {
    type Err = NotAChoice;

    fn from_str(text: &str) -> Result<Self, NotAChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(NotAChoice { text: text.to_owned(), expected: "a precision: auto, f32, bf16 or f16" }),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = NotAChoice;

    fn try_from(text: String) -> Result<Self, NotAChoice> {
        text.parse()
    }
}

impl TryFrom<String> for Precision {
    type Error = NotAChoice;

    fn try_from(text: String) -> Result<Self, NotAChoice> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_back() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
