//! Waiting for one's turn to be served: the policy of [`service`](crate::fetch::service), with tasks
//! that wait and streams that send.
//!
//! Whoever is dropped, waiting or sending, leaves at once and makes room for the next.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use surf_protocol::wire::Refusal;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::limits::TURN_TIME_MAX;
use crate::fetch::service::{Request, Service, Ticket};

/// How often a stream that sends says how far it is. A small part of the window in which rates are
/// measured.
pub(super) const PACE: Duration = Duration::from_millis(50);

/// Everyone who waits for a turn or has one.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    service: Service,
    waiting: HashMap<Ticket, oneshot::Sender<Result<(), Refusal>>>,
}

/// A request whose turn it is, or will be.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    ticket: Ticket,
    whole: bool,
}

impl Turns {
    /// Waits until it is the turn of `request`, or it is refused.
    pub(super) async fn take(self: &Arc<Self>, request: Request) -> Result<Turn, Refusal> {
        let (called, call) = oneshot::channel();
        let turn = {
            let mut state = self.state();
            let ticket = state.service.ask(request, Instant::now())?;
            state.waiting.insert(ticket, called);
            state.call();
            Turn { turns: Arc::clone(self), ticket, whole: false }
        };
        match timeout(TURN_TIME_MAX, call).await {
            Ok(Ok(called)) => called.map(|()| turn),
            Ok(Err(_)) | Err(_) => Err(Refusal::Busy),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }
}

impl State {
    /// Calls everyone whose turn it is.
    fn call(&mut self) {
        while let Some((ticket, turn)) = self.service.start(Instant::now()) {
            // Who has gone meanwhile says so by being dropped.
            if let Some(called) = self.waiting.remove(&ticket) {
                let _ = called.send(turn);
            }
        }
    }
}

impl Turn {
    /// `bytes` more have left. To be called every [`PACE`], though it were with 0.
    pub(super) fn sent(&self, bytes: u64) {
        let mut state = self.turns.state();
        if bytes != 0 {
            state.service.sent(self.ticket, bytes, Instant::now());
        }
        state.call();
    }

    /// Nothing leaves, because of a limit of ours: that is no fault of the peer's.
    pub(super) fn held(&self) {
        self.turns.state().service.held(self.ticket, Instant::now());
    }

    /// The peer has everything.
    pub(super) fn done(mut self) {
        self.whole = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.waiting.remove(&self.ticket);
        state.service.ended(self.ticket, self.whole, Instant::now());
        state.call();
    }
}

/// What leaves on one connection, however many streams it has.
///
/// QUIC does not tell what of one stream was taken, only what has left on all of them. So each stream
/// counts what has left since any of them last looked, and together they count everything once. What leaves is more
/// than bodies: refusals and acknowledgements are no progress, so no more counts than was written.
#[derive(Debug, Default)]
pub(super) struct Meter {
    state: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    bytes: u64,
    streams: usize,
    /// Bytes that were written and have not been counted as having left.
    unsent: u64,
}

/// Bytes that are no progress: what it takes to keep a connection alive.
const NOISE: u64 = 4 * 1024;

impl Meter {
    /// A stream begins to send; `total` bytes have left so far.
    pub(super) fn begin(&self, total: u64) -> Metered<'_> {
        let mut state = self.state();
        if state.streams == 0 {
            (state.bytes, state.unsent) = (total, 0);
        }
        state.streams += 1;
        Metered { meter: self, written: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, Measured> {
        self.state.lock().expect("no panics while held")
    }
}

/// A stream that sends.
#[derive(Debug)]
pub(super) struct Metered<'a> {
    meter: &'a Meter,
    /// Bytes that were written on it.
    written: AtomicU64,
}

impl Metered<'_> {
    /// What has left since somebody last looked, if it is worth counting. `total` bytes have left so far, and `written`
    /// were written on this stream.
    pub(super) fn since(&self, total: u64, written: u64) -> u64 {
        let mut state = self.meter.state();
        state.unsent += written.saturating_sub(self.written.swap(written, Ordering::Relaxed));
        let bytes = total.saturating_sub(state.bytes);
        if bytes < NOISE {
            return 0;
        }
        state.bytes = total;
        let bytes = bytes.min(state.unsent);
        state.unsent -= bytes;
        bytes
    }
}

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        self.meter.state().streams -= 1;
    }
}

#[cfg(test)]
mod tests {
    use surf_protocol::{ChunkId, NodeId};

    use super::*;

    /// Turns that a peer has already taken what it was sent on.
    async fn proven() -> Arc<Turns> {
        let turns = Arc::new(Turns::default());
        turns.take(request(99)).await.unwrap().done();
        turns
    }

    fn request(n: u8) -> Request {
        Request { peer: NodeId([1; 32]), chunk: Some(ChunkId::of(&[n])), size: 2 << 20 }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_called_and_who_leaves_makes_room() {
        let turns = proven().await;
        let mut first = Vec::new();
        for n in 0..4 {
            first.push(turns.take(request(n)).await.unwrap());
        }
        let mut waiting: Vec<_> = (4..8)
            .map(|n| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { turns.take(request(n)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(turns.state().service.waiting(), 4);
        waiting.remove(0).abort();
        tokio::task::yield_now().await;
        assert_eq!(turns.state().service.waiting(), 3);
        first.remove(0).done();
        let second = waiting.remove(0).await.unwrap().unwrap();
        second.sent(1000);
        drop((second, first));
        for waits in waiting {
            waits.await.unwrap().unwrap();
        }
        let state = turns.state();
        assert_eq!((state.service.waiting(), state.service.serving(), state.waiting.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_without_end() {
        let turns = proven().await;
        let mut taken = Vec::new();
        for n in 0..4 {
            taken.push(turns.take(request(n)).await.unwrap());
        }
        // Nobody looks at the clock here, so those who take nothing are never found out.
        assert_eq!(turns.take(request(9)).await.unwrap_err(), Refusal::Busy);
        assert_eq!(turns.state().service.waiting(), 0);
    }

    #[test]
    fn streams_of_a_connection_count_everything_once() {
        const MIB: u64 = 1 << 20;
        let meter = Meter::default();
        let first = meter.begin(1_000_000);
        let second = meter.begin(1_000_000);
        assert_eq!((first.since(1_100_000, MIB), second.since(1_100_000, MIB)), (100_000, 0));
        assert_eq!((second.since(1_103_000, MIB), first.since(1_105_000, MIB)), (0, 5_000));
        drop((first, second));
        // What leaves while nobody is served is not counted.
        assert_eq!(meter.begin(9_000_000).since(9_010_000, MIB), 10_000);
        // Nor is what was never written: refusals leave as well.
        let stream = meter.begin(9_010_000);
        assert_eq!((stream.since(9_110_000, 2048), stream.since(9_210_000, 2048)), (2048, 0));
        assert_eq!(stream.since(9_310_000, 10_000), 10_000 - 2048);
    }
}
