//! Memory for what is being sent: the bodies of all peers together.
//!
//! A body is held until its peer has all of it. One that its peer does not take makes room for those who wait,
//! soon; while nobody waits it may stay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use surf_protocol::wire::Refusal;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::limits::{BODIES_MAX, BODY_TIME_MAX, STALL, STALL_WANTED};

/// Bytes per permit: semaphores count in `u32`.
const UNIT: usize = 1024;

/// Room for bodies.
#[derive(Debug)]
pub(super) struct Bodies {
    /// In units of [`UNIT`].
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(BODIES_MAX / UNIT)), waiting: AtomicUsize::new(0) }
    }
}

impl Bodies {
    /// Room for `bytes`, until it is dropped.
    pub(super) async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let units = bytes.div_ceil(UNIT).min(BODIES_MAX / UNIT);
        let units = u32::try_from(units).expect("no more than all of it");
        if let Ok(room) = Arc::clone(&self.free).try_acquire_many_owned(units) {
            return Ok(room);
        }
        let _waits = Waits::begin(&self.waiting);
        let room = timeout(BODY_TIME_MAX, Arc::clone(&self.free).acquire_many_owned(units)).await;
        room.map_err(|_| Refusal::Busy)?.map_err(|_| Refusal::Failed)
    }

    /// How long a peer may take nothing of a body.
    pub(super) fn patience(&self) -> Duration {
        if self.waiting.load(Ordering::Relaxed) == 0 { STALL } else { STALL_WANTED }
    }
}

/// One that waits, counted until dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
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
    async fn who_waits_makes_others_impatient_and_is_told_in_the_end() {
        let bodies = Arc::new(Bodies::default());
        let all = bodies.take(10 * BODIES_MAX).await.expect("the largest fits alone");
        assert_eq!(bodies.patience(), STALL);
        let waits = Arc::clone(&bodies);
        let waits = tokio::spawn(async move { waits.take(1).await.is_ok() });
        tokio::task::yield_now().await;
        assert_eq!(bodies.patience(), STALL_WANTED);
        drop(all);
        assert!(waits.await.unwrap());
        assert_eq!(bodies.patience(), STALL);
        let _all = bodies.take(BODIES_MAX).await.unwrap();
        assert_eq!(bodies.take(1).await.unwrap_err(), Refusal::Busy);
    }
}
