//! What `join` can be told, in layers: flag over environment over `config.toml` over default.
//!
//! [`Settings`] is one layer. Clap puts flags over the environment; [`Settings::or`] puts the result
//! over the file; [`Settings::resolve`] fills in defaults and gives the node's configuration.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use serde::Deserialize;
use surf_protocol::NodeId;
use url::Url;

use super::{RPC_DEFAULT, error::CliError};
use crate::{
    config::{self, Config, Device, Precision, Rate, Size, Span},
    members::{Access, Members, SwarmKey, SwarmKeyError},
};

/// The file, in the data folder.
const FILE: &str = "config.toml";

/// Where the control plane listens.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8470);
/// Where the data plane listens.
const TRANSFER_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8472);
/// Half of the free disk for chunks, half of the memory for weights: a guest's share.
const SHARE_DEFAULT: Size = Size::Share(5000);

/// Connections that can be asked for. Each has buffers and a timer.
const CONNECTIONS_MAX: u32 = 16_384;

/// One layer of what `join` can be told.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Where to listen for other nodes: the control plane, QUIC and TCP (with a swarm key, TCP only)
    /// [default: 0.0.0.0:8470]. `[::]:PORT` is all addresses of IPv4 and IPv6. May be given many times
    #[arg(long, env = "SURF_LISTEN", value_name = "IP:PORT", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Where to listen for other nodes: the data plane, QUIC [default: 0.0.0.0:8472]
    #[arg(long, env = "SURF_TRANSFER", value_name = "IP:PORT")]
    pub(crate) transfer: Option<SocketAddr>,
    /// Where to listen for clients. The flag and the variable belong to all commands.
    #[arg(skip)]
    pub(crate) rpc: Option<String>,
    /// Node to join through: a multiaddress that ends in /p2p/PEER. May be given many times
    #[arg(long, env = "SURF_BOOTSTRAP", value_name = "MULTIADDR", value_delimiter = ',', value_parser = multiaddr)]
    pub(crate) bootstrap: Vec<String>,
    /// Disk that chunks may take, such as 100GB or 25% of what is free [default: 50%]
    #[arg(long, env = "SURF_CACHE_SIZE", value_name = "SIZE")]
    pub(crate) cache_size: Option<Size>,
    /// Memory that a running model may take, such as 8GiB or 25% of all [default: 50%]
    #[arg(long, env = "SURF_MEMORY", value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// What computes: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, env = "SURF_DEVICE", value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// In what precision: auto, f32, bf16 or f16 [default: auto]
    #[arg(long, env = "SURF_DTYPE", value_name = "DTYPE")]
    pub(crate) dtype: Option<Precision>,
    /// Most that is sent to peers each second, such as 20Mbit or 4MiB [default: no limit]
    #[arg(long, env = "SURF_UP", value_name = "RATE")]
    pub(crate) up: Option<Rate>,
    /// Most that is taken from peers each second [default: no limit]
    #[arg(long, env = "SURF_DOWN", value_name = "RATE")]
    pub(crate) down: Option<Rate>,
    /// Most that is taken from origins each second [default: no limit]
    #[arg(long, env = "SURF_ORIGIN_RATE", value_name = "RATE")]
    pub(crate) origin_rate: Option<Rate>,
    /// Most connections with peers at a time, in both directions [default: 512]
    #[arg(long, env = "SURF_MAX_CONNECTIONS", value_name = "N", value_parser = connections)]
    pub(crate) max_connections: Option<u32>,
    /// Do not look for nodes of the same network by multicast DNS
    #[arg(
        long,
        env = "SURF_NO_MDNS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) no_mdns: Option<bool>,
    /// Help nodes that cannot dial each other to meet: auto (once it is known that others can reach this
    /// one), on or off [default: auto]
    #[arg(
        long,
        env = "SURF_RELAY",
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on"
    )]
    pub(crate) relay: Option<Relaying>,
    /// Let chunks pass through relays: others' through this node, this node's through others. Without it
    /// relays only help to find a direct way
    #[arg(
        long,
        env = "SURF_RELAY_BULK",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) relay_bulk: Option<bool>,
    /// Folder (file:) or web server (http:, https:) to ask for chunks that no peer has. May be given
    /// many times
    #[arg(long, env = "SURF_ORIGIN", value_name = "URL", value_delimiter = ',', value_parser = origin)]
    pub(crate) origin: Vec<String>,
    /// File with the key of a private swarm, which all its nodes have: see `surf-node key new`
    #[arg(long, env = "SURF_SWARM_KEY", value_name = "FILE")]
    pub(crate) swarm_key: Option<PathBuf>,
    /// Peer id of a node to deal with; if there are any, with no others. May be given many times
    #[arg(long, env = "SURF_ALLOW", value_name = "PEER", value_delimiter = ',', value_parser = peer)]
    pub(crate) allow: Vec<String>,
    /// Peer id of a node not to deal with, even if it is allowed. May be given many times
    #[arg(long, env = "SURF_DENY", value_name = "PEER", value_delimiter = ',', value_parser = peer)]
    pub(crate) deny: Vec<String>,
    /// File with the token that clients must present. The flag and the variable belong to all commands.
    #[arg(skip)]
    pub(crate) rpc_token: Option<PathBuf>,
    /// In what time everything on the disk is read and checked once, such as 30d, or off [default: 30d]
    #[arg(long, env = "SURF_SCRUB", value_name = "TIME")]
    pub(crate) scrub: Option<Scrub>,
    /// How to log to stderr [default: text]
    #[arg(long, env = "SURF_LOG", value_name = "FORMAT", value_enum)]
    pub(crate) log: Option<LogFormat>,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// When to be a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Relaying {
    /// Once it is known that others can reach this node
    #[default]
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

impl From<Relaying> for config::Relaying {
    fn from(when: Relaying) -> Self {
        match when {
            Relaying::Auto => Self::Auto,
            Relaying::On => Self::Always,
            Relaying::Off => Self::Never,
        }
    }
}

/// In what time everything is read once, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Scrub(Option<Duration>);

impl FromStr for Scrub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let least = config::Store::SCRUB_MIN;
        match text.parse::<Span>() {
            Ok(Span(period)) if least <= period => Ok(Self(Some(period))),
            Ok(_) => Err(format!("{text:?} is too short: {} at least", Span(least))),
            Err(error) => Err(format!("{error}, nor off")),
        }
    }
}

impl TryFrom<String> for Scrub {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How much there is of what sizes are shares of. `None`: the system does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) memory: Option<u64>,
    /// What is free, and what the node's chunks take already: else each start would leave less.
    pub(crate) disk: Option<u64>,
}

impl Settings {
    /// What `config.toml` in `data_dir` says; nothing if it is not there.
    pub(crate) fn read(data_dir: &Path) -> Result<Self, CliError> {
        let path = data_dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let settings = Self::parse(&text)
                    .map_err(|error| CliError::usage(format!("{}{error}", path.display())))?;
                // A relative path in the file is meant from where the file is.
                let from_here = |file: PathBuf| data_dir.join(file);
                let rpc_token = settings.rpc_token.map(from_here);
                let swarm_key = settings.swarm_key.map(from_here);
                Ok(Self { rpc_token, swarm_key, ..settings })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::failed(format!("{} cannot be read: {error}", path.display()))),
        }
    }

    /// The error continues the name of the file: `, line 3: …`.
    fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map(|before| format!(", line {}", before.matches('\n').count() + 1));
            format!(
                "{}: {}",
                line.unwrap_or_default(),
                error.message().replace("unknown field", "unknown key")
            )
        })?;
        for (key, values, check) in [
            ("bootstrap", &settings.bootstrap, multiaddr as fn(&str) -> Result<String, String>),
            ("origin", &settings.origin, origin),
            ("allow", &settings.allow, peer),
            ("deny", &settings.deny, peer),
        ] {
            values
                .iter()
                .try_for_each(|value| check(value).map(drop))
                .map_err(|error| format!(": {key}: {error}"))?;
        }
        if let Some(most) = settings.max_connections {
            connections(&most.to_string()).map_err(|error| format!(": max-connections: {error}"))?;
        }
        Ok(settings)
    }

    /// These settings, and where they say nothing, those of `below`.
    pub(crate) fn or(self, below: Self) -> Self {
        let list = |above: Vec<String>, below| if above.is_empty() { below } else { above };
        Self {
            listen: if self.listen.is_empty() { below.listen } else { self.listen },
            transfer: self.transfer.or(below.transfer),
            rpc: self.rpc.or(below.rpc),
            bootstrap: list(self.bootstrap, below.bootstrap),
            cache_size: self.cache_size.or(below.cache_size),
            memory: self.memory.or(below.memory),
            device: self.device.or(below.device),
            dtype: self.dtype.or(below.dtype),
            up: self.up.or(below.up),
            down: self.down.or(below.down),
            origin_rate: self.origin_rate.or(below.origin_rate),
            max_connections: self.max_connections.or(below.max_connections),
            no_mdns: self.no_mdns.or(below.no_mdns),
            relay: self.relay.or(below.relay),
            relay_bulk: self.relay_bulk.or(below.relay_bulk),
            origin: list(self.origin, below.origin),
            swarm_key: self.swarm_key.or(below.swarm_key),
            allow: list(self.allow, below.allow),
            deny: list(self.deny, below.deny),
            rpc_token: self.rpc_token.or(below.rpc_token),
            scrub: self.scrub.or(below.scrub),
            log: self.log.or(below.log),
        }
    }

    /// The configuration of a node in `data_dir` on a machine like `machine`.
    pub(crate) fn resolve(self, data_dir: PathBuf, machine: Machine) -> Result<Config, CliError> {
        let quota = bytes("cache-size", self.cache_size, "disk is free", machine.disk)?;
        let memory = bytes("memory", self.memory, "memory there is", machine.memory)?;
        let token = self.rpc_token.as_deref().map(read_token).transpose()?;
        let origins = self.origin.iter().map(|url| parse_origin(url).map_err(CliError::usage));
        let key = self.swarm_key.as_deref().map(read_swarm_key).transpose()?;
        let access = Access { allow: peers(&self.allow)?, deny: peers(&self.deny)? };
        Ok(Config {
            members: Members { key, access },
            store: config::Store {
                dir: store_dir(&data_dir),
                quota,
                scrub: self.scrub.unwrap_or(Scrub(Some(config::Store::SCRUB))).0,
            },
            swarm: config::Swarm {
                listen: if self.listen.is_empty() { vec![LISTEN_DEFAULT] } else { self.listen },
                bootstrap: self.bootstrap,
                mdns: !self.no_mdns.unwrap_or(false),
                relay: config::Relay {
                    serve: self.relay.unwrap_or_default().into(),
                    bulk: self.relay_bulk.unwrap_or(false),
                },
            },
            transfer: config::Transfer {
                listen: self.transfer.unwrap_or(TRANSFER_DEFAULT),
                limits: config::Limits {
                    up: self.up,
                    down: self.down,
                    origin: self.origin_rate,
                    connections: self
                        .max_connections
                        .map_or(config::Limits::CONNECTIONS, |most| most as usize),
                },
            },
            fetch: config::Fetch { origins: origins.collect::<Result<_, _>>()?, ..config::Fetch::default() },
            engine: config::Engine {
                memory,
                device: self.device.unwrap_or(Device::Auto),
                dtype: self.dtype.unwrap_or(Precision::Auto),
            },
            rpc: config::Rpc { listen: rpc_addr(self.rpc.as_deref().unwrap_or(RPC_DEFAULT))?, token },
            data_dir,
        })
    }
}

/// An address, or a list of them.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected IP:PORT, or a list of them")]
    enum OneOrMany {
        One(SocketAddr),
        Many(Vec<SocketAddr>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(addr) => vec![addr],
        OneOrMany::Many(addrs) => addrs,
    })
}

/// Where in its folder a node keeps its chunks and their index.
pub(crate) fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// The folder of a node that was told `said`: that, else `$SURF_HOME`, else the platform's.
pub(crate) fn data_dir(said: Option<&Path>) -> Result<PathBuf, CliError> {
    let home = || std::env::var_os("SURF_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let platform = || dirs::data_dir().map(|dir| dir.join("surf-node"));
    let dir = said.map(Path::to_owned).or_else(home).or_else(platform).ok_or_else(|| {
        CliError::usage("this system names no folder for data").hint("say where to keep it with --data-dir")
    })?;
    std::path::absolute(&dir).map_err(|error| CliError::usage(format!("{}: {error}", dir.display())))
}

/// The token in `file`, without the white space around it.
pub(crate) fn read_token(file: &Path) -> Result<String, CliError> {
    let text = fs::read_to_string(file).map_err(|error| {
        CliError::failed(format!("the token file {} cannot be read: {error}", file.display()))
    })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("the token file {} must hold one word of ASCII characters", file.display());
        return Err(CliError::usage(message));
    }
    Ok(token.to_owned())
}

/// The key of a private swarm in `file`.
fn read_swarm_key(file: &Path) -> Result<SwarmKey, CliError> {
    SwarmKey::load(file).map_err(|error| match &error {
        SwarmKeyError::NotAKey { .. } => CliError::usage(error.to_string()),
        SwarmKeyError::File(_) => CliError::failed(error.to_string()),
    })
}

/// `IP:PORT`, or the URL by which clients call the same place.
fn rpc_addr(text: &str) -> Result<SocketAddr, CliError> {
    if text.starts_with("https://") {
        return Err(CliError::usage(format!("{text:?} cannot be: the RPC speaks plain HTTP"))
            .hint("write http://, and let a proxy before it speak TLS"));
    }
    let addr = text.strip_prefix("http://").unwrap_or(text);
    addr.strip_suffix('/').unwrap_or(addr).parse().map_err(|_| {
        CliError::usage(format!("{text:?} is no place for the RPC"))
            .hint("write IP:PORT, such as 127.0.0.1:8471")
    })
}

fn bytes(key: &str, said: Option<Size>, of_what: &str, whole: Option<u64>) -> Result<u64, CliError> {
    match (said.unwrap_or(SHARE_DEFAULT), whole) {
        (Size::Bytes(bytes), _) => Ok(bytes),
        (share, Some(whole)) => Ok(share.of(whole)),
        (share, None) => Err(CliError::usage(format!(
            "{key} is {share}, but this system does not tell how much {of_what}"
        ))
        .hint(format!("say it in bytes: --{key} 8GiB"))),
    }
}

fn connections(text: &str) -> Result<u32, String> {
    let least = config::Limits::CONNECTIONS_MIN;
    match text.parse() {
        Ok(most) if least <= most as usize && most <= CONNECTIONS_MAX => Ok(most),
        _ => Err(format!("{text:?} is not a number from {least} to {CONNECTIONS_MAX}")),
    }
}

/// Only its outline: the swarm reads it.
fn multiaddr(text: &str) -> Result<String, String> {
    match text.rsplit_once("/p2p/") {
        Some((addr, peer)) if addr.starts_with('/') && !peer.is_empty() && !peer.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err(format!(
            "{text:?} is not a multiaddress that ends in /p2p/PEER, such as a running node prints"
        )),
    }
}

fn peer(text: &str) -> Result<String, String> {
    parse_peer(text).map(|_| text.to_owned())
}

fn parse_peer(text: &str) -> Result<NodeId, String> {
    NodeId::from_peer_id(text).ok_or_else(|| {
        format!("{text:?} is not a peer id such as 12D3KooW…, which `surf-node id` prints on its node")
    })
}

fn peers(texts: &[String]) -> Result<BTreeSet<NodeId>, CliError> {
    texts.iter().map(|text| parse_peer(text).map_err(CliError::usage)).collect()
}

fn origin(text: &str) -> Result<String, String> {
    parse_origin(text).map(|_| text.to_owned())
}

fn parse_origin(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|_| format!("{text:?} is not a URL such as https://… or file:///…"))
}
