//! What is known of one peer: how fast it is, what it owes us, and whether it is asked at all.

use std::time::Duration;

use tokio::time::Instant;

use super::{Outcome, limits::*};
use crate::fetch::{Link, Route};

/// One peer, as the schedule sees it.
#[derive(Debug)]
pub(super) struct PeerState {
    /// Bytes per second that it has given lately, time in its queue included.
    rate: f64,
    measured: bool,
    pub(super) link: Link,
    /// Requests under way, the oldest first.
    pub(super) flights: Vec<u64>,
    /// Bytes of those that have not come yet.
    pub(super) owed: u64,
    /// Failures in a row: the pause after the next one grows with them.
    failures: u32,
    /// Failures since it last delivered.
    barren: u32,
    stalls: u32,
    paused_until: Option<Instant>,
    /// Whether it is paused because it could not be reached. A word from it shows that it can be.
    unreached: bool,
    blacklisted_until: Option<Instant>,
    /// Has delivered at least once.
    pub(super) proven: bool,
    pub(super) lied: bool,
    /// The way to it may not carry chunks.
    barred: bool,
    sample_since: Instant,
    sample_bytes: u64,
}

impl PeerState {
    pub(super) fn unknown(now: Instant) -> Self {
        Self {
            rate: RATE_UNKNOWN,
            measured: false,
            link: Link { route: Route::Direct, rtt: Duration::from_millis(20) },
            flights: Vec::new(),
            owed: 0,
            failures: 0,
            barren: 0,
            stalls: 0,
            paused_until: None,
            unreached: false,
            blacklisted_until: None,
            proven: false,
            lied: false,
            barred: false,
            sample_since: now,
            sample_bytes: 0,
        }
    }

    /// Seconds until `size` more bytes would be here: round trip, what it owes already, and they.
    pub(super) fn expected(&self, size: u64) -> f64 {
        self.link.rtt.as_secs_f64() + (self.owed + size) as f64 / self.rate
    }

    /// Bytes per second, once there was something to measure.
    pub(super) fn rate(&self) -> Option<f64> {
        self.measured.then_some(self.rate)
    }

    /// How much it is preferred to others that would take as long.
    pub(super) fn preference(&self) -> f64 {
        match self.link.route {
            Route::Local => 4.0,
            Route::Lan => 2.0,
            Route::Direct | Route::Punched => 1.0,
            Route::Relayed => 0.05,
        }
    }

    /// Whether it is expected to give what it says it has.
    pub(super) fn is_counted_on(&self) -> bool {
        self.may_give() && self.barren < FAILURES_COUNTED_ON_MAX
    }

    /// Whether it would give what it has, if it could.
    pub(super) fn may_give(&self) -> bool {
        !self.lied && !self.barred
    }

    /// By which way it is reached.
    pub(super) fn reached(&mut self, link: Link) {
        self.link = link;
        self.barred &= link.route == Route::Relayed;
    }

    /// It has said something, or there is a connection to it: it can be reached.
    pub(super) fn heard(&mut self) {
        if std::mem::take(&mut self.unreached) {
            (self.failures, self.paused_until) = (0, None);
        }
    }

    /// It is back after a time in which it was gone. What it stalled on then is forgiven if it ever delivered.
    pub(super) fn returned(&mut self) {
        self.heard();
        if self.proven {
            (self.stalls, self.blacklisted_until) = (0, None);
        }
    }

    /// Nothing counts against it any more, unless it has lied.
    pub(super) fn afresh(&mut self) {
        (self.failures, self.barren, self.stalls, self.unreached) = (0, 0, 0, false);
        self.barred = false;
        (self.paused_until, self.blacklisted_until) = (None, None);
    }

    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|&until| now < until)
    }

    /// Has stalled, and is asked only for what nobody else has.
    pub(super) fn blacklisted_until(&self, now: Instant) -> Option<Instant> {
        self.blacklisted_until.filter(|&until| now < until)
    }

    /// Whether it may be asked for one more chunk now.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        let bandwidth_delay = self.rate * (self.link.rtt + WINDOW).as_secs_f64();
        let window = (bandwidth_delay as u64).min(IN_FLIGHT_BYTES_MAX);
        let may = match self.flights.len() {
            0 => true,
            _ if !self.proven => false,
            1 => true,
            requests => self.owed < window && requests < IN_FLIGHT_REQUESTS_MAX,
        };
        may && !self.lied && self.paused_until(now).is_none()
    }

    pub(super) fn start(&mut self, flight: u64, size: u64, now: Instant) {
        if self.flights.is_empty() {
            (self.sample_since, self.sample_bytes) = (now, 0);
        }
        self.flights.push(flight);
        self.owed += size;
    }

    /// `bytes` more of what it owes have come.
    pub(super) fn came(&mut self, bytes: u64, now: Instant) {
        self.owed -= bytes;
        self.sample_bytes += bytes;
        self.sample(now, SAMPLE_MIN);
    }

    /// A request ended, of which `left` bytes had not come.
    pub(super) fn end(&mut self, flight: u64, left: u64, outcome: Outcome, now: Instant) {
        self.flights.retain(|other| *other != flight);
        self.owed -= left;
        if self.flights.is_empty() && SAMPLE_BYTES_MIN <= self.sample_bytes {
            self.sample(now, Duration::from_micros(1));
        }
        self.judge(outcome, now);
    }

    /// A request to it ended so.
    pub(super) fn judge(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Delivered => {
                self.afresh();
                self.proven = true;
            }
            Outcome::NotHere | Outcome::Elsewhere | Outcome::Cancelled => (),
            Outcome::Busy => self.paused_until = self.paused_until.max(Some(now + BUSY_PAUSE)),
            // Requests that were under way together fail together; that is one failure.
            Outcome::Failed | Outcome::Refused | Outcome::Stalled if self.paused_until(now).is_some() => (),
            Outcome::Failed => self.pause(true, now),
            Outcome::Refused => self.pause(false, now),
            Outcome::Barred => {
                self.barred = true;
                if self.paused_until(now).is_none() {
                    self.pause(false, now);
                }
            }
            Outcome::Stalled => {
                self.pause(true, now);
                let growth = 2u32.saturating_pow(self.stalls.min(16));
                self.blacklisted_until = Some(now + (BLACKLIST_FIRST * growth).min(BLACKLIST_MAX));
                self.stalls = self.stalls.saturating_add(1);
            }
            Outcome::Lied => self.lied = true,
        }
    }

    /// Time passes. While it owes something, time without bytes counts.
    pub(super) fn sample(&mut self, now: Instant, least: Duration) {
        let took = now.saturating_duration_since(self.sample_since);
        if took < least {
            return;
        }
        let rate = (self.sample_bytes as f64 / took.as_secs_f64()).max(1.0);
        let weight = if self.measured { 1.0 - (-took.as_secs_f64() / SAMPLE_MEMORY).exp() } else { 1.0 };
        // Before the first bytes there is nothing to measure but the time to connect.
        if self.measured || 0 < self.sample_bytes {
            self.rate += (rate - self.rate) * weight;
            self.measured = true;
        }
        (self.sample_since, self.sample_bytes) = (now, 0);
    }

    /// A request of `size` bytes waited for `time` without a byte, and was moved.
    pub(super) fn waited(&mut self, size: u64, time: Duration) {
        let rate = size as f64 / time.as_secs_f64().max(1e-3);
        (self.rate, self.measured) = (self.rate.min(rate), true);
    }

    fn pause(&mut self, unreached: bool, now: Instant) {
        let pause = (PAUSE_FIRST * 2u32.saturating_pow(self.failures.min(16))).min(PAUSE_MAX);
        (self.paused_until, self.unreached) = (Some(now + pause), unreached);
        self.failures = self.failures.saturating_add(1);
        self.barren = self.barren.saturating_add(1);
    }
}
