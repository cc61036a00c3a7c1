//! What the node says of itself, in the words of the API.

use std::net::SocketAddr;

use surf_protocol::{Bitmap, Manifest};

use super::Node;
use crate::{
    api::{
        FileInfo, GroupInfo, ModelDetail, ModelInfo, PeerView, PullProgress, PullSource, Pulled, Status,
        StoreStatus, TransferStatus,
    },
    fetch::Source,
    publish::Pull,
    store::ModelSummary,
};

impl Node {
    /// The state of the node.
    pub async fn status(&self) -> Status {
        let usage = self.parts.store.usage();
        Status {
            peer_id: self.peer_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.listen().to_vec(),
            transfer: self.parts.transfer_addr.to_string(),
            rpc: String::new(),
            data_dir: self.parts.config.data_dir.display().to_string(),
            uptime_s: self.parts.started.elapsed().as_secs(),
            peers: self.parts.swarm.connected(),
            store: StoreStatus {
                used: usage.used,
                quota: usage.quota,
                referenced: usage.referenced,
                chunks: usage.chunks as u64,
            },
            models: self.parts.store.models().len(),
            loaded: self.parts.loaded.view().into_iter().collect(),
            transfers: self.parts.pulls.lock().expect("no panics while held").values().cloned().collect(),
        }
    }

    /// Connected peers.
    pub async fn peers(&self) -> Vec<PeerView> {
        let traffic = self.parts.client.stats();
        let peers = self.parts.swarm.peers().await;
        let view = |peer: crate::swarm::PeerInfo| {
            let with = traffic.iter().find(|traffic| traffic.id == peer.id);
            let addr = with.map(|traffic| traffic.addr).or(peer.data_addrs.first().copied());
            PeerView {
                peer: peer.id.to_string(),
                addrs: peer.addrs,
                data_addrs: peer.data_addrs.iter().map(SocketAddr::to_string).collect(),
                path: addr.map_or("direct", path_of).to_owned(),
                rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                sent: with.map_or(0, |traffic| traffic.sent),
                received: with.map_or(0, |traffic| traffic.received),
            }
        };
        peers.into_iter().map(view).collect()
    }

    /// Whether the node can serve; if not, why not.
    pub async fn ready(&self) -> Result<(), String> {
        let joins = !self.parts.config.swarm.bootstrap.is_empty();
        match () {
            () if self.parts.announcing.is_finished() => Err("the control plane has stopped".to_owned()),
            () if joins && self.parts.swarm.connected() == 0 => Err("no peer has been met yet".to_owned()),
            () => Ok(()),
        }
    }

    pub(super) fn pulled(&self, manifest: &Manifest, pull: &Pull) -> Pulled {
        let traffic = self.parts.client.stats();
        let mut sources: Vec<PullSource> = pull
            .traffic
            .verified
            .iter()
            .map(|(source, &bytes)| match source {
                Source::Origin(name) => PullSource { peer: name.clone(), bytes, path: "origin".to_owned() },
                Source::Peer(id) => {
                    let addr = traffic.iter().find(|traffic| traffic.id == *id).map(|traffic| traffic.addr);
                    let path = addr.map_or("direct", path_of).to_owned();
                    PullSource { peer: id.to_string(), bytes, path }
                }
            })
            .collect();
        sources.sort_by_key(|source| std::cmp::Reverse(source.bytes));
        Pulled {
            model: manifest.id().to_string(),
            bytes: pull.bytes,
            fetched_bytes: pull.traffic.fetched(),
            wasted_bytes: pull.traffic.wasted,
            seconds: pull.took.as_secs_f64(),
            sources,
        }
    }
}

/// How an address is reached, as far as it tells.
fn path_of(addr: SocketAddr) -> &'static str {
    let private = match addr.ip().to_canonical() {
        ip if ip.is_loopback() => return "local",
        std::net::IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    };
    if private { "lan" } else { "direct" }
}

/// One pull in the node's list of transfers, as long as it lives.
pub(super) struct Listed<'a> {
    node: &'a Node,
    number: u64,
    model: String,
}

impl<'a> Listed<'a> {
    pub(super) fn new(node: &'a Node, model: String) -> Self {
        let mut pulls = node.parts.pulls.lock().expect("no panics while held");
        let number = pulls.last_key_value().map_or(0, |(last, _)| last + 1);
        pulls.insert(number, TransferStatus { model: model.clone(), ..TransferStatus::default() });
        Self { node, number, model }
    }

    pub(super) fn update(&self, progress: &PullProgress) {
        let transfer = TransferStatus {
            model: self.model.clone(),
            bytes: progress.bytes,
            total: progress.total,
            rate: progress.rate,
            peers: progress.peers,
        };
        self.node.parts.pulls.lock().expect("no panics while held").insert(self.number, transfer);
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.node.parts.pulls.lock().expect("no panics while held").remove(&self.number);
    }
}

pub(super) fn pulling(pull: &Pull) -> PullProgress {
    let fetched = pull.traffic.fetched();
    let rate = (fetched as f64 / pull.took.as_secs_f64().max(1e-3)) as u64;
    let left = pull.total - pull.bytes;
    let stuck = fetched == 0 && 3 < pull.took.as_secs();
    PullProgress {
        bytes: pull.bytes,
        total: pull.total,
        fetched_bytes: fetched,
        wasted_bytes: pull.traffic.wasted,
        rate,
        peers: pull.traffic.verified.len(),
        eta_s: left.checked_div(rate),
        phase: "chunks".to_owned(),
        note: stuck.then(|| "no peer has sent anything yet".to_owned()),
    }
}

pub(super) fn model(summary: ModelSummary) -> ModelInfo {
    ModelInfo {
        model: summary.id.to_string(),
        aliases: summary.aliases,
        files: summary.files,
        tensors: summary.tensors,
        groups: summary.groups,
        chunks: summary.chunks,
        bytes: summary.bytes,
        held_chunks: summary.held_chunks,
        held_bytes: summary.held_bytes,
        pinned: summary.pinned,
        complete: summary.held_chunks == summary.chunks,
    }
}

pub(super) fn detail(info: ModelInfo, manifest: &Manifest, have: Option<&Bitmap>) -> ModelDetail {
    let held = |id| {
        let at = manifest.position(id);
        at.is_some_and(|at| have.is_some_and(|have| have.contains(at)))
    };
    let files = manifest.files().iter().map(|file| FileInfo {
        path: file.path.clone(),
        size: file.size,
        sha256: hex::encode(file.sha256),
    });
    let groups = manifest.groups().iter().map(|entry| {
        let chunks = manifest.group_chunks(&entry.group);
        let here = chunks.iter().filter(|chunk| held(chunk.id));
        GroupInfo {
            group: entry.group.to_string(),
            tensors: entry.tensors.len(),
            bytes: chunks.iter().map(|chunk| u64::from(chunk.size)).sum(),
            held_bytes: here.map(|chunk| u64::from(chunk.size)).sum(),
        }
    });
    ModelDetail { info, files: files.collect(), groups: groups.collect() }
}
