//! Every decoder that bytes from outside reach is fed mutations of what it takes, and noise: a bounded number,
//! in some seconds. The same functions are for `cargo fuzz` to feed at length: see `fuzz/targets.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "fuzz/targets.rs"]
mod targets;

use std::{fs, path::Path};

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use targets::{TARGETS, TIME_MAX, Target};
use tokio::time::Instant;

/// Inputs for each decoder.
const CASES: u32 = 4_000;

/// One change to some bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: &Index, bytes: &[u8]| at.index(bytes.len().max(1)).min(bytes.len());
        match self {
            Self::Flip(at, bit) => {
                let at = place(at, bytes);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (bit % 8));
            }
            Self::Set(at, value) => {
                let at = place(at, bytes);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte = *value);
            }
            Self::Cut(at) => bytes.truncate(place(at, bytes)),
            Self::Remove(at, count) => {
                let at = place(at, bytes);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Self::Insert(at, more) => {
                let at = place(at, bytes);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Repeat(at, count) => {
                let at = place(at, bytes);
                let piece = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    // Numbers that lengths and markers are made of.
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), 0xfau8..=0xfe];
    let bytes = prop::collection::vec(any::<u8>(), 1..9);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (at(), byte).prop_map(|(at, byte)| Change::Set(at, byte)),
        at().prop_map(Change::Cut),
        (at(), 1usize..40).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), 1usize..80).prop_map(|(at, count)| Change::Repeat(at, count)),
    ]
}

/// Mostly seeds with a few changes; sometimes noise.
fn input(target: &Target) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds = (target.seeds)();
    let changed = (prop::sample::select(seeds), prop::collection::vec(change(), 0..6));
    let changed = changed.prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    prop_oneof![9 => changed, 1 => prop::collection::vec(any::<u8>(), 0..600)]
}

#[test]
fn no_decoder_panics_hangs_or_takes_what_does_not_read_back() {
    for target in TARGETS {
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        // The same inputs in every run: a failure here can be looked into.
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let fed = TestRunner::new_with_rng(config, rng).run(&input(target), |bytes| {
            let begun = Instant::now();
            (target.feed)(&bytes);
            prop_assert!(begun.elapsed() < TIME_MAX, "{} takes {:?}", target.name, begun.elapsed());
            Ok(())
        });
        fed.unwrap_or_else(|failure| panic!("{}: {failure}", target.name));
    }
}

/// A seed that is refused would test little.
#[test]
fn seeds_are_taken() {
    use surf_protocol::{FullName, Manifest, SignedContact, SignedName, wire};
    let seeds = |name: &str| {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        (target.seeds)()
    };
    assert!(seeds("request").iter().all(|bytes| wire::decode_request(bytes).is_ok()));
    assert!(seeds("reply").iter().all(|bytes| wire::decode_reply(bytes).is_ok()));
    assert!(seeds("holdings").iter().all(|bytes| wire::decode_holdings(&bytes[4..]).is_ok()));
    assert!(seeds("contact").iter().all(|bytes| SignedContact::decode(bytes).is_ok()));
    assert!(seeds("name").iter().all(|bytes| SignedName::decode(bytes).is_ok()));
    assert!(
        seeds("full_name")[0..1]
            .iter()
            .all(|bytes| String::from_utf8_lossy(bytes).parse::<FullName>().is_ok())
    );
    assert!(
        seeds("manifest")
            .iter()
            .all(|bytes| Manifest::decode(bytes).is_ok_and(|made| made.stems().len() == 2))
    );
    for seed in seeds("header") {
        let size = u64::from_le_bytes(seed[..8].try_into().unwrap());
        assert_eq!(surf_chunker::tensors_of(&seed[8..], size).map(|tensors| tensors.len()), Some(2));
    }
    for seed in seeds("gguf") {
        let size = u64::from_le_bytes(seed[..8].try_into().unwrap());
        assert_eq!(surf_chunker::tensors_of_gguf(&seed[8..], size).map(|tensors| tensors.len()), Some(2));
        let metadata = surf_chunker::gguf::Metadata::read(&seed[8..]).unwrap();
        assert_eq!(metadata.find("tokenizer.ggml.tokens").unwrap().as_list().unwrap().len(), 2);
    }
    assert!(seeds("pickle").iter().all(|file| surf_chunker::tensors_of_pickle(file).is_some()));
    for seed in seeds("range") {
        targets::verified_range(&seed);
    }
}

/// Gives `cargo fuzz` something to begin with: `cargo test -p surf-tests --test fuzz_bounded -- --ignored`.
#[test]
#[ignore = "writes files, for those who run cargo fuzz"]
fn write_seeds() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (at, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{at}")), seed).unwrap();
        }
    }
}
