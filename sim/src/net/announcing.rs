//! When a node says what it has: by the node's own policy, with a look-up's time for each key.

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard},
};

use surf_node::{
    fetch::Key,
    swarm::announcements::{Announcements, BOUNDS, Step},
};
use surf_protocol::ModelId;
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn},
    time::{Instant, sleep_until},
};

use super::Net;
use crate::trace::Event;

/// What one node announces in one of its lives. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Announcer {
    plan: Arc<Mutex<Announcements>>,
    changed: Arc<Notify>,
    task: AbortHandle,
}

impl Announcer {
    pub(super) fn start(net: Arc<Net>, node: usize, life: u64) -> Self {
        let plan = Arc::new(Mutex::new(Announcements::new(BOUNDS, Instant::now())));
        let changed = Arc::new(Notify::new());
        let task = spawn(run(net, node, life, Arc::clone(&plan), Arc::clone(&changed))).abort_handle();
        Self { plan, changed, task }
    }

    /// From now on these keys, and nothing else, are to be said of `model`.
    pub(super) fn set(&self, model: ModelId, keys: Vec<Key>) {
        locked(&self.plan).set(model, keys, Instant::now());
        self.changed.notify_one();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(net: Arc<Net>, node: usize, life: u64, plan: Arc<Mutex<Announcements>>, changed: Arc<Notify>) {
    loop {
        let now = Instant::now();
        while let Some(step) = locked(&plan).next(now) {
            match step {
                Step::Announce(key) => drop(spawn(announce(Arc::clone(&net), node, life, key))),
                // Others keep the record until it ends.
                Step::Withdraw(_) => (),
            }
        }
        let wake = locked(&plan).wake(now);
        let due = async {
            match wake {
                Some(wake) => sleep_until(wake).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = changed.notified() => (),
            () = due => (),
        }
    }
}

async fn announce(net: Arc<Net>, node: usize, life: u64, key: Key) {
    sleep_until(net.look_up_ends()).await;
    let mut state = net.state();
    if state.sites[node].life == life {
        state.records.add(node, key);
        state.trace.event(Event::Announces { node });
    }
}

fn locked(plan: &Mutex<Announcements>) -> MutexGuard<'_, Announcements> {
    plan.lock().expect("no panics while held")
}
