//! A swarm with a key, and somebody who knows its addresses but not the key: how many bytes such an
//! outsider gets once the handshakes are over.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use serde_json::{Value, json};
use surf_node::identity::Identity;
use surf_protocol::{
    ModelId, NodeId,
    wire::{self, Request},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use super::SETTLE;
use crate::{
    bench::Failed,
    lab::{
        Lab,
        net::Network,
        peers::soon,
        process::{Node, Process},
        report::{OneCopy, Report},
    },
};

/// How long the outsider listens.
const LISTEN: Duration = Duration::from_secs(5);

/// Bytes of a private network's handshake that everybody gets: a nonce.
const NONCE: u64 = 24;

/// Bytes that are read at a time.
const READ: usize = 64 << 10;

/// How long a member or an outsider of the same program has to pull.
const PULL: Duration = Duration::from_secs(20);

/// What an outsider knows.
#[derive(Clone, Debug, Args)]
pub struct Known {
    /// The member's peer id.
    #[arg(long)]
    pub peer: String,
    /// Where its data plane listens.
    #[arg(long)]
    pub transfer: SocketAddr,
    /// Where its control plane listens.
    #[arg(long)]
    pub control: SocketAddr,
    /// A model that it has.
    #[arg(long)]
    pub model: String,
}

/// Measures.
pub async fn run(lab: &Lab) -> Result<Report, Failed> {
    let options = &lab.options;
    let payload = lab.payload(options.size)?;
    let network = Arc::new(Network::up(4, &options.rate)?);
    let copy = OneCopy::new(payload.size, &options.rate, None);
    let what =
        format!("a swarm with a key, {} MiB, and outsiders who know all addresses", payload.size >> 20);
    let mut report = Report::new("outsider", what, copy);
    let dir = lab.folder("outsider")?;
    let (key, wrong) = (new_key(lab, &dir.join("swarm.key"))?, new_key(lab, &dir.join("wrong.key"))?);
    let key_of = |key: &str| ["--swarm-key".to_owned(), key.to_owned()];
    let join = async |host: usize, through: &[String], key: &[String]| {
        let extra: Vec<&str> = key.iter().map(String::as_str).collect();
        Node::join(&network, host, &options.program, &dir.join(format!("node-{host}")), through, &extra).await
    };
    let seed = join(0, &[], &key_of(&key)).await?;
    let model = seed.publish(&network, &payload.folder).await?;
    let through = [seed.addr.clone()];
    let member = join(1, &through, &key_of(&key)).await?;
    tokio::time::sleep(SETTLE).await;
    // Otherwise a swarm that serves nobody would pass.
    let pulled = member.pull(&network, &model, |_| ());
    let pulled = timeout(PULL, pulled).await.map_err(|_| Failed("a member cannot pull".to_owned()))??;
    report.value("bytes that a member pulled", pulled["fetched_bytes"].clone());

    for (host, name, key) in [(2, "without a key", vec![]), (3, "with another key", key_of(&wrong).to_vec())]
    {
        let got = match join(host, &through, &key).await {
            Ok(node) => pulled_by(&network, &node, &model).await,
            // It may refuse to start where nobody lets it in; then it has got nothing.
            Err(error) => {
                lab.note(&format!("a node {name} did not start: {error}"));
                0
            }
        };
        report.value(&format!("bytes that a node {name} pulled"), got);
        network.kill(host);
    }
    let probed = probe(lab, &network, &seed.peer, &model).await?;
    for (name, value) in probed.as_object().into_iter().flatten() {
        report.value(&format!("outsider, {name}"), value.clone());
    }
    Ok(report)
}

/// Has the program make a key. Returns the file's name.
fn new_key(lab: &Lab, file: &std::path::Path) -> Result<String, Failed> {
    let output = std::process::Command::new(&lab.options.program).args(["key", "new"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || text.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failed::to("make a swarm key", said.lines().next().unwrap_or_default()));
    }
    fs::write(file, text + "\n")?;
    let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(file, only_ours)?;
    Ok(file.display().to_string())
}

async fn pulled_by(network: &Arc<Network>, node: &Node, model: &str) -> u64 {
    // It is meant to fail, in whatever way.
    drop(timeout(PULL, node.pull(network, model, |_| ())).await);
    let detail = node.get(network, &format!("/surf/v1/models/{model}")).await;
    detail.ok().and_then(|detail| detail["held_bytes"].as_u64()).unwrap_or(0)
}

/// Runs [`look`] on the outsider's host.
async fn probe(lab: &Lab, network: &Network, peer: &str, model: &str) -> Result<Value, Failed> {
    let mut command = network.command(2, &lab.options.this);
    let ip = network.address(0);
    command.args(["lab", "outsider-probe", "--peer", peer, "--model", model]);
    command.args(["--transfer", &format!("{ip}:8472"), "--control", &format!("{ip}:8470")]);
    let log: PathBuf = lab.folder("probe")?.join("probe.log");
    let mut process = Process::start(command, &log)?;
    let line = soon("the outsider", process.line_with("{")).await?;
    serde_json::from_str(&line).map_err(|error| Failed::to("read what the outsider saw", error))
}

/// Tries what an outsider can: says what comes on each plane, as JSON on stdout.
pub async fn look(known: &Known) -> Result<(), Failed> {
    let (data, control) = tokio::join!(data_plane(known), control_plane(known.control));
    let said = json!({
        "data plane, handshake done": data.is_some(),
        "data plane, bytes after the handshake": data.unwrap_or(0),
        "control plane, bytes of the handshake (TCP)": control.map_or(0, |bytes| bytes.min(NONCE)),
        "control plane, bytes after the handshake (TCP)": control.unwrap_or(0).saturating_sub(NONCE),
        "control plane, listens on QUIC": quic_answers(known).await,
    });
    println!("{said}");
    Ok(())
}

fn endpoint() -> Result<quinn::Endpoint, Failed> {
    Ok(quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0)))?)
}

async fn connect(known: &Known, addr: SocketAddr) -> Option<quinn::Connection> {
    let peer = NodeId::from_peer_id(&known.peer)?;
    let tls = Identity::generate().client_tls(peer).ok()?;
    let connecting =
        endpoint().ok()?.connect_with(quinn::ClientConfig::new(Arc::new(tls)), addr, "l").ok()?;
    timeout(LISTEN, connecting).await.ok()?.ok()
}

/// Whether anything speaks QUIC there: a refusal of our protocol is an answer too.
async fn quic_answers(known: &Known) -> bool {
    let Some(peer) = NodeId::from_peer_id(&known.peer) else { return false };
    let Ok(tls) = Identity::generate().client_tls(peer) else { return false };
    let Ok(endpoint) = endpoint() else { return false };
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let Ok(connecting) = endpoint.connect_with(config, known.control, "l") else { return false };
    match timeout(LISTEN, connecting).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => !matches!(error, quinn::ConnectionError::TimedOut),
        Err(_) => false,
    }
}

/// Bytes on streams and in datagrams, of whatever kind. `None`: not even TLS came to its end.
async fn data_plane(known: &Known) -> Option<u64> {
    let connection = connect(known, known.transfer).await?;
    let (tell, mut told) = mpsc::channel(64);
    if let Ok(model) = known.model.parse::<ModelId>() {
        for request in [Request::Manifest(model), Request::Have(model)] {
            let Ok((mut send, recv)) = connection.open_bi().await else { continue };
            drop(send.write_all(&wire::encode_request(&request)).await);
            drop(send.finish());
            tokio::spawn(count(recv, tell.clone()));
        }
    }
    let accepting = connection.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Ok((_, recv)) = accepting.accept_bi() => drop(tokio::spawn(count(recv, tell.clone()))),
                Ok(recv) = accepting.accept_uni() => drop(tokio::spawn(count(recv, tell.clone()))),
                Ok(bytes) = accepting.read_datagram() => drop(tell.send(bytes.len() as u64).await),
                else => return,
            }
        }
    });
    let mut all = 0;
    let listen = async {
        while let Some(bytes) = told.recv().await {
            all += bytes;
        }
    };
    // The end of the time is an end as good as any.
    let _ = timeout(LISTEN, listen).await;
    Some(all)
}

async fn count(mut recv: quinn::RecvStream, tell: mpsc::Sender<u64>) {
    while let Ok(Some(chunk)) = recv.read_chunk(READ, false).await {
        if tell.send(chunk.bytes.len() as u64).await.is_err() {
            return;
        }
    }
}

/// Bytes that come over TCP when a stranger greets as libp2p does. `None`: nobody listens.
async fn control_plane(addr: SocketAddr) -> Option<u64> {
    let mut stream = timeout(LISTEN, TcpStream::connect(addr)).await.ok()?.ok()?;
    // With a nonce before it, as in a private network.
    let mut greeting = vec![7; NONCE as usize];
    greeting.extend_from_slice(b"\x13/multistream/1.0.0\n");
    stream.write_all(&greeting).await.ok()?;
    let (mut all, mut buffer) = (0, vec![0; READ]);
    let listen = async {
        while let Ok(size @ 1..) = stream.read(&mut buffer).await {
            all += size as u64;
        }
    };
    let _ = timeout(LISTEN, listen).await;
    Some(all)
}
