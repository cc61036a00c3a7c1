//! The commands of `surf-sim lab`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use surf_protocol::{ChunkId, NodeId};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Lab, Options, figures,
    flood::{Flood, Manners, Wanted},
    net::Rate,
    relay,
    report::Report,
    rogue,
};
use crate::bench::Failed;

/// What every figure can be told.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// MiB to move.
    #[arg(long)]
    mib: Option<u64>,
    /// What every link carries in each direction, as `tc` writes it; 0 for no limit.
    #[arg(long)]
    rate: Option<Rate>,
    /// How many times; medians are reported.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// `surf-node`; by default the one beside this program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Writes everything measured as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws what came when.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Where to look for other programs (nginx, aria2c, curl, sendme, rqbit, and a Python with
    /// libtorrent), before PATH.
    #[arg(long)]
    peers: Option<PathBuf>,
    /// Those to compare with, of nginx, libtorrent, sendme, rqbit; `none` for none. By default all
    /// that are found.
    #[arg(long, value_delimiter = ',')]
    compare: Option<Vec<String>>,
    /// Folder for everything that is written on the way.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

/// Figures of real nodes in a network of namespaces. Takes root, `ip` and `tc`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One host has a file, another wants it.
    One(Common),
    /// One host has a file, others want it all at once.
    Crowd(Crowd),
    /// One host has a model, others generate from it all at once, without having any of it.
    Inference(Crowd),
    /// Four hosts with slow links have a file, one wants it.
    FourSeeds(FourSeeds),
    /// One file over the loopback of one host, beside bare quinn and sendme.
    Loopback(Common),
    /// One host has a file, another wants it, over a long and lossy way.
    Lossy(Lossy),
    /// The receiver is killed half-way and started again.
    Resume(Common),
    /// Peers that mean no good, links that are cut, and seeds that are killed, as seeds decide.
    Chaos(Chaos),
    /// What somebody without the key of a private swarm gets from it.
    Outsider(Common),
    /// Removes what killed labs left behind.
    Clean,
    /// Delays and drops packets, on a host between two others.
    #[command(hide = true)]
    Relay(relay::Manner),
    /// Speaks the protocol and means no good.
    #[command(hide = true)]
    Rogue(Rogue),
    /// Strangers that ask a node for much and read nothing.
    #[command(hide = true)]
    Flood(FloodArgs),
    /// Tries what somebody without a key can.
    #[command(hide = true)]
    OutsiderProbe(figures::outsider::Known),
}

/// One host has something that others want.
#[derive(Clone, Debug, Args)]
pub struct Crowd {
    /// How many want it.
    #[arg(long, default_value_t = 8)]
    nodes: usize,
    #[command(flatten)]
    common: Common,
}

/// Four hosts have something that one wants.
#[derive(Clone, Debug, Args)]
pub struct FourSeeds {
    /// What the link of each of the four carries.
    #[arg(long, default_value = "25mbit")]
    seed_rate: Rate,
    /// Kills everything on one of them when half has come.
    #[arg(long)]
    kill: bool,
    #[command(flatten)]
    common: Common,
}

/// How the way between two hosts treats packets.
#[derive(Clone, Debug, Args)]
pub struct Lossy {
    /// Milliseconds there and back.
    #[arg(long, default_value_t = 50.0)]
    round_trip_ms: f64,
    /// Milliseconds that a packet may take longer.
    #[arg(long, default_value_t = 0.0)]
    jitter_ms: f64,
    /// The share of packets that are lost, each way.
    #[arg(long, default_value_t = 0.01)]
    loss: f64,
    #[command(flatten)]
    common: Common,
}

/// How much chaos.
#[derive(Clone, Debug, Args)]
pub struct Chaos {
    /// How many runs.
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// The seed of the first; the others follow.
    #[arg(long, default_value_t = 0)]
    first: u64,
    #[command(flatten)]
    common: Common,
}

/// A rogue.
#[derive(Clone, Debug, Args)]
pub struct Rogue {
    /// What is wrong with it: `lies`, `stalls`, `hangs-up` or `boasts`.
    #[arg(long)]
    manner: rogue::Manner,
    /// Its control plane.
    #[arg(long)]
    listen: SocketAddr,
    /// Its data plane.
    #[arg(long)]
    transfer: SocketAddr,
    /// Nodes to join through.
    #[arg(long)]
    bootstrap: Vec<String>,
    /// The folder of the model that it claims to have.
    folder: PathBuf,
}

/// Strangers that ask a node for much and read nothing.
#[derive(Clone, Debug, Args)]
pub struct FloodArgs {
    /// Whom they ask: its peer id.
    #[arg(long)]
    peer: String,
    /// Where its data plane is.
    #[arg(long)]
    addr: SocketAddr,
    /// How many there are.
    #[arg(long, default_value_t = 50)]
    strangers: usize,
    /// Connections of each.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Bytes a second that each stream takes.
    #[arg(long, default_value_t = 0)]
    takes: u64,
    /// They ask for the first so many bytes of each chunk, with a proof, and not for the chunk.
    #[arg(long)]
    ranges: Option<u32>,
    /// The chunks that they ask for.
    #[arg(required = true)]
    chunks: Vec<String>,
}

/// Runs a command. On SIGINT, SIGTERM and SIGHUP everything that it made is removed first.
pub fn run(command: Command) -> Result<(), Failed> {
    let common = match &command {
        Command::One(common)
        | Command::Loopback(common)
        | Command::Resume(common)
        | Command::Outsider(common)
        | Command::Crowd(Crowd { common, .. })
        | Command::Inference(Crowd { common, .. })
        | Command::FourSeeds(FourSeeds { common, .. })
        | Command::Lossy(Lossy { common, .. })
        | Command::Chaos(Chaos { common, .. }) => common.clone(),
        Command::Relay(manner) => return relay::run(manner),
        Command::Rogue(rogue) => return runtime()?.block_on(rogue.run()),
        Command::Flood(flood) => return runtime()?.block_on(flood.run()),
        Command::OutsiderProbe(known) => return runtime()?.block_on(figures::outsider::look(known)),
        Command::Clean => {
            super::net::sweep();
            return Ok(());
        }
    };
    let report = runtime()?.block_on(async {
        tokio::select! {
            report = figure(&command, &common) => report,
            stopped = stopped() => Err(stopped),
        }
    })?;
    report.print();
    common.json.as_deref().map_or(Ok(()), |path| report.write_json(path))?;
    common.svg.as_deref().map_or(Ok(()), |path| report.write_svg(path))
}

/// One thread: what is measured needs the others.
fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn figure(command: &Command, common: &Common) -> Result<Report, Failed> {
    let lab = |mib, rate: &str| Lab::new(common.options(mib, rate)?);
    match command {
        Command::One(_) => figures::crowd::run(&lab(128, "100mbit")?, "one", 1).await,
        Command::Crowd(crowd) => figures::crowd::run(&lab(128, "100mbit")?, "crowd", crowd.nodes).await,
        Command::Inference(crowd) => figures::inference::run(&lab(128, "100mbit")?, crowd.nodes).await,
        Command::FourSeeds(four) => {
            figures::seeds::run(&lab(128, "100mbit")?, &four.seed_rate, four.kill).await
        }
        Command::Loopback(_) => figures::loopback::run(&lab(1024, "0")?).await,
        Command::Lossy(lossy) => {
            let manner = relay::Manner {
                delay_ms: lossy.round_trip_ms / 2.0,
                jitter_ms: lossy.jitter_ms,
                loss: lossy.loss,
                seed: 1,
            };
            figures::lossy::run(&lab(128, "100mbit")?, manner).await
        }
        Command::Resume(_) => figures::resume::run(&lab(1024, "1gbit")?).await,
        Command::Chaos(chaos) => figures::chaos::run(&lab(16, "50mbit")?, chaos.runs, chaos.first).await,
        Command::Outsider(_) => figures::outsider::run(&lab(16, "100mbit")?).await,
        Command::Clean
        | Command::Relay(_)
        | Command::Rogue(_)
        | Command::Flood(_)
        | Command::OutsiderProbe(_) => Err(Failed("this measures nothing".to_owned())),
    }
}

impl Rogue {
    async fn run(&self) -> Result<(), Failed> {
        let place =
            rogue::Place { listen: self.listen, transfer: self.transfer, bootstrap: self.bootstrap.clone() };
        rogue::run(self.manner, &place, &self.folder).await
    }
}

impl FloodArgs {
    async fn run(&self) -> Result<(), Failed> {
        let wrong = |what: &str| Failed(format!("{what} is no id"));
        let peer = NodeId::from_peer_id(&self.peer).ok_or_else(|| wrong(&self.peer))?;
        let chunks = self.chunks.iter().map(|text| ChunkId::from_hex(text).ok_or_else(|| wrong(text)));
        let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
        let wanted = match self.ranges {
            Some(bytes) => Wanted::Ranges(chunks, bytes),
            None => Wanted::Chunks(chunks),
        };
        let Self { strangers, connections, takes, .. } = *self;
        let manners = Manners { strangers, connections, takes, wanted };
        let flood = Flood::begin(peer, self.addr, &manners).await?;
        println!("ready {}", flood.len());
        std::future::pending().await
    }
}

impl Common {
    /// With what the figure moves and what its links carry, where nothing else is said.
    fn options(&self, mib: u64, rate: &str) -> Result<Options, Failed> {
        let this = std::env::current_exe()?;
        let program = self.program.clone().unwrap_or_else(|| this.with_file_name("surf-node"));
        let program = program
            .canonicalize()
            .map_err(|error| Failed::to(&format!("find {}", program.display()), error))?;
        Ok(Options {
            size: self.mib.unwrap_or(mib) << 20,
            rate: self.rate.clone().map_or_else(|| rate.parse(), Ok)?,
            rounds: self.rounds,
            program,
            this,
            dir: self.dir.clone(),
            peers: self.peers.clone(),
            compare: self.compare.clone(),
        })
    }
}

/// Returns when the user or the system wants an end.
async fn stopped() -> Failed {
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => (),
        () = wait(SignalKind::terminate()) => (),
        () = wait(SignalKind::hangup()) => (),
    }
    Failed("stopped; everything that was made is removed".to_owned())
}
