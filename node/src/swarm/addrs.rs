//! Multiaddresses to and from what else addresses are written as.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

pub(super) fn quic(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
}

pub(super) fn tcp(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

/// The IP address that `addr` begins with. Of a relayed address that is the relay's.
pub(super) fn ip(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The port in `addr`.
pub(super) fn port(addr: &Multiaddr) -> Option<u16> {
    addr.iter().find_map(|part| match part {
        Protocol::Udp(port) | Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

pub(super) fn is_loopback(addr: &Multiaddr) -> bool {
    ip(addr).is_some_and(|ip| ip.to_canonical().is_loopback())
}

pub(super) fn is_quic(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::Quic | Protocol::QuicV1))
}

/// The node that `addr` ends in.
pub(super) fn node(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

/// Whether `addr` means nothing without the name of an interface.
pub(super) fn is_link_local(addr: &Multiaddr) -> bool {
    matches!(ip(addr), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local())
}

/// `addrs` of `peer`, as others can use them: QUIC before TCP, loopback last.
pub(super) fn complete(addrs: &[Multiaddr], peer: PeerId) -> Vec<String> {
    let is_tcp = |addr: &Multiaddr| addr.iter().any(|part| matches!(part, Protocol::Tcp(_)));
    let is_v6 = |addr: &Multiaddr| ip(addr).is_some_and(|ip| ip.is_ipv6());
    let mut addrs: Vec<_> = addrs.iter().filter(|addr| !is_link_local(addr)).collect();
    addrs.sort_by_key(|addr| (is_loopback(addr), is_tcp(addr), is_v6(addr)));
    addrs.into_iter().map(|addr| addr.clone().with(Protocol::P2p(peer)).to_string()).collect()
}

/// Whether `addr` leads through a relay.
pub(super) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}
