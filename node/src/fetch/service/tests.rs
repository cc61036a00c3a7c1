//! Histories of every kind, and a crowd that wants all of a model at once.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::*;

const CHUNK: u64 = 2 << 20;
const LINE: f64 = 12.5e6;

fn peer(n: u8) -> NodeId {
    NodeId([n; 32])
}

fn chunk(n: u32) -> ChunkId {
    ChunkId::of(&n.to_le_bytes())
}

fn whole(by: u8, n: u32) -> Request {
    Request { peer: peer(by), chunk: Some(chunk(n)), size: CHUNK }
}

/// A service in which these peers have shown that they take what they ask for.
fn takers(peers: impl IntoIterator<Item = u8>, now: Instant) -> Service {
    let mut service = Service::default();
    for by in peers {
        let request = Request { peer: peer(by), chunk: None, size: QUEUED_MIN };
        let ticket = service.ask(request, now).unwrap();
        assert_eq!(service.start(now), Some((ticket, Ok(()))));
        service.sent(ticket, QUEUED_MIN, now);
        service.ended(ticket, true, now);
    }
    service
}

/// A service, and a line that carries what it serves in equal parts.
struct Line {
    service: Service,
    now: Instant,
    under_way: BTreeMap<Ticket, (Request, f64)>,
    /// Which peers take nothing.
    stuck: BTreeSet<NodeId>,
    /// Which take no more than so many bytes a second.
    slow: BTreeMap<NodeId, f64>,
    rate: f64,
}

impl Line {
    fn new(now: Instant, rate: f64) -> Self {
        let (service, slow) = (Service::default(), BTreeMap::new());
        Self { service, now, under_way: BTreeMap::new(), stuck: BTreeSet::new(), slow, rate }
    }

    /// Starts what can be started.
    fn pump(&mut self, asked: &BTreeMap<Ticket, Request>) -> Vec<(Ticket, Result<(), Refusal>)> {
        let mut started = Vec::new();
        while let Some((ticket, turn)) = self.service.start(self.now) {
            if turn.is_ok() {
                self.under_way.insert(ticket, (asked[&ticket], asked[&ticket].size as f64));
            }
            started.push((ticket, turn));
        }
        started
    }

    /// A moment passes. Returns what is whole by now.
    fn pass(&mut self, moment: Duration) -> Vec<(Ticket, Request)> {
        self.now += moment;
        let limit = |request: &Request| match self.slow.get(&request.peer) {
            _ if self.stuck.contains(&request.peer) => 0.,
            slow => slow.copied().unwrap_or(f64::INFINITY) * moment.as_secs_f64(),
        };
        let free = self.under_way.values().filter(|(request, _)| limit(request).is_infinite()).count();
        let each = self.rate * moment.as_secs_f64() / free.max(1) as f64;
        let mut done = Vec::new();
        for (&ticket, (request, left)) in &mut self.under_way {
            let sent = each.min(*left).min(limit(request));
            if 0. < limit(request) {
                self.service.sent(ticket, (left.ceil() - (*left - sent).ceil()) as u64, self.now);
                *left -= sent;
                if *left <= 0.5 {
                    done.push((ticket, *request));
                }
            }
        }
        for (ticket, _) in &done {
            self.under_way.remove(ticket);
            self.service.ended(*ticket, true, self.now);
        }
        done
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_are_served_and_the_rest_wait_their_turn() {
    let now = Instant::now();
    let mut service = takers([1], now);
    let tickets: Vec<_> = (0..20).map(|n| service.ask(whole(1, n), now).unwrap()).collect();
    let started: Vec<_> = std::iter::from_fn(|| service.start(now)).collect();
    assert_eq!(started, tickets[..4].iter().map(|&ticket| (ticket, Ok(()))).collect::<Vec<_>>());
    // One that is withdrawn while it waits is not named; the next takes the place of one that is done.
    service.ended(tickets[4], false, now);
    service.ended(tickets[0], true, now);
    assert_eq!(service.start(now), Some((tickets[5], Ok(()))));
    assert_eq!(service.start(now), None);
    assert_eq!((service.serving(), service.waiting()), (4, 14));
}

#[tokio::test(start_paused = true)]
async fn whoever_was_given_least_goes_first() {
    let now = Instant::now();
    let mut service = takers([1], now);
    let greedy: Vec<_> = (0..20).map(|n| service.ask(whole(1, n), now).unwrap()).collect();
    while service.start(now).is_some() {}
    let modest = service.ask(whole(2, 100), now).unwrap();
    service.ended(greedy[0], true, now);
    assert_eq!(service.start(now), Some((modest, Ok(()))));
}

#[tokio::test(start_paused = true)]
async fn receivers_that_take_nothing_do_not_hold_up_the_line() {
    let mut now = Instant::now();
    let mut service = takers([1, 2], now);
    for n in 0..40 {
        service.ask(whole(1, n), now).unwrap();
    }
    while service.start(now).is_some() {}
    let other = service.ask(whole(2, 100), now).unwrap();
    assert_eq!(service.start(now), None);
    now += STUCK;
    assert_eq!(service.start(now), Some((other, Ok(()))));
    // The stuck peer gets no more, however long it asks.
    for _ in 0..10 {
        now += STUCK_MAX;
        service.sent(other, 100_000, now);
        assert_eq!(service.start(now), None);
    }
    assert_eq!(service.serving(), 1 + 4);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_one_request_at_a_time_until_it_has_taken_one() {
    let now = Instant::now();
    let mut service = Service::default();
    let tickets: Vec<_> = (0..9).map(|n| service.ask(whole(1, n), now).unwrap()).collect();
    assert_eq!(service.start(now), Some((tickets[0], Ok(()))));
    assert_eq!(service.start(now), None);
    service.sent(tickets[0], CHUNK, now);
    service.ended(tickets[0], true, now);
    let started: Vec<_> = std::iter::from_fn(|| service.start(now)).collect();
    assert_eq!(started, tickets[1..5].iter().map(|&ticket| (ticket, Ok(()))).collect::<Vec<_>>());
}

/// Seconds that a pull of `chunks` takes, `window` at a time, and seconds until its first chunk has come, beside
/// `strangers` of whom each has as many requests open as it can, all the time, and takes `each` bytes a second of them.
fn beside_strangers(strangers: u8, each: f64, chunks: u32, window: usize) -> (f64, f64) {
    let clock = tokio::runtime::Builder::new_current_thread().start_paused(true).enable_time().build();
    let mut line = Line::new(clock.unwrap().block_on(async { Instant::now() }), LINE);
    let begin = line.now;
    line.slow = (1..=strangers).map(|by| (peer(by), each)).collect();
    let (mut asked, mut next) = (BTreeMap::new(), 1_000_000);
    let (mut wanted, mut open, mut first) = (0..chunks, BTreeMap::new(), None);
    let mut again: Vec<(Instant, u32)> = Vec::new();
    let mut cut = line.now;
    let mut got = 0;
    while got < chunks {
        assert!(line.now < begin + Duration::from_secs(600), "{got} chunks of {chunks}");
        for by in 1..=strangers {
            let request = whole(by, next);
            next += 1;
            if let Ok(ticket) = line.service.ask(request, line.now) {
                asked.insert(ticket, request);
            }
        }
        // Who takes nothing is cut off after a while, and asks again.
        if cut + Duration::from_secs(15) < line.now {
            cut = line.now;
            let stuck: Vec<Ticket> =
                line.under_way.iter().filter(|(_, (r, _))| r.peer != peer(0)).map(|(&t, _)| t).collect();
            for ticket in stuck {
                line.under_way.remove(&ticket);
                line.service.ended(ticket, false, line.now);
            }
        }
        if begin + Duration::from_secs(6) < line.now {
            while open.len() < window {
                let due = again.iter().position(|(at, _)| *at <= line.now).map(|at| again.remove(at).1);
                let Some(n) = due.or_else(|| wanted.next()) else { break };
                match line.service.ask(whole(0, n), line.now) {
                    Ok(ticket) => {
                        asked.insert(ticket, whole(0, n));
                        open.insert(ticket, n);
                    }
                    Err(_) => {
                        again.push((line.now + Duration::from_millis(700), n));
                        break;
                    }
                }
            }
        }
        for (ticket, turn) in line.pump(&asked) {
            if turn.is_err()
                && let Some(n) = open.remove(&ticket)
            {
                again.push((line.now + Duration::from_secs(1), n));
            }
        }
        for (ticket, request) in line.pass(Duration::from_millis(50)) {
            if request.peer == peer(0) {
                open.remove(&ticket);
                got += 1;
                first.get_or_insert(line.now);
            }
        }
    }
    let since = |at: Instant| (at - begin).as_secs_f64() - 6.;
    (since(line.now), since(first.unwrap()))
}

#[test]
fn strangers_that_read_nothing_or_hardly_anything_starve_nobody() {
    let (alone, _) = beside_strangers(0, 0., 40, 4);
    for (strangers, each) in [(1, 0.), (8, 0.), (50, 0.), (200, 0.), (50, 1.), (50, 6e3), (50, 40e3)] {
        let (took, first) = beside_strangers(strangers, each, 40, 4);
        println!(
            "{strangers} strangers, {each} bytes/s: {took:.1} s instead of {alone:.1}, first after {first:.1}"
        );
        // What they really take is theirs.
        let theirs = (f64::from(strangers) * each / LINE).min(0.5);
        assert!(took < 1.6 * alone / (1. - theirs), "{strangers} × {each}: {took} s instead of {alone}");
        assert!(first < 5., "{strangers} × {each}: the first chunk came after {first} s");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_just_given_to_one_is_refused_to_others_once() {
    let mut now = Instant::now();
    let mut service = takers(1..6, now);
    let first = service.ask(whole(1, 0), now).unwrap();
    let waits = service.ask(whole(2, 0), now).unwrap();
    for n in 1..8 {
        service.ask(whole(1, n), now).unwrap();
    }
    // Not while there is room.
    let turns: Vec<_> = std::iter::from_fn(|| service.start(now)).collect();
    assert!(turns.contains(&(first, Ok(()))) && turns.contains(&(waits, Ok(()))));

    // While all are busy: those who wait, those who come, and not the one it went to.
    let waits = service.ask(whole(3, 50), now).unwrap();
    let also = service.ask(whole(4, 50), now).unwrap();
    service.ended(first, true, now);
    assert_eq!(service.start(now), Some((waits, Ok(()))));
    assert_eq!(service.start(now), Some((also, Err(Refusal::Elsewhere))));
    assert_eq!(service.start(now), None);
    assert_eq!(service.ask(whole(5, 50), now), Err(Refusal::Elsewhere));
    assert!(service.ask(whole(3, 50), now).is_ok());

    // At once it is too soon; then it may be that nobody else has it.
    assert_eq!(service.ask(whole(5, 50), now), Err(Refusal::Elsewhere));
    now += TOLD_AGAIN;
    let insists = service.ask(whole(5, 50), now).unwrap();
    service.ended(waits, true, now);
    while let Some((ticket, turn)) = service.start(now) {
        assert!(ticket != insists || turn.is_ok());
    }
    // Nor if the other did not get it.
    let mut service = takers([1, 2], now);
    let lost: Vec<_> = (0..4).map(|n| service.ask(whole(1, n), now).unwrap()).collect();
    while service.start(now).is_some() {}
    service.ended(lost[0], false, now);
    service.ask(whole(1, 9), now).unwrap();
    service.start(now).unwrap().1.unwrap();
    assert!(service.ask(whole(2, 0), now).is_ok());
    assert_eq!(service.ask(whole(2, 9), now), Err(Refusal::Elsewhere));
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_is_told_so_and_others_are_not() {
    let mut line = Line::new(Instant::now(), 1e6);
    line.service = takers([1], line.now);
    let mut asked = BTreeMap::new();
    let ask = |line: &mut Line, asked: &mut BTreeMap<_, _>, by, n| {
        let ticket = line.service.ask(whole(by, n), line.now)?;
        asked.insert(ticket, whole(by, n));
        line.pump(asked);
        Ok(ticket)
    };
    for n in 0..20 {
        ask(&mut line, &mut asked, 1, n).unwrap();
    }
    for _ in 0..30 {
        line.pass(TICK);
        line.pump(&asked);
    }
    assert_eq!(ask(&mut line, &mut asked, 1, 100), Err(Refusal::Busy));
    ask(&mut line, &mut asked, 2, 101).expect("one may always wait");
}

#[tokio::test(start_paused = true)]
async fn queues_end_somewhere() {
    let now = Instant::now();
    for (mut service, most) in [
        (takers(0..=255, now), WAITING_MAX),
        // Strangers share half of it, and then each may wait with one.
        (Service::default(), WAITING_MAX / 2 + 256 - WAITING_MAX / 2 / WAITING_PER_PEER_MAX),
    ] {
        let mut refused = 0;
        for by in 0..=255 {
            for n in 0..100 {
                match service.ask(whole(by, 1000 * u32::from(by) + n), now) {
                    Ok(_) => (),
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::Busy);
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!(service.waiting(), most);
        assert_eq!(refused, 25_600 - most);
    }
    // Nor are peers remembered without end.
    let mut service = Service::default();
    for n in 0..2 * PEERS_MAX as u32 {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        let ticket = service.ask(Request { peer: NodeId(id), ..whole(0, n) }, now).unwrap();
        service.ended(ticket, false, now);
    }
    assert_eq!(service.peers.len(), PEERS_MAX);
}

#[tokio::test(start_paused = true)]
async fn equally_hungry_peers_get_equal_shares() {
    let mut line = Line::new(Instant::now(), LINE);
    let (mut asked, mut next) = (BTreeMap::new(), 0);
    // How many chunks each asks for at a time is no advantage.
    let appetites = [1, 2, 8, 30];
    let mut outstanding = [0; 4];
    let mut got = [0u32; 4];
    for _ in 0..600 {
        for by in 0..4 {
            while outstanding[by] < appetites[by] {
                let request = whole(by as u8, next);
                next += 1;
                match line.service.ask(request, line.now) {
                    Ok(ticket) => drop(asked.insert(ticket, request)),
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::Busy);
                        break;
                    }
                }
                outstanding[by] += 1;
            }
        }
        line.pump(&asked);
        for (_, request) in line.pass(TICK) {
            let by = usize::from(request.peer.0[0]);
            outstanding[by] -= 1;
            got[by] += 1;
        }
    }
    assert!(got.iter().max().unwrap() - got.iter().min().unwrap() <= 4, "{got:?}");
    let bytes = u64::from(got.iter().sum::<u32>()) * CHUNK;
    // A chunk that ends within a moment leaves the rest of its part of the line unused.
    assert!(0.9 * 60. * LINE < bytes as f64, "the line was idle: {bytes}");
}

/// What happens next in a history.
#[derive(Clone, Debug)]
enum Step {
    Ask { by: u8, what: u32, size: u64 },
    Withdraw { nth: usize },
    Pass { tenths: u32 },
    Sticks { by: u8, stuck: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![Just(CHUNK), Just(QUEUED_MIN), Just(8 << 20), Just(0)];
    let step = prop_oneof![
        6 => (0..6u8, 0..12u32, size).prop_map(|(by, what, size)| Step::Ask { by, what, size }),
        1 => (0..100usize).prop_map(|nth| Step::Withdraw { nth }),
        3 => (0..30u32).prop_map(|tenths| Step::Pass { tenths }),
        1 => (0..6u8, any::<bool>()).prop_map(|(by, stuck)| Step::Sticks { by, stuck }),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Every request that was taken is named once, unless it was withdrawn; nobody waits for long;
    /// and when all is over nothing is left of it.
    #[test]
    fn every_request_is_served_or_refused(steps in steps()) {
        let clock = tokio::runtime::Builder::new_current_thread().start_paused(true).enable_time().build();
        let mut line = Line::new(clock.unwrap().block_on(async { Instant::now() }), LINE);
        let mut asked = BTreeMap::new();
        let mut pending = BTreeMap::new();
        let mut rest = vec![Step::Sticks { by: 0, stuck: false }; 6];
        for (by, step) in rest.iter_mut().enumerate() {
            *step = Step::Sticks { by: by as u8, stuck: false };
        }
        rest.extend(vec![Step::Pass { tenths: 10 }; 600]);
        for step in steps.into_iter().chain(rest) {
            match step {
                Step::Ask { by, what, size } => {
                    let request = Request { size, ..whole(by, what) };
                    if let Ok(ticket) = line.service.ask(request, line.now) {
                        asked.insert(ticket, request);
                        pending.insert(ticket, line.now);
                    }
                }
                Step::Withdraw { nth } => {
                    if let Some((&ticket, _)) = asked.iter().nth(nth) {
                        line.service.ended(ticket, false, line.now);
                        line.under_way.remove(&ticket);
                        pending.remove(&ticket);
                    }
                }
                Step::Pass { tenths } => {
                    for _ in 0..tenths {
                        line.pass(TICK);
                        for (ticket, _) in line.pump(&asked) {
                            prop_assert!(pending.remove(&ticket).is_some(), "named twice, or withdrawn");
                        }
                    }
                }
                Step::Sticks { by, stuck: true } => drop(line.stuck.insert(peer(by))),
                Step::Sticks { by, stuck: false } => drop(line.stuck.remove(&peer(by))),
            }
            for (ticket, _) in line.pump(&asked) {
                prop_assert!(pending.remove(&ticket).is_some(), "named twice, or withdrawn");
            }
            prop_assert!(line.service.waiting() <= WAITING_MAX);
            if line.stuck.is_empty() {
                let oldest = pending.values().min().map_or(Duration::ZERO, |since| line.now - *since);
                // All that can be before it: what the others may have waiting, at the line's rate.
                prop_assert!(oldest < Duration::from_secs(300), "somebody starves");
            }
        }
        prop_assert!(pending.is_empty() && line.under_way.is_empty());
        prop_assert_eq!((line.service.waiting(), line.service.serving()), (0, 0));
        for share in line.service.peers.values() {
            prop_assert_eq!((share.waiting_bytes, share.served, share.promised), (0, 0, 0));
        }
    }
}

/// A crowd of `crowd` that wants all of `chunks` chunks from one seed, each with a line of its own, with
/// up to `window` requests under way, `each` of them at one holder. Returns the seconds until all have everything, and the copies that the seed gave.
fn flash_crowd(crowd: u8, chunks: u32, window: usize, each: usize, seed: u64, now: Instant) -> (f64, f64) {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let mut lines: Vec<Line> = (0..=crowd).map(|_| Line::new(now, LINE)).collect();
    let mut asked: Vec<BTreeMap<Ticket, Request>> = vec![BTreeMap::new(); lines.len()];
    let mut has: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); lines.len()];
    has[0] = (0..chunks).collect();
    let names: BTreeMap<ChunkId, u32> = (0..chunks).map(|n| (chunk(n), n)).collect();
    let mut wanted: Vec<BTreeMap<u32, usize>> = vec![BTreeMap::new(); lines.len()];
    let mut paused: BTreeMap<(usize, usize, u32), Instant> = BTreeMap::new();
    let mut copies = 0;
    let mut moments = 0;
    while has.iter().any(|has| has.len() < chunks as usize) {
        moments += 1;
        assert!(moments < 100_000, "somebody starves");
        for me in 1..lines.len() {
            for _ in 0..4 {
                if wanted[me].len() == window {
                    break;
                }
                let at = lines[0].now;
                let may = |holder: usize, n: u32| {
                    let pause = paused.get(&(me, holder, n));
                    holder != me && has[holder].contains(&n) && pause.is_none_or(|until| *until <= at)
                };
                let mut options: Vec<(usize, u32, usize)> = Vec::new();
                for n in (0..chunks).filter(|n| !has[me].contains(n) && !wanted[me].contains_key(n)) {
                    let room = |holder: usize| wanted[me].values().filter(|at| **at == holder).count() < each;
                    let holders = (0..lines.len()).filter(|holder| may(*holder, n) && room(*holder));
                    let held = (0..lines.len()).filter(|holder| has[*holder].contains(&n)).count();
                    let least = holders.map(|holder| (lines[holder].service.waiting(), holder)).min();
                    options.extend(least.map(|(_, holder)| (held, n, holder)));
                }
                let rarest = options.iter().map(|option| option.0).min();
                let rarest: Vec<_> = options.iter().filter(|option| Some(option.0) == rarest).collect();
                let Some(&&(_, n, holder)) = rarest.choose(&mut dice) else { break };
                let request = whole(me as u8, n);
                match lines[holder].service.ask(request, at) {
                    Ok(ticket) => {
                        asked[holder].insert(ticket, request);
                        wanted[me].insert(n, holder);
                    }
                    Err(_) => drop(paused.insert((me, holder, n), at + Duration::from_secs(1))),
                }
            }
        }
        for holder in 0..lines.len() {
            for (ticket, turn) in lines[holder].pump(&asked[holder]) {
                if turn.is_err() {
                    let request = asked[holder][&ticket];
                    let (me, n) = (usize::from(request.peer.0[0]), names[&request.chunk.unwrap()]);
                    wanted[me].remove(&n);
                    let pause = Duration::from_millis(dice.random_range(900..1500));
                    paused.insert((me, holder, n), lines[0].now + pause);
                }
            }
            for (_, request) in lines[holder].pass(Duration::from_millis(20)) {
                let (me, n) = (usize::from(request.peer.0[0]), names[&request.chunk.unwrap()]);
                wanted[me].remove(&n);
                has[me].insert(n);
                copies += u32::from(holder == 0);
            }
        }
    }
    (f64::from(moments) * 0.02, f64::from(copies) / f64::from(chunks))
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_served_in_little_more_than_the_time_of_one_copy() {
    let one_copy = 64. * CHUNK as f64 / LINE;
    // How much each asks for at once, of everybody and of one, must not matter much.
    for (seed, (window, each)) in (0..).zip([(8, 2), (8, 4), (16, 2), (32, 8)]) {
        let (took, copies) = flash_crowd(8, 64, window, each, seed, Instant::now());
        let took = took / one_copy;
        assert!(took < 1.5, "window {window}, {each} of each: {took} of the time of one copy");
        assert!(copies < 1.45, "window {window}, {each} of each: {copies} copies");
    }
}
