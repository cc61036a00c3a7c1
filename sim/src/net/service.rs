//! When a request for a chunk has its turn at the node that serves it: by the node's own policy.

use std::{collections::BTreeMap, sync::Arc};

use surf_node::fetch::service::{Request, Service, TICK, Ticket};
use surf_protocol::wire::Refusal;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep},
};

use super::Net;

/// What one node serves, in one of its lives.
#[derive(Debug, Default)]
pub(super) struct Serving {
    policy: Service,
    waiting: BTreeMap<Ticket, oneshot::Sender<Result<(), Refusal>>>,
    /// Whether somebody looks at it every [`TICK`].
    ticking: bool,
    /// One for each peer: what was started goes out one after the other on a connection.
    connections: BTreeMap<usize, Arc<Semaphore>>,
}

impl Serving {
    /// Calls everyone whose turn it is.
    fn call(&mut self, now: Instant) {
        while let Some((ticket, turn)) = self.policy.start(now) {
            // Who has gone meanwhile says so by being dropped.
            let called = self.waiting.remove(&ticket);
            let _gone = called.map(|called| called.send(turn));
        }
    }
}

/// A request whose turn it is, or will be. Leaves when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    net: Arc<Net>,
    from: usize,
    life: u64,
    ticket: Ticket,
    left: u64,
}

/// The right to use a connection. The next may send when this is dropped.
pub(super) type Line = OwnedSemaphorePermit;

impl Net {
    /// Waits until `from` may send a chunk to `to`, or is told why not.
    pub(super) async fn turn(
        self: &Arc<Self>,
        from: usize,
        to: usize,
        chunk: usize,
    ) -> Result<(Turn, Line), Refusal> {
        let (called, call) = oneshot::channel();
        let (turn, line) = {
            let mut state = self.state();
            let now = Instant::now();
            let size = self.model.chunk_size();
            let request = Request { peer: state.sites[to].id, chunk: Some(self.model.entry(chunk).id), size };
            let life = state.sites[from].life;
            let serving = &mut state.sites[from].serving;
            let ticket = serving.policy.ask(request, now)?;
            serving.waiting.insert(ticket, called);
            serving.call(now);
            let made = || Arc::new(Semaphore::new(1));
            let line = Arc::clone(serving.connections.entry(to).or_insert_with(made));
            if !std::mem::replace(&mut serving.ticking, true) {
                tokio::spawn(Arc::clone(self).tick(from, life));
            }
            (Turn { net: Arc::clone(self), from, life, ticket, left: size }, line)
        };
        call.await.unwrap_or(Err(Refusal::Busy))?;
        let line = line.acquire_owned().await.map_err(|_| Refusal::Failed)?;
        Ok((turn, line))
    }

    /// Looks again and again, for as long as anything waits: who has fallen silent is noticed by time.
    async fn tick(self: Arc<Self>, from: usize, life: u64) {
        loop {
            sleep(TICK).await;
            let mut state = self.state();
            let site = &mut state.sites[from];
            if site.life != life {
                return;
            }
            site.serving.call(Instant::now());
            if site.serving.policy.waiting() == 0 {
                site.serving.ticking = false;
                return;
            }
        }
    }
}

impl Turn {
    /// `bytes` more have left.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.left -= bytes as u64;
        self.with(|serving, ticket, now| serving.policy.sent(ticket, bytes as u64, now));
    }

    fn with(&self, change: impl FnOnce(&mut Serving, Ticket, Instant)) {
        let mut state = self.net.state();
        let site = &mut state.sites[self.from];
        if site.life == self.life {
            let now = Instant::now();
            change(&mut site.serving, self.ticket, now);
            site.serving.call(now);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let whole = self.left == 0;
        self.with(|serving, ticket, now| {
            serving.waiting.remove(&ticket);
            serving.policy.ended(ticket, whole, now);
        });
    }
}
