//! A process is killed in the middle of writing, many times.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use futures::StreamExt;

use super::*;

const ROUNDS: u64 = 20;
const CHUNK_BYTES: usize = 200_000;
const DIR: &str = "SURF_TEST_CRASH_DIR";

/// What the killed process runs. Not a test: it never ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a_kill_at_any_moment_loses_nothing"]
async fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = open(Path::new(&dir));
    let numbers = futures::stream::iter(0..u64::MAX);
    let puts = numbers.map(|number| {
        let store = store.clone();
        async move {
            let chunk = sized(number, CHUNK_BYTES);
            store.put(chunk).await.unwrap();
            // Written in one call, so that no line is torn but by the kill.
            std::io::stdout().lock().write_all(format!("\nkept {number} \n").as_bytes()).unwrap();
        }
    });
    puts.buffer_unordered(4).for_each(|()| async {}).await;
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = std::collections::BTreeSet::new();
    let mut adopted = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let heard = tokio::task::spawn_blocking(move || {
            let lines = lines.lines().map_while(Result::ok);
            let numbers =
                lines.filter_map(|line| line.strip_prefix("kept ")?.strip_suffix(' ')?.parse().ok());
            numbers.collect::<Vec<u64>>()
        });
        let moment = u64::from_le_bytes(ChunkId::of(&[round as u8]).as_bytes()[..8].try_into().unwrap());
        tokio::time::sleep(Duration::from_micros(60_000 + moment % 250_000)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let before = kept.len();
        kept.extend(heard.await.unwrap());

        let store = open(dir.path());
        let whole = store.usage().chunks;
        adopted += whole - kept.len().min(whole);
        for &number in &kept {
            assert!(store.contains(sized(number, CHUNK_BYTES).id()), "round {round} lost chunk {number}");
        }
        assert!(before <= kept.len());
        let found = store.verify(None, |_, _| ()).await.unwrap();
        assert_eq!(found, Verified { checked: whole, bad: vec![], missing: 0 });
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
        assert_eq!(bytes_in(&dir.path().join("chunks")), (whole * CHUNK_BYTES) as u64);
    }
    println!("{} chunks kept over {ROUNDS} kills; {adopted} whole but not yet reported", kept.len());
    assert!(ROUNDS <= kept.len() as u64, "the kills came too early to show anything: {}", kept.len());
}
