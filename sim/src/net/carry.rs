//! How bytes get from one node to another.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use surf_node::fetch::DialError;
use tokio::time::{Instant, sleep_until};

use super::{
    Net, State,
    service::{Line, Turn},
};

/// How long connecting to a node that does not answer takes, as in the node.
const DIAL_TIME_MAX: Duration = Duration::from_secs(5);

/// A connection on which nothing arrives for this long is gone, as in the node.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Pieces under way beyond those that fill the path, so that neither link waits for a timer of 1 ms.
const PIECES_EXTRA: f64 = 3.0;

/// Most pieces of one chunk that are under way.
const PIECES_MAX: usize = 64;

/// A connection: from whom to whom, and in which of their lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) from_life: u64,
    pub(super) to_life: u64,
}

impl Path {
    pub(super) fn back(self) -> Self {
        Self { from: self.to, to: self.from, from_life: self.to_life, to_life: self.from_life }
    }
}

/// Whether a connection still carries anything.
enum Standing {
    Good,
    /// Not before then.
    Cut(Instant),
    Broken,
    /// The other side is gone and did not say so.
    Silent,
}

impl Net {
    /// Connects, unless there is a connection. Takes a round trip, or [`DIAL_TIME_MAX`] for nothing.
    pub(super) async fn connect(&self, me: usize, life: u64, peer: usize) -> Result<Path, DialError> {
        let (connected, answer) = {
            let mut state = self.state();
            let now = Instant::now();
            let peer_life = state.sites[peer].life;
            let there = peer_life % 2 == 1 && self.cut(&state, me, peer, now).is_none();
            let connected = state.connected.contains(&(me, peer));
            let round_trip = self.latency(&mut state, me, peer) + self.latency(&mut state, peer, me);
            // A connection to someone who is gone, but has not said so, takes the request and is silent.
            let path = Path { from: me, to: peer, from_life: life, to_life: peer_life };
            (connected, if there { Ok((now + round_trip, path)) } else { Err((now + DIAL_TIME_MAX, path)) })
        };
        match (connected, answer) {
            (true, Ok((_, path)) | Err((_, path))) => Ok(path),
            (false, Ok((at, path))) => {
                sleep_until(at).await;
                self.state().connected.insert((me, peer));
                Ok(path)
            }
            (false, Err((at, _))) => {
                sleep_until(at).await;
                Err(gone(peer))
            }
        }
    }

    /// Carries a packet or two.
    pub(super) async fn message(&self, path: Path, size: usize) -> Result<(), DialError> {
        let arrives = {
            let mut state = self.state();
            let latency = self.latency(&mut state, path.from, path.to);
            state.sites[path.from].up.slip(Instant::now(), size) + latency
        };
        self.travel(path, arrives).await?;
        let through = self.state().sites[path.to].down.slip(Instant::now(), size);
        sleep_until(through).await;
        Ok(())
    }

    /// Carries a piece of a chunk. `line` is free for the next chunk when the piece has its place in the queue;
    /// `turn` is told when it has left.
    pub(super) async fn piece(
        &self,
        path: Path,
        piece: Bytes,
        turn: Option<Arc<Mutex<Turn>>>,
        line: Option<Line>,
    ) -> Result<Bytes, DialError> {
        let (leaves, latency) = {
            let mut state = self.state();
            let latency = self.latency(&mut state, path.from, path.to);
            (state.sites[path.from].up.queue(Instant::now(), piece.len()), latency)
        };
        drop(line);
        if let Some(turn) = turn {
            sleep_until(leaves).await;
            turn.lock().expect("no panics while held").sent(piece.len());
        }
        let arrives = self.travel(path, leaves + latency).await?;
        let through = self.state().sites[path.to].down.queue(arrives, piece.len());
        sleep_until(through).await;
        self.state().sites[path.to].ledger.received += piece.len() as u64;
        Ok(piece)
    }

    /// Waits until `arrives`, or until the path is whole again. When it was.
    async fn travel(&self, path: Path, mut arrives: Instant) -> Result<Instant, DialError> {
        loop {
            sleep_until(arrives).await;
            let standing = self.standing(&self.state(), path);
            match standing {
                Standing::Good => return Ok(arrives),
                Standing::Cut(until) if until <= arrives + IDLE_MAX => arrives = until,
                Standing::Cut(_) => {
                    sleep_until(arrives + IDLE_MAX).await;
                    let connected = &mut self.state().connected;
                    connected.remove(&(path.to, path.from));
                    connected.remove(&(path.from, path.to));
                    return Err(gone(path.from));
                }
                Standing::Broken => {
                    self.state().connected.remove(&(path.to, path.from));
                    return Err(gone(path.from));
                }
                Standing::Silent => pending().await,
            }
        }
    }

    fn standing(&self, state: &State, path: Path) -> Standing {
        let changed = |node: usize, life| !state.sites[node].is_here() || state.sites[node].life != life;
        let ends = [(path.from, path.from_life), (path.to, path.to_life)];
        match ends.into_iter().find(|&(node, life)| changed(node, life)) {
            Some((node, _)) if state.sites[node].silent && !state.sites[node].is_here() => Standing::Silent,
            Some(_) => Standing::Broken,
            None => {
                let until = self.cut(state, path.from, path.to, Instant::now());
                until.map_or(Standing::Good, Standing::Cut)
            }
        }
    }

    /// How many pieces of `size` bytes a transfer has under way.
    pub(super) fn window(&self, path: Path, size: usize) -> usize {
        let state = self.state();
        let rate = state.sites[path.from].up.rate().min(state.sites[path.to].down.rate());
        let [a, b] = [path.from, path.to].map(|node| state.sites[node].place.region);
        let round_trip = self.weather.round_trips[a][b].as_secs_f64();
        ((rate * round_trip / size as f64 + PIECES_EXTRA).ceil() as usize).min(PIECES_MAX)
    }

    /// Ends when a node is not there any more; never, if it does not say so.
    pub(super) async fn departure(&self, node: usize, life: u64) {
        let changed = Arc::clone(&self.state().sites[node].changed);
        loop {
            let mut change = pin!(changed.notified());
            change.as_mut().enable();
            let (now, silent) = {
                let site = &self.state().sites[node];
                (site.life, site.silent)
            };
            match now == life {
                true => change.await,
                false if silent => return pending().await,
                false => return,
            }
        }
    }
}

pub(super) fn gone(node: usize) -> DialError {
    DialError::new(format!("node {node}"), "it is gone")
}
