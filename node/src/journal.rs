//! What happened, for those who ask: when each chunk arrived and from where, when each group was
//! ready and when it was computed.
//!
//! A bounded log: the oldest events go first. Recording is cheap and never waits.

use std::{collections::VecDeque, sync::Mutex};

use serde::Serialize;
use tokio::time::Instant;

/// Events kept. A cold start of a large model has some ten thousand.
const EVENTS_MAX: usize = 1 << 16;

/// A log of events since the node started.
#[derive(Debug)]
pub struct Journal {
    start: Instant,
    log: Mutex<VecDeque<Entry>>,
}

/// An event, and when it was.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Microseconds since the journal started.
    pub at_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened. Ids are in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A whole chunk was verified.
    ChunkArrived {
        /// The chunk.
        chunk: String,
        /// Its size.
        bytes: u64,
        /// The peer or origin that sent it.
        from: String,
    },
    /// Part of a chunk was verified.
    RangeArrived {
        /// The chunk.
        chunk: String,
        /// First byte in it.
        start: u32,
        /// How many bytes.
        bytes: u64,
        /// The peer or origin that sent it.
        from: String,
    },
    /// Bytes came that were not what they should be, or that were already here.
    Wasted {
        /// The chunk.
        chunk: String,
        /// How many bytes.
        bytes: u64,
        /// The peer or origin that sent it.
        from: String,
    },
    /// A chunk that was here was found damaged or gone.
    ChunkLost {
        /// The chunk.
        chunk: String,
    },
    /// A chunk that was lost is here again.
    ChunkMended {
        /// The chunk.
        chunk: String,
    },
    /// The engine was handed a group.
    GroupReady {
        /// Which.
        group: String,
        /// Whether it was in memory before it was asked for in this pass.
        hit: bool,
        /// How long the engine waited for it.
        waited_us: u64,
    },
    /// The engine has computed with a group.
    GroupComputed {
        /// Which.
        group: String,
        /// How long that took.
        took_us: u64,
    },
}

impl Default for Journal {
    fn default() -> Self {
        Self { start: Instant::now(), log: Mutex::default() }
    }
}

impl Journal {
    /// Adds `event`, now.
    pub fn record(&self, event: Event) {
        let at_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut log = self.log.lock().expect("no panics while held");
        if log.len() == EVENTS_MAX {
            log.pop_front();
        }
        log.push_back(Entry { at_us, event });
    }

    /// Everything that is kept, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.log.lock().expect("no panics while held").iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let journal = Journal::default();
        for waited_us in 0..=EVENTS_MAX as u64 {
            journal.record(Event::GroupReady { group: String::new(), hit: true, waited_us });
        }
        let entries = journal.entries();
        assert_eq!(entries.len(), EVENTS_MAX);
        assert!(matches!(entries[0].event, Event::GroupReady { waited_us: 1, .. }));
    }
}
