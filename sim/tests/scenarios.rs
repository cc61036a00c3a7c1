//! Whatever happens, everyone gets everything from those who are honest, no rule is broken, and a seed is a run.
//! The scenarios are those that come along, some of them smaller: the same shapes with less to move.

#![allow(clippy::unwrap_used, reason = "tests")]

use surf_node::config::Size;
use surf_sim::{
    run::{Outcome, Report, Run},
    scenario::Scenario,
};

/// A scenario that comes along, with chunks of at most `kib`.
fn scenario(name: &str, kib: u64) -> Scenario {
    let mut scenario = Scenario::open(name).unwrap();
    let scale = scenario.chunk_size().div_ceil(kib << 10).max(1);
    scenario.model.chunk = Size::Bytes(scenario.chunk_size() / scale);
    for group in &mut scenario.nodes {
        group.up.bytes_per_s /= scale;
        group.down.bytes_per_s /= scale;
        for room in [&mut group.quota, &mut group.disk] {
            *room = room.map(|room| Size::Bytes(room.of(0) / scale));
        }
    }
    scenario
}

/// Runs a few seeds of a scenario. A broken rule fails the test and names itself.
fn runs(scenario: Scenario, seeds: std::ops::Range<u64>) -> Vec<Outcome> {
    let run = Run::new(scenario);
    let run = |seed| run.seed(seed, None).unwrap_or_else(|breach| panic!("{breach}"));
    seeds.map(run).collect()
}

#[test]
fn one_download_takes_the_time_of_one_copy() {
    let scenario = scenario("single", 2048);
    let copy = scenario.one_copy_s();
    for run in runs(scenario, 0..2) {
        assert!(run.finished_by(1.0) < 1.1 * copy, "{:.2} s of {copy:.2} s", run.finished_by(1.0));
        assert_eq!((run.wasted, run.duplicate, run.gave_up), (0, 0, 0));
    }
}

#[test]
fn downloads_feed_each_other() {
    let scenario = scenario("herd", 512);
    let copy = scenario.one_copy_s();
    let report = Report::new(&scenario, runs(scenario.clone(), 0..2));
    assert!(
        report.summary.ratio < 4.0,
        "{} × {copy:.2} s where the seed alone would need 8",
        report.summary.ratio
    );
    assert!(report.summary.seed_copies < 4.0, "the seed sent {} copies", report.summary.seed_copies);
}

#[test]
fn a_herd_in_layer_order_comes_through() {
    assert!(runs(scenario("herd-in-order", 512), 0..2).iter().all(|run| run.tenth_s.len() == 8));
}

#[test]
fn seeds_add_up() {
    let scenario = scenario("four-seeds", 2048);
    let copy = scenario.one_copy_s();
    for run in runs(scenario, 0..2) {
        assert!(run.finished_by(1.0) < 1.3 * copy, "{:.2} s of {copy:.2} s", run.finished_by(1.0));
    }
}

#[test]
fn nodes_come_and_go() {
    assert!(runs(scenario("churn", 128), 0..5).iter().all(|run| run.finished_s.len() == 12));
}

#[test]
fn a_partition_heals() {
    assert!(runs(scenario("partition", 128), 0..3).iter().all(|run| run.finished_s.len() == 8));
}

#[test]
fn a_seed_that_was_away_for_seconds_or_minutes_is_asked_again_at_once() {
    // That nobody waits for more than fifteen seconds after it is back is a rule of these scenarios.
    for (name, downloads, away, seeds) in [("outage", 4, 80., 0..2), ("outage-long", 5, 600., 0..1)] {
        for run in runs(scenario(name, 128), seeds) {
            assert_eq!(run.finished_s.len(), downloads, "{name}, seed {}", run.seed);
            assert!(
                away < run.finished_by(1.0),
                "{name}, seed {}: all was over before it was away",
                run.seed
            );
            assert!(run.finished_by(1.0) < away + 60., "{name}, seed {}: {}", run.seed, run.finished_by(1.0));
        }
    }
}

#[test]
fn holders_may_sleep() {
    assert!(runs(scenario("sleepers", 128), 0..3).iter().all(|run| run.finished_s.len() == 6));
}

#[test]
fn a_liar_costs_each_node_one_chunk_and_is_dropped() {
    let scenario = scenario("liars", 64);
    let chunk = scenario.chunk_size();
    for run in runs(scenario, 0..5) {
        for node in &run.nodes {
            assert!(
                node.wasted <= 4 * chunk + chunk / 2,
                "seed {}: {} bytes for four liars",
                run.seed,
                node.wasted
            );
            assert_eq!(node.banned_by, 0, "seed {}: an honest node was banned", run.seed);
        }
        assert!(run.wasted > 0, "seed {}: nobody met a liar", run.seed);
    }
}

#[test]
fn who_stalls_is_left_behind() {
    assert!(runs(scenario("stallers", 64), 0..5).iter().all(|run| run.finished_s.len() == 6));
}

#[test]
fn links_of_all_kinds_serve() {
    assert!(runs(scenario("mixed-links", 256), 0..2).iter().all(|run| run.finished_s.len() == 12));
}

#[test]
fn full_disks_stop_nobody() {
    assert!(runs(scenario("disk-full", 256), 0..3).iter().all(|run| run.finished_s.len() == 8));
}

#[test]
fn a_crowd_gets_there() {
    let mut scenario = scenario("crowd-1000", 256);
    let crowd = scenario.group("downloads").unwrap();
    scenario.nodes[crowd].count = 60;
    assert_eq!(runs(scenario, 0..1)[0].finished_s.len(), 60);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for name in ["churn", "liars"] {
        let [one, two] = [(); 2].map(|()| runs(scenario(name, 64), 7..9));
        let traces = |runs: &[Outcome]| runs.iter().map(|run| run.trace.clone()).collect::<Vec<_>>();
        assert_eq!(traces(&one), traces(&two), "{name}");
        assert!(one == two, "{name}");
        assert_ne!(one[0].trace, one[1].trace, "{name}");
    }
}

#[test]
fn a_broken_rule_is_found() {
    let mut scenario = scenario("single", 64);
    // Nobody gets a chunk of 64 KiB through 1 kB/s within the time that a node may wait.
    scenario.nodes[0].up.bytes_per_s = 1000;
    let breach = Run::new(scenario).seed(3, None).unwrap_err();
    assert_eq!((breach.seed, breach.node), (3, Some(1)));
    assert!(breach.what.contains("got nothing"), "{breach}");
}
