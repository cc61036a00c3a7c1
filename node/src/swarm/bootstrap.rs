//! Joining: the nodes that the user named, when to dial them, and what to say when that fails.
//!
//! They are dialled for as long as this node runs, whatever answered at their addresses before: what the user has
//! named is never left out. Each address is dialled by itself, so that one that leads elsewhere spoils none of the others.
//! Pure: time is an argument.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{ConnectionId, DialError},
};
use tokio::time::Instant;

use super::{BadAddress, addrs};
use crate::identity::node_id;

/// The first pause between two attempts. They double.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause of a node that is alone: when the network is back, it should not stay alone for long.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The longest pause of a node that has other peers. Two parts of a swarm that have lost each other grow together
/// again through a node that both know. 10,000 nodes with one list dial each node of it 17 times a second.
const PAUSE_BESIDE_MAX: Duration = Duration::from_secs(10 * 60);

/// A connection that ends so soon was refused, like as not.
const SHORT: Duration = Duration::from_secs(2);

/// The least between two attempts, however much somebody wants something.
const HURRY: Duration = Duration::from_secs(1);

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

/// When to try again: at once, and then at growing intervals.
#[derive(Debug)]
pub(super) struct Retry {
    next: Instant,
    last: Option<Instant>,
    pause: Duration,
}

impl Retry {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, last: None, pause: PAUSE }
    }

    /// Whether to try now. Counts as an attempt.
    pub(super) fn is_due(&mut self, now: Instant, is_alone: bool) -> bool {
        let due = self.next <= now;
        if due {
            let most = if is_alone { PAUSE_MAX } else { PAUSE_BESIDE_MAX };
            self.pause = self.pause.min(most);
            self.next = now + self.pause;
            self.last = Some(now);
            self.pause *= 2;
        }
        due
    }

    /// We were connected for the time that `lasted`, and no longer are. If that was short, they may not
    /// want us: the pauses go on growing.
    pub(super) fn parted(&mut self, now: Instant, lasted: Duration) {
        if SHORT < lasted {
            *self = Self { next: now + PAUSE, last: self.last, pause: PAUSE };
        }
    }

    /// There is a reason to try soon: somebody wants something, or the network may be back.
    pub(super) fn hurry(&mut self, now: Instant) {
        let soon = self.last.map_or(now, |last| now.max(last + HURRY));
        self.next = self.next.min(soon);
        self.pause = PAUSE;
    }

    pub(super) fn wake(&self) -> Instant {
        self.next
    }
}

/// The nodes that the user named.
#[derive(Debug)]
pub(super) struct Seeds {
    seeds: BTreeMap<PeerId, Seed>,
    /// Addresses that are being dialled.
    dialled: HashMap<ConnectionId, (PeerId, Multiaddr)>,
}

#[derive(Debug)]
struct Seed {
    /// With what was last said of each.
    addrs: BTreeMap<Multiaddr, Option<String>>,
    retry: Retry,
    connected: bool,
}

impl Seeds {
    pub(super) fn new(nodes: Nodes, now: Instant) -> Self {
        let seed = |addrs: Vec<Multiaddr>| Seed {
            addrs: addrs.into_iter().map(|addr| (addr, None)).collect(),
            retry: Retry::new(now),
            connected: false,
        };
        let seeds = nodes.into_iter().map(|(peer, addrs)| (peer, seed(addrs))).collect();
        Self { seeds, dialled: HashMap::new() }
    }

    /// Who they are.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.seeds.keys().copied()
    }

    /// The addresses to dial at `now`. Those that are still being dialled are not among them.
    pub(super) fn due(&mut self, now: Instant, is_alone: bool) -> Vec<(PeerId, Multiaddr)> {
        let mut due = Vec::new();
        for (&peer, seed) in &mut self.seeds {
            if !seed.connected && seed.retry.is_due(now, is_alone) {
                let busy = |addr: &&Multiaddr| self.dialled.values().any(|dialled| dialled.1 == **addr);
                due.extend(seed.addrs.keys().filter(|addr| !busy(addr)).map(|addr| (peer, addr.clone())));
            }
        }
        due
    }

    /// `addr` of `peer` is being dialled as `connection`.
    pub(super) fn dialled(&mut self, connection: ConnectionId, peer: PeerId, addr: Multiaddr) {
        self.dialled.insert(connection, (peer, addr));
    }

    /// Dialling ended so. Returns what to say of it, if that is news.
    pub(super) fn failed(&mut self, connection: ConnectionId, error: &DialError) -> Option<String> {
        let (peer, addr) = self.dialled.remove(&connection)?;
        let why = cause(error, &peer)?;
        self.say(&peer, Some(&addr), why)
    }

    /// There is a connection with `peer`.
    pub(super) fn connected(&mut self, connection: ConnectionId, peer: &PeerId) {
        self.dialled.remove(&connection);
        if let Some(seed) = self.seeds.get_mut(peer) {
            seed.connected = true;
        }
    }

    /// `peer` has told that it is of our swarm: what is wrong from now on is news again.
    pub(super) fn proven(&mut self, peer: &PeerId) {
        if let Some(seed) = self.seeds.get_mut(peer) {
            seed.addrs.values_mut().for_each(|said| *said = None);
        }
    }

    /// `peer` is connected and no node of our swarm. Returns what to say of it, if that is news.
    pub(super) fn foreign(&mut self, peer: &PeerId) -> Option<String> {
        self.say(peer, None, "it answers, but it is not a surf-node".to_owned())
    }

    /// There is no connection with `peer` any more, after one that `lasted`. Returns what to say of it.
    pub(super) fn parted(&mut self, peer: &PeerId, now: Instant, lasted: Duration) -> Option<String> {
        let seed = self.seeds.get_mut(peer)?;
        seed.connected = false;
        seed.retry.parted(now, lasted);
        let refused = "it answers and hangs up at once; its lists of peers may not let this node in";
        if lasted <= SHORT { self.say(peer, None, refused.to_owned()) } else { None }
    }

    /// There is a reason to dial soon.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.seeds.values_mut().for_each(|seed| seed.retry.hurry(now));
    }

    /// When to dial next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.seeds.values().filter(|seed| !seed.connected).map(|seed| seed.retry.wake()).min()
    }

    /// What is wrong with those that are not connected.
    pub(super) fn unreached(&self) -> Vec<String> {
        let apart = self.seeds.values().filter(|seed| !seed.connected);
        let said = apart.flat_map(|seed| &seed.addrs);
        said.filter_map(|(addr, why)| Some(in_a_sentence(addr, why.as_ref()?))).collect()
    }

    fn say(&mut self, peer: &PeerId, addr: Option<&Multiaddr>, why: String) -> Option<String> {
        let seed = self.seeds.get_mut(peer)?;
        let addr = addr.or_else(|| seed.addrs.keys().next())?.clone();
        let said = seed.addrs.get_mut(&addr)?;
        if said.as_ref() == Some(&why) {
            return None;
        }
        *said = Some(why.clone());
        Some(format!("{}; trying again", in_a_sentence(&addr, &why)))
    }
}

fn in_a_sentence(addr: &Multiaddr, why: &str) -> String {
    format!("cannot join through {addr}: {why}")
}

/// Why dialling `peer` failed, in a few words. `None` if it did not fail, but is not needed any more.
fn cause(error: &DialError, peer: &PeerId) -> Option<String> {
    Some(match error {
        DialError::DialPeerConditionFalse(_) | DialError::Aborted => return None,
        DialError::WrongPeerId { obtained, .. } => {
            format!("{obtained} answers there, not {peer}; ask its owner for the address that it has now")
        }
        DialError::LocalPeerId { .. } => "this node itself answers there".to_owned(),
        DialError::Denied { cause } => {
            format!(
                "this node lets it not in ({cause}): see its --allow and --deny, and its limit of connections"
            )
        }
        DialError::NoAddresses => "it is no address that can be dialled".to_owned(),
        DialError::Transport(errors) => in_words(&format!("{errors:?}")),
    })
}

/// What the transport's `error` means. libp2p wraps the system's errors in so many others that only their words are left.
fn in_words(error: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if has(&["ConnectionRefused", "onnection refused"]) {
        "connection refused: nobody listens there".to_owned()
    } else if has(&["MultiaddrNotSupported"]) {
        "this node does not speak that protocol".to_owned()
    } else if has(&["Unreachable", "unreachable"]) {
        "there is no way to that address".to_owned()
    } else if has(&["ResolveError", "NoRecordsFound", "Dns"]) {
        "the name cannot be resolved".to_owned()
    } else if has(&["TimedOut", "Timeout", "timed out"]) {
        "no answer: it is off, a firewall is between, or it is in a swarm with another key".to_owned()
    } else {
        "something answers there, but not as a node of this swarm: another program, or a node with another swarm key"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{core::transport::TransportError, swarm::dial_opts::DialOpts};

    use super::*;

    fn id() -> PeerId {
        PeerId::from_public_key(&libp2p::identity::Keypair::generate_ed25519().public())
    }

    #[test]
    fn what_is_no_node_is_named() {
        let id = id();
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
    fn pauses_grow_to_a_limit_which_is_short_for_who_is_alone() {
        let begin = Instant::now();
        let attempts = |is_alone| {
            let mut retry = Retry::new(begin);
            (0..3600).filter(|&second| retry.is_due(begin + Duration::from_secs(second), is_alone)).count()
        };
        assert!((350..370).contains(&attempts(true)), "{} in an hour", attempts(true));
        assert!((10..20).contains(&attempts(false)), "{} in an hour", attempts(false));
        let mut retry = Retry::new(begin);
        assert!(retry.is_due(begin, true));
        retry.parted(begin, SHORT);
        assert!(!retry.is_due(begin, true), "whoever was hung up on does not call at once");
        retry.parted(begin, 2 * SHORT);
        assert!(!retry.is_due(begin, true) && retry.is_due(begin + PAUSE, true));
    }

    #[test]
    fn who_wants_something_waits_a_second_at_most() {
        let begin = Instant::now();
        let mut retry = Retry::new(begin);
        let hour = begin + Duration::from_secs(3600);
        let mut now = begin;
        while now < hour {
            retry.is_due(now, false);
            now += Duration::from_secs(1);
        }
        assert!(!retry.is_due(hour + HURRY, false));
        retry.hurry(hour + HURRY);
        assert!(retry.is_due(hour + HURRY, false));
        retry.hurry(hour + HURRY);
        assert!(!retry.is_due(hour + HURRY, false), "and not more than one attempt a second");
        assert!(retry.is_due(hour + 2 * HURRY, false));
    }

    #[test]
    fn what_the_user_named_is_dialled_whatever_answered_and_each_cause_is_told_once() {
        let (now, peer, other) = (Instant::now(), id(), id());
        let addrs: [Multiaddr; 2] =
            ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1"].map(|addr| addr.parse().unwrap());
        let mut seeds = Seeds::new(Nodes::from([(peer, addrs.to_vec())]), now);
        let dial = |seeds: &mut Seeds, now, error: Option<&DialError>| {
            let due = seeds.due(now, true);
            let mut said = Vec::new();
            for (peer, addr) in &due {
                let connection = DialOpts::peer_id(*peer).build().connection_id();
                seeds.dialled(connection, *peer, addr.clone());
                said.extend(error.and_then(|error| seeds.failed(connection, error)));
            }
            (due.len(), said)
        };
        let wrong = DialError::WrongPeerId { obtained: other, address: addrs[0].clone() };
        let (dialled, said) = dial(&mut seeds, now, Some(&wrong));
        assert_eq!((dialled, said.len()), (2, 2));
        assert!(said[0].contains(&other.to_string()) && said[0].contains(&peer.to_string()), "{said:?}");
        assert!(said[0].contains("/ip4/127.0.0.1/tcp/1"), "{said:?}");
        let later = |n: u64| now + Duration::from_secs(20 * n);
        assert_eq!(dial(&mut seeds, later(1), Some(&wrong)), (2, vec![]), "again, and nothing new");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let refused = DialError::Transport(vec![(addrs[0].clone(), TransportError::Other(refused))]);
        let (dialled, said) = dial(&mut seeds, later(2), Some(&refused));
        assert_eq!((dialled, seeds.unreached().len()), (2, 2));
        assert!(said[1].contains("connection refused"), "{said:?}");
        assert_eq!(dial(&mut seeds, later(3), None).0, 2);
        assert_eq!(dial(&mut seeds, later(4), None).0, 0, "both are still being dialled");
        seeds.connected(DialOpts::peer_id(peer).build().connection_id(), &peer);
        assert_eq!((seeds.due(later(5), true).len(), seeds.wake()), (0, None));
        assert!(seeds.unreached().is_empty());
        assert!(seeds.parted(&peer, later(5), SHORT).is_some_and(|said| said.contains("hangs up")));
        assert_eq!(seeds.parted(&peer, later(5), 2 * SHORT), None);
        assert!(seeds.foreign(&peer).is_some_and(|said| said.contains("not a surf-node")));
    }
}
