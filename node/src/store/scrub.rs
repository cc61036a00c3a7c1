//! Reads everything once in a while, because a medium loses bits without telling, and nobody else may
//! read them for months.
//!
//! Chunks are read in the order of their ids, spread evenly over the period: an id is a hash, so how far
//! it is in the order says how far in time. A node that was off catches up, no faster than a bound. Where
//! the scrubber is, is written down, so that one that restarts every day gets around too.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use surf_chunker::read_regular;
use surf_protocol::ChunkId;
use tokio::time::{Instant, sleep};

use super::{
    Store, StoreError,
    disk::{Disk, Manner},
};

/// Bytes that are read in a second at most: a third of what an old hard disk reads, and a few per cent
/// of one core's hashing. 80 TB in 30 days.
const RATE_MAX: u64 = 32 << 20;

/// How often it is written down how far it is.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// A pause is cut into such, so that what was put meanwhile is seen.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How much of the period is planned with: the rest is for what goes slower.
const PLANNED: f64 = 0.95;

/// How far the scrubbing is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScrubState {
    /// In what time everything is read once.
    pub period: Duration,
    /// How much of this round is done, from 0 to 1.
    pub done: f64,
    /// When the last round ended, in seconds since 1970.
    pub finished: Option<u64>,
    /// Bytes read since the store was opened.
    pub bytes: u64,
    /// Chunks that were found bad since the store was opened.
    pub bad: u64,
}

/// As it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    version: u32,
    /// When the round began, in milliseconds since 1970.
    begun_ms: u64,
    /// The last chunk that was read in it.
    #[serde(with = "hex_id")]
    last: Option<ChunkId>,
    /// When the round before ended, in seconds since 1970.
    finished: Option<u64>,
}

const VERSION: u32 = 1;

/// What is written down takes a few hundred bytes.
const NOTE_SIZE_MAX: u64 = 4096;

mod hex_id {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use surf_protocol::ChunkId;

    pub(super) fn serialize<S: Serializer>(id: &Option<ChunkId>, to: S) -> Result<S::Ok, S::Error> {
        id.map(|id| id.to_hex()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ChunkId>, D::Error> {
        let hex = Option::<String>::deserialize(from)?;
        hex.map(|hex| ChunkId::from_hex(&hex).ok_or_else(|| D::Error::custom("no chunk id"))).transpose()
    }
}

impl Round {
    fn new(now_ms: u64) -> Self {
        Self { version: VERSION, begun_ms: now_ms, last: None, finished: None }
    }

    /// What was written down, if it makes sense.
    fn read(text: &[u8], now_ms: u64) -> Option<Self> {
        let round: Self = serde_json::from_slice(text).ok()?;
        (round.version == VERSION && round.begun_ms <= now_ms).then_some(round)
    }

    /// How long to wait until the chunk `id` is due.
    fn wait(&self, id: ChunkId, period: Duration, now_ms: u64) -> Duration {
        let due = period.mul_f64(PLANNED * position(id));
        due.saturating_sub(Duration::from_millis(now_ms.saturating_sub(self.begun_ms)))
    }

    /// The round that begins when this one has ended, which is now.
    fn next(now_ms: u64) -> Self {
        Self { finished: Some(now_ms / 1000), ..Self::new(now_ms) }
    }

    /// How long until the next round begins.
    fn rest(&self, period: Duration, now_ms: u64) -> Duration {
        period.mul_f64(PLANNED).saturating_sub(Duration::from_millis(now_ms.saturating_sub(self.begun_ms)))
    }
}

/// How far `id` is in the order of all, from 0 to 1.
fn position(id: ChunkId) -> f64 {
    let first = id.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    first as f64 / u64::MAX as f64
}

/// See [`Store::scrub`].
pub(super) async fn run(store: &Store, period: Duration) {
    let mut scrub = Scrub::open(store, period).await;
    loop {
        for first in 0..=u8::MAX {
            let (ids, last) = (store.disk.holdings().ids_from(first), scrub.round.last);
            for id in ids.into_iter().filter(|id| last.is_none_or(|last| last < *id)) {
                scrub.until_due(id).await;
                scrub.chunk(id).await;
            }
        }
        loop {
            match scrub.round.rest(period, now_ms()) {
                Duration::ZERO => break,
                rest => sleep(rest.min(PAUSE_MAX)).await,
            }
        }
        scrub.round = Round::next(now_ms());
        scrub.note(true).await;
    }
}

struct Scrub<'a> {
    store: &'a Store,
    period: Duration,
    round: Round,
    state: ScrubState,
    noted: Instant,
}

impl<'a> Scrub<'a> {
    async fn open(store: &'a Store, period: Duration) -> Self {
        let text = store.blocking(|disk| read_regular(&disk.layout.scrub(), NOTE_SIZE_MAX)).await;
        let round = text.ok().and_then(Result::ok).and_then(|text| Round::read(&text, now_ms()));
        let round = round.unwrap_or_else(|| Round::new(now_ms()));
        let state = ScrubState { period, done: 0.0, finished: round.finished, bytes: 0, bad: 0 };
        let mut scrub = Self { store, period, round, state, noted: Instant::now() };
        scrub.note(true).await;
        scrub
    }

    async fn until_due(&self, id: ChunkId) {
        loop {
            match self.round.wait(id, self.period, now_ms()) {
                Duration::ZERO => return,
                wait => sleep(wait.min(PAUSE_MAX)).await,
            }
        }
    }

    /// Reads every place of a chunk, and pauses so long that the rate is kept.
    async fn chunk(&mut self, id: ChunkId) {
        let begun = Instant::now();
        match self.store.working(move |disk| scrub(disk, id)).await.flatten() {
            Ok((bytes, bad)) => {
                self.state.bytes += bytes;
                self.state.bad += u64::from(bad);
                let least = Duration::from_secs_f64(bytes as f64 / RATE_MAX as f64);
                sleep(least.saturating_sub(begun.elapsed())).await;
            }
            // Says nothing about the chunk: its turn comes again in the next round.
            Err(error) => tracing::warn!(%error, "a chunk could not be scrubbed"),
        }
        self.round.last = Some(id);
        self.note(false).await;
    }

    /// Tells how far it is, and writes it down if it is time.
    async fn note(&mut self, now: bool) {
        self.state.done = self.round.last.map_or(0.0, position);
        self.state.finished = self.round.finished;
        let state = self.state;
        *self.store.disk.scrubbing.lock().expect("no panics while held") = Some(state);
        if !now && self.noted.elapsed() < NOTED_EVERY {
            return;
        }
        self.noted = Instant::now();
        let text = serde_json::to_vec(&self.round).expect("numbers and hexadecimal digits");
        let written = self.store.blocking(move |disk| disk.layout.write(&disk.layout.scrub(), &text)).await;
        if let Ok(Err(error)) = written {
            tracing::debug!(%error, "cannot write down how far the scrubbing is");
        }
    }
}

/// Reads every place of a chunk. Returns how many bytes that were, and whether one was bad.
fn scrub(disk: &Disk, id: ChunkId) -> Result<(u64, bool), StoreError> {
    let (mut bytes, mut bad) = (0, false);
    let places = disk.holdings().places(id);
    for place in places {
        bad |= matches!(disk.read_checked(id, &place, Manner::FromDisk)?, super::disk::Look::Bad);
        bytes += u64::from(place.size);
    }
    Ok((bytes, bad))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a round goes on after a restart, which no other clock outlives"
)]
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn id(first: u8) -> ChunkId {
        ChunkId::from_bytes(&[first; 32]).unwrap()
    }

    #[test]
    fn chunks_are_due_over_the_period_and_what_is_late_at_once() {
        let round = Round::new(1_000_000);
        let wait = |first, later: Duration| {
            round.wait(id(first), 30 * DAY, 1_000_000 + later.as_millis() as u64).as_secs_f64()
                / DAY.as_secs_f64()
        };
        assert!(wait(0, Duration::ZERO) < 0.1);
        assert!((wait(0x80, Duration::ZERO) - 14.3).abs() < 0.1);
        assert!((wait(0x80, 14 * DAY) - 0.3).abs() < 0.1);
        assert!(wait(0xff, 30 * DAY) == 0.0, "the last is due before the period ends");
        // A clock that goes back makes it wait longer, not for ever.
        assert!(round.wait(id(0xff), DAY, 0) < DAY);
    }

    #[test]
    fn a_round_follows_when_the_period_is_nearly_over() {
        let round = Round { last: Some(id(7)), ..Round::new(0) };
        let day = DAY.as_millis() as u64;
        assert!(Duration::ZERO < round.rest(DAY, day * 9 / 10));
        assert_eq!((round.rest(DAY, day), round.rest(DAY, 9 * day)), (Duration::ZERO, Duration::ZERO));
        assert_eq!(Round::next(9 * day).rest(DAY, 9 * day), DAY.mul_f64(PLANNED));
    }

    /// This text is deployed. If this fails, raise [`VERSION`]; do not edit the expectation.
    #[test]
    fn golden_round() {
        let round = Round { version: 1, begun_ms: 5, last: Some(id(0xab)), finished: Some(4) };
        let text = format!(r#"{{"version":1,"begun_ms":5,"last":"{}","finished":4}}"#, "ab".repeat(32));
        assert_eq!(serde_json::to_string(&round).unwrap(), text);
        assert_eq!(Round::read(text.as_bytes(), 9), Some(round));
        assert_eq!(Round::read(text.as_bytes(), 4), None, "the clock was put back: begin anew");
        assert_eq!(Round::read(b"{", 9), None);
    }
}
