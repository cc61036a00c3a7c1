//! Whether this process has slept: a laptop that was closed, a process that was stopped. Pure: both clocks are
//! arguments.
//!
//! The clock that timers go by stands still while a machine sleeps, and the clock on the wall does not. While only the
//! process is stopped both go on, and the task wakes long after it meant to.

use std::time::Duration;

use tokio::time::Instant;

/// A shorter sleep than this changes nothing that matters. A busy machine may keep a task waiting for seconds.
const AWAY_MIN: Duration = Duration::from_secs(10);

/// What the clocks showed last.
#[derive(Debug)]
pub(super) struct Clock {
    at: Instant,
    unix: u64,
}

impl Clock {
    pub(super) fn new(now: Instant, unix: u64) -> Self {
        Self { at: now, unix }
    }

    /// How long the process has slept, if it has, by what the clocks show now. It meant to be awake at `meant`.
    pub(super) fn away(&mut self, now: Instant, unix: u64, meant: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.at);
        let on_the_wall = Duration::from_secs(unix.saturating_sub(self.unix));
        (self.at, self.unix) = (now, unix);
        let slept = on_the_wall.saturating_sub(passed).max(now.saturating_duration_since(meant));
        (AWAY_MIN <= slept).then_some(slept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_lid_and_a_stopped_process_are_noticed_and_a_busy_machine_is_none() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut clock = Clock::new(start, 1_000);
        assert_eq!(clock.away(start + 5 * second, 1_005, start + 5 * second), None);
        assert_eq!(clock.away(start + 13 * second, 1_013, start + 10 * second), None, "3 s late");
        let lid = clock.away(start + 14 * second, 1_074, start + 14 * second);
        assert_eq!(lid, Some(60 * second), "61 s on the wall, one by the timers");
        let stopped = clock.away(start + 80 * second, 1_140, start + 19 * second);
        assert_eq!(stopped, Some(61 * second));
        assert_eq!(clock.away(start + 81 * second, 900, start + 81 * second), None, "set back");
    }
}
