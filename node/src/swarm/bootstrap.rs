//! Joining: the nodes we were told of, and when to try them again.

use std::{collections::BTreeMap, time::Duration};

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::{BadAddress, addrs};
use crate::identity::node_id;

/// The first pause between two attempts, and the longest. They double.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Nodes to join through, with their addresses.
pub(super) type Nodes = BTreeMap<PeerId, Vec<Multiaddr>>;

/// The nodes that `texts` speak of; or the first text that speaks of none.
pub(super) fn parse(texts: &[String]) -> Result<Nodes, BadAddress> {
    let mut nodes = Nodes::new();
    for text in texts {
        let (peer, addr) = parse_one(text)?;
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

    /// We were connected, and no longer are.
    pub(super) fn alone(&mut self, now: Instant) {
        *self = Self { next: now + PAUSE, pause: PAUSE };
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
        assert_eq!(parse(&[good.clone(), good]).unwrap()[&id].len(), 2);
        let sha256 = "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        for text in ["", "localhost:4001", "/ip4/127.0.0.1/tcp/1", "/ip4/1.2.3/tcp/1", sha256] {
            assert_eq!(parse(&[text.to_owned()]).unwrap_err().text, text);
        }
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let begin = Instant::now();
        let mut retry = Retry::new(begin);
        let attempts = (0..600).filter(|&second| retry.is_due(begin + Duration::from_secs(second))).count();
        assert!((20..30).contains(&attempts), "{attempts} in ten minutes");
        retry.alone(begin);
        assert!(!retry.is_due(begin) && retry.is_due(begin + PAUSE));
    }
}
