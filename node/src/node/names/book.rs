//! The names that this node has published, and the latest it has seen of others': a small file in the
//! data folder, because a record that was seen once must not be undone by an older one after a restart.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use surf_chunker::read_regular;
use surf_protocol::{
    FullName, ModelId, Name, NodeId, SignedName,
    limits::{NAME_LIFE_MAX_S, NAME_TEXT_SIZE_MAX},
};

use crate::swarm::names::NAMES_PER_PUBLISHER;

const VERSION: u32 = 1;

/// Damaged files that are kept.
const ASIDE_MAX: u32 = 10;

/// Names of others whose latest record is remembered. When there are more, the one that ends first is
/// forgotten.
const SEEN_MAX: usize = 1024;

/// Bytes in the file: every record in hexadecimal, and room to spare.
const FILE_SIZE_MAX: u64 = 16 << 20;
const _: () = assert!((SEEN_MAX + NAMES_PER_PUBLISHER) * 8 * NAME_TEXT_SIZE_MAX * 2 < FILE_SIZE_MAX as usize);

/// The file, and what is in it.
#[derive(Debug)]
pub(in crate::node) struct Book {
    path: PathBuf,
    state: Mutex<State>,
    /// Held by the thread that writes the file, so that an older state does not replace a newer one.
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BookError {
    /// It could not be read or written.
    #[error("cannot read or write {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
}

/// What is known of names. Pure.
#[derive(Debug, Default)]
struct State {
    published: BTreeMap<String, SignedName>,
    seen: BTreeMap<FullName, SignedName>,
}

/// What the answers of others come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The latest record there is, as far as is known. True if it was not known before.
    Current(SignedName, bool),
    /// The latest record there is has expired.
    Expired,
    /// Nobody knows one.
    Unknown,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    published: Vec<String>,
    seen: Vec<String>,
}

impl Book {
    /// Opens the file at `path`; an empty book, if there is none. What is damaged is set aside, and what can
    /// be read of it is used.
    pub(in crate::node) fn open(path: &Path) -> Self {
        let (state, why) = match read_regular(path, FILE_SIZE_MAX).map(|text| State::decode(&text)) {
            Ok(Some((state, 0))) => return Self::with(path, state),
            Ok(Some((state, damaged))) => (state, format!("{damaged} of its records are damaged")),
            Ok(None) => (State::default(), "it is no list of signed names, or of a later version".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::with(path, State::default());
            }
            Err(error) => (State::default(), error.to_string()),
        };
        set_aside(path, &why);
        Self::with(path, state)
    }

    fn with(path: &Path, state: State) -> Self {
        Self { path: path.to_owned(), state: Mutex::new(state), writing: Arc::default() }
    }

    /// The names that this node has published.
    pub(super) fn published(&self) -> Vec<SignedName> {
        self.state().published.values().cloned().collect()
    }

    /// The record that this node has published of `name`.
    pub(super) fn own(&self, name: &str) -> Option<SignedName> {
        self.state().published.get(name).cloned()
    }

    /// Makes the next record of `name` and keeps it. `None` if there are too many names.
    pub(super) async fn publish(
        &self,
        (publisher, name): (NodeId, &str),
        model: ModelId,
        (now, expires): (u64, u64),
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Result<Option<SignedName>, BookError> {
        let record = {
            let mut state = self.state();
            let before = state.published.get(name);
            if before.is_none() && NAMES_PER_PUBLISHER <= state.published.len() {
                return Ok(None);
            }
            // By the clock, so that it grows also if this file is lost; by one, so that it grows at all.
            let sequence = before.map_or(now, |before| now.max(before.name().sequence.saturating_add(1)));
            let next = Name { publisher, name: name.to_owned(), model, sequence, expires };
            let record = SignedName::new(next, sign).expect("the name was checked, and the key is ours");
            state.published.insert(name.to_owned(), record.clone());
            record
        };
        self.write().await?;
        Ok(Some(record))
    }

    /// Judges what others answered to a question for `name` at `now`, and remembers the latest record.
    pub(super) async fn judge(&self, name: &FullName, answers: &[Vec<u8>], now: u64) -> Verdict {
        let verdict = self.state().judge(name, answers, now);
        // What cannot be written down counts until the node stops: a full disk takes nobody's names.
        if let Verdict::Current(_, true) = verdict
            && let Err(error) = self.write().await
        {
            tracing::warn!(%error, "a name that was seen is not written down");
        }
        verdict
    }

    /// The same, and remembers nothing.
    pub(super) fn weigh(&self, name: &FullName, answers: &[Vec<u8>], now: u64) -> Verdict {
        self.state().weigh(name, answers, now)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }

    async fn write(&self) -> Result<(), BookError> {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let (path, text) = (self.path.clone(), self.state().encode());
        let written = tokio::task::spawn_blocking({
            let path = path.clone();
            move || {
                let _writing = writing;
                replace(&path, &text)
            }
        });
        let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|cause| BookError::Io { path, cause })
    }
}

/// Gives a damaged file another name, so that it can be looked at. What was set aside earlier stays, as
/// long as there are few.
fn set_aside(path: &Path, why: &str) {
    let name = |at: u32| match at {
        0 => path.with_extension("damaged"),
        _ => path.with_extension(format!("damaged-{at}")),
    };
    let free = (0..ASIDE_MAX).map(name).find(|aside| !aside.exists()).unwrap_or_else(|| name(0));
    let file = path.display();
    match fs::rename(path, &free) {
        Ok(()) => {
            tracing::warn!(%file, aside = %free.display(), why, "signed names cannot be read; set aside")
        }
        Err(error) => tracing::warn!(%file, why, %error, "signed names cannot be read, nor set aside"),
    }
}

/// Writes the file whole or not at all.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().expect("a file stands in a folder");
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}

impl State {
    /// Weighs the answers, and remembers the record that counts if it is new.
    fn judge(&mut self, name: &FullName, answers: &[Vec<u8>], now: u64) -> Verdict {
        let verdict = self.weigh(name, answers, now);
        if let Verdict::Current(record, true) = &verdict {
            self.remember(record.clone(), now);
        }
        verdict
    }

    /// The answer with the largest number counts, unless a later record was seen before; of two with
    /// the same number, the one that was seen first.
    fn weigh(&self, name: &FullName, answers: &[Vec<u8>], now: u64) -> Verdict {
        let valid = answers.iter().filter_map(|answer| SignedName::decode(answer).ok());
        let good = valid.filter(|record| record.full() == *name && record.timely(now).is_ok());
        let latest = good.max_by_key(|record| record.name().sequence);
        let seen = self.seen.get(name);
        let known = seen.map(|record| record.name().sequence);
        match (latest, seen) {
            (Some(latest), _) if known.is_none_or(|known| known < latest.name().sequence) => {
                Verdict::Current(latest, true)
            }
            (_, Some(seen)) if seen.timely(now).is_ok() => Verdict::Current(seen.clone(), false),
            // What was seen has expired, and what is offered, if anything, is older still.
            (_, Some(_)) => Verdict::Expired,
            (_, None) => Verdict::Unknown,
        }
    }

    fn remember(&mut self, record: SignedName, now: u64) {
        self.seen.insert(record.full(), record);
        // An older record of these cannot be good any more, whoever offers it.
        self.seen.retain(|_, record| now <= record.name().expires.saturating_add(NAME_LIFE_MAX_S));
        while SEEN_MAX < self.seen.len() {
            let first = self.seen.iter().min_by_key(|(_, record)| record.name().expires);
            let Some(first) = first.map(|(name, _)| name.clone()) else { return };
            self.seen.remove(&first);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let written = Written {
            version: VERSION,
            published: self.published.values().map(|record| hex::encode(record.encode())).collect(),
            seen: self.seen.values().map(|record| hex::encode(record.encode())).collect(),
        };
        serde_json::to_vec_pretty(&written).expect("strings can be written")
    }

    /// What [`State::encode`] wrote, and how many records of it cannot be read.
    fn decode(text: &[u8]) -> Option<(Self, usize)> {
        let written: Written =
            serde_json::from_slice(text).ok().filter(|w: &Written| w.version == VERSION)?;
        let all = written.published.len() + written.seen.len();
        let record = |hex: String| SignedName::decode(&hex::decode(hex).ok()?).ok();
        let (published, seen) = (written.published.into_iter(), written.seen.into_iter());
        let state = Self {
            published: published
                .filter_map(record)
                .map(|record| (record.name().name.clone(), record))
                .collect(),
            seen: seen.filter_map(record).map(|record| (record.full(), record)).collect(),
        };
        let damaged = all.saturating_sub(state.published.len() + state.seen.len());
        Some((state, damaged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    const NOW: u64 = 1_800_000_000;

    fn signed(identity: &Identity, sequence: u64, model: u8, expires: u64) -> SignedName {
        let model = ModelId::of(&[model]);
        let name = Name { publisher: identity.node_id(), name: "x".to_owned(), model, sequence, expires };
        SignedName::new(name, |bytes| identity.sign(bytes)).unwrap()
    }

    #[test]
    fn the_latest_of_all_answers_counts_and_no_older_one_after() {
        let identity = Identity::generate();
        let [one, two, other_two] =
            [(1, 1), (2, 2), (2, 3)].map(|(seq, model)| signed(&identity, seq, model, NOW + 1_000));
        let full = one.full();
        let mut state = State::default();
        assert_eq!(state.judge(&full, &[], NOW), Verdict::Unknown);
        let answers = [one.encode(), two.encode(), b"noise".to_vec(), one.encode()];
        assert_eq!(state.judge(&full, &answers, NOW), Verdict::Current(two.clone(), true));
        for replayed in [&one, &other_two] {
            let verdict = state.judge(&full, &[replayed.encode()], NOW);
            assert_eq!(verdict, Verdict::Current(two.clone(), false));
        }
        let (mut state, _) = State::decode(&state.encode()).unwrap();
        let verdict = state.judge(&full, &[one.encode()], NOW);
        assert_eq!(verdict, Verdict::Current(two, false), "also after a restart");
        let late = NOW + 10_000;
        let lives_on = signed(&identity, 1, 1, late + 10).encode();
        assert_eq!(state.judge(&full, &[lives_on], late), Verdict::Expired, "older, though it would be good");
        let three = signed(&identity, 3, 1, late + 10);
        assert_eq!(state.judge(&full, &[three.encode()], late), Verdict::Current(three, true));
    }

    #[test]
    fn what_is_forged_stale_or_of_another_name_is_no_answer() {
        let (identity, other) = (Identity::generate(), Identity::generate());
        let record = signed(&identity, 1, 1, NOW + 10);
        let mut forged = record.encode();
        *forged.last_mut().unwrap() ^= 1;
        let stale = signed(&identity, 9, 1, NOW - 1_000);
        let answers = [forged, stale.encode(), signed(&other, 9, 1, NOW + 10).encode()];
        assert_eq!(State::default().judge(&record.full(), &answers, NOW), Verdict::Unknown);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut state = State::default();
        for at in 0..=SEEN_MAX as u64 {
            let record = signed(&Identity::generate(), 1, 1, NOW + at);
            state.judge(&record.full(), &[record.encode()], NOW);
        }
        assert_eq!(state.seen.len(), SEEN_MAX);
        assert!(state.seen.values().all(|record| record.name().expires != NOW), "the first to end goes");
        let record = signed(&Identity::generate(), 1, 1, NOW + 100 * NAME_LIFE_MAX_S);
        state.remember(record, NOW + 2 * NAME_LIFE_MAX_S);
        assert_eq!(state.seen.len(), 1);
    }

    #[tokio::test]
    async fn a_book_is_found_again_and_a_damaged_one_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names.json");
        let identity = Identity::generate();
        let sign = |bytes: &[u8]| identity.sign(bytes);
        let me = (identity.node_id(), "x");
        let book = Book::open(&path);
        let one = book.publish(me, ModelId::of(b"1"), (NOW, NOW + 9), sign).await.unwrap().unwrap();
        assert_eq!(one.name().sequence, NOW);
        let book = Book::open(&path);
        assert_eq!(book.own("x"), Some(one));
        let two = book.publish(me, ModelId::of(b"2"), (NOW - 5, NOW + 9), sign).await.unwrap().unwrap();
        assert_eq!(two.name().sequence, NOW + 1, "it grows even if the clock goes back");
        assert_eq!(book.published(), [two]);
        for at in 1..NAMES_PER_PUBLISHER {
            let name = format!("n{at}");
            let made = book.publish((me.0, &name), ModelId::of(b""), (NOW, NOW), sign).await.unwrap();
            assert!(made.is_some());
        }
        let more = book.publish((me.0, "more"), ModelId::of(b""), (NOW, NOW), sign).await.unwrap();
        assert_eq!(more, None);
        // A bit flips in one record: the others are as good as before.
        let mut text = fs::read(&path).unwrap();
        let digit = text.windows(4).position(|four| four == b"\"\n  ").unwrap_or(200) - 20;
        text[digit] = if text[digit] == b'0' { b'1' } else { b'0' };
        fs::write(&path, &text).unwrap();
        let book = Book::open(&path);
        assert_eq!(book.published().len(), NAMES_PER_PUBLISHER - 1);
        assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), text);
        // What cannot be read at all is set aside, too, and what is published then is kept.
        for (at, damaged) in [&b"{"[..], br#"{"version":2,"published":[],"seen":[]}"#, b""].iter().enumerate()
        {
            fs::write(&path, damaged).unwrap();
            let book = Book::open(&path);
            assert!(book.published().is_empty());
            let aside = path.with_extension(format!("damaged-{}", at + 1));
            assert_eq!(fs::read(aside).unwrap(), *damaged);
            let made = book.publish(me, ModelId::of(b"3"), (NOW, NOW + 9), sign).await.unwrap();
            assert_eq!(Book::open(&path).own("x"), made);
        }
    }
}
