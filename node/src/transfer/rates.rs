//! How fast bytes come and go, over the last seconds. Pure: time is an argument.

use std::time::Duration;

/// How far back the last seconds reach: after so long, what was weighs a third.
const REACH: Duration = Duration::from_secs(3);

/// How often it is looked at how many bytes there were.
pub(super) const SAMPLED: Duration = Duration::from_secs(1);

/// A moving average.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    total: u64,
    per_second: f64,
}

impl Rate {
    /// There were `total` bytes since the beginning, `since` after the last look.
    pub(super) fn sample(&mut self, total: u64, since: Duration) {
        let seconds = since.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let now = total.saturating_sub(self.total) as f64 / seconds;
        let weight = 1.0 - (-seconds / REACH.as_secs_f64()).exp();
        self.per_second += weight * (now - self.per_second);
        self.total = total;
    }

    /// Bytes per second.
    pub(super) fn per_second(&self) -> u64 {
        self.per_second.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_is_seen_soon_and_silence_forgotten_soon() {
        let mut rate = Rate::default();
        for second in 1..=12 {
            rate.sample(second * 1000, SAMPLED);
        }
        assert!((950..=1000).contains(&rate.per_second()), "{rate:?}");
        (0..24).for_each(|_| rate.sample(12_000, SAMPLED));
        assert_eq!(rate.per_second(), 0);
        rate.sample(12_000, Duration::ZERO);
        assert_eq!(rate.per_second(), 0);
    }
}
