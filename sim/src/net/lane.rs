//! One direction of a node's link: bytes pass one piece after another at its rate. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A queue with a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// Bytes per second.
    rate: f64,
    /// When everything that was let in has passed.
    free: Instant,
    /// Bytes that were let in.
    passed: u64,
}

impl Lane {
    pub(super) fn new(bytes_per_s: u64, now: Instant) -> Self {
        Self { rate: bytes_per_s as f64, free: now, passed: 0 }
    }

    /// A piece that is there at `from`: when its last byte has passed.
    pub(super) fn queue(&mut self, from: Instant, bytes: usize) -> Instant {
        self.free = self.free.max(from) + self.time(bytes);
        self.passed += bytes as u64;
        self.free
    }

    /// A message of a packet or two. It takes its share, but does not wait behind pieces: on real links
    /// it would wait behind packets.
    pub(super) fn slip(&mut self, from: Instant, bytes: usize) -> Instant {
        self.queue(from, bytes);
        from + self.time(bytes)
    }

    /// Everything that waits is gone, as when the machine is switched off.
    pub(super) fn clear(&mut self, now: Instant) {
        self.free = self.free.min(now);
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    pub(super) fn passed(&self) -> u64 {
        self.passed
    }

    fn time(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pieces_wait_and_messages_do_not() {
        let now = Instant::now();
        let mut lane = Lane::new(1000, now);
        assert_eq!(lane.queue(now, 500), now + Duration::from_millis(500));
        assert_eq!(lane.queue(now, 500), now + Duration::from_millis(1000));
        assert_eq!(lane.slip(now, 100), now + Duration::from_millis(100));
        assert_eq!(lane.queue(now, 400), now + Duration::from_millis(1500), "the message took its share");
        let later = now + Duration::from_secs(10);
        assert_eq!(lane.queue(later, 500), later + Duration::from_millis(500), "idle time is not saved up");
        assert_eq!(lane.passed(), 2000);
    }
}
