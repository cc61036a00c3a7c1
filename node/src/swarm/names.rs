//! Signed names that others, and this node, have put into the DHT.
//!
//! What is kept was decoded, verified, stands under its own key, is good at this time, and is the
//! latest that was seen of its name: of two records the larger sequence number stays, and a second
//! record with the same number is refused. Bounded in all and for each publisher; what has expired
//! goes. When the store is full, `fair` says which records of others give way: publishers cost nothing, so those go
//! that came from the address that has put most, and of those the ones of whoever has most. This node's own stay.
//! Pure, but for the dice: time is an argument.

use std::collections::HashMap;

use libp2p::{PeerId, kad::RecordKey};
use surf_protocol::{
    NodeId, SignedName,
    limits::NAME_SIZE_MAX,
    name::{NameError, Untimely},
};

use super::{
    fair::{self, Choice, Item, Standing},
    records::{Source, near},
};

/// Records that are kept: at half a KiB each some 10 MB.
const NAMES_MAX: usize = 16_384;

/// How many stay when there are more: an eighth goes at once, so that the next newcomers cost nothing.
const NAMES_STAYING: usize = NAMES_MAX - NAMES_MAX / 8;

/// Names of one publisher.
pub(crate) const NAMES_PER_PUBLISHER: usize = 256;

/// What names stand under in the DHT begins with this, so that it is no key of a provider.
const KEY_KIND: u8 = b'n';

/// Records by their keys.
#[derive(Debug)]
pub(super) struct Names {
    me: PeerId,
    records: HashMap<RecordKey, Kept>,
    publishers: HashMap<NodeId, Publisher>,
    /// Counts up: what came first has the smallest number.
    arrivals: u64,
}

#[derive(Debug)]
struct Kept {
    record: SignedName,
    /// Who put it. `None` if this node did.
    source: Option<Source>,
    arrived: u64,
    near: u64,
}

#[derive(Clone, Copy, Debug)]
struct Publisher {
    names: usize,
    number: u64,
}

/// Why a record is not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It is no record of a name, or a forged one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It is good at another time.
    #[error(transparent)]
    Untimely(#[from] Untimely),
    /// It belongs under another key.
    #[error("it stands under another name's key")]
    Key,
    /// A later one is here, or another with the same number.
    #[error("record {got} of a name of which record {here} is here")]
    Replayed {
        /// Its sequence number.
        got: u64,
        /// The one of the record that is here.
        here: u64,
    },
    /// There is no room.
    #[error("too many names are kept")]
    Full,
}

/// What the record of the name with `key` stands under.
pub(super) fn record_key(key: &[u8; 32]) -> RecordKey {
    RecordKey::from([&[KEY_KIND], &key[..]].concat())
}

impl Names {
    pub(super) fn new(me: PeerId) -> Self {
        Self { me, records: HashMap::new(), publishers: HashMap::new(), arrivals: 0 }
    }

    /// Keeps the record in `bytes`, which `source` puts under `key` at `now`, in seconds since 1970.
    /// Without a source it is this node's own.
    pub(super) fn offer(
        &mut self,
        key: &RecordKey,
        bytes: &[u8],
        source: Option<Source>,
        now: u64,
    ) -> Result<(), Refused> {
        let record = SignedName::decode(bytes)?;
        record.timely(now)?;
        if record_key(&record.full().key()) != *key {
            return Err(Refused::Key);
        }
        // That we have met who puts it is a merit of its own names alone.
        let speaks_for_itself = |source: Source| source.node == Some(record.name().publisher);
        let source = source.map(|source| Source { met: source.met && speaks_for_itself(source), ..source });
        self.arrivals += 1;
        match self.records.get_mut(key) {
            Some(here) if here.record == record => {}
            Some(here) if record.name().sequence <= here.record.name().sequence => {
                let (got, here) = (record.name().sequence, here.record.name().sequence);
                return Err(Refused::Replayed { got, here });
            }
            Some(here) => here.record = record,
            None => {
                let publisher = Publisher { names: 0, number: self.arrivals };
                let publisher = self.publishers.entry(record.name().publisher).or_insert(publisher);
                if NAMES_PER_PUBLISHER <= publisher.names {
                    return Err(Refused::Full);
                }
                publisher.names += 1;
                let kept = Kept { record, source, arrived: self.arrivals, near: near(key, &self.me) };
                self.records.insert(key.clone(), kept);
                self.make_room();
            }
        }
        // Who puts it itself, or is met later, has a better claim from then on.
        if let Some(kept) = self.records.get_mut(key)
            && source.is_none_or(|source| source.met)
        {
            kept.source = source;
        }
        Ok(())
    }

    /// The record under `key`.
    pub(super) fn get(&self, key: &RecordKey) -> Option<&SignedName> {
        self.records.get(key).map(|kept| &kept.record)
    }

    /// Lets records of others go, if there are too many.
    fn make_room(&mut self) {
        if self.records.len() <= NAMES_MAX {
            return;
        }
        let (mut items, mut keys) = (Vec::new(), Vec::new());
        for (key, kept) in &self.records {
            if let Some(source) = kept.source
                && let Some(publisher) = self.publishers.get(&kept.record.name().publisher)
            {
                let standing = Standing { stranger: !source.met, since: kept.arrived };
                items.push(Item { place: source.place, owner: publisher.number, standing, near: kept.near });
                keys.push(key.clone());
            }
        }
        let mut goes = vec![true; items.len()];
        for at in fair::choose(&items, NAMES_STAYING, Choice::Keep, &mut rand::rng()) {
            goes[at] = false;
        }
        for (key, _) in keys.into_iter().zip(goes).filter(|(_, goes)| *goes) {
            if let Some(kept) = self.records.remove(&key) {
                forget_one(&mut self.publishers, kept.record.name().publisher);
            }
        }
    }

    /// Forgets what has expired at `now`.
    pub(super) fn sweep(&mut self, now: u64) {
        let publishers = &mut self.publishers;
        self.records.retain(|_, kept| {
            let keep = kept.record.timely(now).is_ok();
            if !keep {
                forget_one(publishers, kept.record.name().publisher);
            }
            keep
        });
    }
}

fn forget_one(publishers: &mut HashMap<NodeId, Publisher>, id: NodeId) {
    if let Some(publisher) = publishers.get_mut(&id) {
        publisher.names -= 1;
        if publisher.names == 0 {
            publishers.remove(&id);
        }
    }
}

/// Answers to a question for a name that are listened to. More storers than this nobody asks.
pub(super) const ANSWERS_MAX: usize = 32;

/// Whether `value` may be a record at all: what is longer is not even kept until it is looked at.
pub(super) fn is_small(value: &[u8]) -> bool {
    value.len() <= NAME_SIZE_MAX
}

#[cfg(test)]
mod tests {
    use surf_protocol::{ModelId, Name};

    use super::{super::fair::Place, *};
    use crate::identity::Identity;

    const NOW: u64 = 1_800_000_000;

    fn signed(identity: &Identity, name: &str, sequence: u64, model: u8, expires: u64) -> SignedName {
        let model = ModelId::of(&[model]);
        let name = Name { publisher: identity.node_id(), name: name.to_owned(), model, sequence, expires };
        SignedName::new(name, |bytes| identity.sign(bytes)).unwrap()
    }

    fn key(record: &SignedName) -> RecordKey {
        record_key(&record.full().key())
    }

    fn names() -> Names {
        Names::new(PeerId::random())
    }

    fn stranger() -> Option<Source> {
        Some(Source { node: None, place: Place::of(&"/ip4/127.0.0.1".parse().unwrap()), met: false })
    }

    #[test]
    fn the_later_record_stays_whatever_comes_after() {
        let identity = Identity::generate();
        let mut names = names();
        let mut offer = |record: &SignedName| names.offer(&key(record), &record.encode(), stranger(), NOW);
        let [one, two, other_two] =
            [(1, 1), (2, 2), (2, 3)].map(|(seq, model)| signed(&identity, "x", seq, model, NOW + 10));
        offer(&one).unwrap();
        offer(&two).unwrap();
        offer(&two).expect("the same again is no news");
        assert!(matches!(offer(&one), Err(Refused::Replayed { got: 1, here: 2 })));
        assert!(matches!(offer(&other_two), Err(Refused::Replayed { got: 2, here: 2 })));
        assert_eq!(names.get(&key(&one)), Some(&two));
    }

    #[test]
    fn what_is_forged_stale_or_misplaced_is_refused() {
        let identity = Identity::generate();
        let mut names = names();
        let record = signed(&identity, "x", 1, 1, NOW + 10);
        let mut forged = record.encode();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(names.offer(&key(&record), &forged, stranger(), NOW), Err(Refused::Name(_))));
        assert!(matches!(names.offer(&key(&record), b"noise", stranger(), NOW), Err(Refused::Name(_))));
        let other = key(&signed(&identity, "y", 1, 1, NOW + 10));
        assert!(matches!(names.offer(&other, &record.encode(), stranger(), NOW), Err(Refused::Key)));
        let bare = RecordKey::new(&record.full().key());
        assert!(matches!(names.offer(&bare, &record.encode(), stranger(), NOW), Err(Refused::Key)));
        let later = names.offer(&key(&record), &record.encode(), stranger(), NOW + 1_000);
        assert!(matches!(later, Err(Refused::Untimely(Untimely::Expired))));
        let for_good = signed(&identity, "x", 1, 1, u64::MAX);
        let refused = names.offer(&key(&for_good), &for_good.encode(), stranger(), NOW);
        assert!(matches!(refused, Err(Refused::Untimely(Untimely::TooLong))));
        assert!(names.records.is_empty() && names.publishers.is_empty());
    }

    #[test]
    fn a_greedy_publisher_is_bounded_and_what_has_expired_makes_room() {
        let (greedy, other) = (Identity::generate(), Identity::generate());
        let mut names = names();
        let offer = |names: &mut Names, record: SignedName, now| {
            names.offer(&key(&record), &record.encode(), stranger(), now)
        };
        for at in 0..NAMES_PER_PUBLISHER {
            let expires = NOW + 10 + 1_000 * (at as u64 % 2);
            offer(&mut names, signed(&greedy, &format!("n{at}"), 1, 1, expires), NOW).unwrap();
        }
        let more = signed(&greedy, "more", 1, 1, NOW + 2_000);
        assert!(matches!(offer(&mut names, more.clone(), NOW), Err(Refused::Full)));
        offer(&mut names, signed(&greedy, "n0", 2, 2, NOW + 10), NOW)
            .expect("a later one takes no more room");
        offer(&mut names, signed(&other, "more", 1, 1, NOW + 10), NOW).unwrap();
        names.sweep(NOW + 500);
        assert_eq!(names.records.len(), NAMES_PER_PUBLISHER / 2);
        offer(&mut names, more, NOW + 500).unwrap();
        names.sweep(NOW + 100_000);
        assert!(names.records.is_empty() && names.publishers.is_empty());
    }

    /// 64 publishers with all names that a publisher may have, put by one stranger.
    #[test]
    fn a_flood_of_names_pushes_out_nobody_who_has_few() {
        let mut names = names();
        let mut offer = |record: &SignedName, source| {
            names.offer(&key(record), &record.encode(), source, NOW).unwrap();
            names.records.len()
        };
        let [ours, before, after, elsewhere] = [(); 4].map(|()| Identity::generate());
        let [ours, before, after, elsewhere] =
            [&ours, &before, &after, &elsewhere].map(|identity| signed(identity, "x", 1, 1, NOW + 10));
        let far = Source { node: None, place: Place::of(&"/ip4/192.0.2.1".parse().unwrap()), met: false };
        offer(&ours, None);
        offer(&before, stranger());
        for publisher in 0..NAMES_MAX / NAMES_PER_PUBLISHER + 2 {
            if publisher == 40 {
                offer(&after, stranger());
                offer(&elsewhere, Some(far));
            }
            let greedy = Identity::generate();
            for at in 0..NAMES_PER_PUBLISHER {
                let kept = offer(&signed(&greedy, &format!("n{at}"), 1, 1, NOW + 10), stranger());
                assert!(kept <= NAMES_MAX);
            }
        }
        for record in [&ours, &before, &after, &elsewhere] {
            assert_eq!(names.get(&key(record)), Some(record));
        }
        let counted: usize = names.publishers.values().map(|publisher| publisher.names).sum();
        assert_eq!(counted, names.records.len());
    }
}
