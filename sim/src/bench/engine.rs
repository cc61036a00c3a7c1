//! The program runs a Llama of a given shape with random weights: first token, tokens per second and
//! memory, with all weights in memory and with a share of it. Beside it, where Python has it,
//! transformers runs the same folder with the same threads.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use surf_node::{
    Config, Node,
    api::PublishRequest,
    config,
    engine::{Event, Prompt, Request},
    members::Members,
};
use tokio::sync::mpsc;

use super::{Failed, median, process};

/// A Llama.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shape {
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub shape: Shape,
    /// Tokens in the prompt.
    pub prompt: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// How many times. Medians are reported.
    pub rounds: usize,
    /// Folder for the model and the nodes' data.
    pub dir: PathBuf,
    /// This program: each run is a process of its own, so that its memory is its own.
    pub this: PathBuf,
    /// A Python that has transformers, if one is to be compared with.
    pub python: Option<PathBuf>,
    /// The memory that the second run may use, as a share of the weights.
    pub share: f64,
}

/// One way of running the model, measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// Seconds from the request to the first token.
    pub first_token_s: f64,
    /// Tokens per second after the first.
    pub tokens_per_s: f64,
    /// Bytes of memory at the end, mapped files aside.
    pub resident: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model.
    pub shape: Shape,
    /// Bytes of its weights, in bf16.
    pub weights: u64,
    /// Each way of running it.
    pub runs: BTreeMap<String, Run>,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report, Failed> {
    let work = tempfile::tempdir_in(&options.dir)?;
    let model = work.path().join("model");
    let weights = write_model(&model, &options.shape)?;
    let share = (weights as f64 * options.share) as u64;
    let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    let partly = format!("{:.0} % memory", options.share * 100.0);
    for round in 0..options.rounds {
        for (name, memory) in [("resident", weights * 4), (&partly, share)] {
            let data = work.path().join("data");
            let run = ours(options, &model, &data, memory)?;
            eprintln!("round {round}: surf-node, {name}: {run:?}");
            runs.entry(format!("surf-node, {name}")).or_default().push(run);
        }
        if let Some(python) = &options.python {
            for (name, memory) in [("resident", None), (&partly, Some(share))] {
                let run = theirs(options, python, &model, memory)?;
                eprintln!("round {round}: transformers, {name}: {run:?}");
                runs.entry(format!("transformers, {name}")).or_default().push(run);
            }
        }
    }
    let middle = |runs: Vec<Run>| Run {
        first_token_s: median(runs.iter().map(|run| run.first_token_s).collect()),
        tokens_per_s: median(runs.iter().map(|run| run.tokens_per_s).collect()),
        resident: runs.iter().map(|run| run.resident).max().unwrap_or(0),
    };
    let runs = runs.into_iter().map(|(name, runs)| (name, middle(runs))).collect();
    Ok(Report { shape: options.shape, weights, runs })
}

/// Runs the model in this process: published with a copy, as a node has what it pulled.
pub async fn generate(
    model: &Path,
    data: &Path,
    memory: u64,
    prompt: usize,
    tokens: usize,
) -> Result<Run, Failed> {
    let failed = |what: &'static str| move |error: surf_node::node::NodeError| Failed::to(what, error);
    let node = Node::start(settings(data, memory)).await.map_err(|error| Failed::to("start", error))?;
    let path = model.display().to_string();
    let request = PublishRequest { path, copy: true, ..PublishRequest::default() };
    let published = node.publish(request, mpsc::channel(1).0).await.map_err(failed("publish"))?;
    // Once for whatever is done once: reading the files, finding the memory.
    timed(&node, &published.model, 4, 2).await?;
    let (first_token_s, tokens_per_s) = timed(&node, &published.model, prompt, tokens).await?;
    Ok(Run { first_token_s, tokens_per_s, resident: process::resident(std::process::id()) })
}

async fn timed(node: &Node, model: &str, prompt: usize, tokens: usize) -> Result<(f64, f64), Failed> {
    let ids = (0..prompt as u32).map(|at| 3 + at * 7 % 1000).collect();
    let request = Request { max_tokens: Some(tokens), ignore_eos: true, ..Request::new(Prompt::Tokens(ids)) };
    let started = tokio::time::Instant::now();
    let generation = node.generate(model, request).await;
    let mut generation = generation.map_err(|error| Failed::to("generate", error))?;
    let (mut first, mut came) = (None, 0);
    while let Some(event) = generation.next().await {
        match event {
            Event::Token(_) => {
                first.get_or_insert_with(|| started.elapsed().as_secs_f64());
                came += 1;
            }
            Event::Failed(error) => return Err(Failed::to("generate", error)),
            Event::Done(_) => break,
            Event::Prompt(_) => (),
        }
    }
    let first = first.ok_or_else(|| Failed("no token came".to_owned()))?;
    Ok((first, f64::from(came - 1) / (started.elapsed().as_secs_f64() - first)))
}

fn settings(dir: &Path, memory: u64) -> Config {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        data_dir: dir.to_owned(),
        store: config::Store { dir: dir.join("store"), quota: u64::MAX, scrub: None },
        members: Members::default(),
        swarm: config::Swarm {
            listen: vec![any],
            bootstrap: Vec::new(),
            mdns: false,
            relay: config::Relay::default(),
        },
        transfer: config::Transfer { listen: any, limits: config::Limits::default() },
        fetch: config::Fetch::default(),
        engine: config::Engine { memory, device: config::Device::Cpu, dtype: config::Precision::Auto },
        rpc: config::Rpc { listen: any, token: None },
    }
}

fn ours(options: &Options, model: &Path, data: &Path, memory: u64) -> Result<Run, Failed> {
    let mut command = Command::new(&options.this);
    command.args(["bench", "engine-run"]).arg(model).arg(data);
    for number in [memory, options.prompt as u64, options.tokens as u64] {
        command.arg(number.to_string());
    }
    read(command)
}

fn theirs(options: &Options, python: &Path, model: &Path, memory: Option<u64>) -> Result<Run, Failed> {
    let mut command = Command::new(python);
    command.arg("-c").arg(include_str!("transformers.py")).arg(model);
    command.args([options.prompt.to_string(), options.tokens.to_string()]);
    command.arg(memory.unwrap_or(0).to_string());
    read(command)
}

fn read(mut command: Command) -> Result<Run, Failed> {
    let output = command.output().map_err(|error| Failed::to(&format!("run {command:?}"), error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| Failed(String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Writes a folder as `save_pretrained` does, in bf16. Returns the bytes of the weights.
pub(crate) fn write_model(dir: &Path, shape: &Shape) -> Result<u64, Failed> {
    fs::create_dir_all(dir)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocab,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    let tensors = tensors(shape);
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, dims) in &tensors {
        let size = 2 * dims.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + size]}),
        );
        offset += size;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(fs::File::create(dir.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut dice = ChaCha8Rng::seed_from_u64(1);
    for (name, dims) in &tensors {
        write_tensor(&mut file, &mut dice, name.ends_with("norm.weight"), dims)?;
    }
    file.flush()?;
    Ok(offset as u64)
}

/// Norms are ones; everything else is even noise, scaled so that activations keep their size.
fn write_tensor(
    out: &mut impl Write,
    dice: &mut ChaCha8Rng,
    norm: bool,
    dims: &[usize],
) -> std::io::Result<()> {
    let elements: usize = dims.iter().product();
    let scale = 1.7 / (dims.last().copied().unwrap_or(1) as f32).sqrt();
    let bf16 = |value: f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
    let mut row = Vec::with_capacity(1 << 16);
    for at in 0..elements {
        let value = if norm { 1.0 } else { (dice.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0) * scale };
        row.extend_from_slice(&bf16(value));
        if row.len() == row.capacity() || at + 1 == elements {
            out.write_all(&row)?;
            row.clear();
        }
    }
    Ok(())
}

fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let head = shape.hidden / shape.heads;
    let (q, kv) = (shape.heads * head, shape.kv_heads * head);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![shape.vocab, shape.hidden])];
    for layer in 0..shape.layers {
        let parts = [
            ("input_layernorm", vec![shape.hidden]),
            ("self_attn.q_proj", vec![q, shape.hidden]),
            ("self_attn.k_proj", vec![kv, shape.hidden]),
            ("self_attn.v_proj", vec![kv, shape.hidden]),
            ("self_attn.o_proj", vec![shape.hidden, q]),
            ("post_attention_layernorm", vec![shape.hidden]),
            ("mlp.gate_proj", vec![shape.intermediate, shape.hidden]),
            ("mlp.up_proj", vec![shape.intermediate, shape.hidden]),
            ("mlp.down_proj", vec![shape.hidden, shape.intermediate]),
        ];
        tensors.extend(parts.map(|(part, dims)| (format!("model.layers.{layer}.{part}.weight"), dims)));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![shape.hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![shape.vocab, shape.hidden]));
    tensors
}
