//! Making the libp2p swarm, and listening: QUIC and TCP on the same port number; in a private swarm, TCP
//! only. `[::]` means all addresses of both families, as with other servers; libp2p's sockets have one family each,
//! so there are two of each kind, with the same port.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, ListenerId},
        upgrade::Version,
    },
    identity::Keypair,
    noise,
    pnet::{PnetConfig, PreSharedKey},
    quic,
    swarm::SwarmEvent,
    tcp, yamux,
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    ListenError, addrs,
    behaviour::{Behaviour, BehaviourEvent},
    crowd::Busy,
    gate::Gate,
    reach::Reach,
};
use crate::{config, fetch::Incoming, identity::Identity, members::Members};

/// How long a connection is kept that no protocol uses. Longer than the five minutes after which
/// Kademlia looks round, so that neighbours stay neighbours.
const UNUSED_MAX: Duration = Duration::from_secs(6 * 60);

/// A peer that says nothing for this long is gone. QUIC keeps connections alive by itself.
const QUIC_IDLE_MAX_MS: u32 = 8_000;
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Bytes on their way on one QUIC stream and connection. Messages have hundreds; but where the data plane
/// cannot be dialled, chunks come here, 300 Mbit/s at 50 ms.
const QUIC_STREAM_WINDOW: u32 = 512 * 1024;
const QUIC_WINDOW: u32 = 2 * 1024 * 1024;

/// How often a port is chosen anew when it is free for UDP but not for TCP.
const PORTS_TRIED: usize = 16;

/// How long the transports may take to say where they listen, and to say where else.
const FIRST_ADDR: Duration = Duration::from_secs(5);
const MORE_ADDRS: Duration = Duration::from_millis(100);

/// Where we listen, and what has happened before we knew all of it: neighbours answer at once.
#[derive(Default)]
pub(super) struct Bound {
    pub(super) addrs: Vec<Multiaddr>,
    pub(super) early: Vec<SwarmEvent<BehaviourEvent>>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the swarm speaks over: in an open swarm QUIC and TCP, in a private one TCP behind `pnet`, which
/// encrypts everything from the first byte on with a key that only members have. It has no form for QUIC.
type Transport = Boxed<(PeerId, StreamMuxerBox)>;

pub(super) fn build(
    identity: &Identity,
    config: &config::Swarm,
    members: &Members,
    (incoming, busy): (mpsc::Sender<Incoming>, Busy),
) -> Result<Swarm<Behaviour>, BoxError> {
    let keypair = identity.keypair();
    let transport = match &members.key {
        Some(key) => private(&keypair, PreSharedKey::new(key.of_control_plane()))?,
        None => open(&keypair)?,
    };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| Gate::new(transport))?
        .with_dns()?
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|keypair, places| {
            let me = keypair.public().to_peer_id();
            let reach = Reach::new(me, places, config.relay, (incoming, busy.clone()));
            Behaviour::new(keypair, config.mdns, members.access.clone(), reach, busy)
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(UNUSED_MAX))
        .build();
    Ok(swarm)
}

fn open(keypair: &Keypair) -> Result<Transport, BoxError> {
    let mut config = quic::Config::new(keypair);
    config.max_idle_timeout = QUIC_IDLE_MAX_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_WINDOW;
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let tcp = tcp_transport()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(tcp.or_transport(quic).map(|either, _| either.into_inner()).boxed())
}

fn private(keypair: &Keypair, key: PreSharedKey) -> Result<Transport, BoxError> {
    let tcp = tcp_transport()
        .and_then(move |socket, _| PnetConfig::new(key).handshake(socket))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(tcp.boxed())
}

fn tcp_transport() -> tcp::tokio::Transport {
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
}

/// Listens on all of `addrs`, and says where that is.
pub(super) async fn listen_all(
    swarm: &mut Swarm<Behaviour>,
    addrs: &[SocketAddr],
    is_private: bool,
) -> Result<Bound, ListenError> {
    let mut bound = Bound::default();
    for (at, &addr) in addrs.iter().enumerate() {
        if addr.port() != 0 && addrs[..at].contains(&addr) {
            continue;
        }
        let failed = |cause: BoxError| ListenError::Address { addr, cause };
        let is_any_v4 = |addr: &SocketAddr| addr.ip() == Ipv4Addr::UNSPECIFIED;
        let both = addr.ip() == Ipv6Addr::UNSPECIFIED && !addrs.iter().any(is_any_v4);
        let addr = if both { or_v4(addr) } else { addr };
        let any_v4 = (both && addr.is_ipv6()).then_some(Ipv4Addr::UNSPECIFIED);
        let mut tries = if addr.port() == 0 { PORTS_TRIED } else { 1 };
        loop {
            tries -= 1;
            match listen_on(swarm, addr, any_v4, (&mut bound, is_private)).await {
                Ok(()) => break,
                Err(cause) if tries == 0 => return Err(failed(cause)),
                Err(cause) => tracing::debug!(%cause, "trying another port"),
            }
        }
    }
    if addrs.iter().any(|addr| addr.ip().is_unspecified()) {
        // One address per interface; they come one after the other.
        while let Ok(event) = timeout(MORE_ADDRS, swarm.select_next_some()).await {
            bound.keep(event);
        }
    }
    Ok(bound)
}

/// `[::]` with this port, or `0.0.0.0` on a host that has no IPv6.
fn or_v4(addr: SocketAddr) -> SocketAddr {
    match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => addr,
        Err(error) => {
            tracing::warn!(%error, "this host has no IPv6; listening for IPv4 alone");
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port())
        }
    }
}

/// Fails if another program listens on `addr`.
fn bind_tcp(addr: SocketAddr) -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // What another connection has left behind is nobody who listens.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1)?;
    Ok(socket)
}

/// Listens on `addr`, and with the same port on `also`.
async fn listen_on(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    also: Option<Ipv4Addr>,
    (bound, is_private): (&mut Bound, bool),
) -> Result<(), BoxError> {
    let (listeners, port) = listen_on_one(swarm, addr, (bound, is_private)).await?;
    let Some(ip) = also else { return Ok(()) };
    match listen_on_one(swarm, SocketAddr::new(ip.into(), port), (bound, is_private)).await {
        Ok(_) => Ok(()),
        Err(error) => {
            for listener in listeners {
                swarm.remove_listener(listener);
            }
            bound.forget(port);
            Err(error)
        }
    }
}

/// Listens on `addr`. Returns the listeners, and the port.
async fn listen_on_one(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    (bound, is_private): (&mut Bound, bool),
) -> Result<(Vec<ListenerId>, u16), BoxError> {
    match is_private {
        true => listen_on_tcp(swarm, addr, bound).await,
        false => listen_on_both(swarm, addr, bound).await,
    }
}

async fn listen_on_tcp(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    bound: &mut Bound,
) -> Result<(Vec<ListenerId>, u16), BoxError> {
    // libp2p's TCP sockets share their port with those of other programs of the same user. This one does
    // not, so it finds out whether the port is free.
    drop(bind_tcp(addr)?);
    let tcp = swarm.listen_on(addrs::tcp(addr))?;
    let port = first_addr(swarm, tcp, bound).await?;
    Ok((vec![tcp], port))
}

async fn listen_on_both(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    bound: &mut Bound,
) -> Result<(Vec<ListenerId>, u16), BoxError> {
    // UDP first: see `listen_on_tcp`.
    let udp = swarm.listen_on(addrs::quic(addr))?;
    let port = first_addr(swarm, udp, bound).await?;
    let tcp = match swarm.listen_on(addrs::tcp(SocketAddr::new(addr.ip(), port))) {
        Ok(tcp) => tcp,
        Err(error) => {
            swarm.remove_listener(udp);
            bound.forget(port);
            return Err(error.into());
        }
    };
    if let Err(error) = first_addr(swarm, tcp, bound).await {
        swarm.remove_listener(udp);
        bound.forget(port);
        return Err(error);
    }
    Ok((vec![udp, tcp], port))
}

impl Bound {
    /// Nothing of ours listens on `port` after all.
    fn forget(&mut self, port: u16) {
        self.addrs.retain(|addr| addrs::port(addr) != Some(port));
    }

    fn keep(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => self.addrs.push(address),
            other => self.early.push(other),
        }
    }
}

/// The port of `listener`, when it has one. Everything else that happens goes to `bound`.
async fn first_addr(
    swarm: &mut Swarm<Behaviour>,
    listener: ListenerId,
    bound: &mut Bound,
) -> Result<u16, BoxError> {
    loop {
        let event = timeout(FIRST_ADDR, swarm.select_next_some()).await;
        match event.map_err(|_| "no interface has such an address")? {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                bound.addrs.push(address.clone());
                if let Some(port) = addrs::port(&address)
                    && listener_id == listener
                {
                    return Ok(port);
                }
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } if listener_id == listener => {
                reason?;
                return Err("the listener was closed".into());
            }
            other => bound.keep(other),
        }
    }
}
