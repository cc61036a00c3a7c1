//! Everything that can be set. Only `cli` reads flags, files and the environment; each part of the
//! node gets its own part of this by value.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Settings of a whole node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that holds everything this node keeps: key, index, chunks.
    pub data_dir: PathBuf,
    /// How chunks are kept.
    pub store: Store,
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
}

/// Settings of the control plane.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Where to listen, QUIC and TCP on the same port. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Multiaddresses of nodes to join through, each ending in `/p2p/…`.
    pub bootstrap: Vec<String>,
    /// Whether to find nodes of the same network by multicast DNS.
    pub mdns: bool,
}

/// Settings of the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Where to listen. Port 0 lets the system choose.
    pub listen: SocketAddr,
}

/// Settings of fetching.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// How long a peer may send nothing before its request is moved to another.
    pub stall: Duration,
    /// URLs of folders, buckets or web servers to ask when no peer has a chunk.
    pub origins: Vec<url::Url>,
}

impl Default for Fetch {
    fn default() -> Self {
        Self { stall: Duration::from_secs(3), origins: Vec::new() }
    }
}

/// Settings of inference.
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    /// Bytes of weights that may stay in memory.
    pub memory: u64,
    /// What computes.
    pub device: Device,
    /// In what precision activations are kept.
    pub dtype: Precision,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is one that this program was built for, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// In what precision activations are kept. Weights keep their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// What suits the device: f32 on a CPU.
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
