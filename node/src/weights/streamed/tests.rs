//! Whole passes over small models, from a source that is watched.

mod model;

use std::{sync::atomic::Ordering, time::Duration};

use model::{BLOCK_SIZE, Model, ROW, Watched, block};
use surf_chunker::{Parameter, Stack};
use surf_protocol::{ChunkId, Dtype, manifest::ChunkEntry};
use tokio::runtime::Runtime;

use super::*;
use crate::source::{SourceError, Urgency};

/// A model in use: what the engine would have in its hands.
struct Bench {
    runtime: Runtime,
    source: Arc<Watched>,
    journal: Arc<Journal>,
    bytes: HashMap<String, Vec<u8>>,
    tied: bool,
    weights: Streamed,
}

/// How the source behaves.
#[derive(Clone, Copy)]
struct Source {
    open: bool,
    in_file: bool,
    ahead: u64,
}

const AT_ONCE: Source = Source { open: true, in_file: false, ahead: AHEAD };
const MAPPED: Source = Source { in_file: true, ..AT_ONCE };
const SHUT: Source = Source { open: false, ..AT_ONCE };

impl Bench {
    fn new(model: Model, memory: u64, source: Source) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let manifest = Arc::new(model.manifest());
        let tied = manifest.tensor("output").is_none();
        let watched = Watched::new(model.memory, source.open, source.in_file);
        let journal = Arc::<Journal>::default();
        let weights = Streamed::reaching(
            source.ahead,
            manifest,
            Arc::clone(&watched) as Arc<dyn ModelSource>,
            memory,
            runtime.handle().clone(),
            Arc::clone(&journal),
        );
        Self { runtime, source: watched, journal, bytes: model.bytes, tied, weights }
    }

    /// Visits every group as the engine does, and compares what comes.
    fn pass(&self) {
        let groups = self.weights.checkpoint().groups().iter().map(|entry| &entry.group);
        let groups = groups.filter(|group| **group != Group::Embed).chain(self.tied.then_some(&Group::Embed));
        groups.for_each(|group| self.compare(group, &self.weights.group(group).unwrap()));
    }

    fn compare(&self, group: &Group, got: &Tensors) {
        let expected: Vec<_> = self.weights.checkpoint().group(group).unwrap().collect();
        assert_eq!(got.tensors.len() + got.runs.len(), expected.len());
        for entry in expected {
            if let Some(runs) = got.runs.get(&*entry.name) {
                self.compare_runs(entry, runs);
                continue;
            }
            let tensor = &got.tensors[&*entry.name];
            assert_eq!(tensor.pieces.concat(), self.bytes[&*entry.name], "{}", entry.name);
            let shape: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
            assert_eq!((tensor.dtype, &shape), (entry.dtype, &entry.shape));
            let row = entry.size / entry.shape[0];
            assert!(tensor.pieces.iter().all(|piece| (piece.len() as u64).is_multiple_of(row)), "whole rows");
            assert!(!got.resident || tensor.pieces.len() == 1);
        }
    }

    fn compare_runs(&self, table: &Parameter, runs: &[Range<usize>]) {
        let (row, mut next) = ((table.size / table.shape[0]) as usize, 0);
        for rows in runs {
            assert_eq!(rows.start, next, "{runs:?}");
            next = rows.end;
            let run = self.weights.run(&table.name, rows).unwrap();
            let expected = &self.bytes[&*table.name][rows.start * row..rows.end * row];
            assert_eq!(run.pieces.concat(), expected, "{rows:?}");
            assert_eq!(run.shape, [rows.len(), table.shape[1] as usize]);
        }
        assert_eq!(next as u64, table.shape[0]);
    }

    fn rows(&self, rows: &[u32]) {
        let got = self.weights.rows("embed", rows).unwrap();
        let row =
            self.bytes["embed"].len() / self.weights.checkpoint().tensor("embed").unwrap().shape[0] as usize;
        let expected = rows.iter().map(|&at| &self.bytes["embed"][at as usize * row..][..row]);
        assert_eq!(got.pieces.concat(), expected.collect::<Vec<_>>().concat());
        assert_eq!(got.shape, [rows.len(), row / 4]);
    }

    /// Waits until `is` holds.
    fn until(&self, what: &str, is: impl Fn() -> bool) {
        for _ in 0..4000 {
            if is() {
                return;
            }
            pause(&self.runtime);
        }
        panic!("never: {what}: {:?}", self.weights.stats());
    }

    fn is_quiet(&self) -> bool {
        let stats = self.weights.stats();
        stats.in_flight_bytes == 0 && stats.resident_bytes == stats.resident_bytes_max
    }

    fn chunks(&self, group: &Group) -> Vec<ChunkEntry> {
        self.weights.checkpoint().group_chunks(group)
    }

    /// For each pass, how many blocks were hits.
    fn hits(&self, blocks: usize) -> Vec<usize> {
        let hit = |entry: crate::journal::Entry| match entry.event {
            Event::GroupReady { group, hit, .. } => group.starts_with("layer").then_some(hit),
            _ => None,
        };
        let hits: Vec<bool> = self.journal.entries().into_iter().filter_map(hit).collect();
        hits.chunks(blocks).map(|pass| pass.iter().filter(|hit| **hit).count()).collect()
    }
}

fn pause(runtime: &Runtime) {
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
}

#[test]
fn what_fits_is_fetched_once_and_stays() {
    let bench = Bench::new(Model::of(4, false), 1 << 20, AT_ONCE);
    bench.pass();
    bench.until("all is here", || bench.is_quiet());
    for _ in 0..3 {
        bench.pass();
    }
    bench.rows(&[3, 31, 0]);
    let stats = bench.weights.stats();
    assert_eq!((stats.passes, stats.ring_bytes_peak), (4, 0));
    // But for the table, of which only rows came.
    assert_eq!(stats.resident_bytes, bench.weights.checkpoint().manifest().size() - 32 * ROW as u64);
    assert!(bench.source.times().values().all(|times| *times == 1));
    assert_eq!(bench.source.times().len(), bench.weights.checkpoint().chunks().len() - 4);
    assert_eq!(bench.source.live.now.load(Ordering::SeqCst), 0, "copied, so the source's bytes may go");
    assert!(bench.weights.group(&block(2)).unwrap().resident);
    assert_eq!(bench.hits(4)[1..4], [4, 4, 4]);
}

#[test]
fn hits_per_pass_are_the_share_that_memory_holds() {
    for (n, k) in [(1, 1u32), (3, 2), (8, 3), (8, 5), (11, 5), (22, 5), (22, 21)] {
        let bench = Bench::new(Model::of(n, true), u64::from(k) * BLOCK_SIZE, AT_ONCE);
        bench.pass();
        bench.until("the resident ones are here", || {
            let stats = bench.weights.stats();
            stats.resident_bytes == stats.resident_bytes_max
        });
        (0..4).for_each(|_| bench.pass());
        for hits in &bench.hits(n as usize)[1..] {
            assert!(k as usize - 2.min(k as usize) <= *hits, "{hits} hits for {k} of {n}");
        }
    }
}

#[test]
fn memory_is_bounded() {
    for k in [0, 1, 2, 3, 6] {
        let memory = k * BLOCK_SIZE;
        let bench = Bench::new(Model::of(12, true), memory, AT_ONCE);
        for _ in 0..3 {
            bench.rows(&[0, 9, 17]);
            bench.pass();
            let stats = bench.weights.stats();
            assert!(stats.resident_bytes_max + stats.ring_bytes_peak <= memory.max(8192), "{stats:?}");
        }
        bench.until("nothing is on its way", || bench.is_quiet());
        let live = &bench.source.live;
        let ring = bench.weights.stats().ring_bytes;
        bench.until("only the ring is held", || live.now.load(Ordering::SeqCst) <= ring);
        // One row chunk, one tensor being copied, and a chunk that arrives and is let go.
        let slack = 2048 + 8192 + 2048;
        assert!(live.peak.load(Ordering::SeqCst) <= memory.max(8192) + slack, "{k}: {live:?}");
    }
}

#[test]
fn wishes_go_out_in_order_of_use_as_far_as_the_bound() {
    // Four blocks and a bit of the fifth: one chunk of that.
    let ahead = 4 * BLOCK_SIZE + 1;
    let bench = Bench::new(Model::of(20, true), 3 * BLOCK_SIZE, Source { ahead, ..SHUT });
    bench.until("the bound is reached", || ahead <= bench.weights.stats().in_flight_bytes);
    let stats = bench.weights.stats();
    assert_eq!(stats.in_flight_bytes, 4 * BLOCK_SIZE + 1024);
    assert!(stats.ring_bytes <= 2 * BLOCK_SIZE);

    bench.until("all were asked", || 21 <= bench.source.asked.lock().unwrap().len());
    let asked = bench.source.asked.lock().unwrap().clone();
    for at in 0..4u64 {
        for chunk in bench.chunks(&block(at as u32)) {
            assert!(asked.contains(&(chunk.id, Urgency::Deadline(at + 1))), "layer {at}: {asked:?}");
        }
    }
    // What has come makes room for what follows.
    bench.source.open();
    bench.until("all is here", || bench.is_quiet());
    let all: std::collections::HashSet<ChunkId> = bench.source.times().into_keys().collect();
    assert_eq!(all.len(), bench.weights.checkpoint().chunks().len());
}

#[test]
fn a_block_computes_before_the_next_has_come() {
    let bench = Bench::new(Model::of(6, true), 3 * BLOCK_SIZE, SHUT);
    let all = bench.weights.checkpoint().manifest().size();
    bench.until("all was asked for", || bench.weights.stats().in_flight_bytes == all);
    let first = bench.chunks(&block(0));
    bench.source.let_pass(first.iter().map(|chunk| chunk.id));
    bench.compare(&block(0), &bench.weights.group(&block(0)).unwrap());
    let size: u64 = first.iter().map(|chunk| u64::from(chunk.size)).sum();
    assert_eq!(bench.weights.stats().in_flight_bytes, all - size);
}

#[test]
fn mapped_chunks_are_read_once_for_all_passes() {
    let bench = Bench::new(Model::of(9, true), 3 * BLOCK_SIZE, MAPPED);
    for _ in 0..4 {
        bench.rows(&[1, 30]);
        bench.pass();
    }
    let stats = bench.weights.stats();
    let streamed = stats.groups.iter().filter(|group| !group.resident);
    assert!(0 < stats.mapped_chunks && 6 < streamed.count());
    for (id, times) in bench.source.times() {
        // A resident chunk of the table may have been asked for by row first.
        assert!(times <= 2, "{id} {times} times");
    }
    let before = bench.source.asked.lock().unwrap().len();
    (0..3).for_each(|_| bench.pass());
    assert_eq!(bench.source.asked.lock().unwrap().len(), before);
    assert_eq!(bench.source.ranges.lock().unwrap().len(), 0);
}

#[test]
fn what_changed_on_the_disk_is_noticed_when_the_pass_ends_and_comes_anew() {
    for k in [0, 3, 5, 7, 8] {
        let bench = Bench::new(Model::of(9, true), k * BLOCK_SIZE, MAPPED);
        let pass = || {
            bench.rows(&[1, 30]);
            bench.pass();
            bench.weights.settle(true)
        };
        assert!(pass() && pass());
        bench.until("all is here", || bench.is_quiet());
        let streamed = |at: u32| {
            let name = block(at).to_string();
            bench.weights.stats().groups.iter().any(|group| group.group == name && !group.resident)
        };
        assert!((0..9).any(streamed), "{k}");
        for at in 0..9 {
            // Again and again, also where the ring holds it from pass to pass.
            assert!(pass() && pass(), "{k}: before {at}");
            let id = bench.chunks(&block(at))[2].id;
            let before = bench.source.times()[&id];
            bench.source.changed.lock().unwrap().insert(id);
            assert_eq!(pass(), !streamed(at), "{k}: copies do not change, mapped files do: {at}");
            bench.source.changed.lock().unwrap().clear();
            assert!(pass(), "{k}: after {at}");
            assert_eq!(
                streamed(at),
                before < bench.source.times()[&id],
                "{k}: {at} is read and checked anew"
            );
        }
    }
}

#[test]
fn an_encoder_is_not_fetched_again_for_each_token() {
    let mut model = Model::default();
    model.add(Group::Embed, "embed", &[32, 64], 2048);
    for stack in [Stack::Encoder, Stack::Decoder] {
        for at in 0..4 {
            model.add(Group::Layer(stack, at), &format!("{stack}{at}"), &[17, 64], 1024);
        }
    }
    model.add(Group::Head, "norm", &[64], 256);
    model.add(Group::Head, "output", &[8, 64], 1024);
    let bench = Bench::new(model, 3 * BLOCK_SIZE, AT_ONCE);
    let encoder: Vec<ChunkId> =
        (0..4).flat_map(|at| bench.chunks(&Group::Layer(Stack::Encoder, at))).map(|chunk| chunk.id).collect();
    let asked = || -> Vec<ChunkId> {
        let asked = std::mem::take(&mut *bench.source.asked.lock().unwrap());
        asked.into_iter().map(|(id, _)| id).collect()
    };
    bench.pass();
    let first = asked();
    assert!(encoder.iter().all(|id| first.contains(id)));
    for _ in 0..5 {
        let groups = (0..4).map(block).chain([Group::Head]);
        groups.for_each(|group| bench.compare(&group, &bench.weights.group(&group).unwrap()));
    }
    let decoding = asked();
    assert!(!decoding.is_empty() && decoding.iter().all(|id| !encoder.contains(id)));
    bench.pass();
    assert!(asked().iter().any(|id| encoder.contains(id)));
}

#[test]
fn rows_come_without_their_table() {
    let bench = Bench::new(Model::of(4, false), 3 * BLOCK_SIZE, AT_ONCE);
    bench.rows(&[9, 3, 9, 8, 31]);
    let row = ROW as u32;
    let table = bench.chunks(&Group::Embed);
    // 8 rows in a chunk: rows 8 and 9 are neighbours in the second.
    let mut ranges = bench.source.ranges.lock().unwrap().clone();
    ranges.sort_by_key(|(id, _)| table.iter().position(|chunk| chunk.id == *id));
    let expected = [(0, 3 * row..4 * row), (1, 0..2 * row), (3, 7 * row..8 * row)];
    assert_eq!(ranges, expected.map(|(at, range): (usize, _)| (table[at].id, range)));
    bench.rows(&[]);
    bench.pass();
    assert!(table.iter().all(|chunk| !bench.source.times().contains_key(&chunk.id)));

    bench.rows(&[31]);
    assert!(bench.weights.stats().row_bytes <= 3 * BLOCK_SIZE / 16);
    assert!(bench.source.ranges.lock().unwrap().len() <= 4);
}

#[test]
fn rows_may_be_larger_than_chunks() {
    for memory in [0, 1 << 20] {
        let mut model = Model::default();
        model.add(Group::Embed, "embed", &[5, 700], 1000);
        model.add(block(0), "0", &[3, 700], 1000);
        model.add(Group::Head, "norm", &[700], 4096);
        model.add(Group::Head, "output", &[3, 700], 4096);
        let bench = Bench::new(model, memory, AT_ONCE);
        bench.rows(&[4, 0, 2, 4]);
        bench.pass();
        bench.rows(&[1, 2, 3]);
    }
}

#[test]
fn a_tied_table_is_fetched_in_whole_chunks_each_once() {
    let bench = Bench::new(Model::of(5, true), 3 * BLOCK_SIZE, MAPPED);
    bench.rows(&[0, 1, 20]);
    let table = bench.chunks(&Group::Embed);
    for wanted in [0, 2] {
        assert!(bench.source.times().contains_key(&table[wanted].id));
    }
    bench.pass();
    bench.rows(&[25, 2]);
    bench.pass();
    assert_eq!(bench.source.ranges.lock().unwrap().len(), 0);
    let (stats, times) = (bench.weights.stats(), bench.source.times());
    let embed = &stats.groups[0];
    assert_eq!(embed.hits + embed.ready + embed.misses, 2);
    assert!(table.iter().all(|chunk| times[&chunk.id] <= 2));
}

/// Four rows in a chunk, four chunks in a run.
fn with_a_large_table(tied: bool) -> Model {
    let mut model = Model::default();
    model.add(Group::Embed, "embed", &[160, 64], 1024);
    (0..6).for_each(|at| model.add(block(at), &format!("{at}"), &[17, 64], 1024));
    model.add(Group::Head, "norm", &[64], 256);
    if !tied {
        model.add(Group::Head, "output", &[158, 64], 1024);
    }
    model
}

#[test]
fn a_large_table_comes_in_runs_of_whole_chunks() {
    for (tied, name, size) in [(false, "head", 158), (true, "embed", 160)] {
        for k in [0, 1, 2, 3, 7] {
            let memory = k * BLOCK_SIZE;
            let bench = Bench::new(with_a_large_table(tied), memory, AT_ONCE);
            for _ in 0..3 {
                bench.rows(&[0, 9, 157, 91]);
                bench.pass();
                let stats = bench.weights.stats();
                let most = memory.max(BLOCK_SIZE);
                assert!(stats.resident_bytes_max + stats.ring_bytes_peak <= most, "{k}: {stats:?}");
            }
            bench.until("nothing is on its way", || bench.is_quiet());
            // Rows of one chunk, one group being copied, and a chunk that arrives and is let go.
            let slack = 4 * 1024 + BLOCK_SIZE + 2048;
            let live = bench.source.live.peak.load(Ordering::SeqCst);
            assert!(live <= memory.max(BLOCK_SIZE) + slack, "{k}: {live}");

            let stats = bench.weights.stats();
            let runs: Vec<_> = stats.groups.iter().filter(|group| group.group.contains("rows")).collect();
            assert_eq!(runs.len(), 10);
            assert_eq!(runs[0].group, format!("{name}, rows 0 to 15"));
            assert_eq!(runs[9].group, format!("{name}, rows 144 to {}", size - 1));
            assert!(runs.iter().all(|run| run.hits + run.ready + run.misses == 3), "{runs:?}");
            assert_eq!(stats.passes, 3);
            // The table is read by row only where no pass needs it whole.
            assert_eq!(bench.source.ranges.lock().unwrap().is_empty(), tied);
        }
    }
}

#[test]
fn while_a_run_computes_the_next_comes_and_behind_the_last_the_first_block() {
    // Nothing is asked for but what the ring has room for.
    let source = Source { ahead: 0, ..AT_ONCE };
    let bench = Bench::new(with_a_large_table(false), 2 * BLOCK_SIZE, source);
    (0..6).for_each(|at| drop(bench.weights.group(&block(at)).unwrap()));
    let runs = bench.weights.group(&Group::Head).unwrap().runs["output"].clone();
    let table = &bench.chunks(&Group::Head)[1..];
    let first = bench.chunks(&block(0))[0].id;
    let times = |id: ChunkId| bench.source.times().get(&id).copied().unwrap_or(0);
    for (at, rows) in runs.iter().enumerate() {
        bench.weights.run("output", rows).unwrap();
        match runs.get(at + 1) {
            Some(next) => bench.until("the next run", || times(table[next.start / 4].id) == 1),
            None => bench.until("the first block", || times(first) == 2),
        }
    }
    assert!(table.iter().all(|chunk| times(chunk.id) == 1), "each came once");
}

#[test]
fn a_table_that_fits_or_has_scales_comes_whole() {
    let all = with_a_large_table(false).manifest().manifest().size();
    let bench = Bench::new(with_a_large_table(false), all, AT_ONCE);
    bench.pass();
    assert!(bench.weights.group(&Group::Head).unwrap().runs.is_empty());
    let error = bench.weights.run("output", &(0..16)).unwrap_err();
    assert!(error.to_string().contains("does not come in a run of rows from 0 to 16"), "{error}");

    let mut model = with_a_large_table(false);
    model.retype("output", Dtype::F8E4M3);
    let bench = Bench::new(model, 0, AT_ONCE);
    assert!(bench.weights.group(&Group::Head).unwrap().runs.is_empty());
}

#[test]
fn a_failure_is_told_and_not_remembered() {
    let bench = Bench::new(Model::of(4, false), 2 * BLOCK_SIZE, AT_ONCE);
    let lost = bench.chunks(&block(2))[1].id;
    let row = bench.chunks(&Group::Embed)[0].id;
    bench.source.lost.lock().unwrap().extend([lost, row]);
    bench.weights.group(&block(0)).unwrap();
    bench.weights.group(&block(1)).unwrap();
    for _ in 0..2 {
        let error = bench.weights.group(&block(2)).unwrap_err();
        assert!(matches!(error, WeightsError::Source(SourceError::Missing(id)) if id == lost), "{error}");
        let error = bench.weights.rows("embed", &[1]).unwrap_err();
        assert!(matches!(error, WeightsError::Source(SourceError::Missing(id)) if id == row), "{error}");
    }
    bench.source.lost.lock().unwrap().clear();
    bench.rows(&[1]);
    bench.pass();
}

#[test]
fn a_manifest_that_lies_about_a_size_is_found_out() {
    let mut model = Model::of(2, false);
    model.claim_size(&block(1), 1, 2000);
    let bench = Bench::new(model, 1 << 20, AT_ONCE);
    bench.weights.group(&block(0)).unwrap();
    let error = bench.weights.group(&block(1)).unwrap_err();
    assert!(error.to_string().contains("1024 bytes; the manifest says 2000"), "{error}");
}

#[test]
fn what_is_not_there_is_named() {
    let bench = Bench::new(Model::of(1, false), 0, AT_ONCE);
    let error = bench.weights.group(&block(1)).unwrap_err();
    assert!(matches!(error, WeightsError::NoSuchGroup(group) if group == block(1)));
    let error = bench.weights.rows("wpe", &[0]).unwrap_err();
    assert!(matches!(error, WeightsError::NoSuchTensor(name) if name == "wpe"));
    let error = bench.weights.rows("embed", &[0, 32]).unwrap_err();
    assert!(matches!(error, WeightsError::NoSuchRow { rows: 32, row: 32, .. }));
}

#[test]
fn dropping_it_withdraws_every_wish() {
    let Bench { runtime, source, weights, .. } = Bench::new(Model::of(8, true), 3 * BLOCK_SIZE, SHUT);
    while source.waiting.load(Ordering::SeqCst) < 40 {
        pause(&runtime);
    }
    drop(weights);
    for _ in 0..2000 {
        if source.waiting.load(Ordering::SeqCst) == 0 && Arc::strong_count(&source) == 1 {
            return;
        }
        pause(&runtime);
    }
    panic!("{} wishes are left", source.waiting.load(Ordering::SeqCst));
}

#[test]
fn a_stopping_node_says_so() {
    let Bench { runtime, weights, .. } = Bench::new(Model::of(8, false), 3 * BLOCK_SIZE, SHUT);
    let weights = Arc::new(weights);
    let asker = std::thread::spawn({
        let weights = Arc::clone(&weights);
        move || weights.group(&block(0)).map(drop)
    });
    (0..10).for_each(|_| pause(&runtime));
    runtime.shutdown_timeout(Duration::from_secs(5));
    assert!(matches!(asker.join().unwrap(), Err(WeightsError::Stopped)));
    assert!(matches!(weights.group(&block(3)), Err(WeightsError::Stopped)));
    assert!(matches!(weights.rows("embed", &[2]), Err(WeightsError::Stopped)));
}
