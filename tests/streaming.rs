//! A model computes before it has arrived, nothing is fetched twice, and what should stay in memory
//! does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use surf_node::{
    Node,
    api::{Checked, PublishRequest},
    config,
    engine::{Event as Said, Prompt, Request},
    fetch::{Directory, Key},
    identity::Identity,
    journal::Event,
    members::Members,
    source::{Library, SourceError},
    store::Store,
    swarm, transfer,
};
use surf_protocol::{Bitmap, ChunkId, ModelId};
use surf_tests::{TestNode, fixture, start, tiny_surfer};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::sleep,
};

const PLENTY: u64 = 1 << 30;

async fn publish(node: &Node, folder: &std::path::Path) -> String {
    let path = folder.to_str().unwrap().to_owned();
    let request = PublishRequest { path, ..PublishRequest::default() };
    node.publish(request, mpsc::channel(1).0).await.unwrap().model
}

/// A node that has published `folder`, another that has not, and the model.
async fn pair(folder: &std::path::Path, memory: u64) -> (TestNode, TestNode, String) {
    let seed = start(&[], PLENTY).await;
    let model = publish(&seed.node, folder).await;
    let empty = start(seed.node.listen(), memory).await;
    (seed, empty, model)
}

/// Bytes of the two largest groups that `model` streams: room for two blocks, and for no more.
async fn two_blocks(folder: &std::path::Path) -> u64 {
    let node = start(&[], PLENTY).await;
    let model = publish(&node.node, folder).await;
    let groups = node.node.model(&model).await.unwrap().groups;
    let blocks = groups.iter().filter(|group| group.group.contains("layer "));
    2 * blocks.map(|group| group.bytes).max().unwrap()
}

async fn check(node: &Node, model: &str, expected: &std::path::Path) -> Checked {
    let expected = std::fs::read(expected).unwrap();
    node.check(model, expected.into(), 1e-3).await.unwrap()
}

async fn generate(node: &Node, model: &str, tokens: usize) -> surf_node::api::CacheStats {
    let prompt = Prompt::Text("Once upon a time there was a seal".to_owned());
    let request = Request { max_tokens: Some(tokens), ..Request::new(prompt) };
    let mut generation = node.generate(model, request).await.unwrap();
    while let Some(said) = generation.next().await {
        match said {
            Said::Failed(error) => panic!("{error}"),
            Said::Done(_) => return generation.cache(),
            Said::Token(_) | Said::Prompt(_) => (),
        }
    }
    panic!("the generation did not end");
}

/// Every reference model.
const REFERENCES: [&str; 13] = [
    "bert",
    "deepseek-v3",
    "deepseek-v3-fp8",
    "gpt2",
    "llama",
    "llama-bf16-sharded",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "t5",
    "t5-v1.1",
];

/// Both ways of running every reference model: from another node with room for two blocks, and whole.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_outputs_are_reproduced_streamed_and_resident() {
    for name in REFERENCES {
        let folder = fixture(name);
        for memory in [two_blocks(&folder).await, PLENTY] {
            let (_seed, empty, model) = pair(&folder, memory).await;
            let checked = check(&empty.node, &model, &recorded(name)).await;
            assert!(checked.pass && checked.max_rel_err <= 1e-3, "{name} with {memory}: {checked:?}");
            let checked = check(&empty.node, &model, &folder.join("expected.safetensors")).await;
            // An encoder says nothing about tokens. Its padding is not compared.
            let (numbers, agree) = match name {
                "bert" => ((33 + 20 + 2) * 64, None),
                "t5" | "t5-v1.1" => (2 * 9 * 512, Some(1.0)),
                _ => (2 * 33 * 512, Some(1.0)),
            };
            assert_eq!(checked.compared, numbers, "{name}: {checked:?}");
            assert_eq!((checked.argmax_agree, checked.greedy_agree), (agree, agree), "{name} with {memory}");
        }
    }
}

/// What a GGUF file says about its model crosses the network as its weights do.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_in_a_gguf_file_is_run_like_one_in_a_folder() {
    for kind in ["f16", "q8_0", "q4_0"] {
        let path = fixture(&format!("../gguf/llama-{kind}.gguf"));
        for memory in [two_blocks(&path).await, PLENTY] {
            let (_seed, empty, model) = pair(&path, memory).await;
            let expected = fixture(&format!("../gguf/llama-{kind}.expected.safetensors"));
            let checked = check(&empty.node, &model, &expected).await;
            assert!(checked.pass && checked.max_rel_err <= 1e-5, "{kind} with {memory}: {checked:?}");
            let agree = (checked.argmax_agree, checked.greedy_agree);
            assert_eq!(agree, (Some(1.0), Some(1.0)), "{kind} with {memory}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_in_another_format_is_distributed_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("llama/config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join("model.onnx"), b"\x08\x07").unwrap();
    let (_seed, empty, model) = pair(folder.path(), PLENTY).await;
    let refused = empty.node.generate(&model, Request::new(Prompt::Tokens(vec![1]))).await.err().unwrap();
    let refused = refused.to_string();
    assert!(refused.contains("cannot run: the weights in model.onnx are in a format"), "{refused}");
}

/// The logits to compare with. Those that came with the sharded model were computed after its rotary
/// speeds had been rounded to bfloat16 together with its weights, which loading the folder does not do;
/// ours are transformers' for the folder as it is.
fn recorded(name: &str) -> std::path::PathBuf {
    match name {
        "llama-bf16-sharded" => fixture("../llama-bf16-sharded.f32.expected.safetensors"),
        _ => fixture(name).join("expected.safetensors"),
    }
}

/// A seed whose disk takes its time over every chunk, as slow links do.
#[derive(Debug)]
struct Slow {
    store: Store,
    turn: Mutex<()>,
}

impl Library for Slow {
    fn manifest(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        self.store.manifest(model)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }

    fn have(&self, model: ModelId) -> BoxFuture<'_, Result<Option<Bitmap>, SourceError>> {
        self.store.have(model)
    }

    fn size(&self, id: ChunkId) -> Option<usize> {
        self.store.size(id)
    }

    fn serve(&self, id: ChunkId) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            sleep(Duration::from_millis(20)).await;
            self.store.serve(id).await
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_computes_before_the_model_is_here_and_fetches_nothing_twice() {
    let publisher = start(&[], PLENTY).await;
    let model = publish(&publisher.node, &tiny_surfer()).await;
    let (identity, any) = (Identity::generate(), SocketAddr::from(([127, 0, 0, 1], 0)));
    let config = config::Transfer { listen: any, limits: config::Limits::default() };
    let endpoint = transfer::Endpoint::bind(&identity, &config, &Members::default()).unwrap();
    let slow = Slow { store: publisher.node.store().clone(), turn: Mutex::default() };
    endpoint.serve(Arc::new(slow)).unwrap();
    let control = config::Swarm {
        listen: vec![any],
        bootstrap: Vec::new(),
        mdns: false,
        relay: config::Relay::default(),
    };
    let (swarm, listening) =
        swarm::start(&identity, &control, &Members::default(), endpoint.local_addr()).await.unwrap();
    let id = model.parse().unwrap();
    swarm.announce(id, vec![Key::Model(id)]).await.unwrap();

    let empty = start(&listening.addrs, PLENTY).await;
    generate(&empty.node, &model, 8).await;
    let entries = empty.node.journal().entries();
    let computed = entries.iter().find_map(|entry| match &entry.event {
        Event::GroupComputed { group, .. } if group == "layer 0" => Some(entry.at_us),
        _ => None,
    });
    let mut arrived: HashMap<&str, u64> = HashMap::new();
    let mut last = 0;
    for entry in &entries {
        match &entry.event {
            Event::ChunkArrived { chunk, .. } => {
                *arrived.entry(chunk).or_default() += 1;
                last = last.max(entry.at_us);
            }
            Event::Wasted { .. } => panic!("{entry:?}"),
            Event::RangeArrived { .. } => panic!("the tied table is needed whole: {entry:?}"),
            _ => (),
        }
    }
    assert!(computed.expect("layer 0 was computed") < last, "all had arrived before layer 0 was computed");
    assert!(arrived.len() > 10 && arrived.values().all(|&times| times == 1), "{arrived:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untied_table_is_fetched_by_row() {
    let folder = fixture("llama");
    let (_seed, empty, model) = pair(&folder, two_blocks(&folder).await).await;
    generate(&empty.node, &model, 2).await;
    let entries = empty.node.journal().entries();
    let rows = entries.iter().filter(|entry| matches!(entry.event, Event::RangeArrived { .. }));
    assert!(rows.count() > 0);
    let groups = empty.node.model(&model).await.unwrap().groups;
    let embed = groups.iter().find(|group| group.group == "embed").unwrap();
    assert_eq!(embed.held_bytes, 0, "the table itself was not needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_per_pass_are_those_of_a_fixed_set() {
    let folder = tiny_surfer();
    let block = two_blocks(&folder).await / 2;
    for k in 3..=8u64 {
        // Room for k blocks, and for the table that is also the head.
        let table = 1024 * 160 * 2 + 64 * 1024;
        let (_seed, empty, model) = pair(&folder, k * block + table).await;
        let before = generate(&empty.node, &model, 1).await;
        let after = generate(&empty.node, &model, 6).await;
        let passes = after.passes - before.passes;
        let blocks = |stats: &surf_node::api::CacheStats| -> u64 {
            stats.per_group.iter().filter(|group| group.group.starts_with("layer")).map(|g| g.hits).sum()
        };
        let hits = blocks(&after) - blocks(&before);
        assert!(passes >= 6, "{passes}");
        assert!(hits >= passes * (k - 2), "room for {k} of 8 blocks: {hits} hits in {passes} passes");
    }
}

/// Statistics are asked for while experts come and go, from as many threads as there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn who_looks_on_holds_up_nobody() {
    for name in ["mixtral", "qwen3-moe"] {
        let node = start(&[], PLENTY).await;
        let model = publish(&node.node, &fixture(name)).await;
        let work = (0..4).map(|_| async {
            for _ in 0..60 {
                generate(&node.node, &model, 3).await;
            }
        });
        let looking = async {
            loop {
                node.node.status().await;
            }
        };
        let work = tokio::time::timeout(Duration::from_secs(200), futures::future::join_all(work));
        tokio::select! {
            done = work => drop(done.expect("no hang")),
            () = looking => (),
        }
    }
}
