//! Who has a place, and who loses it to whom.
//!
//! There are [`PLACES`] for everyone, and [`PROBE_PLACES`] more for those who ask how the node is. When all
//! are taken, whoever keeps the node waiting longest makes room: first connections between two requests,
//! then those that owe most. Nobody loses a place while the node works for them and they take what it says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::rpc::pace::{PATIENCE, Pace};

/// Connections at once, and so requests at once.
pub(super) const PLACES: usize = 256;

/// Further connections at once, which may ask for probes only. Nobody can keep one for long, so a few are
/// enough whatever happens to the others.
pub(super) const PROBE_PLACES: usize = 32;

/// How long a client may keep the node waiting before it can lose its place: an ordinary round trip.
const GRACE: Duration = Duration::from_secs(1);

/// How long the head of a request may take in a place for probes: they are small and sent at once.
const PROBE_HEAD_TIME: Duration = Duration::from_secs(2);

/// Everyone who has a place.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<BTreeMap<u64, Arc<Place>>>,
    /// Connections so far.
    count: AtomicU64,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    /// Cancelled when another needs the place more.
    pub(super) lost: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kind: Kind,
    turn: Turn,
    /// What the client sends: the head of a request, and its body.
    sending: Pace,
    /// What it takes of the answers.
    taking: Pace,
}

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whatever is asked.
    Any,
    /// Probes.
    Probe,
}

/// What is to happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The client may ask something else. Nothing of it is here yet.
    Pause,
    /// The head of a request is on its way.
    Head,
    /// The node reads the body, works and answers.
    Answer,
}

impl Places {
    /// A place for a new connection, if need be another's. `None`: even the probes are taken, and all
    /// of them are being answered.
    pub(super) fn enter(&self, now: Instant) -> Option<Arc<Place>> {
        let mut taken = self.lock();
        let kind = if room(&mut taken, Kind::Any, now) {
            Kind::Any
        } else if room(&mut taken, Kind::Probe, now) {
            Kind::Probe
        } else {
            return None;
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let place = Arc::new(Place::new(number, kind, now));
        taken.insert(number, Arc::clone(&place));
        Some(place)
    }

    /// Whether `place` may be used for whatever is asked. If it was one for probes, it is from now on if
    /// there is room for that.
    pub(super) fn widen(&self, place: &Place, now: Instant) -> bool {
        let mut taken = self.lock();
        if place.state().kind == Kind::Any {
            return true;
        }
        let free = room(&mut taken, Kind::Any, now);
        if free {
            place.state().kind = Kind::Any;
        }
        free
    }

    /// Gives a place back.
    pub(super) fn leave(&self, place: &Place) {
        self.lock().remove(&place.number);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Place>>> {
        self.taken.lock().expect("no panics while held")
    }
}

/// Whether there is a free place of `kind`, after taking one away where there is none.
fn room(taken: &mut BTreeMap<u64, Arc<Place>>, kind: Kind, now: Instant) -> bool {
    let most = match kind {
        Kind::Any => PLACES,
        Kind::Probe => PROBE_PLACES,
    };
    let those = || taken.values().filter(|place| place.state().kind == kind);
    if those().count() < most {
        return true;
    }
    let ranked = those().filter_map(|place| Some((place.state().rank(now)?, place.number)));
    // Of two who owe the same, the one that came first.
    let Some((_, std::cmp::Reverse(loser))) =
        ranked.map(|(rank, number)| (rank, std::cmp::Reverse(number))).max()
    else {
        return false;
    };
    if let Some(place) = taken.remove(&loser) {
        place.lost.cancel();
    }
    true
}

impl Place {
    fn new(number: u64, kind: Kind, now: Instant) -> Self {
        let mut state = State { kind, turn: Turn::Head, sending: Pace::default(), taking: Pace::default() };
        state.sending.wait(now);
        Self { number, lost: CancellationToken::new(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics while held")
    }

    /// What the place is for.
    pub(super) fn kind(&self) -> Kind {
        self.state().kind
    }

    /// Bytes came.
    pub(super) fn heard(&self, now: Instant) {
        let mut state = self.state();
        if state.turn == Turn::Pause {
            state.turn = Turn::Head;
            state.sending = Pace::default();
            state.sending.wait(now);
        }
    }

    /// The head of a request is here.
    pub(super) fn asked(&self) {
        let mut state = self.state();
        state.turn = Turn::Answer;
        state.sending = Pace::default();
    }

    /// The node waits for more of the body.
    pub(super) fn wants_body(&self, now: Instant) {
        self.state().sending.wait(now);
    }

    /// Some of the body came, or its end.
    pub(super) fn got_body(&self, bytes: usize, now: Instant) {
        self.state().sending.moved(bytes, now);
    }

    /// The answer is on its way, all of it.
    pub(super) fn answered(&self, now: Instant) {
        let mut state = self.state();
        state.turn = Turn::Pause;
        state.sending = Pace::default();
        state.sending.wait(now);
    }

    /// How much longer to wait for the head of a request, if that is what the node waits for.
    pub(super) fn head_left(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let most = match state.kind {
            Kind::Any => PATIENCE,
            Kind::Probe => PROBE_HEAD_TIME,
        };
        let waits = state.turn != Turn::Answer && !state.taking.is_waiting();
        waits.then(|| most.saturating_sub(state.sending.owed(now)))
    }

    /// The client takes nothing at the moment. How much longer to wait for it.
    pub(super) fn stuck(&self, now: Instant) -> Duration {
        let mut state = self.state();
        state.taking.wait(now);
        state.taking.left(now)
    }

    /// The client took some of the answer.
    pub(super) fn took(&self, bytes: usize, now: Instant) {
        let mut state = self.state();
        state.taking.moved(bytes, now);
        if state.turn == Turn::Pause {
            // It was busy with the last answer until now.
            state.sending = Pace::default();
            state.sending.wait(now);
        }
    }
}

impl State {
    /// How much the connection deserves to lose its place. `None`: not at all.
    fn rank(&self, now: Instant) -> Option<(bool, Duration)> {
        let waiting = |pace: &Pace| if pace.is_waiting() { pace.owed(now) } else { Duration::ZERO };
        let owed = waiting(&self.sending).max(waiting(&self.taking));
        match self.turn {
            Turn::Pause if !self.taking.is_waiting() => Some((true, owed)),
            Turn::Pause => {
                Some(self.taking.owed(now)).filter(|owed| GRACE <= *owed).map(|owed| (false, owed))
            }
            // Places for probes turn over however fast others come.
            Turn::Head if self.kind == Kind::Probe => Some((false, owed)),
            Turn::Head | Turn::Answer => (GRACE <= owed).then_some((false, owed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    fn full(now: Instant) -> (Places, Vec<Arc<Place>>) {
        let places = Places::default();
        let all = (0..PLACES).map(|_| places.enter(now).unwrap()).collect();
        (places, all)
    }

    fn losers(all: &[Arc<Place>]) -> Vec<usize> {
        (0..all.len()).filter(|&at| all[at].lost.is_cancelled()).collect()
    }

    #[test]
    fn who_keeps_the_node_waiting_longest_makes_room() {
        let now = Instant::now();
        let (places, all) = full(now);
        all.iter().for_each(|place| place.asked());
        assert_eq!(places.enter(now).unwrap().kind(), Kind::Probe, "everyone is being answered");
        all[7].wants_body(now);
        all[9].wants_body(after(now, 2));
        let _ = all[11].stuck(after(now, 1));
        assert_eq!(places.enter(now).unwrap().kind(), Kind::Probe, "nobody has waited long");
        assert_eq!(places.enter(after(now, 3)).unwrap().kind(), Kind::Any);
        assert_eq!(losers(&all), [7]);
        all[20].answered(after(now, 3));
        assert_eq!(places.enter(after(now, 3)).unwrap().kind(), Kind::Any);
        assert_eq!(losers(&all), [7, 20], "a connection between two requests goes first");
        assert_eq!(places.enter(after(now, 4)).unwrap().kind(), Kind::Any);
        assert_eq!(losers(&all), [7, 11, 20]);
        all[9].got_body(1 << 20, after(now, 5));
        assert_eq!(losers(&all), [7, 11, 20]);
    }

    #[test]
    fn the_head_is_waited_for_when_the_last_answer_has_been_taken() {
        let now = Instant::now();
        let places = Places::default();
        let place = places.enter(now).unwrap();
        assert_eq!(place.head_left(after(now, 5)), Some(PATIENCE - Duration::from_secs(5)));
        place.asked();
        assert_eq!(place.head_left(after(now, 50)), None);
        let _ = place.stuck(after(now, 50));
        place.answered(after(now, 50));
        assert_eq!(place.head_left(after(now, 55)), None, "the client still takes the answer");
        place.took(1 << 20, after(now, 60));
        assert_eq!(place.head_left(after(now, 60)), Some(PATIENCE));
        assert_eq!(place.head_left(after(now, 90)), Some(Duration::ZERO));
        place.heard(after(now, 90));
        assert_eq!(place.head_left(after(now, 95)), Some(PATIENCE - Duration::from_secs(5)));
    }

    #[test]
    fn half_heads_lose_their_places_but_not_at_once() {
        let now = Instant::now();
        let (places, all) = full(now);
        assert_eq!(places.enter(now).unwrap().kind(), Kind::Probe);
        assert_eq!(places.enter(after(now, 1)).unwrap().kind(), Kind::Any);
        assert_eq!(losers(&all), [0], "of equals the first");
    }

    #[test]
    fn places_for_probes_turn_over_and_widen_when_there_is_room() {
        let now = Instant::now();
        let (places, all) = full(now);
        all.iter().for_each(|place| place.asked());
        let probes: Vec<_> = (0..PROBE_PLACES).map(|_| places.enter(now).unwrap()).collect();
        let newer = places.enter(now).unwrap();
        assert_eq!(losers(&probes), [0]);
        newer.asked();
        assert!(!places.widen(&newer, now));
        places.leave(&all[0]);
        assert!(places.widen(&newer, now) && newer.kind() == Kind::Any);
        probes[1..].iter().for_each(|place| place.asked());
        places.enter(now).unwrap().asked();
        assert!(places.enter(now).is_none(), "all of them are being answered");
    }
}
