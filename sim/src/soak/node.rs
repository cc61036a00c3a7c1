//! A node of a soak: the program, driven by its own commands, as a user would.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;

use crate::bench::{Failed, process};

/// How long a node's live bytes must stay where they are to count as rest.
const STILL: Duration = Duration::from_secs(2);

/// How far they may move meanwhile.
const STILL_BYTES: u64 = 64 << 10;

/// Bytes of metrics. Those of a node with a few peers are some thousands.
const METRICS_SIZE_MAX: u64 = 1 << 20;

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
    pub(super) fn join(program: &Path, dir: &Path, bootstrap: Option<&str>) -> Result<Self, Failed> {
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
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
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
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
    }

    /// Runs a command; the last line of its output, or null if it failed.
    pub(super) fn done(&self, args: &[&str]) -> Result<Value, Failed> {
        let output = self.start(args)?.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default())
    }

    /// Removes every model.
    pub(super) fn forget_everything(&mut self) -> Result<(), Failed> {
        if let Value::Array(models) = self.done(&["models"])? {
            for model in models.iter().filter_map(|model| model["model"].as_str()) {
                self.done(&["rm", model])?;
            }
        }
        self.done(&["gc"])?;
        Ok(())
    }

    /// What it uses once it has come to rest, or after `patience`.
    pub(super) fn at_rest(&self, patience: Duration) -> Result<Use, Failed> {
        let (begun, mut since, mut before) = (Instant::now(), Instant::now(), self.live_bytes()?);
        while since.elapsed() < STILL && begun.elapsed() < patience {
            sleep(Duration::from_millis(100));
            let now = self.live_bytes()?;
            if STILL_BYTES < now.abs_diff(before) {
                (since, before) = (Instant::now(), now);
            }
        }
        let pid = self.child.id();
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        Ok(Use {
            live_bytes: self.live_bytes()?,
            anonymous_bytes: process::resident(pid),
            files: count("fd"),
            threads: count("task"),
        })
    }

    fn live_bytes(&self) -> Result<u64, Failed> {
        let host = self.rpc.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(METRICS_SIZE_MAX).read_to_string(&mut answer)?;
        let value = answer.lines().find_map(|line| line.strip_prefix("surf_memory_live_bytes "));
        let value = value.and_then(|value| value.trim().parse::<f64>().ok());
        value.map(|value| value as u64).ok_or_else(|| {
            Failed("the node does not tell its live bytes: that needs Linux with glibc".to_owned())
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The text of a generation, from the lines that the command printed.
pub(super) fn text(lines: &str) -> String {
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tokens = events.filter(|event| event["event"] == "token");
    tokens.filter_map(|token| token["text"].as_str().map(str::to_owned)).collect()
}
