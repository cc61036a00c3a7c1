//! How QUIC is set, and why. The defaults of quinn are made for a page of text over the open sea.
//!
//! The side that dials is the side that receives, so the two directions are set apart: a dialler
//! has large receive windows, a server hardly any.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use surf_protocol::limits::{REQUEST_SIZE_MAX, STREAMS_PER_PEER_MAX};

/// Bytes that may be on their way to us on one connection: what a gigabit link carries in 250 ms.
/// Bounds what a connection makes us hold, too.
const RECEIVE_WINDOW: u32 = 32 * 1024 * 1024;

/// Bytes that may be on their way on one stream: a gigabit at 33 ms. An eighth of the connection's,
/// so that seven bodies left unread cannot keep an eighth from coming.
const STREAM_RECEIVE_WINDOW: u32 = RECEIVE_WINDOW / 8;

/// Bytes that a server has handed to QUIC and that are not yet acknowledged. As much as a dialler's
/// window lets through.
const SEND_WINDOW: u64 = RECEIVE_WINDOW as u64;

/// A peer that says nothing for this long is gone. Diallers say something every [`KEEP_ALIVE`].
const IDLE_MAX: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Packets that are sent into an unknown network before the first acknowledgement. RFC 6928's ten
/// would cost a peer 50 ms away four round trips to reach a chunk's size.
const INITIAL_WINDOW: u64 = 64 * 1024;

/// The largest UDP payload over IPv4 loopback, whose MTU is 64 KiB. Datagrams this large cost a
/// fraction of the CPU time of small ones, and nothing between the two ends can drop them.
const LOOPBACK_PAYLOAD: u16 = 65_507;

/// The largest payload that is looked for elsewhere. Ethernet's 1,452 is found in a few probes; jumbo
/// frames are used up to this size, because ten datagrams, which quinn hands to the kernel at once,
/// may together not exceed 64 KiB.
const NETWORK_PAYLOAD: u16 = 6_500;

const _: () = assert!(10 * (NETWORK_PAYLOAD as usize) < LOOPBACK_PAYLOAD as usize);

/// How we serve.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    loopback: ServerConfig,
    network: ServerConfig,
}

impl Serving {
    pub(super) fn new(tls: &Arc<QuicServerConfig>) -> Self {
        let with = |loopback| {
            let mut config = ServerConfig::with_crypto(Arc::clone(tls) as _);
            config.transport_config(Arc::new(server(loopback)));
            config
        };
        Self { loopback: with(true), network: with(false) }
    }

    /// For connections whose other end is not known yet.
    pub(super) fn for_anyone(&self) -> ServerConfig {
        self.network.clone()
    }

    /// For a connection from `remote`.
    pub(super) fn towards(&self, remote: SocketAddr) -> Arc<ServerConfig> {
        Arc::new(if is_loopback(remote) { self.loopback.clone() } else { self.network.clone() })
    }
}

/// How we dial `remote`.
pub(super) fn dialling(tls: QuicClientConfig, remote: SocketAddr) -> quinn::ClientConfig {
    let mut transport = common(is_loopback(remote));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    transport.stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW));
    transport.send_window(64 * REQUEST_SIZE_MAX as u64);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

fn server(loopback: bool) -> TransportConfig {
    let mut transport = common(loopback);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_PEER_MAX));
    // Requests are all that comes in.
    let request = u32::try_from(REQUEST_SIZE_MAX).expect("a small constant");
    transport.stream_receive_window(VarInt::from_u32(2 * request));
    transport.receive_window(VarInt::from_u32(2 * request * STREAMS_PER_PEER_MAX));
    transport.send_window(SEND_WINDOW);
    // Whole chunks sooner, rather than all chunks later: what is whole can be verified and used.
    transport.send_fairness(false);
    transport
}

fn common(loopback: bool) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(if loopback { LOOPBACK_PAYLOAD } else { NETWORK_PAYLOAD });
    transport.mtu_discovery_config(Some(discovery));
    // Where one datagram is as large as the kernel takes, there is nothing to segment.
    transport.enable_segmentation_offload(!loopback);
    // Cubic shares a line fairly with what else runs over it. quinn's BBR is experimental, and on
    // loopback no faster.
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    transport.congestion_controller_factory(Arc::new(cubic));
    transport.max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("seconds fit")));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    transport.allow_spin(false);
    transport
}

fn is_loopback(remote: SocketAddr) -> bool {
    match remote.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
    }
}
