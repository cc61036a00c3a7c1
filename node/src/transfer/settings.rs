//! How QUIC is set, and why. The defaults of quinn are made for a page of text over the open sea.
//!
//! The side that dials is the side that receives, so the two directions are set apart: a dialler
//! has large receive windows, a server hardly any.

use std::{sync::Arc, time::Duration};

use quinn::{
    ClientConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use surf_protocol::limits::{REQUEST_SIZE_MAX, STREAMS_PER_PEER_MAX};

use super::congestion::Discerning;

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

/// The largest UDP payload that is looked for. Ethernet's 1,452 is found in a few probes; jumbo frames
/// and loopback carry this much. Large datagrams cost a fraction of the CPU time of small ones, but
/// quinn hands ten at once to the kernel, which drops what exceeds 64 KiB together. (On loopback, single
/// datagrams of 64 KiB were measured too: a few fill a stock kernel's socket buffer, the losses look
/// like a path that cannot carry them, and what follows crawls in packets of 1,200 bytes.)
const PAYLOAD_MAX: u16 = 6_500;

const _: () = assert!(10 * (PAYLOAD_MAX as usize) < 65_507);

/// The least that may be on its way on a connection, however low the limit: a few packets for each of
/// some streams.
const RECEIVE_WINDOW_MIN: u64 = 256 * 1024;

/// Bytes that may be on their way to us on one connection, if we let in `rate` bytes per second: what
/// comes in half a second. More would arrive at once, whatever the limit.
pub(super) fn receive_window(rate: Option<u64>) -> VarInt {
    let most = u64::from(RECEIVE_WINDOW);
    let window = rate.map_or(most, |rate| (rate / 2).clamp(RECEIVE_WINDOW_MIN, most));
    VarInt::from_u32(u32::try_from(window).expect("at most RECEIVE_WINDOW"))
}

/// How we dial, with at most `window` bytes on their way to us.
pub(super) fn dialling(tls: QuicClientConfig, window: VarInt) -> ClientConfig {
    let mut transport = common();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.receive_window(window);
    transport.stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW));
    // Requests are all that goes out.
    transport.send_window(u64::from(STREAMS_PER_PEER_MAX) * REQUEST_SIZE_MAX as u64);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

/// How we serve.
pub(super) fn serving(tls: QuicServerConfig) -> ServerConfig {
    let mut transport = common();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_PEER_MAX));
    // Requests are all that comes in.
    let request = u32::try_from(REQUEST_SIZE_MAX).expect("a small constant");
    transport.stream_receive_window(VarInt::from_u32(2 * request));
    transport.receive_window(VarInt::from_u32(2 * request * STREAMS_PER_PEER_MAX));
    transport.send_window(SEND_WINDOW);
    // Whole chunks sooner, rather than all chunks later: what is whole can be verified and used.
    transport.send_fairness(false);
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

fn common() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PAYLOAD_MAX);
    transport.mtu_discovery_config(Some(discovery));
    transport.enable_segmentation_offload(true);
    // CUBIC shares a line fairly with what else runs over it. quinn calls its BBR experimental; on
    // loopback it is no faster with these datagrams.
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    transport.congestion_controller_factory(Arc::new(Discerning(Arc::new(cubic))));
    transport.max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("seconds fit")));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    transport.allow_spin(false);
    transport
}
