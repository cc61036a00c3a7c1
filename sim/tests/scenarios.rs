//! Whatever peers do, everyone gets everything from those who are honest; and a seed is a run.

use std::time::Duration;

use surf_sim::{
    net::Manner::{Boasts, HangsUp, Honest, Lies, Stalls},
    scenario::Scenario,
};

const MBIT: u64 = 1_000_000 / 8;

fn mixed() -> Scenario {
    Scenario {
        seeds: vec![Honest, Lies, Stalls, HangsUp, Boasts],
        downloaders: 4,
        chunks: 60,
        chunk_size: 64 * 1024,
        rate: 100 * MBIT,
    }
}

#[test]
fn everyone_gets_everything_whatever_the_others_do() {
    for seed in 0..50 {
        let outcome = mixed().run(seed).unwrap();
        for traffic in &outcome.traffic {
            assert_eq!(traffic.fetched(), 60 * 64 * 1024, "seed {seed}: nothing came twice");
        }
        assert!(outcome.took < Duration::from_secs(60), "seed {seed}: {:?}", outcome.took);
    }
}

#[test]
fn a_liar_costs_each_node_one_chunk_and_is_dropped() {
    let scenario = Scenario { seeds: vec![Honest, Lies], ..mixed() };
    for seed in 0..20 {
        let outcome = scenario.run(seed).unwrap();
        assert_eq!(outcome.seeds_banned_by[0], 0, "seed {seed}");
        let asked_the_liar = outcome.traffic.iter().filter(|traffic| traffic.wasted != 0).count() as u32;
        assert_eq!(outcome.seeds_banned_by[1], asked_the_liar, "seed {seed}");
        assert!(asked_the_liar > 0, "seed {seed}: nobody met the liar");
        assert!(outcome.traffic.iter().all(|traffic| traffic.wasted <= 64 * 1024), "seed {seed}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(mixed().run(7), mixed().run(7));
    assert_ne!(mixed().run(7).unwrap().trace, mixed().run(8).unwrap().trace);
}

#[test]
fn downloaders_feed_each_other() {
    let scenario = Scenario { seeds: vec![Honest], downloaders: 8, chunks: 480, ..mixed() };
    let copy = u64::from(scenario.chunks) * scenario.chunk_size as u64;
    let outcome = scenario.run(1).unwrap();
    assert!(outcome.seeds_sent[0] < 6 * copy, "the seed sent {} copies", outcome.seeds_sent[0] / copy);
}
