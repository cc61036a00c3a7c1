//! `surf-sim run`, `surf-sim scale` and `surf-sim soak`.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use surf_node::config::{Rate, Size, Span};
use surf_sim::{
    bench::Failed,
    run::{self, Report},
    scale::{self, Options},
    scenario::Scenario,
    soak,
};

/// Which scenario, how often, and where the results go.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// A file, or the name of a scenario that comes along: single, herd, herd-in-order, four-seeds, churn,
    /// partition, liars, stallers, mixed-links, disk-full, crowd-1000.
    scenario: String,
    /// How many seeds.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Where to write everything as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to draw nodes finished and bytes of the seeds over time.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Where to write every event of the last seed.
    #[arg(long)]
    events: Option<PathBuf>,
}

impl Run {
    pub(crate) fn execute(&self) -> Result<(), Failed> {
        let scenario = Scenario::open(&self.scenario).map_err(|error| Failed(error.to_string()))?;
        let run = run::Run::new(scenario);
        let seeds = self.from..self.from + self.seeds.max(1);
        let last = seeds.end - 1;
        let mut outcomes = Vec::new();
        for seed in seeds {
            let events = if seed == last { self.events.as_deref().map(events).transpose()? } else { None };
            outcomes.push(run.seed(seed, events).map_err(|breach| Failed(breach.to_string()))?);
        }
        let report = Report::new(run.scenario(), outcomes);
        println!("{report}");
        if let Some(path) = &self.json {
            json(path, &report)?;
        }
        if let Some(path) = &self.svg {
            write(path, &run::plot(&report).map_err(|error| Failed::to("draw the report", error))?)?;
        }
        Ok(())
    }
}

/// A swarm of a size that cannot be simulated.
#[derive(clap::Args)]
pub(crate) struct Scale {
    /// Nodes in the swarm. Several, with commas between, give a row each.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000, 100_000])]
    nodes: Vec<usize>,
    /// Bytes of the model that everyone wants.
    #[arg(long, default_value = "14GB")]
    model: Size,
    /// Bytes in a chunk.
    #[arg(long, default_value = "2MiB")]
    chunk: Size,
    /// What leaves and reaches each node.
    #[arg(long, default_value = "100Mbit")]
    rate: Rate,
    /// Bytes that each node holds and announces, in models of that size.
    #[arg(long, default_value = "100GB")]
    held: Size,
    /// A round trip in the DHT.
    #[arg(long, default_value = "50ms")]
    round_trip: Span,
    /// Others that a node asks for chunks.
    #[arg(long, default_value_t = 40)]
    neighbours: usize,
    /// Sizes with which the real code is run to calibrate.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32])]
    measured: Vec<usize>,
    /// Seeds with which each of these is run.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Where to write everything as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to draw messages and times over the size.
    #[arg(long)]
    svg: Option<PathBuf>,
}

impl Scale {
    pub(crate) fn execute(self) -> Result<(), Failed> {
        let nodes_max = 10_000_000;
        let sizes = self.nodes.iter().chain(&self.measured);
        if let Some(size) = sizes.into_iter().find(|size| !(1..=nodes_max).contains(*size)) {
            return Err(Failed(format!("{size} nodes where 1 to {nodes_max} can be worked out")));
        }
        let options = Options {
            nodes: self.nodes,
            model: self.model.of(0).max(1),
            chunk: self.chunk.of(0).max(1),
            rate: self.rate.bytes_per_s,
            held: self.held.of(0),
            round_trip_s: self.round_trip.0.as_secs_f64(),
            neighbours: self.neighbours.max(1),
            measured: self.measured,
            seeds: self.seeds.max(1),
        };
        let report = scale::run(&options).map_err(|breach| Failed(breach.to_string()))?;
        println!("{report}");
        if let Some(path) = &self.json {
            json(path, &report)?;
        }
        if let Some(path) = &self.svg {
            write(path, &scale::plot(&report).map_err(|error| Failed::to("draw the report", error))?)?;
        }
        Ok(())
    }
}

fn json(path: &Path, report: &impl serde::Serialize) -> Result<(), Failed> {
    let text = serde_json::to_string_pretty(report);
    write(path, &text.map_err(|error| Failed::to("write the report", error))?)
}

fn events(path: &Path) -> Result<Box<dyn Write + Send>, Failed> {
    let file = File::create(path).map_err(|error| Failed::to(&format!("write {}", path.display()), error))?;
    Ok(Box::new(BufWriter::new(file)))
}

fn write(path: &Path, text: &str) -> Result<(), Failed> {
    fs::write(path, text).map_err(|error| Failed::to(&format!("write {}", path.display()), error))
}

/// How long, and of what.
#[derive(clap::Args)]
pub(crate) struct Soak {
    /// Minutes of each phase.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Equal phases; growth is told from the end of the second to the end of the last.
    #[arg(long, default_value_t = 5)]
    phases: usize,
    /// Seed of the dice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A small model that can run.
    #[arg(long, default_value = "node/assets/tiny-surfer")]
    model: PathBuf,
    /// Folder for everything.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// `surf-node`; by default the one beside this program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Soak {
    pub(crate) async fn execute(self) -> Result<(), Failed> {
        let program = match self.program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("surf-node"),
        };
        let phase = std::time::Duration::try_from_secs_f64(self.minutes * 60.0)
            .map_err(|error| Failed::to("take that for minutes", error))?;
        let Self { phases, seed, model, dir, json, .. } = self;
        let options = soak::Options { program, model, dir, phase, phases, seed };
        let report = soak::run(&options, |said| eprintln!("{said}")).await?;
        if json {
            let text =
                serde_json::to_string(&report).map_err(|error| Failed::to("write the report", error))?;
            println!("{text}");
        } else {
            println!("{report}");
        }
        if report.pass { Ok(()) } else { Err(Failed("something grew, or a text was wrong".to_owned())) }
    }
}
