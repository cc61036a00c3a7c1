//! The program moves a file over loopback: published by one process, pulled, verified and kept by
//! another. Beside it, in the same run, bare quinn moves the same bytes.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;

use super::{
    Failed, median,
    process::{Watch, cpu_seconds},
    write_noise,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program, as a path to `surf-node`.
    pub program: PathBuf,
    /// This program, for the processes of bare quinn.
    pub this: PathBuf,
    /// Bytes to move.
    pub size: u64,
    /// How many times, after once to warm up. Medians are reported.
    pub rounds: usize,
    /// Folder for the files, on the disk to measure.
    pub dir: PathBuf,
}

/// What was measured: medians over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Bytes moved in each round.
    pub bytes: u64,
    /// Seconds to publish: cut, hash and index.
    pub publish_s: f64,
    /// Seconds to pull: fetched, verified and kept.
    pub pull_s: f64,
    /// Seconds that bare quinn takes for the same bytes, to nowhere.
    pub quinn_s: f64,
    /// `quinn_s / pull_s`.
    pub of_quinn: f64,
    /// CPU seconds per GiB of the publisher while it serves.
    pub cpu_send: f64,
    /// CPU seconds per GiB of the puller.
    pub cpu_receive: f64,
    /// CPU seconds per GiB of bare quinn, both ends.
    pub cpu_quinn: f64,
    /// Seconds that it takes to write as many bytes to new files, and nothing else.
    pub write_s: f64,
    /// CPU seconds per GiB of that.
    pub cpu_write: f64,
    /// Most bytes of memory of the publisher while it publishes, mapped files aside.
    pub memory_publish: u64,
    /// Most bytes of memory of the publisher while it serves.
    pub memory_send: u64,
    /// Most bytes of memory of the puller.
    pub memory_receive: u64,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report, Failed> {
    let work = tempfile::tempdir_in(&options.dir)?;
    let folder = work.path().join("model");
    fs::create_dir(&folder)?;
    let file = folder.join("weights.bin");
    write_noise(&file, b"surf-sim bench", options.size)?;
    let mut rounds = Vec::new();
    // The first round does not count: the memory of a virtual machine that nobody has used yet costs its host a fault a
    // page, seconds for a GiB, which whatever comes later does not pay.
    for round in 0..=options.rounds {
        settle();
        let mut report = pull(options, &work.path().join(format!("round-{round}")), &folder)?;
        settle();
        quinn(options, &file, &mut report)?;
        write(options, work.path(), &mut report)?;
        let counts = if round == 0 { ", to warm up" } else { "" };
        eprintln!(
            "round {round}{counts}: pull {:.2} s, quinn {:.2} s, ratio {:.2}",
            report.pull_s,
            report.quinn_s,
            report.quinn_s / report.pull_s
        );
        if round != 0 {
            rounds.push(report);
        }
    }
    let middle = |field: fn(&Report) -> f64| median(rounds.iter().map(field).collect());
    let most = |field: fn(&Report) -> u64| rounds.iter().map(field).max().unwrap_or(0);
    Ok(Report {
        bytes: options.size,
        publish_s: middle(|r| r.publish_s),
        pull_s: middle(|r| r.pull_s),
        quinn_s: middle(|r| r.quinn_s),
        of_quinn: middle(|r| r.quinn_s / r.pull_s),
        cpu_send: middle(|r| r.cpu_send),
        cpu_receive: middle(|r| r.cpu_receive),
        cpu_quinn: middle(|r| r.cpu_quinn),
        write_s: middle(|r| r.write_s),
        cpu_write: middle(|r| r.cpu_write),
        memory_publish: most(|r| r.memory_publish),
        memory_send: most(|r| r.memory_send),
        memory_receive: most(|r| r.memory_receive),
    })
}

/// Lets the disk finish with what was written and deleted, so that nobody pays for those before him.
#[expect(
    clippy::disallowed_methods,
    reason = "processes are measured one after the other; nothing else runs here"
)]
fn settle() {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_secs(3));
}

fn pull(options: &Options, dir: &Path, folder: &Path) -> Result<Report, Failed> {
    let gib = options.size as f64 / (1u64 << 30) as f64;
    let seed = Running::join(&options.program, &dir.join("seed"), None)?;
    let watch = Watch::start(seed.child.id());
    let started = tokio::time::Instant::now();
    let published = seed.command(&options.program, &["publish".as_ref(), folder.as_os_str()])?;
    let publish_s = started.elapsed().as_secs_f64();
    let memory_publish = watch.peak();
    let model = published["model"].as_str().ok_or_else(|| Failed("publish named no model".to_owned()))?;

    let node = Running::join(&options.program, &dir.join("node"), Some(&seed.addr))?;
    let watches = [Watch::start(seed.child.id()), Watch::start(node.child.id())];
    let cpu = || [cpu_seconds(seed.child.id()), cpu_seconds(node.child.id())];
    let before = cpu();
    let pulled = node.command(&options.program, &["pull".as_ref(), model.as_ref()])?;
    let after = cpu();
    let [memory_send, memory_receive] = watches.map(Watch::peak);
    if pulled["fetched_bytes"].as_u64().is_none_or(|fetched| fetched < options.size) {
        return Err(Failed(format!("the pull did not fetch everything: {pulled}")));
    }
    let report = Report {
        bytes: options.size,
        publish_s,
        pull_s: pulled["seconds"].as_f64().unwrap_or(f64::NAN),
        cpu_send: (after[0] - before[0]) / gib,
        cpu_receive: (after[1] - before[1]) / gib,
        memory_publish,
        memory_send,
        memory_receive,
        ..Report::default()
    };
    drop((seed, node));
    fs::remove_dir_all(dir)?;
    Ok(report)
}

fn quinn(options: &Options, file: &Path, report: &mut Report) -> Result<(), Failed> {
    let gib = options.size as f64 / (1u64 << 30) as f64;
    let mut server = Command::new(&options.this)
        .args(["bench", "quinn-serve"])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let line = first_line(&mut server)?.0;
    let (addr, peer) = line.trim().split_once(' ').ok_or_else(|| Failed(format!("quinn said {line:?}")))?;
    let before = cpu_seconds(server.id());
    let client = Command::new(&options.this).args(["bench", "quinn-get", addr, peer]).output()?;
    let served = cpu_seconds(server.id()) - before;
    server.kill()?;
    server.wait()?;
    let said: Value = serde_json::from_slice(&client.stdout).map_err(|error| Failed::to("read", error))?;
    report.quinn_s = said["seconds"].as_f64().unwrap_or(f64::NAN);
    report.cpu_quinn = (served + said["cpu_s"].as_f64().unwrap_or(f64::NAN)) / gib;
    Ok(())
}

/// What the disk's part of a pull costs by itself: files of a chunk's size, one after the other.
fn write(options: &Options, work: &Path, report: &mut Report) -> Result<(), Failed> {
    const CHUNK: usize = 2 << 20;
    let folder = work.join("written");
    fs::create_dir(&folder)?;
    let bytes = vec![7; CHUNK];
    let (started, before) = (tokio::time::Instant::now(), cpu_seconds(std::process::id()));
    for at in 0..options.size / CHUNK as u64 {
        fs::write(folder.join(at.to_string()), &bytes)?;
    }
    report.write_s = started.elapsed().as_secs_f64();
    let gib = options.size as f64 / (1u64 << 30) as f64;
    report.cpu_write = (cpu_seconds(std::process::id()) - before) / gib;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A `surf-node` that runs. Killed when dropped.
struct Running {
    child: Child,
    addr: String,
    rpc: String,
    _stdout: BufReader<ChildStdout>,
}

impl Running {
    fn join(program: &Path, dir: &Path, bootstrap: Option<&str>) -> Result<Self, Failed> {
        let mut command = Command::new(program);
        command.args(["--json", "join", "--no-mdns", "--listen", "127.0.0.1:0"]);
        command.args(["--transfer", "127.0.0.1:0", "--rpc", "127.0.0.1:0", "--data-dir"]).arg(dir);
        if let Some(addr) = bootstrap {
            command.args(["--bootstrap", addr]);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failed::to(&format!("start {}", program.display()), error))?;
        let (line, stdout) = first_line(&mut child)?;
        let ready: Value = serde_json::from_str(&line).map_err(|error| Failed::to("join", error))?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self { child, addr: word(&ready["listen"][0]), rpc: word(&ready["rpc"]), _stdout: stdout })
    }

    /// Runs a command of the program against this node. Returns the last line it prints.
    fn command(&self, program: &Path, args: &[&std::ffi::OsStr]) -> Result<Value, Failed> {
        let mut command = Command::new(program);
        let output = command.args(["--json", "--rpc", &self.rpc]).args(args).output()?;
        if !output.status.success() {
            return Err(Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).map_err(|error| Failed::to("read the answer", error))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn first_line(child: &mut Child) -> Result<(String, BufReader<ChildStdout>), Failed> {
    let stdout = child.stdout.take().ok_or_else(|| Failed("no standard output".to_owned()))?;
    let mut reader = BufReader::new(stdout);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok((line, reader))
}
