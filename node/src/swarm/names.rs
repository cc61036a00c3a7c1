//! Signed names that others, and this node, have put into the DHT.
//!
//! What is kept was decoded, verified, stands under its own key, is good at this time, and is the
//! latest that was seen of its name: of two records the larger sequence number stays, and a second
//! record with the same number is refused. Bounded in all and for each publisher; what has expired
//! goes. Pure: time is an argument.

use std::collections::HashMap;

use libp2p::kad::RecordKey;
use surf_protocol::{
    NodeId, SignedName,
    limits::NAME_SIZE_MAX,
    name::{NameError, Untimely},
};

/// Records that are kept: at half a KiB each some 10 MB.
const NAMES_MAX: usize = 16_384;

/// Names of one publisher.
pub(crate) const NAMES_PER_PUBLISHER: usize = 256;

/// What names stand under in the DHT begins with this, so that it is no key of a provider.
const KEY_KIND: u8 = b'n';

/// Records by their keys.
#[derive(Debug, Default)]
pub(super) struct Names {
    records: HashMap<RecordKey, SignedName>,
    publishers: HashMap<NodeId, usize>,
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
    /// Keeps the record in `bytes`, which somebody puts under `key` at `now`, in seconds since 1970.
    pub(super) fn offer(&mut self, key: &RecordKey, bytes: &[u8], now: u64) -> Result<(), Refused> {
        let record = SignedName::decode(bytes)?;
        record.timely(now)?;
        if record_key(&record.full().key()) != *key {
            return Err(Refused::Key);
        }
        match self.records.get(key) {
            Some(here) if *here == record => return Ok(()),
            Some(here) if record.name().sequence <= here.name().sequence => {
                let (got, here) = (record.name().sequence, here.name().sequence);
                return Err(Refused::Replayed { got, here });
            }
            Some(_) => {}
            None => {
                let publisher = record.name().publisher;
                let of_publisher = self.publishers.get(&publisher).copied().unwrap_or(0);
                if NAMES_MAX <= self.records.len() || NAMES_PER_PUBLISHER <= of_publisher {
                    return Err(Refused::Full);
                }
                self.publishers.insert(publisher, of_publisher + 1);
            }
        }
        self.records.insert(key.clone(), record);
        Ok(())
    }

    /// The record under `key`.
    pub(super) fn get(&self, key: &RecordKey) -> Option<&SignedName> {
        self.records.get(key)
    }

    /// Forgets what has expired at `now`.
    pub(super) fn sweep(&mut self, now: u64) {
        let publishers = &mut self.publishers;
        self.records.retain(|_, record| {
            let keep = record.timely(now).is_ok();
            if !keep {
                forget_one(publishers, record.name().publisher);
            }
            keep
        });
    }
}

fn forget_one(publishers: &mut HashMap<NodeId, usize>, publisher: NodeId) {
    if let Some(count) = publishers.get_mut(&publisher) {
        *count -= 1;
        if *count == 0 {
            publishers.remove(&publisher);
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

    use super::*;
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

    #[test]
    fn the_later_record_stays_whatever_comes_after() {
        let identity = Identity::generate();
        let mut names = Names::default();
        let mut offer = |record: &SignedName| names.offer(&key(record), &record.encode(), NOW);
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
        let mut names = Names::default();
        let record = signed(&identity, "x", 1, 1, NOW + 10);
        let mut forged = record.encode();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(names.offer(&key(&record), &forged, NOW), Err(Refused::Name(_))));
        assert!(matches!(names.offer(&key(&record), b"noise", NOW), Err(Refused::Name(_))));
        let other = key(&signed(&identity, "y", 1, 1, NOW + 10));
        assert!(matches!(names.offer(&other, &record.encode(), NOW), Err(Refused::Key)));
        let bare = RecordKey::new(&record.full().key());
        assert!(matches!(names.offer(&bare, &record.encode(), NOW), Err(Refused::Key)));
        let later = names.offer(&key(&record), &record.encode(), NOW + 1_000);
        assert!(matches!(later, Err(Refused::Untimely(Untimely::Expired))));
        let for_good = signed(&identity, "x", 1, 1, u64::MAX);
        let refused = names.offer(&key(&for_good), &for_good.encode(), NOW);
        assert!(matches!(refused, Err(Refused::Untimely(Untimely::TooLong))));
        assert!(names.records.is_empty() && names.publishers.is_empty());
    }

    #[test]
    fn a_greedy_publisher_is_bounded_and_what_has_expired_makes_room() {
        let (greedy, other) = (Identity::generate(), Identity::generate());
        let mut names = Names::default();
        let offer =
            |names: &mut Names, record: SignedName, now| names.offer(&key(&record), &record.encode(), now);
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
}
