//! Who is connected, who is banned, and what has gone to and fro. Shared by both halves.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use surf_protocol::NodeId;
use tokio::time::{Instant, sleep};

use super::{
    PeerTraffic,
    budget::Budget,
    code,
    limits::{
        ACCEPTED_PER_PEER, BANNED_MAX, DIALLED_SHARE, EASY_SHARE, REMEMBERED_MAX, TUNNEL_KEPT, TUNNELLED_MAX,
        TUNNELLED_PER_PEER, USELESS,
    },
    rates::{Rate, SAMPLED},
    turns::Meter,
};
use crate::{
    fetch::{Link, Route},
    members::Access,
};

/// Everyone this endpoint deals with.
#[derive(Debug)]
pub(super) struct Peers {
    /// Connections that there may be.
    connections: usize,
    access: Access,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<NodeId, Known>,
    banned: HashSet<NodeId>,
    /// The same, in the order in which they were banned.
    ban_order: VecDeque<NodeId>,
    accepted: usize,
    /// Of those, how many have been told to make room and have not gone yet.
    leaving: usize,
    dialled: usize,
    /// Streams through tunnels that peers have opened.
    tunnelled: usize,
}

#[derive(Debug)]
struct Known {
    links: Vec<Connected>,
    tunnel: Option<Tunnel>,
    addr: Option<SocketAddr>,
    route: Route,
    /// Of connections that are closed, and through tunnels.
    sent: u64,
    received: u64,
    up: Rate,
    down: Rate,
    budget: Arc<Budget>,
}

/// A connection of the data plane.
#[derive(Clone, Debug)]
struct Connected {
    side: Side,
    connection: quinn::Connection,
    since: Instant,
    leaving: bool,
}

/// What goes on streams of the control plane.
#[derive(Debug)]
struct Tunnel {
    link: Link,
    /// Streams there are now, by who opened them.
    asking: usize,
    accepted: usize,
    used: Instant,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// We did.
    Dialled,
    /// The peer did.
    Accepted,
}

/// Why a connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwanted {
    #[error("the lists of peers do not let it in")]
    NotLetIn,
    #[error("the peer is banned")]
    Banned,
    #[error("too many connections")]
    TooMany,
}

/// A connection that counts, until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    peers: Arc<Peers>,
    pub(super) id: NodeId,
    side: Side,
    pub(super) connection: quinn::Connection,
    pub(super) budget: Arc<Budget>,
    pub(super) meter: Meter,
}

/// What to do with a connection that somebody wants to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Welcome {
    /// Take it.
    Easy,
    /// Take it if the address is shown to be the other's own.
    Proven,
    /// Others have all that they may have: only in the place of one that is of no use.
    Crowded,
    /// There are too many.
    Not,
}

impl Peers {
    /// Nobody yet, at most so many connections, and only with those that `access` lets in.
    pub(super) fn new(connections: usize, access: Access) -> Self {
        Self { connections, access, state: Mutex::default() }
    }

    /// Whether there may be a connection with `id` at all.
    pub(super) fn lets_in(&self, id: NodeId) -> Result<(), Unwanted> {
        if !self.access.lets_in(id) {
            return Err(Unwanted::NotLetIn);
        }
        if self.state().banned.contains(&id) { Err(Unwanted::Banned) } else { Ok(()) }
    }

    /// Counts `connection`, which has proven to be with `id`, or closes it.
    pub(super) fn register(
        self: &Arc<Self>,
        id: NodeId,
        side: Side,
        connection: quinn::Connection,
    ) -> Result<Registered, Unwanted> {
        let let_in = self.lets_in(id);
        let mut state = self.state();
        if side == Side::Accepted {
            state.close_oldest(id);
        }
        if let Err(unwanted) = let_in.and_then(|()| state.check_room(id, side, self.connections)) {
            drop(state);
            unwanted.close(&connection);
            return Err(unwanted);
        }
        match side {
            Side::Accepted => state.accepted += 1,
            Side::Dialled => state.dialled += 1,
        }
        state.forget_some();
        let known = state.known.entry(id).or_default();
        known.addr = Some(connection.remote_address());
        known.route = Route::of(connection.remote_address());
        let (since, leaving) = (Instant::now(), false);
        known.links.push(Connected { side, connection: connection.clone(), since, leaving });
        let budget = Arc::clone(&known.budget);
        Ok(Registered { peers: Arc::clone(self), id, side, connection, budget, meter: Meter::default() })
    }

    /// Counts a stream through a tunnel to or from `id`.
    pub(super) fn passage(self: &Arc<Self>, id: NodeId, side: Side, link: Link) -> Result<Passage, Unwanted> {
        self.lets_in(id)?;
        let mut state = self.state();
        let of_peer = state.known.get(&id).and_then(|known| known.tunnel.as_ref());
        let of_peer = of_peer.map_or(0, |tunnel| tunnel.accepted);
        if side == Side::Accepted {
            if TUNNELLED_MAX <= state.tunnelled || TUNNELLED_PER_PEER <= of_peer {
                return Err(Unwanted::TooMany);
            }
            state.tunnelled += 1;
        }
        state.forget_some();
        let known = state.known.entry(id).or_default();
        let now = Instant::now();
        let tunnel = known.tunnel.get_or_insert(Tunnel { link, asking: 0, accepted: 0, used: now });
        match side {
            // Only who opens a stream knows how long that took.
            Side::Dialled => (tunnel.link, tunnel.asking) = (link, tunnel.asking + 1),
            Side::Accepted => (tunnel.link.route, tunnel.accepted) = (link.route, tunnel.accepted + 1),
        }
        if known.links.is_empty() {
            known.route = link.route;
        }
        let budget = Arc::clone(&known.budget);
        Ok(Passage { peers: Arc::clone(self), id, side, budget })
    }

    /// Looks every second how fast bytes go, for as long as there is somebody to know it.
    pub(super) async fn measure(peers: Weak<Self>) {
        let mut last = Instant::now();
        loop {
            sleep(SAMPLED).await;
            let Some(peers) = peers.upgrade() else { return };
            let now = Instant::now();
            for known in peers.state().known.values_mut() {
                let (sent, received) = known.totals();
                known.up.sample(sent, now - last);
                known.down.sample(received, now - last);
            }
            last = now;
        }
    }

    /// Whether one more connection of others' is welcome.
    pub(super) fn welcome(&self) -> Welcome {
        let state = self.state();
        let accepted_max = accepted_max(self.connections);
        match state.accepted {
            _ if self.connections <= state.accepted - state.leaving + state.dialled => Welcome::Not,
            accepted if accepted_max <= accepted - state.leaving => Welcome::Crowded,
            accepted if accepted_max / EASY_SHARE <= accepted => Welcome::Proven,
            _ => Welcome::Easy,
        }
    }

    /// Closes the connection of others' that has been of least use, if there is one that is of none. Whoever is at its
    /// other end may come back when it wants something.
    pub(super) fn make_room(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let useless = |known: &&mut Known| known.up.per_second() + known.down.per_second() < USEFUL_MIN;
        let links = state.known.values_mut().filter(useless).flat_map(|known| {
            let total = known.sent + known.received;
            known.links.iter_mut().map(move |wire| (total, wire))
        });
        let theirs = links.filter(|(_, wire)| wire.side == Side::Accepted && !wire.leaving);
        let old = theirs.filter(|(_, wire)| USELESS <= now.saturating_duration_since(wire.since));
        let moved = |wire: &Connected| {
            let stats = wire.connection.stats();
            stats.udp_tx.bytes + stats.udp_rx.bytes
        };
        let least = old.min_by_key(|(total, wire)| (total + moved(wire), wire.since));
        let Some((_, wire)) = least else { return false };
        wire.leaving = true;
        let connection = wire.connection.clone();
        state.leaving += 1;
        drop(state);
        connection.close(code::TOO_MANY, b"others want its place");
        true
    }

    /// Every connection that we made.
    pub(super) fn dialled(&self) -> Vec<quinn::Connection> {
        let state = self.state();
        let links = state.known.values().flat_map(|known| &known.links);
        links.filter(|wire| wire.side == Side::Dialled).map(|wire| wire.connection.clone()).collect()
    }

    /// Closes all connections with `id`, and refuses new ones.
    pub(super) fn ban(&self, id: NodeId) {
        let mut state = self.state();
        if state.banned.insert(id) {
            state.ban_order.push_back(id);
        }
        if BANNED_MAX < state.ban_order.len()
            && let Some(first) = state.ban_order.pop_front()
        {
            state.banned.remove(&first);
        }
        let links = state.known.get(&id).map_or_else(Vec::new, |known| known.links.clone());
        drop(state);
        for wire in links {
            wire.connection.close(code::BANNED, b"banned");
        }
    }

    pub(super) fn traffic(&self) -> Vec<PeerTraffic> {
        let state = self.state();
        let traffic = state.known.iter().map(|(&id, known)| {
            let (sent, received) = known.totals();
            PeerTraffic {
                id,
                addr: known.addr,
                route: known.link().map_or(known.route, |link| link.route),
                sent,
                received,
                rate_up: known.up.per_second(),
                rate_down: known.down.per_second(),
                rtt: known.links.iter().map(|wire| wire.connection.rtt()).min(),
                connections: known.links.len(),
            }
        });
        traffic.collect()
    }

    /// The quickest connection with `id`, else the tunnel to it.
    pub(super) fn link(&self, id: NodeId) -> Option<Link> {
        self.state().known.get(&id)?.link()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }
}

impl Default for Known {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            tunnel: None,
            addr: None,
            route: Route::Direct,
            sent: 0,
            received: 0,
            up: Rate::default(),
            down: Rate::default(),
            budget: Arc::default(),
        }
    }
}

impl Known {
    fn link(&self) -> Option<Link> {
        let open =
            self.links.iter().map(|wire| &wire.connection).filter(|link| link.close_reason().is_none());
        if let Some(quickest) = open.min_by_key(|connection| connection.rtt()) {
            return Some(Link { route: Route::of(quickest.remote_address()), rtt: quickest.rtt() });
        }
        let fresh = |tunnel: &&Tunnel| tunnel.is_open() || Instant::now() < tunnel.used + TUNNEL_KEPT;
        self.tunnel.as_ref().filter(fresh).map(|tunnel| tunnel.link)
    }

    /// Bytes sent and received.
    fn totals(&self) -> (u64, u64) {
        self.links.iter().fold((self.sent, self.received), |(sent, received), wire| {
            let stats = wire.connection.stats();
            (sent + stats.udp_tx.bytes, received + stats.udp_rx.bytes)
        })
    }

    fn is_here(&self) -> bool {
        !self.links.is_empty() || self.tunnel.as_ref().is_some_and(Tunnel::is_open)
    }
}

impl Connected {
    fn is_open(&self, side: Side) -> bool {
        self.side == side && self.connection.close_reason().is_none()
    }
}

impl Tunnel {
    fn is_open(&self) -> bool {
        self.asking + self.accepted != 0
    }
}

impl Unwanted {
    /// Ends a connection for this reason.
    pub(super) fn close(self, connection: &quinn::Connection) {
        match self {
            // A stranger learns nothing from us, not even what we call it.
            Self::NotLetIn => connection.close(code::NOT_LET_IN, b""),
            Self::Banned => connection.close(code::BANNED, self.to_string().as_bytes()),
            Self::TooMany => connection.close(code::TOO_MANY, self.to_string().as_bytes()),
        }
    }
}

impl State {
    /// Makes room for one more connection of a peer that has too many here: one that was killed and started
    /// again leaves some behind that nobody is at the other end of.
    fn close_oldest(&self, id: NodeId) {
        let links = self.known.get(&id).into_iter().flat_map(|known| &known.links);
        let theirs: Vec<_> = links.filter(|wire| wire.is_open(Side::Accepted)).collect();
        if ACCEPTED_PER_PEER <= theirs.len()
            && let Some(oldest) = theirs.first()
        {
            oldest.connection.close(code::TOO_MANY, b"there are newer ones");
        }
    }

    fn check_room(&self, id: NodeId, side: Side, connections: usize) -> Result<(), Unwanted> {
        let of_peer = self
            .known
            .get(&id)
            .map_or(0, |known| known.links.iter().filter(|wire| wire.is_open(side)).count());
        let accepted = self.accepted - self.leaving;
        let room = match side {
            Side::Accepted => accepted < accepted_max(connections) && of_peer < ACCEPTED_PER_PEER,
            Side::Dialled => true,
        };
        if room && accepted + self.dialled < connections { Ok(()) } else { Err(Unwanted::TooMany) }
    }

    /// Makes room for one more peer, if there are too many without a connection.
    fn forget_some(&mut self) {
        let remembered = REMEMBERED_MAX + self.accepted + self.dialled + self.tunnelled;
        if remembered <= self.known.len() {
            let gone = self.known.iter().filter(|(_, known)| !known.is_here());
            let least = gone.min_by_key(|(_, known)| known.sent + known.received).map(|(&id, _)| id);
            if let Some(id) = least {
                self.known.remove(&id);
            }
        }
    }
}

/// Bytes a second on a connection that is of use. Keeping one alive takes fewer.
const USEFUL_MIN: u64 = 512;

/// How many of `connections` others may have to us.
fn accepted_max(connections: usize) -> usize {
    connections - connections / DIALLED_SHARE
}

impl Drop for Registered {
    fn drop(&mut self) {
        // The peer must not be able to use a connection that does not count.
        self.connection.close(code::DONE, b"");
        let stats = self.connection.stats();
        let mut state = self.peers.state();
        match self.side {
            Side::Accepted => state.accepted -= 1,
            Side::Dialled => state.dialled -= 1,
        }
        let id = self.connection.stable_id();
        let gone = state.known.get_mut(&self.id).and_then(|known| {
            let at = known.links.iter().position(|wire| wire.connection.stable_id() == id)?;
            Some(known.links.remove(at))
        });
        state.leaving -= usize::from(gone.is_some_and(|wire| wire.leaving));
        if let Some(known) = state.known.get_mut(&self.id) {
            known.sent += stats.udp_tx.bytes;
            known.received += stats.udp_rx.bytes;
        }
    }
}

/// A stream through a tunnel that counts, until this is dropped.
#[derive(Debug)]
pub(super) struct Passage {
    peers: Arc<Peers>,
    pub(super) id: NodeId,
    side: Side,
    pub(super) budget: Arc<Budget>,
}

impl Passage {
    /// So many bytes went and came.
    pub(super) fn moved(&self, sent: usize, received: usize) {
        if let Some(known) = self.peers.state().known.get_mut(&self.id) {
            known.sent += sent as u64;
            known.received += received as u64;
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut state = self.peers.state();
        if self.side == Side::Accepted {
            state.tunnelled -= 1;
        }
        if let Some(tunnel) = state.known.get_mut(&self.id).and_then(|known| known.tunnel.as_mut()) {
            match self.side {
                Side::Dialled => tunnel.asking -= 1,
                Side::Accepted => tunnel.accepted -= 1,
            }
            tunnel.used = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_banned_is_forgotten_first() {
        let peers = Peers::new(8, Access::default());
        for n in 0..=BANNED_MAX as u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            peers.ban(NodeId(id));
            peers.ban(NodeId(id));
        }
        assert_eq!(peers.lets_in(NodeId([0; 32])), Ok(()));
        assert_eq!(peers.lets_in(NodeId([1; 32])), Ok(()), "was never banned");
        assert_eq!(peers.state().banned.len(), BANNED_MAX);
    }
}
