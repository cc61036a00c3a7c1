//! Whether another process runs with this node's identity, as happens when a data folder is copied.
//!
//! Two such nodes can never be connected: each takes the other for itself. Others believe now one, now the other. There
//! are two ways to notice, and a warning is given once:
//!
//! - *By proof.* A peer that has connections with both gets contact records of both, and hands each what the
//!   other has signed. A record with our signature that we have not made is somebody else's.
//! - *By sight.* Dialling finds ourselves where we are not: no connection arrives here while that happens. Or somebody
//!   arrives who is us, while we dial nobody who is. A dial that is given up halfway looks like that, so one sighting
//!   is not enough.
//!
//! Pure: time is an argument.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// How long to wait for the other end of a connection with ourselves.
const BOTH_ENDS: Duration = Duration::from_secs(3);

/// So many sightings within this time are no accident.
const SIGHTINGS: usize = 3;
const WITHIN: Duration = Duration::from_secs(10 * 60);

/// What has been seen.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// When the sighting began that is under way, and which ends of it were seen.
    under_way: Option<(Instant, [bool; 2])>,
    sightings: VecDeque<Instant>,
    /// When a connection came in last that may be our own.
    visited: Option<Instant>,
    found: bool,
}

/// An end of a connection with ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Dialled = 0,
    Accepted = 1,
}

impl Twins {
    /// One end of a connection with ourselves was seen at `now`.
    pub(super) fn seen(&mut self, end: End, now: Instant) {
        let visited = self.visited.is_some_and(|at| now < at + BOTH_ENDS);
        let (_, ends) = self.under_way.get_or_insert((now, [false, visited && end == End::Dialled]));
        ends[end as usize] = true;
    }

    /// Somebody came from where we are ourselves, or came and did not get as far as to say who it is.
    pub(super) fn visited(&mut self, now: Instant) {
        self.visited = Some(now);
        if let Some((_, ends)) = &mut self.under_way {
            ends[End::Accepted as usize] = true;
        }
    }

    /// Whether it is clear at `now` that there is another, by what was seen. Says so once.
    pub(super) fn appears(&mut self, now: Instant) -> bool {
        let Some((began, ends)) = self.under_way.filter(|(began, _)| *began + BOTH_ENDS <= now) else {
            return false;
        };
        self.under_way = None;
        if ends[0] == ends[1] {
            return false;
        }
        self.sightings.push_back(began);
        self.sightings.retain(|at| now < *at + WITHIN);
        SIGHTINGS <= self.sightings.len() && self.is_news()
    }

    /// There is proof of another. True if that is news.
    pub(super) fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.found, true)
    }

    /// Whether there is another.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// When [`Twins::appears`] has something to say.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.under_way.map(|(began, _)| began + BOTH_ENDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the warning is given if `ends` are seen ten times, half a minute apart.
    fn warnings(ends: &[End], visited: bool) -> usize {
        let (mut twins, mut now) = (Twins::default(), Instant::now());
        (0..10)
            .filter(|_| {
                now += Duration::from_secs(30);
                ends.iter().for_each(|end| twins.seen(*end, now));
                if visited {
                    twins.visited(now);
                }
                assert!(!twins.appears(now), "the other end may come");
                twins.appears(now + BOTH_ENDS)
            })
            .count()
    }

    #[test]
    fn one_end_without_the_other_is_a_twin() {
        assert_eq!(warnings(&[End::Dialled], false), 1);
        assert_eq!(warnings(&[End::Accepted], false), 1);
    }

    #[test]
    fn who_dials_itself_is_none() {
        assert_eq!(warnings(&[End::Dialled, End::Accepted], false), 0);
        assert_eq!(warnings(&[End::Accepted, End::Dialled], false), 0);
        assert_eq!(warnings(&[End::Dialled], true), 0, "the other end failed before it was known who it is");
        assert_eq!(warnings(&[], true), 0);
    }

    #[test]
    fn two_sightings_are_an_accident_and_proof_is_proof() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        for hours in 0..10 {
            twins.seen(End::Accepted, now + Duration::from_secs(3600 * hours));
            assert!(!twins.appears(now + Duration::from_secs(3600 * hours) + BOTH_ENDS));
        }
        assert!(!twins.found() && twins.is_news() && !twins.is_news() && twins.found());
    }
}
