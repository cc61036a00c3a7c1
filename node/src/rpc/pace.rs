//! How long a client keeps the node waiting, less what it sends or takes meanwhile.
//!
//! Waiting adds to a debt, bytes that move pay it off at [`RATE`]. So one byte a second does not keep a
//! connection alive, and a slow line does. Time that the client does not cause is not counted.

use std::time::Duration;

use tokio::time::Instant;

/// The debt at which a client is given up. A place is to be free again within 30 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes per second that a client should move while the node waits for it: slower than any line that
/// models come by.
const RATE: f64 = 4096.0;

/// The debt of one client, in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    owed: Duration,
    waiting: Option<Instant>,
}

impl Pace {
    /// The node waits for the client from `now` on, if it does not already.
    pub(super) fn wait(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// The client moved `bytes`, and nobody waits for it at the moment.
    pub(super) fn moved(&mut self, bytes: usize, now: Instant) {
        self.owed = self.owed(now).saturating_sub(Duration::from_secs_f64(bytes as f64 / RATE));
        self.waiting = None;
    }

    /// What the client owes at `now`.
    pub(super) fn owed(&self, now: Instant) -> Duration {
        self.owed + self.waiting.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// How much longer to wait.
    pub(super) fn left(&self, now: Instant) -> Duration {
        PATIENCE.saturating_sub(self.owed(now))
    }

    /// Whether the node waits for the client.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until a client is given up that moves `bytes` each `pause` seconds.
    fn given_up(bytes: usize, pause: u64) -> Option<u64> {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for at in (0..600).step_by(pause as usize) {
            pace.wait(start + Duration::from_secs(at));
            let now = start + Duration::from_secs(at + pause);
            if pace.left(now).is_zero() {
                return Some(at + pause);
            }
            pace.moved(bytes, now);
        }
        None
    }

    #[test]
    fn a_client_that_drips_is_given_up_and_a_slow_line_is_not() {
        assert_eq!(given_up(1, 1), Some(21));
        assert_eq!(given_up(0, 1), Some(20));
        assert!(given_up(1024, 1).is_some_and(|seconds| seconds <= 30));
        assert_eq!(given_up(8 << 10, 1), None);
        assert_eq!(given_up(64 << 10, 10), None);
    }

    #[test]
    fn time_that_the_node_takes_is_not_the_client_s() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        pace.wait(at(0));
        pace.moved(0, at(5));
        assert!(!pace.is_waiting());
        assert_eq!(pace.owed(at(500)), Duration::from_secs(5));
        pace.wait(at(500));
        pace.wait(at(501));
        assert_eq!(pace.left(at(505)), PATIENCE - Duration::from_secs(10));
    }
}
