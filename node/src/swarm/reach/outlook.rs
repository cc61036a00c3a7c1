//! Whether others can reach us: what speaks for it and against it, and what follows. Pure.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use libp2p::Multiaddr;

use super::super::addrs;

/// Hosts from outside that must have dialled us before we believe that anyone can: one may have come through
/// a door of the NAT that we opened ourselves a moment ago.
const VISITORS_MIN: usize = 2;

/// Whether others can reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing speaks for or against it.
    Unknown,
    /// They cannot: a NAT or a firewall is in between.
    Private,
    /// They can, from anywhere.
    Public,
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Private => "private",
            Self::Public => "public",
        })
    }
}

/// What has been found out.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Evidence {
    /// Hosts from far away that dialled us.
    visitors: BTreeSet<IpAddr>,
    /// Dialling us was tried, at a public address.
    far: Tried,
    /// The same at an address of a private network.
    near: Tried,
    /// Others see us at an address that none of our interfaces has.
    translated: bool,
}

#[derive(Debug, Default)]
struct Tried {
    worked: bool,
    failed: bool,
}

impl Evidence {
    /// Somebody tried to dial us at `addr`.
    pub(in crate::swarm) fn tried(&mut self, addr: &Multiaddr, worked: bool) {
        let Some(ip) = plain_ip(addr) else { return };
        let tried = if is_far(ip) { &mut self.far } else { &mut self.near };
        tried.worked |= worked;
        tried.failed |= !worked;
    }

    /// Somebody at `from` dialled us, whom we had not dialled.
    pub(in crate::swarm) fn visited(&mut self, from: &Multiaddr) {
        if let Some(ip) = plain_ip(from)
            && is_far(ip)
            && self.visitors.len() < VISITORS_MIN
        {
            self.visitors.insert(ip);
        }
    }

    /// Somebody whom we dialled sees us at `addr`; our interfaces have `ours`.
    pub(in crate::swarm) fn seen(&mut self, addr: &Multiaddr, mut ours: impl Iterator<Item = IpAddr>) {
        if let Some(ip) = plain_ip(addr) {
            self.translated |= !ours.any(|our| our.to_canonical() == ip);
        }
    }

    /// What follows.
    pub(in crate::swarm) fn outlook(&self) -> Outlook {
        if self.far.worked || self.visitors.len() == VISITORS_MIN {
            return Outlook::Public;
        }
        let shut = self.near.failed || self.translated;
        if self.far.failed || (shut && !self.near.worked) { Outlook::Private } else { Outlook::Unknown }
    }
}

/// The host in an address that leads to it without detour. Not of this host's own loopback: that says
/// nothing about others.
fn plain_ip(addr: &Multiaddr) -> Option<IpAddr> {
    let ip = addrs::ip(addr)?.to_canonical();
    (!addrs::is_relayed(addr) && !ip.is_loopback()).then_some(ip)
}

fn is_far(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_private() || ip.is_link_local() || ip.is_loopback()),
        IpAddr::V6(ip) => !(ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_node_on_its_own_network_is_neither() {
        let mut evidence = Evidence::default();
        assert_eq!(evidence.outlook(), Outlook::Unknown);
        evidence.tried(&at("/ip4/192.168.1.2/udp/1/quic-v1"), true);
        evidence.visited(&at("/ip4/192.168.1.3/udp/1/quic-v1"));
        evidence.visited(&at("/ip4/192.168.1.4/udp/1/quic-v1"));
        evidence.seen(&at("/ip4/192.168.1.2/udp/1/quic-v1"), ["192.168.1.2".parse().unwrap()].into_iter());
        evidence.tried(&at("/ip4/127.0.0.1/udp/1/quic-v1"), false);
        assert_eq!(evidence.outlook(), Outlook::Unknown);
    }

    #[test]
    fn behind_nat_until_somebody_gets_through() {
        let (mut evidence, public) = (Evidence::default(), at("/ip4/198.51.100.7/udp/1/quic-v1"));
        evidence.seen(&public, ["192.168.1.2".parse().unwrap()].into_iter());
        assert_eq!(evidence.outlook(), Outlook::Private);
        evidence.tried(&public, false);
        // That somebody can be met through a relay proves nothing.
        let relay = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        evidence.tried(&at(&format!("/ip4/198.51.100.1/udp/1/quic-v1/p2p/{relay}/p2p-circuit")), true);
        assert_eq!(evidence.outlook(), Outlook::Private);
        evidence.tried(&public, true);
        assert_eq!(evidence.outlook(), Outlook::Public);
    }

    #[test]
    fn one_visitor_is_not_enough() {
        let mut evidence = Evidence::default();
        evidence.visited(&at("/ip4/203.0.113.5/udp/1/quic-v1"));
        evidence.visited(&at("/ip4/203.0.113.5/udp/2/quic-v1"));
        assert_eq!(evidence.outlook(), Outlook::Unknown);
        evidence.visited(&at("/ip4/203.0.113.6/udp/1/quic-v1"));
        assert_eq!(evidence.outlook(), Outlook::Public);
    }
}
