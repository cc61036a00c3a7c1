//! How many requests to serve at a time: as few as keep the line full, found by trying.
//!
//! Rates are compared over windows during which something waited all the time; else the line was not
//! full for another reason. More are kept only if that moves clearly more, fewer if that moves no less.

use std::time::Duration;

use tokio::time::Instant;

const SLOTS_FIRST: usize = 4;
/// One alone would leave the line idle between two.
const SLOTS_MIN: usize = 2;
const SLOTS_MAX: usize = 64;

/// Over which a rate is measured: many round trips, and a tenth of a short download.
const WINDOW: Duration = Duration::from_secs(1);

/// Time that a change takes to show, which is not measured.
const SETTLE: Duration = Duration::from_millis(250);

/// More slots must move more than this times as much to be kept.
const GAIN: f64 = 1.05;

/// Fewer slots must move at least this much of the most seen to be kept.
const LOSS: f64 = 0.98;

/// Windows until the next trial after nothing was gained by the last; doubles up to [`REST_MAX`].
const REST: u32 = 4;
const REST_MAX: u32 = 32;

#[derive(Debug)]
pub(super) struct Slots {
    count: usize,
    rate: Option<f64>,
    window: Option<Window>,
    trial: Option<Trial>,
    /// The most that was moved since more were last tried.
    most: f64,
    turn: Turn,
    rest: u32,
    resting: u32,
}

#[derive(Debug)]
struct Window {
    /// In the future while a change settles.
    since: Instant,
    bytes: u64,
}

#[derive(Debug)]
struct Trial {
    from: usize,
    rate: f64,
}

/// What is tried next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    More,
    Fewer,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            count: SLOTS_FIRST,
            rate: None,
            window: None,
            trial: None,
            most: 0.,
            turn: Turn::More,
            rest: REST,
            resting: 0,
        }
    }
}

impl Slots {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes per second while something waited.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Bytes have left.
    pub(super) fn sent(&mut self, bytes: u64) {
        if let Some(window) = &mut self.window {
            window.bytes += bytes;
        }
    }

    /// Time has passed, and something waits or not.
    pub(super) fn passed(&mut self, waits: bool, now: Instant) {
        if !waits {
            self.window = None;
            return;
        }
        let window = self.window.get_or_insert(Window { since: now, bytes: 0 });
        if now < window.since {
            window.bytes = 0;
        }
        let took = now.saturating_duration_since(window.since);
        if took < WINDOW {
            return;
        }
        let rate = window.bytes as f64 / took.as_secs_f64();
        self.rate = Some(self.rate.map_or(rate, |before| (before + rate) / 2.));
        let count = self.count;
        self.measured(rate);
        let settles = if count == self.count { Duration::ZERO } else { SETTLE };
        self.window = Some(Window { since: now + settles, bytes: 0 });
    }

    fn measured(&mut self, rate: f64) {
        match self.trial.take() {
            Some(trial) => self.judge(trial, rate),
            None => self.most = rate,
        }
        if 0 < self.resting {
            self.resting -= 1;
            return;
        }
        let next = match self.turn {
            Turn::More => (2 * self.count).min(SLOTS_MAX),
            Turn::Fewer => (3 * self.count / 4).max(SLOTS_MIN),
        };
        if next == self.count {
            return self.turn_over();
        }
        self.trial = Some(Trial { from: self.count, rate });
        self.count = next;
    }

    /// Keeps what a trial changed, or takes it back.
    fn judge(&mut self, trial: Trial, rate: f64) {
        let kept = match trial.from < self.count {
            true => trial.rate * GAIN < rate,
            false => self.most * LOSS <= rate,
        };
        if kept {
            self.most = self.most.max(rate);
            self.rest = REST;
            return;
        }
        self.count = trial.from;
        self.turn_over();
    }

    /// This direction gains nothing more.
    fn turn_over(&mut self) {
        self.turn = self.turn.other();
        if self.turn == Turn::More {
            // Neither more nor fewer is better.
            self.resting = self.rest;
            self.rest = (2 * self.rest).min(REST_MAX);
        }
    }
}

impl Turn {
    fn other(self) -> Self {
        match self {
            Self::More => Self::Fewer,
            Self::Fewer => Self::More,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slots after `seconds` on a line that carries `line`, to receivers that take `each`.
    fn after(slots: &mut Slots, seconds: u32, line: f64, each: f64, now: &mut Instant) -> Vec<usize> {
        let mut counts = Vec::new();
        for _ in 0..10 * seconds {
            *now += Duration::from_millis(100);
            slots.sent((line.min(each * slots.count() as f64) / 10.) as u64);
            slots.passed(true, *now);
            counts.push(slots.count());
        }
        counts
    }

    #[tokio::test(start_paused = true)]
    async fn few_suffice_for_fast_receivers_and_slow_ones_get_many() {
        let mut now = Instant::now();
        let mut slots = Slots::default();
        slots.passed(true, now);
        let counts = after(&mut slots, 60, 12.5e6, 12.5e6, &mut now);
        assert!(counts.iter().all(|count| *count <= 8), "{counts:?}");
        let few = counts.iter().filter(|count| **count <= 3).count();
        assert!(400 < few, "{counts:?}");
        assert!((slots.rate().unwrap() / 12.5e6 - 1.).abs() < 0.01);
        // The world changes: each takes a twentieth of the line.
        let counts = after(&mut slots, 120, 12.5e6, 0.625e6, &mut now);
        let enough = counts[600..].iter().filter(|count| 19 <= **count && **count <= 32).count();
        assert!(500 < enough, "{counts:?}");
        // Nobody takes much, however many there are.
        let counts = after(&mut slots, 120, 12.5e6, 1e3, &mut now);
        assert!(counts.iter().all(|count| (SLOTS_MIN..=SLOTS_MAX).contains(count)));
        assert_eq!(counts.iter().max(), Some(&SLOTS_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_learned_while_nothing_waits() {
        let mut now = Instant::now();
        let mut slots = Slots::default();
        for _ in 0..1000 {
            now += Duration::from_millis(100);
            slots.sent(1000);
            slots.passed(now.elapsed().as_millis().is_multiple_of(3), now);
            slots.passed(false, now);
        }
        assert_eq!((slots.count(), slots.rate()), (SLOTS_FIRST, None));
    }
}
