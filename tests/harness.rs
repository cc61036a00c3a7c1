//! Real nodes on loopback, for tests that need the real DHT, the real QUIC and the real program.
//!
//! [`Process`] is the program, started as a user would; [`start`] is a node inside the test, for tests
//! that look at what a user cannot see. Both keep their data in a folder that goes with them.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use surf_node::{Config, Node, config, members::Members};
use tempfile::TempDir;
use tokio::time::Instant;

/// The longest that a command may take. None needs a tenth of it, but on a machine that does other things.
const COMMAND_MAX: Duration = Duration::from_secs(300);

/// Nodes inside a test run models, and so start this program again.
#[ctor::ctor(unsafe)]
fn enter_sandbox() {
    surf_node::engine::enter_sandbox();
}

/// The models with recorded outputs, and what is tested with them.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)
}

/// The model that the program comes with.
pub fn tiny_surfer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/assets/tiny-surfer")
}

/// A node inside the test.
pub struct TestNode {
    /// The node.
    pub node: Node,
    /// Its data folder.
    pub dir: TempDir,
}

/// Settings of a node that listens on loopback, on ports of the system's choice.
pub fn config(dir: &Path, bootstrap: &[String], memory: u64) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        data_dir: dir.to_owned(),
        store: config::Store { dir: dir.join("store"), quota: 64 << 30, scrub: None },
        members: Members::default(),
        swarm: config::Swarm {
            listen: vec![any],
            bootstrap: bootstrap.to_vec(),
            mdns: false,
            relay: config::Relay::default(),
        },
        transfer: config::Transfer { listen: any, limits: config::Limits::default() },
        fetch: config::Fetch::default(),
        engine: config::Engine { memory, device: config::Device::Cpu, dtype: config::Precision::F32 },
        rpc: config::Rpc { listen: any, token: None },
    }
}

/// Starts a node that joins through `bootstrap` and may keep `memory` bytes of weights in memory.
pub async fn start(bootstrap: &[String], memory: u64) -> TestNode {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start(config(dir.path(), bootstrap, memory)).await.expect("the node starts");
    TestNode { node, dir }
}

/// The program as a node of its own. Killed when dropped.
pub struct Process {
    child: Child,
    /// What it said when it was ready.
    pub ready: Value,
    dir: PathBuf,
    /// Goes with the process, if the folder is to go.
    temporary: Option<TempDir>,
    /// The network namespace that it lives in, if not in ours.
    namespace: Option<String>,
}

impl Process {
    /// Starts `surf-node join` in a new folder and waits until it is ready.
    pub fn join(bootstrap: &[&str], extra: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let mut process = Self::join_in(temporary.path(), bootstrap, extra);
        process.temporary = Some(temporary);
        process
    }

    /// The same in a folder that stays.
    pub fn join_in(dir: &Path, bootstrap: &[&str], extra: &[&str]) -> Self {
        let mut args = vec!["--no-mdns"];
        for listen in ["--listen", "--transfer", "--rpc"] {
            args.extend([listen, "127.0.0.1:0"]);
        }
        for addr in bootstrap {
            args.extend(["--bootstrap", addr]);
        }
        args.extend(extra);
        Self::spawn(dir, &args, None)
    }

    /// Starts it in a network namespace, on all addresses there, with multicast DNS.
    pub fn join_in_namespace(namespace: &str, extra: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let mut process = Self::spawn(temporary.path(), extra, Some(namespace.to_owned()));
        process.temporary = Some(temporary);
        process
    }

    fn spawn(dir: &Path, args: &[&str], namespace: Option<String>) -> Self {
        let mut command = in_namespace(namespace.as_deref());
        command.args(["--json", "join", "--data-dir"]).arg(dir).args(args);
        command.env_remove("SURF_RPC").env_remove("SURF_HOME");
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("surf-node starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("surf-node says something");
        let ready: Value = serde_json::from_str(&line).expect("surf-node says that it is ready");
        assert_eq!(ready["event"], "ready");
        Self { child, ready, dir: dir.to_owned(), temporary: None, namespace }
    }

    /// Where others join through this node.
    pub fn addr(&self) -> &str {
        let listen = self.ready["listen"].as_array().expect("a list");
        listen.iter().find_map(|addr| addr.as_str()).expect("an address")
    }

    /// Where its RPC is.
    pub fn rpc(&self) -> &str {
        self.ready["rpc"].as_str().expect("a URL")
    }

    /// Its data folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs another command of the program against this node.
    ///
    /// # Panics
    ///
    /// If it has not ended after minutes, with what it has said: a command that hangs fails one test, not all.
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = in_namespace(self.namespace.as_deref());
        command.args(["--json", "--rpc", self.rpc()]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("surf-node runs");
        let stdout = read_all(child.stdout.take().expect("stdout is piped"));
        let stderr = read_all(child.stderr.take().expect("stderr is piped"));
        let begin = Instant::now();
        let status = loop {
            match child.try_wait().expect("the process can be waited for") {
                Some(status) => break Some(status),
                None if COMMAND_MAX < begin.elapsed() => break None,
                None => std::thread::park_timeout(Duration::from_millis(5)),
            }
        };
        if status.is_none() {
            child.kill().and_then(|()| child.wait()).expect("the process can be killed");
        }
        let (stdout, stderr) = (stdout.join().expect("a reader"), stderr.join().expect("a reader"));
        let Some(status) = status else {
            let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
            panic!(
                "{args:?} has not ended after {COMMAND_MAX:?}: {err}{}",
                out.lines().last().unwrap_or_default()
            );
        };
        Output { status, stdout, stderr }
    }

    /// The same, which must succeed. Returns the last line of its output.
    pub fn done(&self, args: &[&str]) -> Value {
        self.lines(args).pop().expect("surf-node says something")
    }

    /// The same, with all lines of its output.
    pub fn lines(&self, args: &[&str]) -> Vec<Value> {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Stops it, as a lid that is closed does.
    pub fn sleep(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn wake(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "{signal}");
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) {
        self.child.wait().expect("the process can be waited for");
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// All that comes, read on a thread of its own.
fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("a pipe can be read");
        all
    })
}

/// The program, to be run in a network namespace or in ours.
fn in_namespace(namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return Command::new(program()) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program());
    command
}

/// The text of a generation.
pub fn text(lines: &[Value]) -> String {
    lines.iter().filter(|line| line["event"] == "token").filter_map(|line| line["text"].as_str()).collect()
}

/// The program, built like this test was.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile_dir = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test");
        let mut build = Command::new(env!("CARGO"));
        // The whole workspace, so that dependencies have the features they were tested with.
        build.args(["build", "--quiet", "--workspace", "--bin", "surf-node"]);
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo tells this test about its package would make build scripts run again.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                build.env_remove(&*name);
            }
        }
        build.arg("--target-dir").arg(profile_dir.parent().expect("target"));
        assert!(build.status().expect("cargo runs").success(), "surf-node builds");
        profile_dir.join("surf-node")
    })
}
