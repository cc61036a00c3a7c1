//! How fast bytes may move: limits that a user sets and changes while the node runs.
//!
//! `Bucket` is the arithmetic, pure. A [`Limiter`] is a bucket that tasks wait at; they pass in the
//! order in which they came, each with one piece at a time, so that all get the same. [`Limits`] are the
//! limiters of a node, each for all its peers together.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_protocol::{Chunk, ModelId, manifest::ChunkEntry};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    config,
    source::{ChunkSource, Origin, SourceError},
};

/// The most bytes to ask for at once: what others wait for meanwhile.
pub const PIECE_MAX: usize = 64 * 1024;

/// What may pass at once after a pause: a tenth of a second's worth, and at least a piece.
const BURST: f64 = 0.1;

/// The limits of a node.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// On what is sent to peers.
    pub up: Arc<Limiter>,
    /// On what peers send.
    pub down: Arc<Limiter>,
    /// On what origins send.
    pub origin: Arc<Limiter>,
}

impl Limits {
    /// As `config` says.
    pub fn new(config: &config::Limits) -> Self {
        let limiter = |rate: Option<config::Rate>| {
            let limiter = Limiter::default();
            limiter.set(rate.map(|rate| rate.bytes_per_s));
            Arc::new(limiter)
        };
        Self { up: limiter(config.up), down: limiter(config.down), origin: limiter(config.origin) }
    }
}

/// Where bytes wait until they may move.
#[derive(Debug)]
pub struct Limiter {
    bucket: Mutex<Bucket>,
    /// Told when the rate changes.
    changed: watch::Sender<()>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { bucket: Mutex::new(Bucket::new(Instant::now())), changed: watch::Sender::default() }
    }
}

impl Limiter {
    /// Bytes per second that may pass; `None`: as many as come.
    pub fn rate(&self) -> Option<u64> {
        self.bucket().rate
    }

    /// The rate, if something waits for it now.
    pub fn holds_up(&self) -> Option<u64> {
        let mut bucket = self.bucket();
        bucket.advance(Instant::now());
        bucket.rate.filter(|_| bucket.released < bucket.taken)
    }

    /// The same from now on, for those too who wait already.
    pub fn set(&self, rate: Option<u64>) {
        self.bucket().set(rate, Instant::now());
        self.changed.send_replace(());
    }

    /// Told whenever the rate changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A place in the queue for `bytes`.
    pub fn queue(self: &Arc<Self>, bytes: usize) -> Place {
        let end = self.bucket().take(bytes as u64, Instant::now());
        Place { limiter: Arc::clone(self), bytes: bytes as u64, end, passed: false }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no panics while held")
    }
}

/// A place in a queue. Dropping it lets those behind move up.
#[derive(Debug)]
pub struct Place {
    limiter: Arc<Limiter>,
    bytes: u64,
    end: f64,
    passed: bool,
}

impl Place {
    /// Waits until the bytes may move. May be dropped and called again.
    pub async fn pass(&mut self) {
        let mut changed = self.limiter.changed.subscribe();
        while !self.passed {
            let wait = self.limiter.bucket().wait(self.end, Instant::now());
            match wait {
                None => self.passed = true,
                // Either the time is over or the rate is another; both are looked at again.
                Some(wait) => drop(timeout(wait, changed.changed()).await),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.passed {
            self.limiter.bucket().give_back(self.bytes, self.end, Instant::now());
        }
    }
}

/// How much may pass, and how much of it is taken; both count from the beginning.
#[derive(Debug)]
struct Bucket {
    rate: Option<u64>,
    taken: f64,
    released: f64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { rate: None, taken: 0., released: 0., at: now }
    }

    fn set(&mut self, rate: Option<u64>, now: Instant) {
        self.advance(now);
        if rate.is_none() {
            // All who wait may go, and nobody has anything saved up.
            self.released = self.taken;
        }
        self.rate = rate.map(|rate| rate.max(1));
        self.advance(now);
    }

    /// Takes `bytes`. Returns where they end in the count.
    fn take(&mut self, bytes: u64, now: Instant) -> f64 {
        self.advance(now);
        self.taken += bytes as f64;
        self.taken
    }

    /// How long until what ends at `end` may pass; `None`: now.
    fn wait(&mut self, end: f64, now: Instant) -> Option<Duration> {
        self.advance(now);
        let rate = self.rate?;
        let missing = end - self.released;
        // At least a timer's tick, and never longer than a clock can count.
        (0. < missing).then(|| Duration::from_secs_f64((missing / rate as f64).clamp(1e-3, 1e6)))
    }

    /// What was taken up to `end` will not pass. At the end of the queue that is as if it had never been there; from
    /// within, those behind move up, and so may those before, at the cost of whoever comes next.
    fn give_back(&mut self, bytes: u64, end: f64, now: Instant) {
        self.advance(now);
        match end == self.taken {
            true => self.taken -= bytes as f64,
            false => self.released += bytes as f64,
        }
        self.advance(now);
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        match self.rate {
            None => self.released = self.taken,
            Some(rate) => {
                let rate = rate as f64;
                let most = self.taken + (rate * BURST).max(PIECE_MAX as f64);
                self.released = (self.released + rate * passed).min(most);
            }
        }
    }
}

/// A source whose bytes wait at a limiter.
#[derive(Debug)]
pub struct Paced<S> {
    source: Arc<S>,
    limiter: Arc<Limiter>,
}

impl<S> Paced<S> {
    /// `source`, no faster than `limiter` allows.
    pub fn new(source: Arc<S>, limiter: Arc<Limiter>) -> Self {
        Self { source, limiter }
    }

    /// Waits for `bytes` in pieces, so that small requests pass between.
    async fn pass(&self, bytes: usize) {
        let mut left = bytes;
        while left != 0 {
            let piece = left.min(PIECE_MAX);
            self.limiter.queue(piece).pass().await;
            left -= piece;
        }
    }
}

impl<S: ChunkSource> ChunkSource for Paced<S> {
    fn get(&self, chunk: ChunkEntry) -> BoxFuture<'_, Result<Option<Chunk>, SourceError>> {
        Box::pin(async move {
            self.pass(chunk.size as usize).await;
            self.source.get(chunk).await
        })
    }
}

impl<S: Origin> Origin for Paced<S> {
    fn name(&self) -> String {
        self.source.name()
    }

    /// Waits afterwards: how large a manifest is, only the origin knows.
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move {
            let manifest = self.source.manifest(model).await?;
            self.pass(manifest.as_ref().map_or(0, Bytes::len)).await;
            Ok(manifest)
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use proptest::prelude::*;
    use tokio::time::sleep;

    use super::*;
    use crate::source::{self, Memory};

    /// What happens to a bucket next.
    #[derive(Clone, Debug)]
    enum Step {
        Take(u64),
        Pass(u64),
        Set(Option<u64>),
        GiveBack,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..=PIECE_MAX as u64).prop_map(Step::Take),
            4 => (0..2_000u64).prop_map(Step::Pass),
            1 => prop::option::weighted(0.9, 0..50_000_000u64).prop_map(Step::Set),
            1 => Just(Step::GiveBack),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Never more passes than the rates of the time and one burst allow, never less than that if
        /// enough is asked for, and those who wait pass in order.
        #[test]
        fn no_more_passes_than_may(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let mut now = runtime.unwrap().block_on(async { Instant::now() });
            let mut bucket = Bucket::new(now);
            bucket.set(Some(1_000_000), now);
            let (mut waiting, mut passed, mut may) = (std::collections::VecDeque::new(), 0., 0.);
            let mut burst = f64::from(PIECE_MAX as u32).max(100_000.);
            for step in steps {
                match step {
                    Step::Take(bytes) => waiting.push_back((bytes, bucket.take(bytes, now))),
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        may += bucket.rate.unwrap_or(0) as f64 * ms as f64 / 1e3;
                    }
                    Step::Set(rate) => {
                        bucket.set(rate, now);
                        burst = rate.map_or(burst, |rate| burst.max(rate as f64 * BURST));
                    }
                    Step::GiveBack => if let Some((bytes, end)) = waiting.pop_back() {
                        bucket.give_back(bytes, end, now);
                    },
                }
                while let Some(&(bytes, end)) = waiting.front() {
                    if bucket.wait(end, now).is_some() {
                        break;
                    }
                    waiting.pop_front();
                    match bucket.rate {
                        Some(_) => passed += bytes as f64,
                        // What passes without a limit does not count against one.
                        None => (passed, may) = (0., 0.),
                    }
                }
                prop_assert!(passed <= may + burst + 1., "{passed} passed of {may} and {burst}");
            }
            // Whoever waits gets through in the time that it takes, and not before.
            if let (Some(&(_, end)), Some(_)) = (waiting.back(), bucket.rate) {
                let wait = bucket.wait(end, now).unwrap();
                prop_assert!(bucket.wait(end, now + wait + Duration::from_micros(1)).is_none());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_get_the_same_and_together_the_rate() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(Some(4 << 20));
        let begin = Instant::now();
        let streams = (0..8).map(|_| {
            let limiter = Arc::clone(&limiter);
            async move {
                for _ in 0..32 {
                    limiter.queue(PIECE_MAX).pass().await;
                }
                begin.elapsed().as_secs_f64()
            }
        });
        // 16 MiB at 4 MiB/s, and nobody is done long before the others.
        let took = join_all(streams).await;
        assert!(took.iter().all(|took| (3.7..4.1).contains(took)), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_source_conforms_and_waits() {
        let memory = Arc::new(Memory::default());
        let limiter = Arc::new(Limiter::default());
        let paced = Paced::new(Arc::clone(&memory), Arc::clone(&limiter));
        source::conformance::chunk_source(&paced, async |chunk| memory.put(chunk)).await;
        limiter.set(Some(1 << 20));
        let chunk = Chunk::of(vec![7; 2 << 20].into());
        memory.put(chunk.clone());
        let begin = Instant::now();
        let got = paced.get(ChunkEntry { id: chunk.id(), size: 2 << 20 }).await.unwrap();
        assert_eq!(got, Some(chunk));
        assert!((1.8..2.1).contains(&begin.elapsed().as_secs_f64()), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_is_for_those_too_who_wait() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(Some(1));
        let begin = Instant::now();
        let waits = {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move {
                limiter.queue(PIECE_MAX).pass().await;
                limiter.queue(PIECE_MAX).pass().await;
            })
        };
        sleep(Duration::from_secs(1)).await;
        assert!(!waits.is_finished());
        limiter.set(Some(PIECE_MAX as u64));
        waits.await.unwrap();
        assert!((2.9..3.2).contains(&begin.elapsed().as_secs_f64()));
        limiter.set(Some(1));
        let mut gone = limiter.queue(PIECE_MAX);
        assert!(timeout(Duration::from_secs(1), gone.pass()).await.is_err());
        let mut next = limiter.queue(1);
        drop(gone);
        timeout(Duration::from_secs(5), next.pass()).await.expect("moved up");
        limiter.set(None);
        limiter.queue(1 << 40).pass().await;
        assert_eq!((limiter.rate(), limiter.holds_up()), (None, None));
    }
}
