//! Who stays when there is no room for all. Pure, but for the dice that it is handed.
//!
//! Identities cost nothing, addresses cost a little, subnets more. So room is shared between subnets, in each
//! between its addresses, in each between its owners, and in the share of an owner stays what is nearest. A share
//! that is not used up goes to the others, so only who has most loses something. Honest nodes may share an
//! address with an attacker. So where a share is smaller than the number of those who want a place in it, half
//! of the places go to those of the best standing (met before strangers, known longest before newcomers),
//! and half by the dice, which no newcomer is shut out of.
//!
//! The arithmetic, for one address with 1,000 identities of an attacker and `n` places: an honest node that was
//! there before `n / 2` of them keeps its place for certain, and so does one that was met as long as no `n / 2`
//! others were. A later one has a place with a chance of at least `n / 2 / 1000`. An address of its own
//! makes a place certain unless there are `n` other addresses.

use std::net::{IpAddr, Ipv4Addr};

use libp2p::Multiaddr;
use rand::{
    Rng,
    seq::{IteratorRandom, SliceRandom},
};

use super::addrs;

/// Where somebody comes from: an IPv4 address, or the half of an IPv6 address that a network has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    is_v6: bool,
    bits: u64,
}

impl Place {
    /// Whoever's address is not known: all of them share one place.
    pub(super) const UNKNOWN: Self = Self { is_v6: false, bits: u64::MAX };

    /// The place of `addr`. Of a relayed address that is the relay's.
    pub(super) fn of(addr: &Multiaddr) -> Self {
        addrs::ip(addr).map_or(Self::UNKNOWN, Self::of_ip)
    }

    fn of_ip(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self { is_v6: false, bits: Ipv4Addr::to_bits(ip).into() },
            IpAddr::V6(ip) => Self { is_v6: true, bits: (ip.to_bits() >> 64) as u64 },
        }
    }

    /// What holds many such places: a /24 of IPv4, a /48 of IPv6.
    pub(super) fn subnet(self) -> (bool, u64) {
        (self.is_v6, self.bits >> if self.is_v6 { 16 } else { 8 })
    }
}

/// Somebody who wants a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    /// Where it comes from.
    pub(super) place: Place,
    /// Whose it is.
    pub(super) owner: u64,
    /// The smaller one stays.
    pub(super) standing: Standing,
    /// Of the same owner the smaller one stays.
    pub(super) near: u64,
}

/// How good a claim is; the smaller the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Standing {
    /// Whether we have never met who makes it.
    pub(super) stranger: bool,
    /// When it was first made, in whatever counts up.
    pub(super) since: u64,
}

/// What the choice is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Who is kept: the best half stays.
    Keep,
    /// Who is told to somebody: of the best half others each time, so that nobody gets all the load.
    Tell,
}

/// The numbers of those `items` that have one of the `places`.
pub(super) fn choose(items: &[Item], places: usize, choice: Choice, dice: &mut impl Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..items.len()).collect();
    all.sort_unstable_by_key(|&at| (items[at].place.subnet(), items[at].place, items[at].owner));
    let mut chosen = Vec::with_capacity(places.min(items.len()));
    share(items, &mut all, places, (Level::Subnet, choice), dice, &mut chosen);
    chosen
}

/// What room is shared between.
#[derive(Clone, Copy)]
enum Level {
    Subnet,
    Address,
    Owner,
    Claim,
}

impl Level {
    fn are_together(self, a: &Item, b: &Item) -> bool {
        match self {
            Self::Subnet => a.place.subnet() == b.place.subnet(),
            Self::Address => a.place == b.place,
            Self::Owner => a.owner == b.owner,
            Self::Claim => false,
        }
    }

    fn below(self) -> Self {
        match self {
            Self::Subnet => Self::Address,
            Self::Address => Self::Owner,
            Self::Owner | Self::Claim => Self::Claim,
        }
    }
}

/// Shares `places` between the parts of `group`, which is sorted by them.
fn share(
    items: &[Item],
    group: &mut [usize],
    places: usize,
    (level, choice): (Level, Choice),
    dice: &mut impl Rng,
    chosen: &mut Vec<usize>,
) {
    if group.len() <= places {
        chosen.extend_from_slice(group);
        return;
    }
    if matches!(level, Level::Claim) {
        group.sort_unstable_by_key(|&at| (items[at].near, items[at].standing));
        chosen.extend_from_slice(&group[..places]);
        return;
    }
    let mut parts: Vec<&mut [usize]> =
        group.chunk_by_mut(|&a, &b| level.are_together(&items[a], &items[b])).collect();
    let (each, over) = level_of(parts.iter().map(|part| part.len()), places);
    let larger: Vec<(Standing, usize)> = parts
        .iter()
        .enumerate()
        .filter(|(_, part)| each < part.len())
        .map(|(at, part)| (part.iter().map(|&at| items[at].standing).min().unwrap_or(WORST), at))
        .collect();
    let mut one_more = vec![false; parts.len()];
    for at in favoured(larger, over, choice, dice) {
        one_more[at] = true;
    }
    for (part, more) in parts.iter_mut().zip(one_more) {
        let places = (each + usize::from(more)).min(part.len());
        if places != 0 {
            share(items, part, places, (level.below(), choice), dice, chosen);
        }
    }
}

const WORST: Standing = Standing { stranger: true, since: u64::MAX };

/// How many places each part gets at most, and how many are then left, if there are fewer `places` than are wanted.
fn level_of(sizes: impl Iterator<Item = usize>, mut places: usize) -> (usize, usize) {
    let mut sizes: Vec<usize> = sizes.collect();
    sizes.sort_unstable();
    let mut parts = sizes.len();
    for size in sizes {
        let each = places / parts;
        if each < size {
            return (each, places - each * parts);
        }
        places -= size;
        parts -= 1;
    }
    (usize::MAX, 0)
}

/// Which of `parts` get one of the places that are left over.
fn favoured(
    mut parts: Vec<(Standing, usize)>,
    places: usize,
    choice: Choice,
    dice: &mut impl Rng,
) -> Vec<usize> {
    let places = places.min(parts.len());
    let best = places.div_ceil(2);
    parts.sort_unstable();
    let mut chosen: Vec<usize> = match choice {
        Choice::Keep => parts.drain(..best).map(|(_, at)| at).collect(),
        Choice::Tell => {
            let met = parts.iter().filter(|(standing, _)| !standing.stranger).count();
            let pool = best.max(met.div_ceil(2));
            parts[..pool].shuffle(dice);
            parts.drain(..best).map(|(_, at)| at).collect()
        }
    };
    chosen.extend(parts.into_iter().map(|(_, at)| at).sample(dice, places - best));
    chosen
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn place(text: &str) -> Place {
        Place::of_ip(text.parse().unwrap())
    }

    fn item(at: &str, owner: u64, stranger: bool, since: u64) -> Item {
        Item { place: place(at), owner, standing: Standing { stranger, since }, near: since }
    }

    fn chosen(items: &[Item], places: usize, choice: Choice, seed: u64) -> Vec<usize> {
        let mut chosen = choose(items, places, choice, &mut StdRng::seed_from_u64(seed));
        chosen.sort_unstable();
        chosen
    }

    #[test]
    fn addresses_have_subnets() {
        assert_eq!(place("192.0.2.1").subnet(), place("192.0.2.255").subnet());
        assert_ne!(place("192.0.2.1"), place("192.0.2.255"));
        assert_ne!(place("192.0.2.1").subnet(), place("192.0.3.1").subnet());
        assert_eq!(place("::ffff:192.0.2.1"), place("192.0.2.1"));
        assert_eq!(place("2001:db8:1:2::1"), place("2001:db8:1:2:3::1"), "one network, many hosts");
        assert_eq!(place("2001:db8:1:2::1").subnet(), place("2001:db8:1:ffff::1").subnet());
        assert_ne!(place("2001:db8:1::1").subnet(), place("2001:db8:2::1").subnet());
    }

    #[test]
    fn all_stay_where_there_is_room_and_never_more_than_there_is() {
        let items: Vec<_> = (0..50).map(|n| item("10.0.0.1", n / 3, n % 2 == 0, n)).collect();
        for places in [0, 1, 7, 49, 50, 60] {
            for choice in [Choice::Keep, Choice::Tell] {
                let chosen = chosen(&items, places, choice, 1);
                assert_eq!(chosen.len(), places.min(50));
                assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]), "nobody twice");
            }
        }
    }

    #[test]
    fn who_has_most_gives_way_and_small_shares_are_untouched() {
        // One address with 300 owners, another address of the same subnet, and other subnets.
        let mut items: Vec<_> = (0..300).map(|n| item("10.0.0.1", n, false, n)).collect();
        items.push(item("10.0.0.2", 1_000, true, 1_000));
        items.push(item("10.0.7.1", 1_001, true, 1_001));
        items.push(item("2001:db8::1", 1_002, true, 1_002));
        for seed in 0..20 {
            let chosen = chosen(&items, 100, Choice::Keep, seed);
            assert!([300, 301, 302].iter().all(|at| chosen.contains(at)), "{chosen:?}");
        }
    }

    #[test]
    fn an_owner_of_one_record_keeps_it_beside_owners_of_thousands() {
        let mut items: Vec<_> = (0..64 * 200).map(|n| item("127.0.0.1", n / 200, false, n)).collect();
        items.push(item("127.0.0.1", 99, true, 99_999));
        let chosen = chosen(&items, 6_400, Choice::Keep, 1);
        assert!(chosen.contains(&(64 * 200)));
        // Of each of the others what is nearest.
        let of_first: Vec<_> = chosen.iter().filter(|&&at| at < 200).copied().collect();
        assert_eq!(of_first, (0..of_first.len()).collect::<Vec<_>>());
        assert!((99..=100).contains(&of_first.len()));
    }

    #[test]
    fn at_one_address_the_longest_known_stay_and_newcomers_have_a_chance() {
        let items: Vec<_> = (0..1_000).map(|n| item("127.0.0.1", n, true, n)).collect();
        let mut last = 0;
        for seed in 0..400 {
            let chosen = chosen(&items, 256, Choice::Keep, seed);
            assert_eq!(chosen[..128], (0..128).collect::<Vec<_>>());
            last += usize::from(chosen.contains(&999));
        }
        // 128 of 872 places by the dice: 59 of 400 are expected.
        assert!((25..100).contains(&last), "{last} of 400");
    }

    #[test]
    fn who_was_met_is_kept_and_told_beside_any_number_of_strangers() {
        let mut items: Vec<_> = (0..1_000).map(|n| item("127.0.0.1", n, true, n)).collect();
        items.push(item("127.0.0.1", 5_000, false, 5_000));
        for seed in 0..50 {
            assert!(chosen(&items, 256, Choice::Keep, seed).contains(&1_000));
            assert!(chosen(&items, 20, Choice::Tell, seed).contains(&1_000));
        }
    }

    #[test]
    fn what_is_told_is_others_each_time() {
        let items: Vec<_> = (0..256).map(|n| item("127.0.0.1", n, false, n)).collect();
        let mut told = vec![0; 256];
        for seed in 0..1_000 {
            chosen(&items, 20, Choice::Tell, seed).into_iter().for_each(|at| told[at] += 1);
        }
        assert!(told.iter().all(|&times| 0 < times), "all are told in time");
        // 78 each, if all had the same chance.
        assert!(told.iter().all(|&times| times < 200), "nobody much more often than others: {told:?}");
    }
}
