//! `surf-sim`: simulated swarms, and measurements of real nodes.

mod commands;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use surf_sim::bench::{self, Failed};

/// Simulated swarms, and measurements of real nodes.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a scenario on a simulated network, once for each seed.
    Run(commands::Run),
    /// Works out what a swarm of a size that cannot be simulated would cost and take.
    Scale(commands::Scale),
    /// Measures real nodes.
    #[command(subcommand)]
    Bench(Bench),
    /// Three real nodes at work for hours: does anything grow?
    Soak(commands::Soak),
    #[cfg(target_os = "linux")]
    #[command(subcommand)]
    Lab(surf_sim::lab::cli::Command),
}

#[derive(Subcommand)]
enum Bench {
    /// A file over loopback, beside bare quinn.
    Transfer {
        /// MiB to move.
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// How many times; medians are reported.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Folder for the files.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// `surf-node`; by default the one beside this program.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// A Llama with random weights in bf16, beside transformers.
    Engine {
        /// Blocks.
        #[arg(long, default_value_t = 22)]
        layers: usize,
        /// Width of the residual stream.
        #[arg(long, default_value_t = 2048)]
        hidden: usize,
        /// Width inside the MLP.
        #[arg(long, default_value_t = 5632)]
        intermediate: usize,
        /// Query heads.
        #[arg(long, default_value_t = 32)]
        heads: usize,
        /// Key and value heads.
        #[arg(long, default_value_t = 4)]
        kv_heads: usize,
        /// Tokens in the vocabulary.
        #[arg(long, default_value_t = 32000)]
        vocab: usize,
        /// Tokens in the prompt.
        #[arg(long, default_value_t = 128)]
        prompt: usize,
        /// Tokens generated.
        #[arg(long, default_value_t = 32)]
        tokens: usize,
        /// How many times; medians are reported.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Folder for the model.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// A Python that has torch, transformers and accelerate, to compare with.
        #[arg(long)]
        python: Option<PathBuf>,
    },
    /// How fast weights of each format are multiplied, on one thread and out of its caches.
    Kernels {
        /// Part of a format's name, such as q4.
        #[arg(default_value = "")]
        format: String,
        /// The portable code too, which is slow.
        #[arg(long)]
        portable: bool,
        /// JSON in place of a table.
        #[arg(long)]
        json: bool,
    },
    /// Who has what, in a swarm of real control planes on loopback.
    Lookup {
        /// Nodes in the swarm.
        #[arg(long, default_value_t = 32)]
        nodes: usize,
        /// Nodes that join and look up.
        #[arg(long, default_value_t = 10)]
        fresh: usize,
        /// Keys that each of those looks up.
        #[arg(long, default_value_t = 20)]
        lookups: usize,
        /// Keys that each node of the swarm announces besides its model's.
        #[arg(long, default_value_t = 20)]
        keys: usize,
    },
    #[command(hide = true)]
    QuinnServe { file: PathBuf },
    #[command(hide = true)]
    QuinnGet { addr: SocketAddr, peer: String },
    #[command(hide = true)]
    EngineRun { model: PathBuf, data: PathBuf, memory: u64, prompt: usize, tokens: usize },
}

fn main() -> ExitCode {
    surf_node::engine::enter_sandbox();
    let result = match Args::parse().command {
        Command::Run(run) => run.execute(),
        Command::Scale(scale) => scale.execute(),
        Command::Bench(command) => measure(command),
        Command::Soak(soak) => asynchronous(soak.execute()),
        #[cfg(target_os = "linux")]
        Command::Lab(command) => surf_sim::lab::cli::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(command: Bench) -> Result<(), Failed> {
    let this = std::env::current_exe()?;
    match command {
        Bench::Transfer { mib, rounds, dir, program } => {
            let program = program.unwrap_or_else(|| this.with_file_name("surf-node"));
            let options = bench::transfer::Options { program, this, size: mib << 20, rounds, dir };
            print(&bench::transfer::run(&options)?)
        }
        Bench::Engine {
            layers,
            hidden,
            intermediate,
            heads,
            kv_heads,
            vocab,
            prompt,
            tokens,
            rounds,
            dir,
            python,
        } => {
            let shape = bench::engine::Shape { layers, hidden, intermediate, heads, kv_heads, vocab };
            let options =
                bench::engine::Options { shape, prompt, tokens, rounds, dir, this, python, share: 0.3 };
            print(&bench::engine::run(&options)?)
        }
        Bench::Kernels { format, portable, json } => {
            let report = bench::kernels::run(&format.to_lowercase(), portable);
            if json {
                return print(&report);
            }
            println!("{report}");
            Ok(())
        }
        Bench::Lookup { nodes, fresh, lookups, keys } => {
            let options = bench::lookup::Options { nodes, fresh, lookups, keys };
            print(&asynchronous(bench::lookup::run(&options))?)
        }
        Bench::QuinnServe { file } => asynchronous(bench::quinn::serve(&file)),
        Bench::QuinnGet { addr, peer } => {
            let peer = surf_protocol::NodeId::from_peer_id(&peer)
                .ok_or_else(|| Failed(format!("{peer} is no peer id")))?;
            let (bytes, seconds) = asynchronous(bench::quinn::get(addr, peer))?;
            let cpu_s = bench::process::cpu_seconds(std::process::id());
            print(&serde_json::json!({"bytes": bytes, "seconds": seconds, "cpu_s": cpu_s}))
        }
        Bench::EngineRun { model, data, memory, prompt, tokens } => {
            print(&asynchronous(bench::engine::generate(&model, &data, memory, prompt, tokens))?)
        }
    }
}

fn asynchronous<T>(work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

fn print(report: &impl serde::Serialize) -> Result<(), Failed> {
    let text = serde_json::to_string(report).map_err(|error| Failed::to("write the report", error))?;
    println!("{text}");
    Ok(())
}
