//! What one peer may have outstanding here, over all its connections.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use surf_protocol::wire::Refusal;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use super::limits::{
    OUTSTANDING_PER_PEER, REFUSAL_PACE, REFUSALS_AT_ONCE, SMALL_FIRST, SMALL_MAX, TOLD_PER_PEER_MAX,
    WAITING_PER_PEER, WAITING_TIME_MAX,
};

/// How much a peer may have outstanding, over all its connections.
#[derive(Debug)]
pub(super) struct Budget {
    /// In units of [`UNIT`].
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Answers that need no turn and have not been taken.
    small: Arc<Semaphore>,
    /// Whether it has taken one, and so may have more.
    took_small: AtomicBool,
    /// Models of which it listens to what is here.
    told: Arc<Semaphore>,
    /// When it would have been told its last refusal, had none been told at once.
    refused: Mutex<Option<Instant>>,
}

/// Bytes per permit: semaphores count in `u32`.
const UNIT: usize = 1024;

/// The peer has asked for too much at once.
#[derive(Debug)]
pub(super) struct TooMuch;

impl Default for Budget {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(OUTSTANDING_PER_PEER / UNIT)),
            waiting: AtomicUsize::new(0),
            small: Arc::new(Semaphore::new(SMALL_FIRST)),
            took_small: AtomicBool::new(false),
            told: Arc::new(Semaphore::new(TOLD_PER_PEER_MAX)),
            refused: Mutex::default(),
        }
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

    /// Room for an answer that needs no turn.
    pub(super) async fn small(self: &Arc<Self>) -> Result<Small, TooMuch> {
        let room = tokio::time::timeout(WAITING_TIME_MAX, Arc::clone(&self.small).acquire_owned()).await;
        let room = room.map_err(|_| TooMuch)?.map_err(|_| TooMuch)?;
        Ok(Small { budget: Arc::clone(self), _room: room })
    }

    /// Room for telling it what is here of one more model.
    pub(super) fn tell(&self) -> Result<OwnedSemaphorePermit, TooMuch> {
        Arc::clone(&self.told).try_acquire_owned().map_err(|_| TooMuch)
    }

    /// Waits until the peer may be told `refusal`. Where to ask instead is told at once: that somebody else has just got
    /// a chunk, or that it is not here.
    pub(super) async fn may_be_told(&self, refusal: Refusal) {
        if matches!(refusal, Refusal::Elsewhere | Refusal::NotHere) {
            return;
        }
        let at = {
            let mut refused = self.refused.lock().expect("no panics while held");
            let next = refused.map_or_else(Instant::now, |last| last.max(Instant::now())) + REFUSAL_PACE;
            *refused = Some(next);
            next
        };
        sleep_until(at - REFUSAL_PACE * REFUSALS_AT_ONCE).await;
    }

    /// Gives back what `permit` has too much for `bytes`.
    pub(super) fn shrink(permit: &mut OwnedSemaphorePermit, bytes: usize) {
        let surplus = permit.num_permits().saturating_sub(units(bytes));
        drop(permit.split(surplus));
    }
}

/// An answer that needs no turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Small {
    budget: Arc<Budget>,
    _room: OwnedSemaphorePermit,
}

impl Small {
    /// The peer has all of it: it reads, so it may have more.
    pub(super) fn taken(self) {
        if !self.budget.took_small.swap(true, Ordering::Relaxed) {
            self.budget.small.add_permits(SMALL_MAX - SMALL_FIRST);
        }
    }
}

impl From<TooMuch> for Refusal {
    fn from(_: TooMuch) -> Self {
        Self::Busy
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
    use std::time::Duration;

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

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_and_again_is_refused_at_leisure() {
        let (budget, begin) = (Budget::default(), Instant::now());
        for _ in 0..REFUSALS_AT_ONCE {
            budget.may_be_told(Refusal::Busy).await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        for _ in 0..10 {
            budget.may_be_told(Refusal::Failed).await;
        }
        assert!(10 * REFUSAL_PACE <= begin.elapsed() + Duration::from_millis(10), "{:?}", begin.elapsed());
        budget.may_be_told(Refusal::Elsewhere).await;
        budget.may_be_told(Refusal::NotHere).await;
        let waited = begin.elapsed();
        assert!(waited < 11 * REFUSAL_PACE, "{waited:?}");
        tokio::time::sleep(REFUSAL_PACE * REFUSALS_AT_ONCE).await;
        let quiet = Instant::now();
        budget.may_be_told(Refusal::Busy).await;
        assert_eq!(quiet.elapsed(), Duration::ZERO, "it has been quiet for a while");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_small_answers_may_have_more_of_them() {
        let budget = Arc::new(Budget::default());
        let mut small = Vec::new();
        for _ in 0..SMALL_FIRST {
            small.push(budget.small().await.unwrap());
        }
        assert!(budget.small().await.is_err(), "waits, but not forever");
        small.pop().unwrap().taken();
        for _ in small.len()..SMALL_MAX {
            small.push(budget.small().await.unwrap());
        }
        small.pop().unwrap().taken();
        small.push(budget.small().await.unwrap());
        assert!(budget.small().await.is_err(), "it has shown that it reads only once");
        let told: Vec<_> = (0..TOLD_PER_PEER_MAX).map(|_| budget.tell().unwrap()).collect();
        assert!(budget.tell().is_err());
        drop(told);
        assert!(budget.tell().is_ok());
    }
}
