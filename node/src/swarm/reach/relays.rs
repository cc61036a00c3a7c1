//! Which relays we ask for a place, and when. Pure: time is an argument.

use std::{collections::BTreeMap, time::Duration};

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

/// Relays that we keep a place at: one, and one for when that goes.
const PLACES: usize = 2;

/// How long a relay is left alone that has refused or dropped us.
const PAUSE: Duration = Duration::from_secs(60);

/// Relays that are remembered: they are peers that we are connected to.
const OFFERS_MAX: usize = 64;

/// Connected peers that relay, and which of them we use.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Relays {
    offers: BTreeMap<PeerId, Offer>,
}

#[derive(Debug)]
struct Offer {
    addr: Multiaddr,
    since: Instant,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not asked for before then.
    None(Instant),
    /// Asked for, or had.
    Taken,
}

impl Relays {
    /// `relay` offers to relay; `addr` leads to it.
    pub(in crate::swarm) fn offered(&mut self, relay: PeerId, addr: Multiaddr, now: Instant) {
        if self.offers.len() < OFFERS_MAX {
            self.offers.entry(relay).or_insert(Offer { addr, since: now, place: Place::None(now) });
        }
    }

    /// `relay` does not offer it, or no more. A place that we have stays ours until it is lost.
    pub(in crate::swarm) fn withdrawn(&mut self, relay: &PeerId) {
        if self.offers.get(relay).is_some_and(|offer| offer.place != Place::Taken) {
            self.offers.remove(relay);
        }
    }

    /// `relay` is gone.
    pub(in crate::swarm) fn gone(&mut self, relay: &PeerId) {
        self.offers.remove(relay);
    }

    /// The place at `relay` is lost, or was refused.
    pub(in crate::swarm) fn lost(&mut self, relay: &PeerId, now: Instant) {
        if let Some(offer) = self.offers.get_mut(relay) {
            offer.place = Place::None(now + PAUSE);
        }
    }

    /// The relay to ask for a place next, if we need one. Counts as asked. Whoever has been connected
    /// longest is asked first: it will stay longest.
    pub(in crate::swarm) fn next(&mut self, now: Instant) -> Option<(PeerId, Multiaddr)> {
        if PLACES <= self.offers.values().filter(|offer| offer.place == Place::Taken).count() {
            return None;
        }
        let free = |offer: &Offer| matches!(offer.place, Place::None(from) if from <= now);
        let (id, offer) =
            self.offers.iter_mut().filter(|(_, offer)| free(offer)).min_by_key(|(_, offer)| offer.since)?;
        offer.place = Place::Taken;
        Some((*id, offer.addr.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_places_at_the_oldest_and_another_when_one_is_lost() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let ids: Vec<_> = (0..3).map(|_| PeerId::random()).collect();
        for (n, id) in ids.iter().enumerate() {
            relays.offered(*id, Multiaddr::empty(), now + Duration::from_secs(n as u64));
            relays.offered(*id, Multiaddr::empty(), now);
        }
        let later = now + Duration::from_secs(9);
        assert_eq!(relays.next(later).unwrap().0, ids[0]);
        assert_eq!(relays.next(later).unwrap().0, ids[1]);
        assert_eq!(relays.next(later), None);
        relays.lost(&ids[0], later);
        assert_eq!(relays.next(later).unwrap().0, ids[2]);
        relays.gone(&ids[1]);
        assert_eq!(relays.next(later), None, "the first is left alone");
        assert_eq!(relays.next(later + PAUSE).unwrap().0, ids[0]);
    }

    #[test]
    fn no_more_relays_than_there_is_room_for() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        (0..2 * OFFERS_MAX).for_each(|_| relays.offered(PeerId::random(), Multiaddr::empty(), now));
        assert_eq!(relays.offers.len(), OFFERS_MAX);
    }
}
