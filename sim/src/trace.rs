//! What happened, as one hash: equal traces mean equal runs.

use tokio::time::Instant;

/// A running hash of events and the simulated times at which they happened.
#[derive(Debug)]
pub struct Trace {
    start: Instant,
    hash: blake3::Hasher,
    events: u64,
}

impl Trace {
    /// An empty trace that starts now.
    pub fn start() -> Self {
        Self { start: Instant::now(), hash: blake3::Hasher::new(), events: 0 }
    }

    /// Adds an event.
    pub fn event(&mut self, what: &str) {
        self.events += 1;
        self.hash.update(&self.start.elapsed().as_nanos().to_le_bytes());
        self.hash.update(what.as_bytes());
    }

    /// How many events, and their hash.
    pub fn finish(&self) -> (u64, String) {
        (self.events, self.hash.finalize().to_hex().to_string())
    }
}
