//! Who is connected, who is banned, and what has gone to and fro. Shared by both halves.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use surf_protocol::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    PeerTraffic, code,
    limits::{
        ACCEPTED_MAX, ACCEPTED_PER_PEER, BANNED_MAX, DIALLED_MAX, OUTSTANDING_PER_PEER, REMEMBERED_MAX,
        WAITING_PER_PEER, WAITING_TIME_MAX,
    },
};

/// Everyone this endpoint deals with.
#[derive(Debug, Default)]
pub(super) struct Peers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<NodeId, Known>,
    banned: HashSet<NodeId>,
    /// The same, in the order in which they were banned.
    ban_order: VecDeque<NodeId>,
    accepted: usize,
    dialled: usize,
}

#[derive(Debug)]
struct Known {
    links: Vec<(Side, quinn::Connection)>,
    addr: SocketAddr,
    /// Of connections that are closed.
    sent: u64,
    received: u64,
    budget: Arc<Budget>,
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
    #[error("the peer is banned")]
    Banned,
    #[error("too many connections")]
    TooMany,
}

/// A connection that counts, until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    peers: Arc<Peers>,
    id: NodeId,
    side: Side,
    pub(super) connection: quinn::Connection,
    pub(super) budget: Arc<Budget>,
}

impl Peers {
    /// Counts `connection`, which has proven to be with `id`, or closes it.
    pub(super) fn register(
        self: &Arc<Self>,
        id: NodeId,
        side: Side,
        connection: quinn::Connection,
    ) -> Result<Registered, Unwanted> {
        let mut state = self.state();
        if let Err(unwanted) = state.check(id, side) {
            drop(state);
            let code = match unwanted {
                Unwanted::Banned => code::BANNED,
                Unwanted::TooMany => code::TOO_MANY,
            };
            connection.close(code, unwanted.to_string().as_bytes());
            return Err(unwanted);
        }
        match side {
            Side::Accepted => state.accepted += 1,
            Side::Dialled => state.dialled += 1,
        }
        state.forget_some();
        let known = state.known.entry(id).or_insert_with(|| Known {
            links: Vec::new(),
            addr: connection.remote_address(),
            sent: 0,
            received: 0,
            budget: Arc::default(),
        });
        known.addr = connection.remote_address();
        known.links.push((side, connection.clone()));
        let budget = Arc::clone(&known.budget);
        Ok(Registered { peers: Arc::clone(self), id, side, connection, budget })
    }

    /// How many connections others have to us.
    pub(super) fn accepted(&self) -> usize {
        self.state().accepted
    }

    pub(super) fn is_banned(&self, id: NodeId) -> bool {
        self.state().banned.contains(&id)
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
        for (_, connection) in links {
            connection.close(code::BANNED, b"banned");
        }
    }

    pub(super) fn traffic(&self) -> Vec<PeerTraffic> {
        let state = self.state();
        let traffic = state.known.iter().map(|(&id, known)| {
            let mut traffic = PeerTraffic {
                id,
                addr: known.addr,
                sent: known.sent,
                received: known.received,
                rtt: None,
                connections: known.links.len(),
            };
            for (_, connection) in &known.links {
                let stats = connection.stats();
                traffic.sent += stats.udp_tx.bytes;
                traffic.received += stats.udp_rx.bytes;
                traffic.rtt = Some(traffic.rtt.map_or(stats.path.rtt, |rtt| rtt.min(stats.path.rtt)));
            }
            traffic
        });
        traffic.collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }
}

impl State {
    fn check(&self, id: NodeId, side: Side) -> Result<(), Unwanted> {
        if self.banned.contains(&id) {
            return Err(Unwanted::Banned);
        }
        let of_peer = self
            .known
            .get(&id)
            .map_or(0, |known| known.links.iter().filter(|(theirs, _)| *theirs == side).count());
        let room = match side {
            Side::Accepted => self.accepted < ACCEPTED_MAX && of_peer < ACCEPTED_PER_PEER,
            Side::Dialled => self.dialled < DIALLED_MAX,
        };
        if room { Ok(()) } else { Err(Unwanted::TooMany) }
    }

    /// Makes room for one more peer, if there are too many without a connection.
    fn forget_some(&mut self) {
        let remembered = REMEMBERED_MAX + self.accepted + self.dialled;
        if remembered <= self.known.len() {
            let gone = self.known.iter().filter(|(_, known)| known.links.is_empty());
            let least = gone.min_by_key(|(_, known)| known.sent + known.received).map(|(&id, _)| id);
            if let Some(id) = least {
                self.known.remove(&id);
            }
        }
    }
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
        if let Some(known) = state.known.get_mut(&self.id) {
            known.links.retain(|(_, connection)| connection.stable_id() != id);
            known.sent += stats.udp_tx.bytes;
            known.received += stats.udp_rx.bytes;
        }
    }
}

/// How much a peer may have outstanding, over all its connections.
#[derive(Debug)]
pub(super) struct Budget {
    /// In units of [`UNIT`].
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Bytes per permit: semaphores count in `u32`.
const UNIT: usize = 1024;

/// The peer has asked for too much at once.
#[derive(Debug)]
pub(super) struct TooMuch;

impl Default for Budget {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(OUTSTANDING_PER_PEER / UNIT)), waiting: AtomicUsize::new(0) }
    }
}

impl Budget {
    /// Room for `bytes`, which stays taken until the permit is dropped. Waits for earlier requests
    /// of the same peer, but not for long.
    pub(super) async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, TooMuch> {
        let units = u32::try_from(units(bytes)).expect("no more than the whole budget");
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_many_owned(units) {
            return Ok(permit);
        }
        let _waits = Waits::begin(&self.waiting).ok_or(TooMuch)?;
        let permit = Arc::clone(&self.free).acquire_many_owned(units);
        match tokio::time::timeout(WAITING_TIME_MAX, permit).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(TooMuch),
        }
    }

    /// Gives back what `permit` has too much for `bytes`.
    pub(super) fn shrink(permit: &mut OwnedSemaphorePermit, bytes: usize) {
        let surplus = permit.num_permits().saturating_sub(units(bytes));
        drop(permit.split(surplus));
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).min(OUTSTANDING_PER_PEER / UNIT)
}

/// One that waits, counted until dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let waits = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < WAITING_PER_PEER).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_asks_for_too_much_is_told_so() {
        let budget = Arc::new(Budget::default());
        let mut first = budget.take(OUTSTANDING_PER_PEER).await.unwrap();
        let waiting: Vec<_> = (0..WAITING_PER_PEER)
            .map(|_| {
                let budget = Arc::clone(&budget);
                tokio::spawn(async move { budget.take(UNIT).await.is_ok() })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(budget.take(1).await.is_err(), "one more than may wait");
        Budget::shrink(&mut first, OUTSTANDING_PER_PEER - 10 * UNIT);
        let served = futures::future::join_all(waiting).await;
        // Each gives its permit back at once, so ten places serve them all.
        assert!(served.into_iter().all(|served| served.unwrap()));
        let _all = budget.take(10 * UNIT).await.unwrap();
        assert!(budget.take(1).await.is_err(), "waits, but not forever");
    }

    #[test]
    fn the_first_banned_is_forgotten_first() {
        let peers = Peers::default();
        for n in 0..=BANNED_MAX as u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            peers.ban(NodeId(id));
            peers.ban(NodeId(id));
        }
        assert!(!peers.is_banned(NodeId([0; 32])));
        assert_eq!(peers.state().banned.len(), BANNED_MAX);
    }
}
