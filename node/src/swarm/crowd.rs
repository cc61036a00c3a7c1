//! Which connection gives way when a newcomer comes to a full table. Pure, but for the dice that it is handed.
//!
//! A table that refuses newcomers belongs to whoever filled it first, with identities that cost nothing. So a newcomer
//! always gets in, and somebody else goes. Nodes that we need are guarded. Of the others:
//!
//! 1. If a subnet has more than a quarter of the table, one of its connections goes. Otherwise it is one of all.
//! 2. Of these, an idle one: nothing useful came of it for a minute, or nothing yet after five seconds. Of idle ones,
//!    one of the fullest subnet, of its fullest address; of those one that was never useful; of those the
//!    one that has been idle longest.
//! 3. If none is idle: one of the fullest address of the fullest subnet. A newcomer goes before one that was of use: of
//!    newcomers any, by the dice, of others the one whose last use is longest ago.
//!
//! The arithmetic. 600 identities at one address hold idle connections with a node that has 512 places for those who
//! dial it. An honest node at the same address finds an idle one in its way, for as long as it is not idle itself:
//! it gives away its contact record at once, which is of use, and asks the DHT every few seconds while it pulls. If the
//! strangers come without end, 100 a second, and none is idle yet, each of them pushes out one of 512 by the dice, and
//! only newcomers: an honest newcomer has some five seconds, of which it needs less than one to be of use.

mod behaviour;

use std::{collections::HashMap, hash::Hash, time::Duration};

use rand::{Rng, seq::IteratorRandom};
use tokio::time::Instant;

pub(super) use self::behaviour::{Behaviour, Busy, Guard, InUse};
use super::fair::Place;

/// Connections that others, and that we, have made. Each costs some 100 KB.
pub(super) const PLACES: usize = 512;

/// How long a connection has to be of use for the first time, and how long one use counts.
const NEW: Duration = Duration::from_secs(5);
const IN_USE: Duration = Duration::from_secs(60);

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
struct Member {
    place: Place,
    since: Instant,
    /// When something useful came of it last.
    useful: Option<Instant>,
}

/// How willingly a connection gives way: the first before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Idle,
    New,
    InUse,
}

impl Member {
    fn state(&self, now: Instant) -> State {
        match self.useful {
            Some(last) if now < last + IN_USE => State::InUse,
            None if now < self.since + NEW => State::New,
            _ => State::Idle,
        }
    }
}

/// The one of `members` that gives way at `now`, in a table with so many `places`.
fn gives_way<I: Copy>(
    members: &[(I, Member)],
    places: usize,
    now: Instant,
    dice: &mut impl Rng,
) -> Option<I> {
    let (subnet, size) = largest(members, |member| member.place.subnet());
    let asked = if places / 4 < size { &subnet[..] } else { members };
    let idle: Vec<_> = asked.iter().filter(|(_, member)| member.state(now) == State::Idle).copied().collect();
    if !idle.is_empty() {
        let longest = |(_, member): &&(I, Member)| (member.useful.is_some(), member.useful, member.since);
        return fullest(&idle).iter().min_by_key(longest).map(|(id, _)| *id);
    }
    let asked = fullest(asked);
    let newcomers = asked.iter().filter(|(_, member)| member.state(now) == State::New);
    let least_useful = || asked.iter().min_by_key(|(_, member)| member.useful);
    newcomers.choose(dice).or_else(least_useful).map(|(id, _)| *id)
}

/// Those of `members` at the fullest address of the fullest subnet. Where several are equally full, at all of these.
fn fullest<I: Copy>(members: &[(I, Member)]) -> Vec<(I, Member)> {
    largest(&largest(members, |member| member.place.subnet()).0, |member| member.place).0
}

/// The largest groups of `members` that have the same `key`, and the size of one.
fn largest<I: Copy, K: Eq + Hash>(
    members: &[(I, Member)],
    key: impl Fn(&Member) -> K,
) -> (Vec<(I, Member)>, usize) {
    let mut sizes: HashMap<K, usize> = HashMap::new();
    for (_, member) in members {
        *sizes.entry(key(member)).or_default() += 1;
    }
    let size = sizes.values().copied().max().unwrap_or(0);
    let is_in = |(_, member): &&(I, Member)| sizes.get(&key(member)) == Some(&size);
    (members.iter().filter(is_in).copied().collect(), size)
}

#[cfg(test)]
mod tests {
    use libp2p::Multiaddr;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    struct Table {
        now: Instant,
        members: Vec<(usize, Member)>,
        dice: StdRng,
    }

    impl Table {
        fn new() -> Self {
            Self { now: Instant::now(), members: Vec::new(), dice: StdRng::seed_from_u64(1) }
        }

        fn pass(&mut self, seconds: f64) {
            self.now += Duration::from_secs_f64(seconds);
        }

        /// Somebody connects. Returns who gives way.
        fn come(&mut self, id: usize, ip: &str) -> Option<usize> {
            let addr: Multiaddr = format!("/ip4/{ip}/tcp/1").parse().unwrap();
            let gone = if self.members.len() < PLACES {
                None
            } else {
                gives_way(&self.members, PLACES, self.now, &mut self.dice)
            };
            self.members.retain(|(id, _)| Some(*id) != gone);
            self.members.push((id, Member { place: Place::of(&addr), since: self.now, useful: None }));
            gone
        }

        fn use_it(&mut self, id: usize) {
            for (_, member) in self.members.iter_mut().filter(|(member, _)| *member == id) {
                member.useful = Some(self.now);
            }
        }

        fn has(&self, id: usize) -> bool {
            self.members.iter().any(|(member, _)| *member == id)
        }
    }

    const HONEST: usize = 1_000_000;

    #[test]
    fn idle_strangers_at_the_same_address_give_way_to_who_is_of_use() {
        let mut table = Table::new();
        table.come(HONEST, "127.0.0.1");
        table.use_it(HONEST);
        table.pass(30.0);
        for id in 0..600 {
            table.come(id, "127.0.0.1");
        }
        assert!(table.has(HONEST) && table.members.len() == PLACES);
        table.pass(10.0);
        assert!(table.come(HONEST + 1, "127.0.0.1").is_some_and(|gone| gone < 600));
        table.use_it(HONEST + 1);
        for id in 600..2_000 {
            table.pass(0.01);
            table.come(id, "127.0.0.1");
        }
        assert!(table.has(HONEST) && table.has(HONEST + 1));
    }

    #[test]
    fn without_end_they_push_out_one_another_and_leave_a_newcomer_time_to_be_of_use() {
        let mut survived = 0;
        for honest in 0..100 {
            let mut table = Table::new();
            for id in 0..600 {
                table.pass(0.002);
                table.come(id, "127.0.0.1");
            }
            table.come(HONEST + honest, "127.0.0.1");
            for id in 600..700 {
                table.pass(0.01);
                table.come(id, "127.0.0.1");
            }
            survived += usize::from(table.has(HONEST + honest));
        }
        assert!(70 < survived, "{survived} of 100 newcomers last for a second");
    }

    #[test]
    fn an_address_or_subnet_that_has_most_gives_way_and_others_need_not_be_busy() {
        for attacker in [|_| "198.51.100.7".to_owned(), |id: usize| format!("198.51.100.{}", id % 250)] {
            let mut table = Table::new();
            for id in 0..100 {
                table.come(HONEST + id, &format!("10.{id}.0.1"));
            }
            table.pass(600.0);
            for id in 0..2_000 {
                table.pass(0.01);
                table.come(id, &attacker(id));
                table.use_it(id);
            }
            assert!((0..100).all(|id| table.has(HONEST + id)), "idle as they are");
            assert!(table.come(HONEST + 100, "10.100.0.1").is_some_and(|gone| gone < HONEST));
        }
    }

    #[test]
    fn of_equals_who_was_never_of_use_goes_then_who_has_been_idle_longest() {
        let mut table = Table::new();
        for id in 0..PLACES {
            table.come(id, &format!("10.{}.{}.1", id / 100, id % 100));
            if id != 7 {
                table.use_it(id);
            }
            table.pass(0.1);
        }
        table.pass(3600.0);
        assert_eq!(table.come(1_000, "192.0.2.1"), Some(7));
        table.use_it(1_000);
        // All of them have an address, and a subnet, of their own.
        let gone = table.come(1_001, "192.0.3.1").unwrap();
        assert!(gone < PLACES && gone != 7);
        // And where all are in use, the one whose last use is longest ago at the fullest address.
        (0..PLACES).filter(|&id| id != 3).for_each(|id| table.use_it(id));
        table.use_it(1_001);
        assert_eq!(table.come(1_002, "192.0.4.1"), Some(3));
    }
}
