//! Who is asked for what, in what order, and who is not.

#![allow(clippy::unwrap_used, reason = "a failed test")]

use std::time::Duration;

use super::{limits::*, *};
use crate::fetch::Route;

const A: NodeId = NodeId([1; 32]);
const B: NodeId = NodeId([2; 32]);
const MIB: u32 = 1 << 20;

fn chunk(seed: u8, size: u32) -> ChunkEntry {
    ChunkEntry { id: ChunkId::of(&[seed]), size }
}

fn model() -> ModelId {
    ModelId::of(b"model")
}

fn all(n: usize) -> Bitmap {
    Bitmap::from_fn(n, |_| true)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A schedule that wants `n` chunks of 2 MiB in the background, all claimed by `peers`.
fn wanting(n: u8, peers: &[NodeId], now: Instant) -> Schedule {
    let mut schedule = Schedule::new(7);
    (0..n).for_each(|i| schedule.want(model(), i.into(), chunk(i, 2 * MIB), Urgency::Background));
    peers.iter().for_each(|&peer| schedule.claims(peer, model(), all(n.into()), now));
    schedule
}

/// Ends a request that should leave no other.
fn end(schedule: &mut Schedule, assignment: &Assignment, outcome: Outcome, now: Instant) {
    assert_eq!(schedule.ended(assignment.flight, outcome, now), Vec::<u64>::new());
}

#[tokio::test]
async fn deadlines_go_first_and_in_order() {
    let now = Instant::now();
    let mut schedule = Schedule::new(1);
    for (i, urgency) in
        [Urgency::Background, Urgency::Deadline(9), Urgency::Deadline(2)].into_iter().enumerate()
    {
        schedule.want(model(), i, chunk(i as u8, MIB), urgency);
    }
    schedule.claims(A, model(), all(3), now);
    let next = || {
        let assignment = schedule.assign(now)?;
        end(&mut schedule, &assignment, Outcome::Delivered, now);
        Some(assignment.chunk.id)
    };
    let order: Vec<ChunkId> = std::iter::from_fn(next).collect();
    assert_eq!(order, [chunk(2, MIB).id, chunk(1, MIB).id, chunk(0, MIB).id]);
}

#[tokio::test]
async fn a_wish_can_become_urgent() {
    let now = Instant::now();
    let mut schedule = wanting(20, &[A], now);
    schedule.want(model(), 13, chunk(13, 2 * MIB), Urgency::Deadline(0));
    assert_eq!(schedule.assign(now).unwrap().chunk, chunk(13, 2 * MIB));
}

#[tokio::test]
async fn two_nodes_with_other_dice_want_other_chunks_first() {
    let now = Instant::now();
    let first = |seed| {
        let mut schedule = Schedule::new(seed);
        (0..50).for_each(|i| schedule.want(model(), i, chunk(i as u8, MIB), Urgency::Background));
        schedule.claims(A, model(), all(50), now);
        schedule.assign(now).unwrap().chunk.id
    };
    assert_eq!(first(1), first(1));
    assert!((2..10).any(|seed| first(seed) != first(1)));
}

#[tokio::test]
async fn a_herd_does_not_want_the_same_chunk_even_in_layer_order() {
    let now = Instant::now();
    let first = |seed, herd| {
        let mut schedule = Schedule::new(seed);
        let deadline = |i: u64| Urgency::Deadline(i);
        (0..50).for_each(|i| schedule.want(model(), i, chunk(i as u8, MIB), deadline(i as u64)));
        schedule.claims(A, model(), all(50), now);
        if herd {
            schedule.claims(B, model(), Bitmap::none(50), now);
        }
        schedule.assign(now).unwrap().chunk.id
    };
    assert!((0..10).all(|seed| first(seed, false) == chunk(0, MIB).id));
    let wanted: BTreeSet<ChunkId> = (0..10).map(|seed| first(seed, true)).collect();
    assert!(2 < wanted.len(), "all want the same");
    let step = (super::limits::DEADLINE_STEP / u64::from(MIB)) as u8;
    let near: BTreeSet<ChunkId> = (0..step).map(|i| chunk(i, MIB).id).collect();
    assert!(wanted.is_subset(&near), "what is needed next goes before what is needed later");
}

#[tokio::test]
async fn the_rarest_goes_first() {
    let now = Instant::now();
    let mut schedule = wanting(40, &[A], now);
    schedule.claims(B, model(), Bitmap::from_fn(40, |at| at != 17), now);
    let first = std::iter::from_fn(|| schedule.assign(now)).find(|a| a.peer == A).unwrap();
    assert_eq!(first.chunk.id, chunk(17, 0).id);
}

#[tokio::test]
async fn both_peers_are_used_and_neither_is_flooded() {
    let now = Instant::now();
    let mut schedule = wanting(40, &[A, B], now);
    let given: Vec<NodeId> = std::iter::from_fn(|| schedule.assign(now)).map(|a| a.peer).collect();
    assert_eq!(given.len(), 2, "a peer that has not delivered gets one request: {given:?}");
    assert!(given.contains(&A) && given.contains(&B));
}

#[tokio::test]
async fn a_fast_peer_gets_most_chunks_and_what_waits_at_the_slow_one_is_moved() {
    let start = Instant::now();
    let mut schedule = wanting(100, &[A, B], start);
    let mut delivered = BTreeMap::from([(A, 0), (B, 0)]);
    // A delivers a chunk in 10 ms, B in 1 s.
    let mut under_way: Vec<(Instant, Assignment)> = Vec::new();
    let mut now = start;
    let mut cancelled: BTreeSet<u64> = BTreeSet::new();
    while !schedule.is_idle() {
        while let Some(assignment) = schedule.assign(now) {
            cancelled.extend(assignment.replaces);
            let queued = under_way.iter().filter(|(_, a)| a.peer == assignment.peer).count() as u32 + 1;
            let each = millis(if assignment.peer == A { 10 } else { 1000 });
            under_way.push((now + each * queued, assignment));
        }
        under_way.retain(|(_, a)| !cancelled.contains(&a.flight));
        under_way.sort_by_key(|(at, a)| (*at, a.chunk.id));
        let (at, assignment) = under_way.remove(0);
        now = at;
        *delivered.get_mut(&assignment.peer).unwrap() += 1;
        cancelled.extend(schedule.ended(assignment.flight, Outcome::Delivered, now));
    }
    assert!(delivered[&A] > 20 * delivered[&B], "{delivered:?}");
    assert!(now - start < millis(2100), "{:?}", now - start);
}

#[tokio::test]
async fn a_liar_is_never_asked_again() {
    let now = Instant::now();
    let mut schedule = wanting(5, &[A], now);
    let assignment = schedule.assign(now).unwrap();
    end(&mut schedule, &assignment, Outcome::Lied, now);
    schedule.claims(A, model(), all(5), now);
    schedule.found(A, assignment.chunk.id, now);
    assert_eq!(schedule.assign(now + Duration::from_secs(3600)), None);
    assert_eq!(schedule.stranded(now).len(), 5);
    assert!(schedule.has_lied(A));
}

#[tokio::test]
async fn what_else_a_liar_was_asked_for_is_cancelled() {
    let now = Instant::now();
    let mut schedule = wanting(9, &[A], now);
    let first = schedule.assign(now).unwrap();
    end(&mut schedule, &first, Outcome::Delivered, now + millis(10));
    let now = now + millis(10);
    let others: Vec<u64> = std::iter::from_fn(|| schedule.assign(now)).map(|a| a.flight).collect();
    assert!(1 < others.len());
    assert_eq!(schedule.ended(others[0], Outcome::Lied, now), others[1..]);
    assert_eq!(schedule.stranded(now).len(), 8);
}

#[tokio::test]
async fn a_failing_peer_is_tried_again_at_growing_intervals_up_to_a_minute() {
    let start = Instant::now();
    let mut now = start;
    let mut schedule = wanting(5, &[A], now);
    let mut tried: Vec<Instant> = Vec::new();
    while now < start + Duration::from_secs(600) {
        if let Some(assignment) = schedule.assign(now) {
            end(&mut schedule, &assignment, Outcome::Failed, now);
            assert_eq!(schedule.assign(now), None);
            tried.push(now);
        }
        let counted_on = tried.len() < FAILURES_COUNTED_ON_MAX as usize;
        assert_eq!(schedule.stranded(now).len(), if counted_on { 0 } else { 5 });
        now += millis(100);
    }
    let pauses: Vec<Duration> = tried.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.is_sorted() && pauses[0] == PAUSE_FIRST, "{pauses:?}");
    assert_eq!(pauses.last(), Some(&PAUSE_MAX));

    // A word from it, and it is asked at once.
    let now = *tried.last().unwrap() + millis(1);
    assert_eq!(schedule.assign(now), None);
    schedule.heard(A);
    let assignment = schedule.assign(now).unwrap();
    end(&mut schedule, &assignment, Outcome::Failed, now);
    assert_eq!(schedule.stranded(now).len(), 5, "it may talk and give nothing: nobody counts on it");
    // Somebody begins to want something, and nothing counts any more.
    schedule.afresh();
    assert!(schedule.stranded(now).is_empty());
    let assignment = schedule.assign(now).unwrap();
    end(&mut schedule, &assignment, Outcome::Delivered, now);
}

#[tokio::test]
async fn one_chunk_that_a_peer_cannot_give_is_not_held_against_the_others() {
    let now = Instant::now();
    let mut schedule = wanting(5, &[A], now);
    let first = schedule.assign(now).unwrap();
    end(&mut schedule, &first, Outcome::Refused, now);
    assert_eq!(schedule.stranded(now), [(model(), first.chunk)], "it is looked for elsewhere");
    assert_eq!(schedule.assign(now), None);
    schedule.heard(A);
    assert_eq!(schedule.assign(now), None, "that it answers was known");
    let second = schedule.assign(now + PAUSE_FIRST).unwrap();
    assert_ne!(second.chunk, first.chunk);
}

#[tokio::test]
async fn a_peer_that_gives_nothing_is_asked_last_and_one_that_is_back_is_asked_again() {
    let mut now = Instant::now();
    let mut schedule = wanting(40, &[A], now);
    let first = schedule.assign(now).unwrap();
    end(&mut schedule, &first, Outcome::Delivered, now);
    let next = schedule.assign(now).unwrap();
    end(&mut schedule, &next, Outcome::Stalled, now);
    schedule.claims(B, model(), all(40), now);
    now += Duration::from_secs(5);
    assert!(std::iter::from_fn(|| schedule.assign(now)).all(|assignment| assignment.peer == B));
    // It was gone for a while, and has given something before.
    schedule.returned(A);
    let others: Vec<_> = std::iter::from_fn(|| schedule.assign(now)).collect();
    assert!(others.iter().any(|assignment| assignment.peer == A), "{others:?}");
}

#[tokio::test]
async fn others_are_preferred_to_one_that_stalled_but_it_is_better_than_nobody() {
    let start = Instant::now();
    let mut schedule = wanting(30, &[A], start);
    let first = schedule.assign(start).unwrap();
    end(&mut schedule, &first, Outcome::Stalled, start);
    schedule.claims(B, model(), all(30), start);
    let now = start + BLACKLIST_FIRST - millis(1);
    for seconds in [1, 5, 29] {
        let now = start + Duration::from_secs(seconds);
        let assignment = schedule.assign(now).unwrap();
        assert_eq!(assignment.peer, B, "there is another");
        end(&mut schedule, &assignment, Outcome::Delivered, now);
    }
    schedule.unclaim(B, model());
    assert_eq!(schedule.assign(now).unwrap().peer, A, "there is no other");
}

#[tokio::test]
async fn requests_that_fail_together_are_one_failure() {
    let now = Instant::now();
    let mut schedule = Schedule::new(3);
    (0..10).for_each(|i| schedule.want(model(), i, chunk(i as u8, 1000), Urgency::Background));
    schedule.claims(A, model(), all(10), now);
    let first = schedule.assign(now).unwrap();
    assert_eq!(schedule.assign(now), None, "one request until it has delivered");
    end(&mut schedule, &first, Outcome::Delivered, now);
    let under_way: Vec<_> = std::iter::from_fn(|| schedule.assign(now)).collect();
    assert_eq!(under_way.len(), 9);
    under_way.iter().for_each(|assignment| end(&mut schedule, assignment, Outcome::Failed, now));
    assert!(schedule.stranded(now).is_empty());
}

#[tokio::test]
async fn who_may_give_nothing_on_the_way_there_is_is_not_waited_for() {
    let now = Instant::now();
    let mut schedule = wanting(1, &[A], now);
    let assignment = schedule.assign(now).unwrap();
    assert!(schedule.may_come(model(), 0));
    end(&mut schedule, &assignment, Outcome::Barred, now);
    assert_eq!(schedule.stranded(now).len(), 1);
    let link = |route| Link { route, rtt: Duration::from_millis(1) };
    schedule.reached(A, link(Route::Relayed), now);
    assert!(!schedule.may_come(model(), 0));
    schedule.reached(A, link(Route::Punched), now);
    assert!(schedule.may_come(model(), 0) && schedule.stranded(now).is_empty());
}

#[tokio::test]
async fn what_a_peer_does_not_have_is_asked_of_others() {
    let now = Instant::now();
    let mut schedule = wanting(1, &[A], now);
    let assignment = schedule.assign(now).unwrap();
    end(&mut schedule, &assignment, Outcome::NotHere, now);
    assert_eq!(schedule.assign(now), None);
    assert_eq!(schedule.stranded(now), [(model(), chunk(0, 2 * MIB))]);
    schedule.found(B, chunk(0, 0).id, now);
    assert_eq!(schedule.assign(now).unwrap().peer, B);
}

#[tokio::test]
async fn what_a_peer_would_rather_not_give_is_asked_of_it_again_later() {
    let now = Instant::now();
    let mut schedule = wanting(2, &[A], now);
    let first = schedule.assign(now).unwrap();
    end(&mut schedule, &first, Outcome::Elsewhere, now);
    let second = schedule.assign(now).unwrap();
    assert_ne!(second.chunk, first.chunk, "it would rather give something else");
    end(&mut schedule, &second, Outcome::Delivered, now);
    assert_eq!(schedule.assign(now), None);
    assert_eq!(schedule.assign(now + ELSEWHERE_PAUSE).unwrap().chunk, first.chunk);
    assert_eq!(schedule.stranded(now), [], "that it has it is still known");
}

#[tokio::test]
async fn a_request_that_waits_goes_to_another_and_one_that_has_begun_is_made_twice() {
    let start = Instant::now();
    let mut schedule = wanting(1, &[A], start);
    let first = schedule.assign(start).unwrap();
    schedule.claims(B, model(), all(1), start);
    assert_eq!(schedule.assign(start + millis(100)), None, "it is left to A for a moment");
    let moved = schedule.assign(start + millis(2000)).unwrap();
    assert_eq!((moved.peer, moved.replaces), (B, Some(first.flight)));

    let mut schedule = wanting(1, &[A], start);
    let first = schedule.assign(start).unwrap();
    schedule.progress(first.flight, 50_000, start + millis(500));
    schedule.claims(B, model(), all(1), start);
    let now = start + millis(2000);
    let twice = schedule.assign(now).unwrap();
    assert_eq!((twice.peer, twice.replaces), (B, None));
    assert_eq!(schedule.assign(now + millis(5000)), None, "never three times");
    assert_eq!(
        schedule.ended(twice.flight, Outcome::Delivered, now),
        [first.flight],
        "the loser is cancelled"
    );
    assert!(schedule.is_idle());
}

#[tokio::test]
async fn the_near_are_asked_more_than_the_far_and_those_more_than_the_relayed() {
    let now = Instant::now();
    let routes = [Route::Local, Route::Lan, Route::Direct, Route::Relayed];
    let mut asked = BTreeMap::<Route, usize>::new();
    for seed in 0..600 {
        let mut schedule = Schedule::new(seed);
        schedule.want(model(), 0, chunk(0, MIB), Urgency::Background);
        for (i, &route) in routes.iter().enumerate() {
            let peer = NodeId([i as u8; 32]);
            schedule.claims(peer, model(), all(1), now);
            schedule.reached(peer, Link { route, rtt: millis(5) }, now);
        }
        *asked.entry(routes[usize::from(schedule.assign(now).unwrap().peer.0[0])]).or_default() += 1;
    }
    assert!(asked[&Route::Local] > asked[&Route::Lan] && asked[&Route::Lan] > asked[&Route::Direct]);
    assert!(asked[&Route::Direct] > asked.get(&Route::Relayed).copied().unwrap_or(0));
}

#[tokio::test]
async fn memory_is_bounded_whatever_the_peers() {
    let now = Instant::now();
    let peers: Vec<NodeId> = (0..60).map(|i| NodeId([i; 32])).collect();
    let mut schedule = wanting(200, &peers, now);
    let bytes: u64 = std::iter::from_fn(|| schedule.assign(now)).map(|a| u64::from(a.chunk.size)).sum();
    assert!(bytes <= IN_FLIGHT_BYTES_MODEST, "{bytes}");
}

#[tokio::test]
async fn a_forgotten_wish_is_cancelled_and_not_assigned_again() {
    let now = Instant::now();
    let mut schedule = wanting(1, &[A], now);
    let assignment = schedule.assign(now).unwrap();
    assert_eq!(schedule.forget(chunk(0, 0).id, now), [assignment.flight]);
    assert!(schedule.is_idle());
    assert_eq!(schedule.assign(now), None);
}

#[tokio::test]
async fn how_it_stands_is_told() {
    let now = Instant::now();
    let mut schedule = wanting(10, &[A], now);
    schedule.claims(B, model(), Bitmap::from_fn(10, |at| at < 4), now);
    schedule.assign(now).unwrap();
    let outlook = schedule.outlook(model(), now);
    assert_eq!((outlook.wanted, outlook.asked, outlook.lost), (10, 1, 0));
    assert_eq!(outlook.sole, Some((A, 6)));
    assert_eq!(outlook.holders.iter().map(|holder| holder.complete).collect::<Vec<_>>(), [true, false]);
}
