//! What one peer was given, what it takes, and whether it may have more than one request served. Pure.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::Ticket;

/// What a peer was given counts half after this: long enough to even out chunks, short enough that
/// last minute's download is no debt.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// Who has taken so much has shown that it reads. More than fits unread into the windows of a connection
/// whose owner grants hardly any.
const PROVEN: u64 = 1024 * 1024;

/// A peer that takes less than this part of what its slots could carry does not hold them.
const SLOW: f64 = 1.0 / 16.0;

/// A request holds a slot if it takes this part of what the slot could carry, and a part of one if it takes less.
/// Receivers are not equally fast, and what they take in half a second varies.
const FULL: f64 = 1.0 / 4.0;

/// Bytes per second below which nobody counts as taking anything: keeping a connection alive is no progress.
const RATE_MIN: f64 = 8.0 * 1024.0;

/// The most that a peer can owe. On the fastest lines, half a second of all slots.
const OWES_MAX: f64 = 64.0 * 1024.0 * 1024.0;

/// What a peer has had.
#[derive(Debug)]
pub(super) struct Share {
    /// Bytes it was given, by the time `at`.
    given: f64,
    at: Instant,
    /// When its last request was started.
    pub(super) started: Option<Instant>,
    pub(super) waiting: BTreeSet<Ticket>,
    pub(super) waiting_bytes: u64,
    pub(super) served: usize,
    /// Bytes that it has been promised and not yet given.
    pub(super) promised: u64,
    /// Whether it has shown that it takes what it asks for.
    proven: bool,
    /// Bytes of its that count towards that.
    taken: u64,
    /// Whether it takes enough to have several requests served.
    able: bool,
    /// Bytes that it has to take before it is able again: what its slots could have carried.
    owes: f64,
    /// When the present look at it began, and what it took since.
    mark: Instant,
    marked: u64,
    /// Bytes per second in the look before. None: this is the first since it has been served.
    rate: Option<f64>,
}

/// What a slot is worth, and how long a look takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// Bytes per second that a slot carries at the best.
    pub(super) slot: f64,
    /// How long a peer may take nothing.
    pub(super) patience: Duration,
}

/// How a look at a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Not yet.
    Nothing,
    /// It takes enough.
    Takes,
    /// It takes too little.
    Slow,
}

impl Share {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            given: 0.,
            at: now,
            started: None,
            waiting: BTreeSet::new(),
            waiting_bytes: 0,
            served: 0,
            promised: 0,
            proven: false,
            taken: 0,
            able: false,
            owes: 0.,
            mark: now,
            marked: 0,
            rate: None,
        }
    }

    /// One of its requests is started.
    pub(super) fn start(&mut self, size: u64, now: Instant) {
        if self.served == 0 {
            (self.mark, self.marked, self.rate) = (now, 0, None);
        }
        self.served += 1;
        self.promised += size;
        self.started = Some(now);
    }

    /// It has taken `bytes`.
    pub(super) fn took(&mut self, bytes: u64, now: Instant) {
        self.given = self.given_by(now) + bytes as f64;
        self.at = now;
        self.marked += bytes;
        self.owes = (self.owes - bytes as f64).max(0.);
        self.taken = self.taken.saturating_add(bytes);
        self.proven |= PROVEN <= self.taken;
    }

    /// It has all of something that it asked for.
    pub(super) fn got_all(&mut self) {
        self.proven = true;
        self.able |= self.owes <= 0.;
    }

    /// It can take nothing, because of a limit of ours.
    pub(super) fn held(&mut self, now: Instant) {
        self.mark = now;
    }

    /// Looks at it, if it is time to.
    pub(super) fn look(&mut self, measure: Measure, now: Instant) -> Seen {
        let took = now.saturating_duration_since(self.mark);
        if self.served == 0 || took < measure.patience {
            self.able |= self.proven && self.owes <= 0. && self.rate.is_none();
            return Seen::Nothing;
        }
        let seconds = took.as_secs_f64();
        let could = self.served as f64 * measure.slot * seconds;
        let enough = (could * SLOW).max(RATE_MIN * seconds) <= self.marked as f64;
        if enough {
            self.able = self.proven && self.owes <= 0.;
        } else if std::mem::take(&mut self.able) {
            self.owes = (could - self.marked as f64).clamp(0., OWES_MAX);
        }
        self.rate = Some(self.marked as f64 / seconds);
        (self.mark, self.marked) = (now, 0);
        if enough { Seen::Takes } else { Seen::Slow }
    }

    /// How many slots it holds: as many as it has requests, unless it takes little.
    pub(super) fn slots(&self, measure: Measure) -> f64 {
        let all = self.served as f64;
        match self.rate {
            None => all,
            Some(rate) if rate < RATE_MIN => 0.,
            Some(rate) => all.min(rate / (FULL * measure.slot).max(1.)),
        }
    }

    /// Whether it is tried out, and nothing is known of how it takes what it is sent.
    pub(super) fn is_untried(&self) -> bool {
        0 < self.served && !self.able && self.rate.is_none() && (self.marked as f64) < RATE_MIN
    }

    /// Whether nothing says that it does not take what it is sent.
    pub(super) fn may_take(&self) -> bool {
        self.able || self.served == 0 || self.rate.is_none()
    }

    /// Whether it may have several requests served.
    pub(super) fn is_able(&self) -> bool {
        self.able
    }

    /// Among those who are not able, who goes first: who has taken much lately, then who has never been tried.
    pub(super) fn class(&self, now: Instant) -> u8 {
        match () {
            () if PROVEN as f64 <= self.given_by(now) => 0,
            () if self.started.is_none() => 1,
            () => 2,
        }
    }

    /// What is lost if it is forgotten: the least first.
    pub(super) fn worth(&self, now: Instant) -> (bool, bool, f64) {
        (self.proven, self.started.is_some(), self.total(now))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.served == 0
    }

    fn given_by(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at);
        self.given * (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
    }

    /// What it was given and promised.
    pub(super) fn total(&self, now: Instant) -> f64 {
        self.given_by(now) + self.promised as f64
    }
}
