//! What one node asked for and got, chunk by chunk, and whether that is as it should be. Pure.

use std::collections::BTreeMap;

use surf_protocol::Bitmap;
use tokio::time::Instant;

/// Copies of one chunk that may be asked for at once: the second is the endgame's.
const OPEN_MAX: u8 = 2;

/// Honest copies of one chunk that may come, as long as what came could be kept.
const COPIES_MAX: u8 = 2;

/// Chunks that one liar may cost one node.
const LIES_MAX: u32 = 1;

/// Counts of one node.
#[derive(Debug)]
pub(super) struct Ledger {
    chunk_size: u64,
    open: Vec<u8>,
    came: Vec<u8>,
    lies: BTreeMap<usize, u32>,
    /// What it still wants.
    wanted: Bitmap,
    /// When it last got a chunk, or could not have got one.
    pub(super) progressed: Instant,
    /// When it had the first tenth of its chunks in the order of the manifest, and when all.
    pub(super) tenth: Option<Instant>,
    pub(super) finished: Option<Instant>,
    /// Bytes of chunks that came, of whatever use.
    pub(super) received: u64,
    /// Whole honest copies that came first, and again.
    pub(super) useful: u64,
    pub(super) duplicate: u64,
    /// Times that it was told that nobody has a chunk.
    pub(super) gave_up: u64,
}

impl Ledger {
    pub(super) fn new(chunks: usize, chunk_size: u64, now: Instant) -> Self {
        Self {
            chunk_size,
            open: vec![0; chunks],
            came: vec![0; chunks],
            lies: BTreeMap::new(),
            wanted: Bitmap::none(chunks),
            progressed: now,
            tenth: None,
            finished: None,
            received: 0,
            useful: 0,
            duplicate: 0,
            gave_up: 0,
        }
    }

    /// The node has started, with nothing under way: what it knew of others is gone.
    pub(super) fn starts(&mut self, now: Instant) {
        self.lies.clear();
        self.open.fill(0);
        self.progressed = now;
    }

    /// It wants a chunk from now on.
    pub(super) fn wants(&mut self, at: usize) {
        self.wanted.insert(at);
    }

    /// It has a chunk that it wanted, in its hands if not on its disk.
    pub(super) fn got(&mut self, at: usize, now: Instant) {
        self.wanted.remove(at);
        self.progressed = now;
        let tenth = self.wanted.len().div_ceil(10);
        if self.tenth.is_none() && (0..tenth).all(|at| !self.wanted.contains(at)) {
            self.tenth = Some(now);
        }
    }

    pub(super) fn wanted(&self) -> &Bitmap {
        &self.wanted
    }

    /// A request for a chunk has gone out.
    pub(super) fn opened(&mut self, at: usize) {
        self.open[at] += 1;
    }

    /// It has reached the other side.
    pub(super) fn check_open(&self, at: usize) -> Result<(), String> {
        let open = self.open[at];
        if open <= OPEN_MAX { Ok(()) } else { Err(format!("asks {open} nodes at once for chunk {at}")) }
    }

    /// It is over, one way or another.
    pub(super) fn closed(&mut self, at: usize) {
        self.open[at] = self.open[at].saturating_sub(1);
    }

    /// All bytes of a chunk have come, the right ones.
    pub(super) fn came(&mut self, at: usize) -> Result<(), String> {
        self.came[at] += 1;
        if self.came[at] == 1 {
            self.useful += self.chunk_size;
        } else {
            self.duplicate += self.chunk_size;
        }
        let copies = self.came[at];
        if copies <= COPIES_MAX { Ok(()) } else { Err(format!("got {copies} copies of chunk {at}")) }
    }

    /// All bytes of a chunk have come from a liar.
    pub(super) fn lied_to(&mut self, by: usize) -> Result<(), String> {
        let lies = self.lies.entry(by).or_default();
        *lies += 1;
        if *lies <= LIES_MAX { Ok(()) } else { Err(format!("took {lies} chunks from {by}, which lies")) }
    }

    /// A chunk is not here any more, or never was: it may come again.
    pub(super) fn lost(&mut self, at: usize) {
        self.came[at] = 0;
    }

    /// Bytes that came for nothing, whole copies aside.
    pub(super) fn wasted(&self) -> u64 {
        self.received.saturating_sub(self.useful + self.duplicate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_third_copy_and_the_second_lie_are_too_many() {
        let mut ledger = Ledger::new(4, 100, Instant::now());
        ledger.received = 350;
        assert_eq!([(); 2].map(|()| ledger.came(1)), [Ok(()), Ok(())]);
        assert!(ledger.came(1).is_err());
        assert_eq!((ledger.useful, ledger.duplicate, ledger.wasted()), (100, 200, 50));
        ledger.lost(1);
        assert_eq!(ledger.came(1), Ok(()));
        assert_eq!(ledger.lied_to(7), Ok(()));
        assert_eq!(ledger.lied_to(8), Ok(()));
        assert!(ledger.lied_to(7).is_err());
        (0..3).for_each(|_| ledger.opened(2));
        assert!(ledger.check_open(2).is_err());
        ledger.closed(2);
        assert_eq!(ledger.check_open(2), Ok(()));
    }
}
