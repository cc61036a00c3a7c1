//! Programs on hosts of a [`Network`]: any program, and `surf-node` with its RPC. All of them are
//! killed when dropped.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout},
};

use super::net::Network;
use crate::bench::Failed;

/// Where a node's RPC listens, on the loopback of its host.
const RPC_PORT: u16 = 8471;

/// Bytes in the head of an answer of the RPC.
const HEAD_SIZE_MAX: usize = 16 << 10;

/// A program on a host. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    pid: u32,
    stdin: Option<ChildStdin>,
    stdout: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `command`, as made by [`Network::command`]. What it says on stderr goes to the file `log`.
    pub fn start(command: std::process::Command, log: &Path) -> Result<Self, Failed> {
        let name = log.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let mut command = tokio::process::Command::from(command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log)?)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| Failed::to(&format!("start {name}"), error))?;
        let missing = || Failed(format!("{name} ended at once"));
        let pid = child.id().ok_or_else(missing)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        Ok(Self { stdin: child.stdin.take(), child, name, pid, stdout })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The next line that it prints.
    pub async fn line(&mut self) -> Result<String, Failed> {
        let line = self.stdout.next_line().await?;
        line.ok_or_else(|| Failed(format!("{} ended without saying what was awaited", self.name)))
    }

    /// The first line that contains `text`. Other lines are passed over.
    pub async fn line_with(&mut self, text: &str) -> Result<String, Failed> {
        loop {
            let line = self.line().await?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// Says a line to it.
    pub async fn say(&mut self, line: &str) -> Result<(), Failed> {
        if let Some(stdin) = &mut self.stdin {
            stdin.write_all(format!("{line}\n").as_bytes()).await?;
        }
        Ok(())
    }

    /// Waits for its end, which must be a good one.
    pub async fn end(&mut self) -> Result<(), Failed> {
        // It could wait for room to say something.
        while self.stdout.next_line().await?.is_some() {}
        let status: ExitStatus = self.child.wait().await?;
        if status.success() { Ok(()) } else { Err(Failed(format!("{} failed: {status}", self.name))) }
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), Failed> {
        Ok(self.child.kill().await?)
    }
}

/// A `surf-node join` on a host.
#[derive(Debug)]
pub struct Node {
    process: Process,
    host: usize,
    /// Its peer id.
    pub peer: String,
    /// Where others join through it.
    pub addr: String,
}

impl Node {
    /// Starts `program` on `host` with its data in `dir`, and waits until it is ready.
    pub async fn join(
        network: &Network,
        host: usize,
        program: &Path,
        dir: &Path,
        bootstrap: &[String],
        extra: &[&str],
    ) -> Result<Self, Failed> {
        let mut command = network.command(host, program);
        let ip = network.address(host);
        command.args(["--json", "join", "--no-mdns", "--listen", &format!("{ip}:8470")]);
        command.args(["--transfer", &format!("{ip}:8472"), "--rpc", &format!("127.0.0.1:{RPC_PORT}")]);
        command.arg("--data-dir").arg(dir);
        for addr in bootstrap {
            command.args(["--bootstrap", addr]);
        }
        command.args(extra).env_remove("SURF_RPC").env_remove("SURF_HOME");
        fs::create_dir_all(dir)?;
        let log = dir.with_extension("log");
        let mut process = Process::start(command, &log)?;
        let Ok(line) = process.line().await else {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(Failed::to(&format!("start a node on host {host}"), said.trim()));
        };
        let ready: Value = serde_json::from_str(&line).map_err(|error| Failed::to("join", error))?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self { process, host, peer: word(&ready["peer_id"]), addr: word(&ready["listen"][0]) })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The host that it runs on.
    pub fn host(&self) -> usize {
        self.host
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub async fn kill(mut self) -> Result<(), Failed> {
        self.process.kill().await
    }

    /// Publishes a folder or file where it is. Returns the model's id.
    pub async fn publish(&self, network: &Network, path: &Path) -> Result<String, Failed> {
        let body = json!({"path": path});
        let published = self.work(network, "/surf/v1/publish", &body, |_| ()).await?;
        let model = published["model"].as_str();
        model.map(str::to_owned).ok_or_else(|| Failed("publish named no model".to_owned()))
    }

    /// Pulls a model. `told` hears of every step.
    pub async fn pull(
        &self,
        network: &Network,
        model: &str,
        told: impl FnMut(&Value),
    ) -> Result<Value, Failed> {
        self.work(network, "/surf/v1/pull", &json!({"model": model}), told).await
    }

    /// `GET path`.
    pub async fn get(&self, network: &Network, path: &str) -> Result<Value, Failed> {
        fetch(network.connect(self.host, SocketAddr::from(([127, 0, 0, 1], RPC_PORT)))?, path).await
    }

    /// `POST path`, with one object as the answer.
    pub async fn post(&self, network: &Network, path: &str, body: &Value) -> Result<Value, Failed> {
        let mut answer = String::new();
        self.ask(network, "POST", path, &body.to_string()).await?.read_to_string(&mut answer).await?;
        let value = read(&answer)?;
        match value.get("error") {
            Some(error) => Err(Failed(format!("{path}: {}", error["message"]))),
            None => Ok(value),
        }
    }

    /// `POST path`, which answers by events. Returns the last.
    async fn work(
        &self,
        network: &Network,
        path: &str,
        body: &Value,
        mut told: impl FnMut(&Value),
    ) -> Result<Value, Failed> {
        let mut lines = self.ask(network, "POST", path, &body.to_string()).await?.lines();
        while let Some(line) = lines.next_line().await? {
            let event = read(&line)?;
            match event["event"].as_str() {
                Some("done") => return Ok(event),
                Some("progress") => told(&event),
                _ => return Err(Failed(format!("{path} on host {}: {line}", self.host))),
            }
        }
        Err(Failed(format!("{path} on host {} stopped before its end", self.host)))
    }

    async fn ask(
        &self,
        network: &Network,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<BufReader<TcpStream>, Failed> {
        let addr = SocketAddr::from(([127, 0, 0, 1], RPC_PORT));
        ask(network.connect(self.host, addr)?, method, path, body).await
    }
}

/// `GET path` of whoever is at the other end, which answers in JSON.
pub(crate) async fn fetch(stream: TcpStream, path: &str) -> Result<Value, Failed> {
    let mut answer = String::new();
    ask(stream, "GET", path, "").await?.read_to_string(&mut answer).await?;
    read(&answer)
}

/// Asks, and reads the head of the answer. HTTP/1.0, so the body is what follows, to its end.
async fn ask(
    mut stream: TcpStream,
    method: &str,
    path: &str,
    body: &str,
) -> Result<BufReader<TcpStream>, Failed> {
    let host = stream.peer_addr()?;
    let size = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {size}\r\n");
    let head = head + "Content-Type: application/json\r\n\r\n";
    stream.write_all((head + body).as_bytes()).await?;
    let mut answer = BufReader::new(stream);
    let (mut line, mut size) = (String::new(), 0);
    loop {
        line.clear();
        size += answer.read_line(&mut line).await?;
        if line.trim().is_empty() || HEAD_SIZE_MAX < size {
            return Ok(answer);
        }
    }
}

fn read(text: &str) -> Result<Value, Failed> {
    let start: String = text.chars().take(200).collect();
    serde_json::from_str(text).map_err(|error| Failed::to(&format!("understand {start:?}"), error))
}
