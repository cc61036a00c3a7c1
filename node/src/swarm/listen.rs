//! Making the libp2p swarm, and listening: QUIC and TCP on the same port number.

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder, core::transport::ListenerId, noise, swarm::SwarmEvent, tcp, yamux,
};
use tokio::time::timeout;

use super::{
    ListenError, addrs,
    behaviour::{Behaviour, BehaviourEvent},
};
use crate::identity::Identity;

/// How long a connection is kept that no protocol uses. Longer than the five minutes after which
/// Kademlia looks round, so that neighbours stay neighbours.
const UNUSED_MAX: Duration = Duration::from_secs(6 * 60);

/// A peer that says nothing for this long is gone. QUIC keeps connections alive by itself.
const QUIC_IDLE_MAX_MS: u32 = 8_000;
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Bytes on their way on one QUIC stream and connection. Messages have hundreds.
const QUIC_STREAM_WINDOW: u32 = 64 * 1024;
const QUIC_WINDOW: u32 = 1024 * 1024;

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

pub(super) fn build(identity: &Identity, mdns: bool) -> Result<Swarm<Behaviour>, BoxError> {
    let swarm = SwarmBuilder::with_existing_identity(identity.keypair())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)?
        .with_quic_config(|mut quic| {
            quic.max_idle_timeout = QUIC_IDLE_MAX_MS;
            quic.keep_alive_interval = QUIC_KEEP_ALIVE;
            quic.max_stream_data = QUIC_STREAM_WINDOW;
            quic.max_connection_data = QUIC_WINDOW;
            quic
        })
        .with_dns()?
        .with_behaviour(|keypair| Behaviour::new(keypair, mdns))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(UNUSED_MAX))
        .build();
    Ok(swarm)
}

/// Listens on `addr`, and says where that is.
pub(super) async fn listen(swarm: &mut Swarm<Behaviour>, addr: SocketAddr) -> Result<Bound, ListenError> {
    let failed = |cause: BoxError| ListenError::Address { addr, cause };
    let mut tries = if addr.port() == 0 { PORTS_TRIED } else { 1 };
    loop {
        tries -= 1;
        match listen_on_both(swarm, addr).await {
            Ok(bound) => return Ok(bound),
            Err(cause) if tries == 0 => return Err(failed(cause)),
            Err(cause) => tracing::debug!(%cause, "trying another port"),
        }
    }
}

async fn listen_on_both(swarm: &mut Swarm<Behaviour>, addr: SocketAddr) -> Result<Bound, BoxError> {
    // UDP first: libp2p's TCP sockets share their port with those of other programs of the same user.
    let udp = swarm.listen_on(addrs::quic(addr))?;
    let mut bound = Bound::default();
    let port = first_addr(swarm, udp, &mut bound).await?;
    let tcp = match swarm.listen_on(addrs::tcp(SocketAddr::new(addr.ip(), port))) {
        Ok(tcp) => tcp,
        Err(error) => {
            swarm.remove_listener(udp);
            return Err(error.into());
        }
    };
    if let Err(error) = first_addr(swarm, tcp, &mut bound).await {
        swarm.remove_listener(udp);
        return Err(error);
    }
    if addr.ip().is_unspecified() {
        // One address per interface; they come one after the other.
        while let Ok(event) = timeout(MORE_ADDRS, swarm.select_next_some()).await {
            bound.keep(event);
        }
    }
    Ok(bound)
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
