//! Making the libp2p swarm, and listening: QUIC and TCP on the same port number; in a private swarm, TCP
//! only.

use std::{net::SocketAddr, time::Duration};

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
    incoming: mpsc::Sender<Incoming>,
) -> Result<Swarm<Behaviour>, BoxError> {
    let keypair = identity.keypair();
    let transport = match &members.key {
        Some(key) => private(&keypair, PreSharedKey::new(key.of_control_plane()))?,
        None => open(&keypair)?,
    };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_dns()?
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|keypair, places| {
            let reach = Reach::new(keypair.public().to_peer_id(), places, config.relay, incoming);
            Behaviour::new(keypair, config.mdns, members.access.clone(), reach)
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

/// Listens on `addr`, and says where that is.
pub(super) async fn listen(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    is_private: bool,
) -> Result<Bound, ListenError> {
    let failed = |cause: BoxError| ListenError::Address { addr, cause };
    let mut tries = if addr.port() == 0 { PORTS_TRIED } else { 1 };
    let mut bound = loop {
        tries -= 1;
        let mut bound = Bound::default();
        let listening = match is_private {
            true => listen_on_tcp(swarm, addr, &mut bound).await,
            false => listen_on_both(swarm, addr, &mut bound).await,
        };
        match listening {
            Ok(()) => break bound,
            Err(cause) if tries == 0 => return Err(failed(cause)),
            Err(cause) => tracing::debug!(%cause, "trying another port"),
        }
    };
    if addr.ip().is_unspecified() {
        // One address per interface; they come one after the other.
        while let Ok(event) = timeout(MORE_ADDRS, swarm.select_next_some()).await {
            bound.keep(event);
        }
    }
    Ok(bound)
}

async fn listen_on_tcp(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    bound: &mut Bound,
) -> Result<(), BoxError> {
    // libp2p's TCP sockets share their port with those of other programs of the same user. This one does
    // not, so it finds out whether the port is free.
    drop(std::net::TcpListener::bind(addr)?);
    let tcp = swarm.listen_on(addrs::tcp(addr))?;
    first_addr(swarm, tcp, bound).await?;
    Ok(())
}

async fn listen_on_both(
    swarm: &mut Swarm<Behaviour>,
    addr: SocketAddr,
    bound: &mut Bound,
) -> Result<(), BoxError> {
    // UDP first: see `listen_on_tcp`.
    let udp = swarm.listen_on(addrs::quic(addr))?;
    let port = first_addr(swarm, udp, bound).await?;
    let tcp = match swarm.listen_on(addrs::tcp(SocketAddr::new(addr.ip(), port))) {
        Ok(tcp) => tcp,
        Err(error) => {
            swarm.remove_listener(udp);
            return Err(error.into());
        }
    };
    if let Err(error) = first_addr(swarm, tcp, bound).await {
        swarm.remove_listener(udp);
        return Err(error);
    }
    Ok(())
}

impl Bound {
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
