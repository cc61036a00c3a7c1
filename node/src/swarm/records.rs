//! What others have told us to keep for the DHT: who provides which key.
//!
//! libp2p's own store counts everybody's keys against one limit and forgets expired ones only when
//! somebody asks for them, so that in time it is full of dead records and takes no live ones. This one
//! sweeps, bounds what one peer may fill, keeps a provider's addresses once instead of with each of
//! its keys, and never refuses what this node itself provides: that is bounded in `announcements`.
//! The only values it holds are signed names (`names`). What strangers send is offered to it by the task, with
//! the time; libp2p itself can put nothing into it that was not offered before.

use std::{
    borrow::Cow,
    collections::HashMap,
    iter,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        K_VALUE, ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use rand::seq::IteratorRandom;

use super::names::Names;

/// Records of others that are kept: some 30 MB.
const RECORDS_MAX: usize = 1 << 17;

/// Records of one provider. As many as an honest node announces.
const RECORDS_PER_PROVIDER: usize = super::KEYS_MAX + super::MODELS_MAX;

/// Records of one key. As many as start a popular model together, so that those who have all of it are not crowded out.
const RECORDS_PER_KEY: usize = 256;

/// Records of one key that are told at a time, others each time: what fits in a message.
const TOLD_MAX: usize = K_VALUE.get();

/// What keys begin with, by what they are of.
pub(super) const MODEL: u8 = b'm';
pub(super) const GROUP: u8 = b'g';
pub(super) const CHUNK: u8 = b'c';

/// How long a record lives that nobody renews: a node that dies is named this long at most. Those of
/// models are renewed every 25 to 50 minutes, the others, of which there are many, every nine hours.
pub(super) const MODEL_LIFE: Duration = Duration::from_secs(60 * 60);
pub(super) const OTHER_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Bytes in a key: what it is of, and a hash.
const KEY_SIZE: usize = 33;

/// Addresses that are kept of a provider.
const ADDRS_MAX: usize = 16;

/// Provider records, and names.
#[derive(Debug)]
pub(super) struct Records {
    me: PeerId,
    pub(super) names: Names,
    keys: HashMap<RecordKey, Vec<Held>>,
    providers: HashMap<PeerId, Provider>,
    /// Records of others.
    count: usize,
}

#[derive(Debug)]
struct Held {
    provider: PeerId,
    expires: Option<Instant>,
}

#[derive(Debug, Default)]
struct Provider {
    addrs: Vec<Multiaddr>,
    records: usize,
}

impl Records {
    pub(super) fn new(me: PeerId) -> Self {
        Self { me, names: Names::default(), keys: HashMap::new(), providers: HashMap::new(), count: 0 }
    }

    /// The addresses that `provider` has given with its records.
    pub(super) fn addrs(&self, provider: &PeerId) -> Vec<Multiaddr> {
        self.providers.get(provider).map_or_else(Vec::new, |provider| provider.addrs.clone())
    }

    /// Keeps what somebody says at `now`, for as long as its kind is kept. If too many say that they have the same,
    /// the one that said so longest ago makes room: it may be gone.
    pub(super) fn offer(&mut self, mut record: ProviderRecord, now: Instant) -> Result<()> {
        let key = record.key.as_ref();
        let life = match key.first() {
            Some(&MODEL) if key.len() == KEY_SIZE => MODEL_LIFE,
            Some(&(GROUP | CHUNK)) if key.len() == KEY_SIZE => OTHER_LIFE,
            _ => return Err(Error::ValueTooLarge),
        };
        record.expires = Some(now + life);
        if let Some(held) = self.keys.get(&record.key)
            && RECORDS_PER_KEY <= held.len()
            && held.iter().all(|held| held.provider != record.provider)
        {
            let others = held.iter().filter(|held| held.provider != self.me);
            if let Some(oldest) = others.min_by_key(|held| held.expires).map(|held| held.provider) {
                self.remove_provider(&record.key, &oldest);
            }
        }
        self.add_provider(record)
    }

    /// Forgets what has expired at `now`.
    pub(super) fn sweep(&mut self, now: Instant) {
        let (providers, count, me) = (&mut self.providers, &mut self.count, self.me);
        self.keys.retain(|_, held| {
            held.retain(|held| {
                let keep = held.expires.is_none_or(|expires| now < expires);
                if !keep && held.provider != me {
                    forget_one(providers, count, &held.provider);
                }
                keep
            });
            !held.is_empty()
        });
    }
}

fn forget_one(providers: &mut HashMap<PeerId, Provider>, count: &mut usize, id: &PeerId) {
    *count -= 1;
    if let Some(provider) = providers.get_mut(id) {
        provider.records -= 1;
        if provider.records == 0 {
            providers.remove(id);
        }
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let name = self.names.get(key)?;
        Some(Cow::Owned(Record::new(key.clone(), name.encode())))
    }

    /// libp2p says here what this node itself puts: it was offered to `names` before.
    fn put(&mut self, record: Record) -> Result<()> {
        match self.names.get(&record.key) {
            Some(here) if here.encode() == record.value => Ok(()),
            _ => Err(Error::MaxRecords),
        }
    }

    /// Nothing: names go when they expire.
    fn remove(&mut self, _: &RecordKey) {}

    /// Nothing: libp2p would put all of it again in one go. Publishers do that, each its own.
    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        let ours = record.provider == self.me;
        let held = self.keys.get_mut(&record.key);
        if let Some(held) = held.and_then(|all| all.iter_mut().find(|held| held.provider == record.provider))
        {
            held.expires = record.expires;
        } else {
            let full = RECORDS_MAX <= self.count
                || self.providers.get(&record.provider).is_some_and(|p| RECORDS_PER_PROVIDER <= p.records)
                || self.keys.get(&record.key).is_some_and(|held| RECORDS_PER_KEY <= held.len());
            if full && !ours {
                return Err(Error::MaxProvidedKeys);
            }
            let held = Held { provider: record.provider, expires: record.expires };
            self.keys.entry(record.key).or_default().push(held);
            if !ours {
                self.count += 1;
                self.providers.entry(record.provider).or_default().records += 1;
            }
        }
        if let Some(provider) = self.providers.get_mut(&record.provider)
            && !record.addresses.is_empty()
        {
            provider.addrs = record.addresses;
            provider.addrs.truncate(ADDRS_MAX);
        }
        Ok(())
    }

    /// A few of those who provide `key`, by the dice: whoever asks often, or asks several, hears of all.
    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let held = self.keys.get(key).into_iter().flatten().sample(&mut rand::rng(), TOLD_MAX);
        let record = |held: &Held| ProviderRecord {
            key: key.clone(),
            provider: held.provider,
            expires: held.expires,
            addresses: self.addrs(&held.provider),
        };
        held.into_iter().map(record).collect()
    }

    /// Nothing: libp2p would announce all of it again in one go. `announcements` does that.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        let Some(held) = self.keys.get_mut(key) else { return };
        let before = held.len();
        held.retain(|held| held.provider != *provider);
        let removed = before != held.len();
        if held.is_empty() {
            self.keys.remove(key);
        }
        if removed && *provider != self.me {
            forget_one(&mut self.providers, &mut self.count, provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    fn record(key: u32, provider: PeerId, expires: Option<Instant>) -> ProviderRecord {
        let key = RecordKey::from([&[GROUP; 29], &key.to_le_bytes()[..]].concat());
        let addresses = vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()];
        ProviderRecord { key, provider, expires, addresses }
    }

    #[test]
    fn a_greedy_peer_is_bounded_and_we_are_not() {
        let (me, greedy, other) = (PeerId::random(), PeerId::random(), PeerId::random());
        let mut records = Records::new(me);
        for key in 0..RECORDS_PER_PROVIDER as u32 {
            records.add_provider(record(key, greedy, None)).unwrap();
        }
        let more = RECORDS_PER_PROVIDER as u32;
        assert!(records.add_provider(record(more, greedy, None)).is_err());
        records.add_provider(record(0, greedy, None)).expect("renewing is no more");
        records.add_provider(record(more, other, None)).unwrap();
        records.add_provider(record(more, me, None)).unwrap();
        assert_eq!(records.providers(&record(more, me, None).key).len(), 2);
        assert_eq!(records.addrs(&greedy).len(), 1);
    }

    #[test]
    fn the_freshest_are_named_and_each_kind_lives_as_long_as_it_should() {
        let now = tokio::time::Instant::now().into_std();
        let mut records = Records::new(PeerId::random());
        let peers: Vec<_> = (0..=RECORDS_PER_KEY).map(|_| PeerId::random()).collect();
        for (at, peer) in peers.iter().enumerate() {
            records.offer(record(1, *peer, None), now + Duration::from_secs(at as u64)).unwrap();
        }
        let key = record(1, peers[0], None).key;
        let told = |records: &Records| -> HashSet<PeerId> {
            records.providers(&key).into_iter().map(|record| record.provider).collect()
        };
        assert_eq!((told(&records).len(), records.count), (TOLD_MAX, RECORDS_PER_KEY));
        let all: HashSet<PeerId> = (0..1000).flat_map(|_| told(&records)).collect();
        assert_eq!(
            all,
            peers[1..].iter().copied().collect(),
            "all are told in time; the one that said so longest ago made room"
        );

        let mut of_model = record(1, peers[0], None);
        of_model.key = RecordKey::from([&[MODEL][..], &[7; 32]].concat());
        records.offer(of_model.clone(), now).unwrap();
        records.sweep(now + MODEL_LIFE);
        assert!(records.providers(&of_model.key).is_empty() && !records.providers(&key).is_empty());
        records.sweep(now + OTHER_LIFE + Duration::from_secs(RECORDS_PER_KEY as u64));
        assert_eq!((records.count, records.providers.len(), records.keys.len()), (0, 0, 0));
    }

    #[test]
    fn keys_of_other_shapes_are_refused() {
        let now = tokio::time::Instant::now().into_std();
        let mut records = Records::new(PeerId::random());
        for key in [&b""[..], b"m", &[7; 33], &[MODEL; 34], &[b'n'; 33]] {
            let record = ProviderRecord { key: RecordKey::new(&key), ..record(1, PeerId::random(), None) };
            assert!(records.offer(record, now).is_err());
        }
    }

    #[test]
    fn libp2p_can_put_nothing_that_was_not_offered() {
        let mut records = Records::new(PeerId::random());
        assert!(records.put(Record::new(RecordKey::new(b"x"), b"anything".to_vec())).is_err());
        assert!(records.get(&RecordKey::new(b"x")).is_none());
    }

    #[test]
    fn what_has_expired_makes_room() {
        let now = tokio::time::Instant::now().into_std();
        let mut records = Records::new(PeerId::random());
        let peers: Vec<_> = (0..=RECORDS_PER_KEY).map(|_| PeerId::random()).collect();
        for peer in &peers[1..] {
            records.add_provider(record(1, *peer, Some(now + Duration::from_secs(1)))).unwrap();
        }
        assert!(records.add_provider(record(1, peers[0], None)).is_err());
        records.sweep(now + Duration::from_secs(1));
        assert_eq!((records.count, records.providers.len(), records.keys.len()), (0, 0, 0));
        records.add_provider(record(1, peers[0], None)).unwrap();
        let key = record(1, peers[0], None).key;
        records.remove_provider(&key, &peers[1]);
        records.remove_provider(&key, &peers[0]);
        assert_eq!((records.count, records.providers.len(), records.keys.len()), (0, 0, 0));
    }
}
