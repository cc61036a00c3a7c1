//! Where the engine is in its pass, and which groups are in memory or on their way there.
//!
//! Starts nothing and waits for nothing: [`ahead`](super::ahead) does.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Tensors, WeightsError, plan::Plan};
use crate::source::Urgency;

/// What became of a group that was to be loaded.
pub(super) type Loaded = Result<Arc<Tensors>, WeightsError>;

/// A group that is in memory or on its way there, as long as anyone holds this.
#[derive(Debug)]
pub(super) struct Slot {
    outcome: watch::Receiver<Option<Loaded>>,
    _task: AbortOnDropHandle<()>,
}

/// The groups that are held, and the engine's place among them.
#[derive(Debug)]
pub(super) struct Held {
    plan: Arc<Plan>,
    /// How often the engine has come back to an earlier position.
    round: u64,
    /// The position of the pass that was visited last.
    at: Option<usize>,
    /// The group that was asked for last.
    current: Option<usize>,
    slots: HashMap<usize, Arc<Slot>>,
    ring_peak: u64,
    closed: bool,
}

/// A group to be held next, or to be wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Which.
    pub(super) group: usize,
    /// How soon it is needed.
    pub(super) urgency: Urgency,
    /// How far it may come.
    pub(super) reach: Reach,
}

/// How far a group may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Into memory, now: the ring has room for it.
    Ring,
    /// Into memory, to stay.
    Resident,
    /// As far as the source.
    Source,
}

impl Slot {
    /// What `task` tells through the sender of `outcome`.
    pub(super) fn new(
        outcome: watch::Receiver<Option<Loaded>>,
        task: tokio::task::JoinHandle<()>,
    ) -> Arc<Self> {
        Arc::new(Self { outcome, _task: AbortOnDropHandle::new(task) })
    }

    /// What became of it, if that is known.
    pub(super) fn outcome(&self) -> Option<Loaded> {
        self.outcome.borrow().clone()
    }

    /// Waits until it is known.
    pub(super) async fn wait(&self) -> Loaded {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(known) => known.clone().unwrap_or(Err(WeightsError::Stopped)),
            // The task ended without a word: its runtime is gone.
            Err(_) => Err(WeightsError::Stopped),
        }
    }
}

impl Held {
    /// Nothing, before the first pass.
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        Self { plan, round: 0, at: None, current: None, slots: HashMap::new(), ring_peak: 0, closed: false }
    }

    /// The engine asks for `group`. Lets go of what has been used and of what failed. Says whether
    /// the engine has come back to an earlier group.
    pub(super) fn visit(&mut self, group: usize) -> bool {
        let position = self.plan.position(group);
        let again = position.is_some() && position <= self.at;
        self.round += u64::from(again);
        self.at = position.or(self.at);
        self.current = Some(group);
        let ring = self.plan.ring_at(self.current, self.at);
        self.slots.retain(|at, slot| {
            let failed = *at == group && matches!(slot.outcome(), Some(Err(_)));
            !failed && (self.plan.is_resident(*at) || ring.contains(at))
        });
        again
    }

    /// What is to come, the most urgent first: of the ring, then of all others in order of use.
    /// Nothing that is held already.
    pub(super) fn next(&self) -> impl Iterator<Item = Next> + '_ {
        let ring = self.plan.ring_at(self.current, self.at);
        let position = |group: &usize| self.plan.position(*group);
        let in_ring: Vec<Next> = ring
            .iter()
            .filter(|group| !self.slots.contains_key(group) && Some(**group) != self.current)
            .filter_map(|group| Some((*group, position(group)?)))
            .map(|(group, at)| Next { group, urgency: self.urgency_at(at), reach: Reach::Ring })
            .collect();
        let others = self.plan.coming(self.at).map(|(at, group)| (group, self.urgency_at(at)));
        let others = others.filter(move |(group, _)| {
            !self.slots.contains_key(group) && !ring.contains(group) && Some(*group) != self.current
        });
        let reach = |group| if self.plan.is_resident(group) { Reach::Resident } else { Reach::Source };
        let others = others.map(move |(group, urgency)| Next { group, urgency, reach: reach(group) });
        let open = if self.closed { 0 } else { usize::MAX };
        in_ring.into_iter().chain(others).take(open)
    }

    /// As urgent as what the engine will wait for next.
    pub(super) fn soon(&self) -> Urgency {
        Urgency::Deadline(self.turn(self.at.map_or(0, |at| at + 2)))
    }

    /// How often the engine has come back to an earlier position.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// As urgent as what the engine waits for.
    pub(super) fn now(&self) -> Urgency {
        Urgency::Deadline(self.turn(self.at.map_or(0, |at| at + 1)))
    }

    /// Holds `slot` for `group` from now on.
    pub(super) fn hold(&mut self, group: usize, slot: Arc<Slot>) {
        self.slots.insert(group, slot);
        self.ring_peak = self.ring_peak.max(self.ring());
    }

    /// The slot of `group`, if it is held.
    pub(super) fn slot(&self, group: usize) -> Option<Arc<Slot>> {
        self.slots.get(&group).cloned()
    }

    /// Lets go of what is not a copy of our own.
    pub(super) fn let_go(&mut self) {
        let plan = &self.plan;
        self.slots.retain(|at, _| plan.is_resident(*at));
    }

    /// Lets go of everything, for good.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.slots.clear();
    }

    /// Bytes of streamed groups held.
    pub(super) fn ring(&self) -> u64 {
        self.slots.keys().filter(|group| !self.plan.is_resident(**group)).map(|at| self.plan.size(*at)).sum()
    }

    /// The most that [`Held::ring`] has been.
    pub(super) fn ring_peak(&self) -> u64 {
        self.ring_peak
    }

    /// Bytes of resident groups that are here.
    pub(super) fn resident(&self) -> u64 {
        let here = self
            .slots
            .iter()
            .filter(|(group, slot)| self.plan.is_resident(**group) && matches!(slot.outcome(), Some(Ok(_))));
        here.map(|(group, _)| self.plan.size(*group)).sum()
    }

    /// When position `at` is visited next.
    fn urgency_at(&self, at: usize) -> Urgency {
        let past = self.at.is_some_and(|last| at <= last);
        let len = self.plan.pass_len() as u64;
        Urgency::Deadline(self.turn(at + 1) + if past { len } else { 0 })
    }

    /// Turns are counted from 1, so that rows wanted before the first group precede it.
    fn turn(&self, ordinal: usize) -> u64 {
        self.round * self.plan.pass_len() as u64 + ordinal as u64
    }
}
