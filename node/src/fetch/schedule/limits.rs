//! The numbers of the schedule, each with its reason.

use std::time::Duration;

/// Bytes outstanding at one peer. Covers a gigabit at a quarter of a second.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;

/// Bytes outstanding at all peers together, when nothing calls for more.
pub(super) const IN_FLIGHT_BYTES_MODEST: u64 = 10 << 20;

/// Bytes of all chunks that were asked for and are not kept yet, however much of them has come, when nothing
/// calls for more: what a crash costs, and what they take in memory. One more chunk may be added to these.
pub(super) const UNKEPT_BYTES_MODEST: u64 = 12 << 20;

/// Bytes outstanding at all peers together, when the bandwidth times the delay calls for it, or many slow peers do.
pub(super) const IN_FLIGHT_BYTES_TOTAL_MAX: u64 = 64 << 20;

/// Requests outstanding at one peer, for models of many small chunks.
pub(super) const IN_FLIGHT_REQUESTS_MAX: usize = 32;

/// Beyond the round trip, a peer's window covers this: verifying, writing, and asking again.
pub(super) const WINDOW: Duration = Duration::from_millis(100);

/// A peer that needs longer than this for a chunk may be asked for one however much is outstanding
/// elsewhere: many such peers make up one fast link only together.
pub(super) const SLOW: f64 = 2.0;

/// Bytes per second assumed of a peer not yet measured: fast enough to be tried early.
pub(super) const RATE_UNKNOWN: f64 = 16e6;

/// Rates are averaged over about this many seconds.
pub(super) const SAMPLE_MEMORY: f64 = 1.0;

/// A rate is measured over no less than this,
pub(super) const SAMPLE_MIN: Duration = Duration::from_millis(100);

/// or this many bytes, if then nothing is under way any more.
pub(super) const SAMPLE_BYTES_MIN: u64 = 64 << 10;

/// Of peers that are not measured, each is chosen with at least this share of the best one's chance.
pub(super) const CHANCE_FLOOR: f64 = 0.1;

/// How long a peer is left alone after its first failure; doubles with each further one.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// The longest a peer is left alone. A peer that is back is found within this, whatever it does.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a peer that has too much to do is left alone.
pub(super) const BUSY_PAUSE: Duration = Duration::from_millis(700);

/// How long a peer that gave a chunk to another is not asked for that one.
pub(super) const ELSEWHERE_PAUSE: Duration = Duration::from_millis(1500);

/// How long others are preferred to a peer that stalled; doubles with each stall in a row.
pub(super) const BLACKLIST_FIRST: Duration = Duration::from_secs(30);

/// The longest they are.
pub(super) const BLACKLIST_MAX: Duration = Duration::from_secs(30 * 60);

/// Failures since its last chunk after which nobody counts on a peer: others are looked for, origins are asked,
/// and whoever waits is told in the end. It is still tried again, after each pause.
pub(super) const FAILURES_COUNTED_ON_MAX: u32 = 6;

/// What inference needs within this time goes by deadline; the rest goes rarest first.
pub(super) const DEADLINE_WINDOW: f64 = 1.0;

/// That, at least, in bytes: before rates are known, and on slow links.
pub(super) const DEADLINE_WINDOW_MIN: u64 = 12 << 20;

/// Of that, a herd takes so much at a time rarest first: less, and all want the same chunk; more, and what is needed
/// first comes with the rest.
pub(super) const DEADLINE_STEP: u64 = 12 << 20;

/// Requests for one chunk at once.
pub(super) const ASKED_TWICE: usize = 2;

/// How long a request is left to its peer before another may take it over.
pub(super) const SETTLED: Duration = Duration::from_millis(400);

/// A waiting request is moved if it would be done this many times sooner elsewhere;
pub(super) const STEAL_GAIN: f64 = 1.5;

/// one that has begun is asked for a second time if that would be done this many times sooner.
pub(super) const TWICE_GAIN: f64 = 1.7;

/// How much less likely a peer that has all of a model is chosen for what others have too.
pub(super) const SEED_SPARED: f64 = 0.3;

/// When so many others have a chunk, peers that have all of the model are not asked for it at all,
pub(super) const HERD_ENOUGH: usize = 3;

/// unless the others would take this many times longer.
pub(super) const MUCH_SLOWER: f64 = 3.0;
