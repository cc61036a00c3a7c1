//! What others have told us to keep for the DHT: who provides which key.
//!
//! libp2p's own store counts everybody's keys against one limit and forgets expired ones only when
//! somebody asks for them, so that in time it is full of dead records and takes no live ones. This one
//! sweeps, bounds what one peer may fill, keeps a provider's addresses once instead of with each of
//! its keys, and never refuses what this node itself provides: that is bounded in `announcements`.
//! The only values it holds are signed names (`names`). What strangers send is offered to it by the task, with
//! the time; libp2p itself can put nothing into it that was not offered before.
//!
//! A newcomer always gets in. When something is full, `fair` says who gives way: of one key, and of the whole store.
//!
//! The arithmetic. 1,000 identities at one address say that they have a key. Each of the 8 nodes that keep it has 256
//! places, of which 224 stay when they are full: 112 for those of the best standing, 112 by the dice. An honest provider
//! that came before 112 of them, or that the node has met while it has not met them, stays everywhere. One that came
//! last, known no better than they, stays at each node with a chance of 11 %, and so at one of 8 with 61 %; if it has an
//! address of its own, everywhere. Of a look-up's answers, 8 times 8 names, 4 of each 8 are of the best half: a provider
//! that was met is in all of them beside strangers, and beside 223 who were met too in one of 28, which 8 nodes and
//! a question every half second make a matter of two seconds.
//!
//! 64 identities with 2,048 keys each fill the store. One more record makes 16,384 of theirs give way: each identity then
//! has 1,792, and an honest node at the same address keeps all of its own, at most 2,048 and usually a few hundred. To
//! push out a node's only record takes 131,072 identities at its own address, or as many addresses.

use std::{
    borrow::Cow,
    collections::HashMap,
    iter,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        KBucketKey, ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

use surf_protocol::NodeId;

use super::{
    behaviour::REPLICAS,
    fair::{self, Choice, Item, Place, Standing},
    names::Names,
};

/// Records of others that are kept.
const RECORDS_MAX: usize = 1 << 17;

/// Memory that they may take. Records alone are 32 MiB; the other half is for those who provide them.
const BYTES_MAX: usize = 64 << 20;

/// Memory that a record takes, and a provider without its addresses, and an address besides its bytes.
const RECORD_BYTES: usize = 256;
const PROVIDER_BYTES: usize = 320;
const ADDR_BYTES: usize = 64;

/// Records of one provider. As many as an honest node announces.
const RECORDS_PER_PROVIDER: usize = super::KEYS_MAX + super::MODELS_MAX;

/// Records of one key. As many as start a popular model together, so that those who have all of it are not crowded out.
const RECORDS_PER_KEY: usize = 256;

/// How much stays when something is full: an eighth goes at once, so that the next newcomers cost nothing.
const fn staying(full: usize) -> usize {
    full - full / 8
}

/// Records of one key that are told at a time, others each time. libp2p takes no more of them.
const TOLD_MAX: usize = REPLICAS.get();

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

/// Addresses that are kept of a provider, and their bytes. An IP address, a port and QUIC are some 12, and through
/// a relay some 60; a name of a host may have 255.
const ADDRS_MAX: usize = 16;
const ADDRS_SIZE_MAX: usize = 768;

/// Provider records, and names.
#[derive(Debug)]
pub(super) struct Records {
    me: PeerId,
    pub(super) names: Names,
    keys: HashMap<RecordKey, Kept>,
    providers: HashMap<PeerId, Provider>,
    /// Records of others, and the memory that they take.
    count: usize,
    bytes: usize,
    /// Counts up: what came first has the smallest number.
    arrivals: u64,
}

/// The records of one key.
#[derive(Debug)]
struct Kept {
    /// How near the key is to us: nodes near it are asked for it.
    near: u64,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    provider: PeerId,
    expires: Option<Instant>,
    arrived: u64,
}

#[derive(Debug)]
struct Provider {
    addrs: Vec<Multiaddr>,
    records: usize,
    number: u64,
    source: Source,
}

/// What is known of who offers something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// Who it is, if its key is of the kind that nodes have.
    pub(super) node: Option<NodeId>,
    /// Where its connection comes from.
    pub(super) place: Place,
    /// Whether it has told us where its data plane is, as our program does.
    pub(super) met: bool,
}

impl Provider {
    fn bytes(&self) -> usize {
        PROVIDER_BYTES + self.addrs.iter().map(|addr| ADDR_BYTES + addr.len()).sum::<usize>()
    }

    fn item(&self, held: &Held, near: u64) -> Item {
        let standing = Standing { stranger: !self.source.met, since: held.arrived };
        Item { place: self.source.place, owner: self.number, standing, near }
    }
}

impl Records {
    pub(super) fn new(me: PeerId) -> Self {
        Self {
            me,
            names: Names::new(me),
            keys: HashMap::new(),
            providers: HashMap::new(),
            count: 0,
            bytes: 0,
            arrivals: 0,
        }
    }

    /// The addresses that `provider` has given with its records.
    pub(super) fn addrs(&self, provider: &PeerId) -> Vec<Multiaddr> {
        self.providers.get(provider).map_or_else(Vec::new, |provider| provider.addrs.clone())
    }

    /// We have met `peer`: what it provides counts for more than what strangers do.
    pub(super) fn met(&mut self, peer: &PeerId) {
        if let Some(provider) = self.providers.get_mut(peer) {
            provider.source.met = true;
        }
    }

    /// Keeps what `source` says at `now`, for as long as its kind is kept.
    pub(super) fn offer(&mut self, record: ProviderRecord, source: Source, now: Instant) -> Result<()> {
        let key = record.key.as_ref();
        let life = match key.first() {
            Some(&MODEL) if key.len() == KEY_SIZE => MODEL_LIFE,
            Some(&(GROUP | CHUNK)) if key.len() == KEY_SIZE => OTHER_LIFE,
            _ => return Err(Error::ValueTooLarge),
        };
        let expires = Some(now + life);
        let id = record.provider;
        let held = self.keys.get_mut(&record.key);
        if let Some(held) = held.and_then(|kept| kept.held.iter_mut().find(|held| held.provider == id)) {
            held.expires = expires;
            self.update(&id, record.addresses, source);
            return Ok(());
        }
        if self.providers.get(&id).is_some_and(|provider| RECORDS_PER_PROVIDER <= provider.records) {
            return Err(Error::MaxProvidedKeys);
        }
        self.insert(&record.key, id, expires);
        self.count += 1;
        self.bytes += RECORD_BYTES;
        let number = self.arrivals;
        if !self.providers.contains_key(&id) {
            let provider = Provider { addrs: Vec::new(), records: 0, number, source };
            self.bytes += provider.bytes();
            self.providers.insert(id, provider);
        }
        if let Some(provider) = self.providers.get_mut(&id) {
            provider.records += 1;
        }
        self.update(&id, record.addresses, source);
        self.make_room(&record.key);
        Ok(())
    }

    /// Adds a record that is not there.
    fn insert(&mut self, key: &RecordKey, provider: PeerId, expires: Option<Instant>) {
        self.arrivals += 1;
        let held = Held { provider, expires, arrived: self.arrivals };
        let near = || near(key, &self.me);
        let kept = self.keys.entry(key.clone());
        kept.or_insert_with(|| Kept { near: near(), held: Vec::new() }).held.push(held);
    }

    fn update(&mut self, id: &PeerId, addrs: Vec<Multiaddr>, source: Source) {
        let Some(provider) = self.providers.get_mut(id) else { return };
        provider.source = Source { met: provider.source.met || source.met, ..source };
        if addrs.is_empty() {
            return;
        }
        self.bytes -= provider.bytes();
        let mut left = ADDRS_SIZE_MAX;
        let fit = |addr: &Multiaddr| left.checked_sub(addr.len()).map(|rest| left = rest).is_some();
        provider.addrs = addrs.into_iter().take(ADDRS_MAX).filter(fit).collect();
        self.bytes += provider.bytes();
    }

    /// Lets records of others go, if there are too many of `key` or in all.
    fn make_room(&mut self, key: &RecordKey) {
        let of_key = |(_, kept): (&RecordKey, &Kept)| RECORDS_PER_KEY < kept.held.len();
        if self.keys.get_key_value(key).is_some_and(of_key) {
            let gone = self.superfluous(self.keys.get_key_value(key).into_iter(), staying(RECORDS_PER_KEY));
            self.forget_all(gone);
        }
        let mut stay = RECORDS_MAX;
        while RECORDS_MAX < self.count || BYTES_MAX < self.bytes {
            stay = staying(stay.min(self.count));
            let gone = self.superfluous(self.keys.iter(), stay);
            self.forget_all(gone);
        }
    }

    /// Records of others among `keys` that go if only so many may stay.
    fn superfluous<'a>(
        &'a self,
        keys: impl Iterator<Item = (&'a RecordKey, &'a Kept)>,
        stay: usize,
    ) -> Vec<(RecordKey, PeerId)> {
        let (mut items, mut records) = (Vec::new(), Vec::new());
        for (key, kept) in keys {
            for held in &kept.held {
                if let Some(provider) = self.providers.get(&held.provider) {
                    items.push(provider.item(held, kept.near));
                    records.push((key, held.provider));
                }
            }
        }
        let mut goes = vec![true; items.len()];
        for at in fair::choose(&items, stay, Choice::Keep, &mut rand::rng()) {
            goes[at] = false;
        }
        let gone = records.into_iter().zip(goes).filter(|(_, goes)| *goes);
        gone.map(|((key, provider), _)| (key.clone(), provider)).collect()
    }

    fn forget_all(&mut self, gone: Vec<(RecordKey, PeerId)>) {
        for (key, provider) in gone {
            self.remove_provider(&key, &provider);
        }
    }

    /// Forgets what has expired at `now`.
    pub(super) fn sweep(&mut self, now: Instant) {
        let expired = |held: &&Held| held.expires.is_some_and(|expires| expires <= now);
        let of_key = |(key, kept): (&RecordKey, &Kept)| -> Vec<(RecordKey, PeerId)> {
            kept.held.iter().filter(expired).map(|held| (key.clone(), held.provider)).collect()
        };
        let gone = self.keys.iter().flat_map(of_key).collect();
        self.forget_all(gone);
    }

    fn forget_one(&mut self, id: &PeerId) {
        self.count -= 1;
        self.bytes -= RECORD_BYTES;
        if let Some(provider) = self.providers.get_mut(id) {
            provider.records -= 1;
            if provider.records == 0 {
                self.bytes -= provider.bytes();
                self.providers.remove(id);
            }
        }
    }
}

/// How near `key` is to `me` in the DHT; the smaller the nearer.
pub(super) fn near(key: &RecordKey, me: &PeerId) -> u64 {
    let first = |bytes: &[u8]| {
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[..8]);
        u64::from_be_bytes(first)
    };
    let (key, me) = (KBucketKey::new(key.clone()), KBucketKey::from(*me));
    first(key.hashed_bytes()) ^ first(me.hashed_bytes())
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

    /// libp2p says here what this node itself provides; what others do is offered.
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider != self.me {
            return Err(Error::MaxProvidedKeys);
        }
        let held = self.keys.get_mut(&record.key).map(|kept| &mut kept.held);
        match held.and_then(|held| held.iter_mut().find(|held| held.provider == record.provider)) {
            Some(held) => held.expires = record.expires,
            None => self.insert(&record.key, record.provider, record.expires),
        }
        Ok(())
    }

    /// A few of those who provide `key`: whoever asks often, or asks several, hears of all. This node is one of them
    /// if it provides the key.
    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let Some(kept) = self.keys.get(key) else { return Vec::new() };
        let ours = kept.held.iter().filter(|held| held.provider == self.me);
        let others: Vec<&Held> = kept.held.iter().filter(|held| held.provider != self.me).collect();
        let item = |held: &&Held| Some(self.providers.get(&held.provider)?.item(held, kept.near));
        let items: Vec<Item> = others.iter().filter_map(item).collect();
        let told = fair::choose(&items, TOLD_MAX - 1, Choice::Tell, &mut rand::rng());
        let record = |held: &Held| ProviderRecord {
            key: key.clone(),
            provider: held.provider,
            expires: held.expires,
            addresses: self.addrs(&held.provider),
        };
        ours.chain(told.into_iter().filter_map(|at| others.get(at).copied())).map(record).collect()
    }

    /// Nothing: libp2p would announce all of it again in one go. `announcements` does that.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        let Some(kept) = self.keys.get_mut(key) else { return };
        let before = kept.held.len();
        kept.held.retain(|held| held.provider != *provider);
        let removed = before != kept.held.len();
        if kept.held.is_empty() {
            self.keys.remove(key);
        }
        if removed && *provider != self.me {
            self.forget_one(provider);
        }
    }
}

#[cfg(test)]
mod tests;
