//! Joining: the nodes we were told of, and when to try them again.

use std::{collections::BTreeMap, time::Duration};

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::{BadAddress, addrs};
use crate::identity::node_id;

/// The first pause between two attempts, and the longest. They double.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A connection that ends so soon was refused, like as not.
const SHORT: Duration = Duration::from_secs(2);

/// Nodes to join through, with their addresses.
pub(super) type Nodes = BTreeMap<PeerId, Vec<Multiaddr>>;

/// The nodes that `texts` speak of; or the first text that speaks of none. A private swarm has none that
/// are reached by QUIC.
pub(super) fn parse(texts: &[String], is_private: bool) -> Result<Nodes, BadAddress> {
    let mut nodes = Nodes::new();
    for text in texts {
        let (peer, addr) = parse_one(text)?;
        if is_private && addrs::is_quic(&addr) {
            let cause = "a private swarm speaks TCP only; its nodes print such addresses".to_owned();
            return Err(BadAddress { text: text.clone(), cause });
        }
        nodes.entry(peer).or_default().push(addr);
    }
    Ok(nodes)
}

/// The node that `text` speaks of.
pub(super) fn parse_one(text: &str) -> Result<(PeerId, Multiaddr), BadAddress> {
    let bad = |cause: String| BadAddress { text: text.to_owned(), cause };
    let addr: Multiaddr = text.trim().parse().map_err(|error| bad(format!("{error}")))?;
    let peer = addrs::node(&addr).ok_or_else(|| bad("it does not end in /p2p/ and a peer id".to_owned()))?;
    if node_id(peer).is_none() {
        return Err(bad("its peer id is not that of an Ed25519 key".to_owned()));
    }
    Ok((peer, addr))
}

/// When to dial the nodes: at once, and then at growing intervals for as long as we are alone.
#[derive(Debug)]
pub(super) struct Retry {
    next: Instant,
    pause: Duration,
}

impl Retry {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, pause: PAUSE }
    }

    /// Whether to dial now. Counts as an attempt.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next <= now;
        if due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        due
    }

    /// We were connected for the time that `lasted`, and no longer are. If that was short, they may not
    /// want us: the pauses go on growing.
    pub(super) fn alone(&mut self, now: Instant, lasted: Duration) {
        if SHORT < lasted {
            *self = Self { next: now + PAUSE, pause: PAUSE };
        }
    }

    pub(super) fn wake(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_node_is_named() {
        let id = PeerId::from_public_key(&libp2p::identity::Keypair::generate_ed25519().public());
        let good = format!("/ip4/127.0.0.1/udp/1/quic-v1/p2p/{id}");
        assert_eq!(parse(&[good.clone(), good.clone()], false).unwrap()[&id].len(), 2);
        let sha256 = "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        for text in ["", "localhost:4001", "/ip4/127.0.0.1/tcp/1", "/ip4/1.2.3/tcp/1", sha256] {
            assert_eq!(parse(&[text.to_owned()], false).unwrap_err().text, text);
        }
        let tcp = format!("/ip4/127.0.0.1/tcp/1/p2p/{id}");
        assert_eq!(parse(std::slice::from_ref(&tcp), true).unwrap().len(), 1);
        assert!(parse(&[tcp, good], true).unwrap_err().to_string().contains("TCP only"));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let begin = Instant::now();
        let mut retry = Retry::new(begin);
        let attempts = (0..600).filter(|&second| retry.is_due(begin + Duration::from_secs(second))).count();
        assert!((20..30).contains(&attempts), "{attempts} in ten minutes");
        retry.alone(begin, SHORT);
        assert!(!retry.is_due(begin + PAUSE), "whoever was hung up on does not call at once");
        retry.alone(begin, 2 * SHORT);
        assert!(!retry.is_due(begin) && retry.is_due(begin + PAUSE));
    }
}
