//! The lab's network does what its figures rely on, and leaves nothing behind. Where namespaces cannot
//! be made, the tests say so and are skipped.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{path::Path, process::Command, time::Duration};

use surf_sim::lab::{
    net::{Network, Rate},
    process::Process,
    relay::{self, Manner},
};
use tokio::time::Instant;

fn network(hosts: usize, rate: &str) -> Option<Network> {
    let rate: Rate = rate.parse().unwrap();
    let made = Network::up(hosts, &rate);
    made.inspect_err(|error| eprintln!("skipped: network namespaces cannot be made here: {error}")).ok()
}

/// Seconds until somebody at `there` refuses a connection from `here`.
fn refused(network: &Network, here: usize, there: usize) -> f64 {
    let started = Instant::now();
    network.connect(here, (network.address(there), 9).into()).unwrap_err();
    started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_network() {
    let Some(network) = network(2, "100mbit") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut command = network.command(1, "sleep");
    command.arg("600");
    let mut process = Process::start(command, &dir.path().join("sleep.log")).unwrap();
    let name = network.name().to_owned();
    let of_us = || {
        let list = |args: &[&str]| Command::new("ip").args(args).output().unwrap().stdout;
        let all = [list(&["netns", "list"]), list(&["-o", "link"])].concat();
        String::from_utf8(all).unwrap().matches(&name).count()
    };
    assert!(0 < of_us());
    drop(network);
    assert_eq!(of_us(), 0);
    assert!(process.end().await.is_err(), "what ran in it was killed");
    assert!(!Path::new(&format!("/proc/{}", process.pid())).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_carries_nothing_until_it_is_healed() {
    let Some(network) = network(2, "100mbit") else { return };
    let before = network.traffic(1);
    refused(&network, 0, 1);
    assert_ne!(network.traffic(1), before, "it is counted");
    network.cut(1).unwrap();
    let held = std::thread::scope(|scope| {
        let asking = scope.spawn(|| refused(&network, 0, 1));
        std::thread::park_timeout(Duration::from_millis(300));
        network.heal(1).unwrap();
        asking.join().unwrap()
    });
    assert!(0.25 < held, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_delays_what_passes() {
    let Some(network) = network(3, "0") else { return };
    refused(&network, 0, 1);
    let near = refused(&network, 0, 1);
    let dir = tempfile::tempdir().unwrap();
    let manner = Manner { delay_ms: 40.0, jitter_ms: 0.0, loss: 0.0, seed: 1 };
    let this = Path::new(env!("CARGO_BIN_EXE_surf-sim"));
    let mut relay = relay::start(&network, (2, 0, 1), manner, this, &dir.path().join("relay.log")).unwrap();
    relay.line_with("ready").await.unwrap();
    let far = refused(&network, 0, 1);
    assert!(near + 0.08 <= far + 0.005, "{near} s without, {far} s with the relay");
    relay.kill().await.unwrap();
}
