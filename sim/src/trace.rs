//! What happened, as one hash, and as text for whoever wants to read it: equal hashes mean equal runs.

use std::{
    fmt,
    hash::{Hash, Hasher},
    io::Write,
};

use tokio::time::Instant;

/// Something that happened. Nodes are numbered in the order of the scenario, chunks in that of the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the text that each becomes says it")]
pub enum Event {
    Joins { node: usize },
    Leaves { node: usize, silently: bool },
    Announces { node: usize },
    LooksUp { node: usize, found: usize },
    Asks { node: usize, whom: usize, chunk: usize },
    Refused { node: usize, by: usize, chunk: usize },
    Came { node: usize, from: usize, chunk: usize },
    Kept { node: usize, chunk: usize },
    NotKept { node: usize, chunk: usize },
    Evicted { node: usize, chunk: usize },
    Bans { node: usize, whom: usize },
    GivesUp { node: usize, chunk: usize },
    Finished { node: usize },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Joins { node } => write!(f, "{node} joins"),
            Self::Leaves { node, silently } => {
                write!(f, "{node} leaves{}", if silently { " without a word" } else { "" })
            }
            Self::Announces { node } => write!(f, "{node} has announced a key"),
            Self::LooksUp { node, found } => write!(f, "{node} looks a key up and finds {found} nodes"),
            Self::Asks { node, whom, chunk } => write!(f, "{node} asks {whom} for chunk {chunk}"),
            Self::Refused { node, by, chunk } => write!(f, "{node} is refused chunk {chunk} by {by}"),
            Self::Came { node, from, chunk } => {
                write!(f, "{node} has all bytes of chunk {chunk} from {from}")
            }
            Self::Kept { node, chunk } => write!(f, "{node} keeps chunk {chunk}"),
            Self::NotKept { node, chunk } => write!(f, "{node} cannot keep chunk {chunk}"),
            Self::Evicted { node, chunk } => write!(f, "{node} lets chunk {chunk} go"),
            Self::Bans { node, whom } => write!(f, "{node} bans {whom}"),
            Self::GivesUp { node, chunk } => write!(f, "{node} is told that nobody has chunk {chunk}"),
            Self::Finished { node } => write!(f, "{node} has everything"),
        }
    }
}

/// A running hash of events and the simulated times at which they happened.
pub struct Trace {
    start: Instant,
    hash: blake3::Hasher,
    events: u64,
    text: Option<Box<dyn Write + Send>>,
}

impl Trace {
    /// An empty trace that starts now, and is written to `text` if there is one.
    pub fn start(text: Option<Box<dyn Write + Send>>) -> Self {
        Self { start: Instant::now(), hash: blake3::Hasher::new(), events: 0, text }
    }

    /// Adds an event.
    pub fn event(&mut self, event: Event) {
        self.events += 1;
        let at = self.start.elapsed();
        self.hash.update(&at.as_nanos().to_le_bytes());
        event.hash(&mut Feed(&mut self.hash));
        if let Some(text) = &mut self.text
            && writeln!(text, "{:10.4} {event}", at.as_secs_f64()).is_err()
        {
            // Nobody reads it any more.
            self.text = None;
        }
    }

    /// How many events, and their hash.
    pub fn finish(&self) -> (u64, String) {
        (self.events, self.hash.finalize().to_hex().to_string())
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("events", &self.events).finish_non_exhaustive()
    }
}

/// Lets `derive(Hash)` say what an event is made of.
struct Feed<'a>(&'a mut blake3::Hasher);

impl Hasher for Feed<'_> {
    fn finish(&self) -> u64 {
        self.0.count()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}
