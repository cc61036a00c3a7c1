//! Disks that flip bits and cut files short while nodes pull, serve and generate: no node dies, no text is
//! wrong, no honest holder is banned, and what was lost is fetched from a peer again.
//!
//! Everything is drawn from a seed, which a failure names. `SURF_TEST_DISK_ROUNDS` asks for more rounds,
//! `SURF_TEST_DISK_SEED` for other ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use surf_node::{
    Node,
    api::PublishRequest,
    engine::{Event as Said, Prompt, Request},
};
use surf_protocol::ModelId;
use surf_tests::{TestNode, config, fixture, start, tiny_surfer};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// Rounds unless told otherwise: each damage meets each activity a few times.
const ROUNDS: u64 = 20;

/// Long enough on a machine that is busy.
const SOON: Duration = Duration::from_secs(180);

const TOKENS: usize = 24;

/// A deterministic die.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }
}

/// All files under `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found.sort();
    found
}

/// Does one thing to a file that a bad disk, a repair of it, or a careless hand may do. The file may go
/// meanwhile.
fn damage(path: &Path, dice: &mut Dice) -> std::io::Result<&'static str> {
    let mut file = fs::File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len().max(1);
    let at = dice.roll(size as usize) as u64;
    Ok(match dice.roll(6) {
        0 | 1 => {
            let mut byte = [0];
            file.seek(SeekFrom::Start(at))?;
            std::io::Read::read_exact(&mut file, &mut byte)?;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&[byte[0] ^ (1 << dice.roll(8))])?;
            "flipped"
        }
        2 => file.set_len(at).map(|()| "cut short")?,
        3 => file.set_len(0).map(|()| "emptied")?,
        4 => {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&vec![0; 4096.min(size - at) as usize])?;
            "zeroed"
        }
        _ => fs::remove_file(path).map(|()| "removed")?,
    })
}

/// Damages some of `among`, now and a little later, and returns what was done.
async fn damages(among: Vec<PathBuf>, mut dice: Dice) -> Vec<String> {
    let mut done = Vec::new();
    for _ in 0..1 + dice.roll(6) {
        let path = &among[dice.roll(among.len())];
        if let Ok(how) = damage(path, &mut dice) {
            done.push(format!("{how} {}", path.file_name().unwrap().to_string_lossy()));
        }
        sleep(Duration::from_millis(dice.roll(30) as u64)).await;
    }
    done
}

async fn publish(node: &Node, folder: &Path, copy: bool) -> String {
    let path = folder.to_str().unwrap().to_owned();
    let request = PublishRequest { path, copy, ..PublishRequest::default() };
    node.publish(request, mpsc::channel(1).0).await.unwrap().model
}

async fn text(node: &Node, model: &str) -> String {
    let prompt = Prompt::Text("Once upon a time there was a seal".to_owned());
    let request = Request { max_tokens: Some(TOKENS), ignore_eos: true, ..Request::new(prompt) };
    let mut generation = timeout(SOON, node.generate(model, request)).await.expect("no hang").unwrap();
    let mut text = String::new();
    while let Some(said) = timeout(SOON, generation.next()).await.expect("no hang") {
        match said {
            Said::Failed(error) => panic!("{error}"),
            Said::Token(token) => text += &token.text,
            Said::Done(done) => return text + &done.text,
            Said::Prompt(_) => (),
        }
    }
    panic!("the generation did not end");
}

async fn pull(node: &Node, model: &str) {
    timeout(SOON, node.pull(model, mpsc::channel(1).0)).await.expect("no hang").unwrap();
}

/// Waits until all of `model` is here and right, byte for byte, whatever it takes from others.
async fn whole(node: &Node, model: &str, what: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        let found = node.verify(Some(model), false, mpsc::channel(1).0).await.unwrap();
        if (found.bad, found.missing) == (0, 0) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: never whole again: {found:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn chunks(node: &TestNode) -> Vec<PathBuf> {
    files(&node.dir.path().join("store/chunks"))
}

/// A copy of a folder, for whom it belongs to.
fn copied(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in files(folder) {
        let to = copy.path().join(path.strip_prefix(folder).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&path, to).unwrap();
    }
    copy
}

/// One model, three nodes that have it, and what it says.
struct Swarm {
    folder: PathBuf,
    model: String,
    text: String,
    nodes: Vec<TestNode>,
}

impl Swarm {
    async fn of(folder: PathBuf) -> Self {
        let seed = start(&[], 1 << 30).await;
        let model = publish(&seed.node, &folder, true).await;
        let text = text(&seed.node, &model).await;
        let mut nodes = vec![seed];
        for memory in [0, 300_000] {
            let node = start(nodes[0].node.listen(), memory).await;
            pull(&node.node, &model).await;
            nodes.push(node);
        }
        Self { folder, model, text, nodes }
    }

    /// A node with nothing, that knows all others.
    async fn newcomer(&self, memory: u64) -> TestNode {
        start(self.nodes[0].node.listen(), memory).await
    }

    /// What happens in one round, and what was damaged meanwhile.
    async fn round(&self, dice: &mut Dice) -> String {
        let (victim, later) = (dice.roll(3), Dice(dice.roll(usize::MAX) as u64));
        match dice.roll(5) {
            0 | 1 => {
                let node = &self.nodes[victim];
                let damage = damages(chunks(node), later);
                let generate = async {
                    assert_eq!(text(&node.node, &self.model).await, self.text);
                    assert_eq!(text(&node.node, &self.model).await, self.text);
                };
                let ((), done) = tokio::join!(generate, damage);
                assert_eq!(text(&node.node, &self.model).await, self.text, "{done:?}");
                format!("node {victim} generates: {done:?}")
            }
            2 => {
                let newcomer = self.newcomer(0).await;
                let damage = damages(chunks(&self.nodes[victim]), later);
                let ((), done) = tokio::join!(pull(&newcomer.node, &self.model), damage);
                whole(&newcomer.node, &self.model, "the newcomer").await;
                assert_eq!(text(&newcomer.node, &self.model).await, self.text, "{done:?}");
                format!("node {victim} serves: {done:?}")
            }
            3 => {
                let newcomer = self.newcomer(0).await;
                let own = async {
                    let mut done = Vec::new();
                    let mut later = later;
                    let store = newcomer.dir.path().join("store/chunks");
                    // From the first chunk that comes.
                    while done.len() < 6 {
                        let held = files(&store);
                        if !held.is_empty() {
                            done.extend(damages(held, Dice(later.roll(usize::MAX) as u64)).await);
                        }
                        sleep(Duration::from_millis(later.roll(20) as u64)).await;
                    }
                    done
                };
                let ((), done) = tokio::join!(pull(&newcomer.node, &self.model), own);
                assert_eq!(text(&newcomer.node, &self.model).await, self.text, "{done:?}");
                whole(&newcomer.node, &self.model, &format!("{done:?}")).await;
                format!("a newcomer pulls: {done:?}")
            }
            _ => self.published(later).await,
        }
    }

    /// A newcomer has published the model from a folder of its own, which is damaged while it serves and runs.
    async fn published(&self, later: Dice) -> String {
        let folder = copied(&self.folder);
        let node = self.newcomer(0).await;
        assert_eq!(publish(&node.node, folder.path(), false).await, self.model);
        let manifest = node.node.store().manifest_of(self.model.parse::<ModelId>().unwrap()).unwrap();
        let ours = files(folder.path()).into_iter();
        let ours: Vec<_> =
            ours.filter(|path| path.extension().is_some_and(|ext| ext == "safetensors")).collect();
        let other = self.newcomer(0).await;
        let work = async {
            pull(&other.node, &self.model).await;
            assert_eq!(text(&node.node, &self.model).await, self.text);
        };
        let ((), done) = tokio::join!(work, damages(ours, later));
        assert_eq!(text(&node.node, &self.model).await, self.text, "{done:?}");
        whole(&other.node, &self.model, "who pulled").await;
        assert_eq!(text(&other.node, &self.model).await, self.text, "{done:?}");
        // What was replaced by something else is not fetched by itself, but when it is wanted.
        pull(&node.node, &self.model).await;
        let all = manifest.chunks().iter().all(|chunk| node.node.store().contains(chunk.id));
        assert!(all || !done.is_empty());
        whole(&node.node, &self.model, "who published").await;
        format!("a published folder: {done:?}")
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_disks_cost_nobody_a_word() {
    let (rounds, seed) = (number("SURF_TEST_DISK_ROUNDS", ROUNDS), number("SURF_TEST_DISK_SEED", 1));
    let mut dice = Dice(seed);
    let folders = [tiny_surfer(), fixture("mixtral"), fixture("t5"), fixture("llama-bf16-sharded")];
    let mut swarms = Vec::new();
    for folder in folders {
        swarms.push(Swarm::of(folder).await);
    }
    for round in 0..rounds {
        let which = dice.roll(swarms.len());
        let swarm = &swarms[which];
        let done = swarm.round(&mut dice).await;
        println!("round {round} of seed {seed}, model {which}: {done}");
        for (at, node) in swarm.nodes.iter().enumerate() {
            whole(&node.node, &swarm.model, &format!("round {round} of seed {seed}, node {at}: {done}"))
                .await;
        }
    }
    for swarm in &swarms {
        for node in &swarm.nodes {
            assert_eq!(text(&node.node, &swarm.model).await, swarm.text, "seed {seed}");
        }
    }
}

/// A node in a folder that another may still be letting go of.
async fn restarted(settings: surf_node::Config) -> Node {
    let deadline = Instant::now() + SOON;
    loop {
        match Node::start(settings.clone()).await {
            Ok(node) => return node,
            Err(error) => {
                let waits = error.to_string().contains("another surf-node") && Instant::now() < deadline;
                assert!(waits, "{error}");
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The small files of a data folder, damaged while the node is off.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_with_whatever_is_left() {
    let seed = number("SURF_TEST_DISK_SEED", 1);
    let mut dice = Dice(seed);
    let holder = start(&[], 0).await;
    let model = publish(&holder.node, &tiny_surfer(), true).await;
    let expected = text(&holder.node, &model).await;
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let mut settings = config(dir.path(), holder.node.listen(), 0);
        settings.store.scrub = Some(Duration::from_secs(3600));
        let node = restarted(settings).await;
        pull(&node, &model).await;
        node.set_name("surfer", &model).await.unwrap();
        node.pin(&model).await.unwrap();
        assert_eq!(text(&node, &model).await, expected);
        node.stop().await;
        drop(node);
        // All but the key: without it the node would be another.
        let mut small: Vec<_> = files(dir.path());
        small.retain(|path| path.file_name().is_some_and(|name| name != "identity.key" && name != "lock"));
        let mut done = Vec::new();
        for _ in 0..4 {
            let path = &small[dice.roll(small.len())];
            if let Ok(how) = damage(path, &mut dice) {
                done.push(format!("{how} {}", path.display()));
            }
        }
        let manifest = dir.path().join("store/manifests").join(model.trim_start_matches("surf:"));
        let aliases = [dir.path().join("names.json"), manifest, dir.path().join("store/scrub.json")];
        let chosen = &aliases[round % aliases.len()];
        done.extend(damage(chosen, &mut dice).map(|how| format!("{how} {}", chosen.display())));
        println!("round {round} of seed {seed}: {done:?}");
        let node = restarted(config(dir.path(), holder.node.listen(), 0)).await;
        assert_eq!(text(&node, &model).await, expected, "{done:?}");
        pull(&node, &model).await;
        whole(&node, &model, &format!("{done:?}")).await;
        node.stop().await;
    }
}
