//! A node of a soak: the program, driven by its own commands, as a user would.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::bench::{Failed, process};

/// How long a node's live bytes must stay where they are to count as rest.
const STILL: Duration = Duration::from_secs(2);

/// How far they may move meanwhile.
const STILL_BYTES: u64 = 64 << 10;

/// Bytes of metrics. Those of a node with a few peers are some thousands.
const METRICS_SIZE_MAX: u64 = 1 << 20;

/// How long metrics may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a node uses.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Use {
    /// Bytes that the allocator has given out and not got back.
    pub live_bytes: u64,
    /// Bytes of memory, mapped files aside.
    pub anonymous_bytes: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

/// A node. Killed when dropped.
pub(super) struct Node {
    child: Child,
    program: PathBuf,
    rpc: String,
    /// Where others join through it.
    pub(super) addr: String,
}

impl Node {
    pub(super) async fn join(program: &Path, dir: &Path, bootstrap: Option<&str>) -> Result<Self, Failed> {
        let mut command = Command::new(program);
        command.args(["--json", "join", "--no-mdns", "--memory", "64MiB", "--cache-size", "256MiB"]);
        for listen in ["--listen", "--transfer", "--rpc"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.arg("--data-dir").arg(dir);
        if let Some(addr) = bootstrap {
            command.args(["--bootstrap", addr]);
        }
        let log = fs::File::create(dir.with_extension("log"))?;
        let mut child = command.stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).await?;
        }
        let ready: Value = serde_json::from_str(&line).map_err(|error| Failed::to("start a node", error))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            child,
            program: program.to_owned(),
            rpc: text(&ready["rpc"]),
            addr: text(&ready["listen"][0]),
        })
    }

    /// Starts a command against this node.
    pub(super) fn start(&self, args: &[&str]) -> Result<Child, Failed> {
        let mut command = Command::new(&self.program);
        command.args(["--json", "--rpc", &self.rpc]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(command.kill_on_drop(true).spawn()?)
    }

    /// Runs a command; the last line of its output, or null if it failed.
    pub(super) async fn done(&self, args: &[&str]) -> Result<Value, Failed> {
        let output = self.start(args)?.wait_with_output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default())
    }

    /// Removes every model.
    pub(super) async fn forget_everything(&mut self) -> Result<(), Failed> {
        if let Value::Array(models) = self.done(&["models"]).await? {
            for model in models.iter().filter_map(|model| model["model"].as_str()) {
                self.done(&["rm", model]).await?;
            }
        }
        self.done(&["gc"]).await?;
        Ok(())
    }

    /// What it uses once it has come to rest, or after `patience`.
    pub(super) async fn at_rest(&self, patience: Duration) -> Result<Use, Failed> {
        let (begun, mut since, mut before) = (Instant::now(), Instant::now(), self.live_bytes().await?);
        while since.elapsed() < STILL && begun.elapsed() < patience {
            sleep(Duration::from_millis(100)).await;
            let now = self.live_bytes().await?;
            if STILL_BYTES < now.abs_diff(before) {
                (since, before) = (Instant::now(), now);
            }
        }
        let pid = self.child.id().ok_or_else(|| Failed("a node has ended".to_owned()))?;
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        Ok(Use {
            live_bytes: self.live_bytes().await?,
            anonymous_bytes: process::resident(pid),
            files: count("fd"),
            threads: count("task"),
        })
    }

    async fn live_bytes(&self) -> Result<u64, Failed> {
        let host = self.rpc.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        let mut reading = stream.take(METRICS_SIZE_MAX);
        let read = timeout(PATIENCE, reading.read_to_string(&mut answer)).await;
        read.map_err(|_| Failed("the node's metrics do not come".to_owned()))??;
        let value = answer.lines().find_map(|line| line.strip_prefix("surf_memory_live_bytes "));
        let value = value.and_then(|value| value.trim().parse::<f64>().ok());
        value.map(|value| value as u64).ok_or_else(|| {
            Failed("the node does not tell its live bytes: that needs Linux with glibc".to_owned())
        })
    }
}

/// The text of a generation, from the lines that the command printed.
pub(super) fn text(lines: &str) -> String {
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tokens = events.filter(|event| event["event"] == "token");
    tokens.filter_map(|token| token["text"].as_str().map(str::to_owned)).collect()
}
