//! Who is asked for what, in what order, and who is not.

use super::*;

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

/// A schedule that wants `n` chunks of 8 MiB in the background, all claimed by `peers`.
fn wanting(n: u8, peers: &[NodeId], now: Instant) -> Schedule {
    let mut schedule = Schedule::new(7);
    (0..n).for_each(|i| schedule.want(model(), i.into(), chunk(i, 8 * MIB), Urgency::Background));
    peers.iter().for_each(|&peer| schedule.claims(peer, model(), all(n.into()), now));
    schedule
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
        schedule.ended(&assignment, Outcome::Delivered, now);
        Some(assignment.chunk.id)
    };
    let order: Vec<ChunkId> = std::iter::from_fn(next).collect();
    assert_eq!(order, [chunk(2, MIB).id, chunk(1, MIB).id, chunk(0, MIB).id]);
}

#[tokio::test]
async fn a_wish_can_become_urgent() {
    let now = Instant::now();
    let mut schedule = wanting(20, &[A], now);
    schedule.want(model(), 13, chunk(13, 8 * MIB), Urgency::Deadline(0));
    assert_eq!(schedule.assign(now).unwrap().chunk, chunk(13, 8 * MIB));
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
async fn both_peers_are_used_and_neither_is_flooded() {
    let now = Instant::now();
    let mut schedule = wanting(40, &[A, B], now);
    let given: Vec<NodeId> = std::iter::from_fn(|| schedule.assign(now)).map(|a| a.peer).collect();
    assert_eq!(given.len(), 2, "an unmeasured peer gets its window: {given:?}");
    assert!(given.contains(&A) && given.contains(&B));
}

#[tokio::test]
async fn a_fast_peer_gets_a_wide_window_and_most_chunks() {
    let start = Instant::now();
    let mut schedule = wanting(100, &[A, B], start);
    let mut delivered = BTreeMap::from([(A, 0), (B, 0)]);
    // A delivers a chunk in 10 ms, B in 1 s.
    let mut under_way: Vec<(Instant, Assignment)> = Vec::new();
    let mut now = start;
    while !schedule.is_idle() {
        while let Some(assignment) = schedule.assign(now) {
            let queued = under_way.iter().filter(|(_, a)| a.peer == assignment.peer).count() as u32 + 1;
            let each = Duration::from_millis(if assignment.peer == A { 10 } else { 1000 });
            under_way.push((now + each * queued, assignment));
        }
        under_way.sort_by_key(|(at, a)| (*at, a.chunk.id));
        let (at, assignment) = under_way.remove(0);
        now = at;
        *delivered.get_mut(&assignment.peer).unwrap() += 1;
        schedule.ended(&assignment, Outcome::Delivered, now);
    }
    assert!(delivered[&A] > 20 * delivered[&B], "{delivered:?}");
}

#[tokio::test]
async fn a_liar_is_never_asked_again() {
    let now = Instant::now();
    let mut schedule = wanting(5, &[A], now);
    let assignment = schedule.assign(now).unwrap();
    schedule.ended(&assignment, Outcome::Lied, now);
    schedule.claims(A, model(), all(5), now);
    schedule.found(A, assignment.chunk.id, now);
    assert_eq!(schedule.assign(now + Duration::from_secs(3600)), None);
    assert_eq!(schedule.stranded().len(), 5);
    assert!(schedule.has_lied(A));
}

#[tokio::test]
async fn a_failing_peer_is_left_alone_then_tried_again_then_taken_for_gone() {
    let start = Instant::now();
    let mut now = start;
    let mut schedule = wanting(5, &[A], now);
    for _ in 0..FAILURES_MAX {
        let assignment = schedule.assign(now).unwrap();
        schedule.ended(&assignment, Outcome::Failed, now);
        assert_eq!(schedule.assign(now), None);
        now = schedule.next_wake(now).unwrap();
    }
    assert_eq!(schedule.assign(now), None);
    assert_eq!(schedule.stranded().len(), 5);
    loop {
        if !schedule.stranded().is_empty() {
            schedule.claims(A, model(), all(5), now);
        }
        if !schedule.stranded().is_empty() {
            break;
        }
        let assignment = schedule.assign(now).expect("it says that it is there");
        schedule.ended(&assignment, Outcome::Failed, now);
        now = schedule.next_wake(now).unwrap();
        assert!(now < start + Duration::from_secs(60), "it answers and gives nothing, without end");
    }
}

#[tokio::test]
async fn requests_that_fail_together_are_one_failure() {
    let now = Instant::now();
    let mut schedule = Schedule::new(3);
    (0..10).for_each(|i| schedule.want(model(), i, chunk(i as u8, 1000), Urgency::Background));
    schedule.claims(A, model(), all(10), now);
    let first = schedule.assign(now).unwrap();
    assert_eq!(schedule.assign(now), None, "one request until it has delivered");
    schedule.ended(&first, Outcome::Delivered, now);
    let under_way: Vec<_> = std::iter::from_fn(|| schedule.assign(now)).collect();
    assert_eq!(under_way.len(), 9);
    under_way.iter().for_each(|assignment| schedule.ended(assignment, Outcome::Failed, now));
    assert!(schedule.stranded().is_empty());
}

#[tokio::test]
async fn what_a_peer_does_not_have_is_asked_elsewhere() {
    let now = Instant::now();
    let mut schedule = wanting(1, &[A], now);
    let assignment = schedule.assign(now).unwrap();
    schedule.ended(&assignment, Outcome::NotHere, now);
    assert_eq!(schedule.assign(now), None);
    assert_eq!(schedule.stranded(), [(model(), chunk(0, 8 * MIB))]);
    schedule.found(B, chunk(0, 0).id, now);
    assert_eq!(schedule.assign(now).unwrap().peer, B);
}

#[tokio::test]
async fn memory_is_bounded_whatever_the_peers() {
    let now = Instant::now();
    let peers: Vec<NodeId> = (0..60).map(|i| NodeId([i; 32])).collect();
    let mut schedule = wanting(200, &peers, now);
    let bytes: u64 = std::iter::from_fn(|| schedule.assign(now)).map(|a| u64::from(a.chunk.size)).sum();
    assert!(bytes <= IN_FLIGHT_BYTES_TOTAL_MAX + u64::from(8 * MIB), "{bytes}");
}

#[tokio::test]
async fn a_forgotten_wish_is_not_assigned() {
    let now = Instant::now();
    let mut schedule = wanting(1, &[A], now);
    schedule.forget(chunk(0, 0).id);
    assert!(schedule.is_idle());
    assert_eq!(schedule.assign(now), None);
}
