//! The main job in miniature: real nodes on loopback, a real model, text that comes out while the
//! model arrives, and where every byte came from.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use clap::Args;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::{Context, error::CliError, human, output::Output};
use crate::{
    Config, Node,
    api::{CacheStats, PublishRequest},
    config,
    engine::{Event, Message, Prompt, Request},
    journal::{self, Entry},
    members::Members,
    node::NodeError,
};

/// Shows the whole program at work: starts four nodes on loopback, publishes the model that comes with
/// the program, and has a node that has none of it tell a story while it streams there.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// What to ask for
    #[arg(long, short, default_value = "Tell me a story about a seal.")]
    prompt: String,
    /// How many tokens to generate at most
    #[arg(long, default_value_t = 120)]
    max_tokens: usize,
}

/// Two million parameters, trained on small sea stories; see its README.
const MODEL: &[(&str, &[u8])] = &[
    ("README.md", include_bytes!("../../assets/tiny-surfer/README.md")),
    ("chat_template.jinja", include_bytes!("../../assets/tiny-surfer/chat_template.jinja")),
    ("config.json", include_bytes!("../../assets/tiny-surfer/config.json")),
    ("generation_config.json", include_bytes!("../../assets/tiny-surfer/generation_config.json")),
    (
        "model-00001-of-00003.safetensors",
        include_bytes!("../../assets/tiny-surfer/model-00001-of-00003.safetensors"),
    ),
    (
        "model-00002-of-00003.safetensors",
        include_bytes!("../../assets/tiny-surfer/model-00002-of-00003.safetensors"),
    ),
    (
        "model-00003-of-00003.safetensors",
        include_bytes!("../../assets/tiny-surfer/model-00003-of-00003.safetensors"),
    ),
    ("model.safetensors.index.json", include_bytes!("../../assets/tiny-surfer/model.safetensors.index.json")),
    ("tokenizer.json", include_bytes!("../../assets/tiny-surfer/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/tiny-surfer/tokenizer_config.json")),
];

impl Demo {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let output = &context.output;
        let home =
            tempfile::tempdir().map_err(|error| CliError::failed(format!("no temporary folder: {error}")))?;
        let folder = home.path().join("tiny-surfer");
        write_model(&folder)?;
        let size: u64 = MODEL.iter().map(|(_, bytes)| bytes.len() as u64).sum();

        output.note("Starting a seed and two more nodes on this machine …");
        let seed = start(home.path(), "seed", None, u64::MAX).await?;
        let model = publish(output, &seed, &folder).await?;
        let mut nodes = vec![("seed", seed.clone())];
        for name in ["first", "second"] {
            let node = start(home.path(), name, Some(&seed), u64::MAX).await?;
            node.pull(&model, mpsc::channel(1).0).await.map_err(failed)?;
            nodes.push((name, node));
        }
        let memory = size / 3;
        output.note(&format!(
            "Joining a node that has nothing, through the second, with {} of memory for {} of model …\n",
            human::bytes(memory),
            human::bytes(size)
        ));
        let empty = start(home.path(), "empty", nodes.last().map(|(_, node)| node), memory).await?;
        let told = self.tell(output, &empty, &model).await?;
        let names = nodes.iter().map(|(name, node)| (node.peer_id(), *name)).collect();
        show(output, &told, &names)?;
        for (_, node) in &nodes {
            node.stop().await;
        }
        empty.stop().await;
        output.note(
            "\nWhat next: `surf-node join` runs a node; `surf-node publish FOLDER` gives it a model; on another\n\
             machine `surf-node join --bootstrap ADDRESS` and `surf-node generate MODEL -p TEXT` run it there.",
        );
        Ok(())
    }

    async fn tell(&self, output: &Output, node: &Node, model: &str) -> Result<Told, CliError> {
        let message = Message { role: "user".to_owned(), content: self.prompt.clone() };
        let prompt = Prompt::Chat(vec![message]);
        let request = Request { max_tokens: Some(self.max_tokens), ..Request::new(prompt) };
        let started = Instant::now();
        let mut generation = node.generate(model, request).await.map_err(failed)?;
        let mut first_ms = None;
        while let Some(event) = generation.next().await {
            match event {
                Event::Token(token) => {
                    first_ms.get_or_insert_with(|| started.elapsed().as_secs_f64() * 1e3);
                    if output.json {
                        output.object(&json!({"event": "token", "id": token.id, "text": token.text}))?;
                    } else {
                        output.piece(&token.text)?;
                    }
                }
                Event::Done(done) => {
                    if !output.json {
                        output.piece(&done.text)?;
                    }
                    break;
                }
                Event::Prompt(_) => (),
                Event::Failed(error) => return Err(CliError::failed(error.to_string())),
            }
        }
        if !output.json {
            output.text("\n\n")?;
        }
        let (cache, journal) = (generation.cache(), node.journal().entries());
        Ok(Told { first_ms: first_ms.unwrap_or(f64::NAN), cache, journal })
    }
}

/// How the story was told.
struct Told {
    first_ms: f64,
    cache: CacheStats,
    journal: Vec<Entry>,
}

fn show(output: &Output, told: &Told, names: &BTreeMap<String, &str>) -> Result<(), CliError> {
    let mut came: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut last, mut layer_0) = (0, None);
    for entry in &told.journal {
        match &entry.event {
            journal::Event::ChunkArrived { bytes, from, .. }
            | journal::Event::RangeArrived { bytes, from, .. } => {
                *came.entry(from).or_default() += bytes;
                last = entry.at_us;
            }
            journal::Event::GroupComputed { group, .. } if group == "layer 0" => {
                layer_0.get_or_insert(entry.at_us);
            }
            _ => (),
        }
    }
    let peer = |id: &str| names.get(id).map_or(id, |name| name).to_owned();
    let sources: Vec<(String, u64)> = came.iter().map(|(key, bytes)| (peer(key), *bytes)).collect();
    if output.json {
        let sources: Vec<_> =
            sources.iter().map(|(peer, bytes)| json!({"peer": peer, "bytes": bytes})).collect();
        return output.object(&json!({
            "event": "done", "ttft_ms": told.first_ms, "sources": sources, "cache": told.cache,
            "layer_0_computed_us": layer_0, "last_chunk_arrived_us": last,
        }));
    }
    let mut text = format!("First token after {}.\n", human::seconds(told.first_ms / 1e3));
    if let Some(layer_0) = layer_0.filter(|&at| at < last) {
        let ahead = human::seconds((last - layer_0) as f64 / 1e6);
        text.push_str(&format!("The first layer was computed {ahead} before the last chunk arrived.\n"));
    }
    text.push_str("\nWhere the bytes came from:\n");
    for (peer, bytes) in &sources {
        text.push_str(&format!("  {peer:<10} {:>10}\n", human::bytes(*bytes)));
    }
    text.push_str(&format!("\nIn {} passes over the layers, each was\n", told.cache.passes));
    text.push_str("              in memory  come in time  waited for\n");
    for group in &told.cache.per_group {
        let (name, bytes) = (&group.group, human::bytes(group.bytes));
        let counts = format!("{:>9}  {:>12}  {:>10}", group.hits, group.ready, group.misses);
        text.push_str(&format!("  {name:<10}  {counts}  ({bytes})\n"));
    }
    output.text(&text)
}

async fn publish(output: &Output, node: &Node, folder: &Path) -> Result<String, CliError> {
    let path = folder.display().to_string();
    let name = Some("tiny-surfer".to_owned());
    let request = PublishRequest { path, name, ..PublishRequest::default() };
    let published = node.publish(request, mpsc::channel(1).0).await.map_err(failed)?;
    output.note(&format!(
        "Published tiny-surfer: {} in {} chunks, as {}",
        human::bytes(published.bytes),
        published.chunks,
        published.model
    ));
    Ok(published.model)
}

async fn start(home: &Path, name: &str, through: Option<&Node>, memory: u64) -> Result<Node, CliError> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let dir = home.join(name);
    let config = Config {
        store: config::Store { dir: dir.join("store"), quota: 1 << 30, scrub: None },
        data_dir: dir,
        members: Members::default(),
        swarm: config::Swarm {
            listen: vec![any],
            bootstrap: through.map(|node| node.listen().to_vec()).unwrap_or_default(),
            mdns: false,
            relay: config::Relay::default(),
        },
        transfer: config::Transfer { listen: any, limits: config::Limits::default() },
        fetch: config::Fetch::default(),
        engine: config::Engine { memory, device: config::Device::Cpu, dtype: config::Precision::Auto },
        rpc: config::Rpc { listen: any, token: None },
    };
    Node::start(config)
        .await
        .map_err(|error| CliError::failed(format!("the {name} node did not start: {error}")))
}

fn write_model(folder: &Path) -> Result<(), CliError> {
    let failed = |error| CliError::failed(format!("{} cannot be written: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    MODEL.iter().try_for_each(|(name, bytes)| fs::write(folder.join(name), bytes)).map_err(failed)
}

fn failed(error: NodeError) -> CliError {
    CliError::failed(error.to_string())
}
