//! What the node says of itself, in the words of the API.

use std::{net::SocketAddr, sync::Arc};

use surf_chunker::{Checkpoint, Families};
use surf_protocol::{Bitmap, Manifest};

use super::{Node, NodeError};
use crate::{
    api::{
        FileInfo, GroupInfo, Limits, LimitsRequest, ModelDetail, ModelInfo, PeerView, PullProgress,
        PullSource, Pulled, ReachStatus, ScrubStatus, Status, StoreStatus, TransferSource, TransferStatus,
        sentence,
    },
    config::Rate,
    fetch::{Dialer, HolderState, Route, Source, Standing, Traffic, explain},
    publish::Pull,
    store::ModelSummary,
};

impl Node {
    /// The state of the node.
    pub async fn status(&self) -> Status {
        let usage = self.parts.store.usage();
        let reach =
            self.parts.swarm.reachable().await.map_or_else(ReachStatus::default, |reach| ReachStatus {
                outlook: reach.outlook.to_string(),
                relays: reach.relays.iter().map(ToString::to_string).collect(),
                relaying: reach.serves,
                unreached: reach.unreached,
                shared_identity: reach.shared_identity,
            });
        Status {
            peer_id: self.peer_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.listen().to_vec(),
            transfer: self.parts.transfer_addr.to_string(),
            rpc: String::new(),
            data_dir: self.parts.config.data_dir.display().to_string(),
            uptime_s: self.parts.started.elapsed().as_secs(),
            peers: self.parts.swarm.connected(),
            reach,
            store: StoreStatus {
                used: usage.used,
                quota: usage.quota,
                referenced: usage.referenced,
                chunks: usage.chunks as u64,
                high: usage.high,
                low: usage.low,
                free: usage.free,
                hashed: usage.hashed,
                damaged: usage.damaged,
                scrub: self.parts.store.scrubbing().map(|scrub| ScrubStatus {
                    period_s: scrub.period.as_secs(),
                    done: scrub.done,
                    finished: scrub.finished,
                    bytes: scrub.bytes,
                    bad: scrub.bad,
                }),
            },
            models: self.parts.store.models().len(),
            loaded: self.parts.loaded.view().into_iter().collect(),
            transfers: self.transfers().await,
            limits: self.limits(),
        }
    }

    /// What is being fetched: pulled, or wanted by inference.
    async fn transfers(&self) -> Vec<TransferStatus> {
        let mut transfers: Vec<_> =
            self.parts.pulls.lock().expect("no panics while held").values().cloned().collect();
        for model in self.parts.fetcher.wanted().await.unwrap_or_default() {
            let (id, Some(manifest)) = (model.to_string(), self.parts.store.manifest_of(model)) else {
                continue;
            };
            if transfers.iter().any(|transfer| transfer.model == id) {
                continue;
            }
            let Ok(standing) = self.parts.fetcher.standing(model).await else { continue };
            let here = manifest.chunks().iter().filter(|chunk| self.parts.store.contains(chunk.id));
            let progress = PullProgress {
                bytes: here.map(|chunk| u64::from(chunk.size)).sum(),
                total: manifest.size(),
                ..moving(&standing, &standing.traffic, self.held_to())
            };
            transfers.push(TransferStatus { model: id, purpose: "inference".to_owned(), progress });
        }
        transfers
    }

    /// Bytes per second that our limit lets in, if a download waits for it.
    pub(super) fn held_to(&self) -> Option<u64> {
        self.parts.endpoint.limits().down.holds_up()
    }

    /// How much may move.
    pub fn limits(&self) -> Limits {
        let limits = self.parts.endpoint.limits();
        Limits {
            up: limits.up.rate(),
            down: limits.down.rate(),
            origin: limits.origin.rate(),
            connections: self.parts.config.transfer.limits.connections,
        }
    }

    /// Changes how much may move, from now on and until the node stops.
    pub fn limit(&self, request: &LimitsRequest) -> Result<Limits, NodeError> {
        let limits = self.parts.endpoint.limits();
        let asked =
            [(&limits.up, &request.up), (&limits.down, &request.down), (&limits.origin, &request.origin)];
        // All or nothing: what is wrong is found before anything is changed.
        let mut changes = Vec::new();
        for (limiter, text) in asked {
            match text.as_deref() {
                None => (),
                Some("none") => changes.push((limiter, None)),
                Some(text) => {
                    let rate: Rate =
                        text.parse().map_err(|error| NodeError::Invalid(format!("{error}, nor \"none\"")))?;
                    changes.push((limiter, Some(rate.bytes_per_s)));
                }
            }
        }
        changes.into_iter().for_each(|(limiter, rate)| limiter.set(rate));
        Ok(self.limits())
    }

    /// Connected peers.
    pub async fn peers(&self) -> Vec<PeerView> {
        let traffic = self.parts.client.stats();
        let peers = self.parts.swarm.peers().await;
        let view = |peer: crate::swarm::PeerInfo| {
            let with = traffic.iter().find(|traffic| traffic.id == peer.id);
            // As chunks go if any do, else as messages go.
            let link = self.parts.client.link(peer.id).map(|link| link.route);
            PeerView {
                peer: peer.id.to_string(),
                addrs: peer.addrs,
                data_addrs: peer.data_addrs.iter().map(SocketAddr::to_string).collect(),
                path: link.unwrap_or(peer.route).to_string(),
                rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                sent: with.map_or(0, |traffic| traffic.sent),
                received: with.map_or(0, |traffic| traffic.received),
                rate_up: with.map_or(0, |traffic| traffic.rate_up),
                rate_down: with.map_or(0, |traffic| traffic.rate_down),
            }
        };
        peers.into_iter().map(view).collect()
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
                    let route = traffic.iter().find(|traffic| traffic.id == *id).map(|traffic| traffic.route);
                    let path = route.unwrap_or(Route::Direct).to_string();
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
        pulls.insert(number, pulled(&model));
        Self { node, number, model }
    }

    pub(super) fn update(&self, progress: &PullProgress) {
        let transfer = TransferStatus { progress: progress.clone(), ..pulled(&self.model) };
        self.node.parts.pulls.lock().expect("no panics while held").insert(self.number, transfer);
    }
}

fn pulled(model: &str) -> TransferStatus {
    TransferStatus { model: model.to_owned(), purpose: "pull".to_owned(), ..TransferStatus::default() }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.node.parts.pulls.lock().expect("no panics while held").remove(&self.number);
    }
}

/// How a pull stands; `limit` as for [`explain`].
pub(super) fn pulling(pull: &Pull, limit: Option<u64>) -> PullProgress {
    let left = pull.total - pull.bytes;
    PullProgress {
        bytes: pull.bytes,
        total: pull.total,
        rate: pull.rate,
        eta_s: left.checked_div(pull.rate),
        ..moving(&pull.standing, &pull.traffic, limit)
    }
}

/// How the fetching of a model stands, of which `traffic` has come.
fn moving(standing: &Standing, traffic: &Traffic, limit: Option<u64>) -> PullProgress {
    let (phase, reason) = explain(standing, limit);
    PullProgress {
        fetched_bytes: traffic.fetched(),
        wasted_bytes: traffic.wasted,
        duplicate_bytes: traffic.duplicate,
        rate: standing
            .outlook
            .holders
            .iter()
            .filter(|holder| 0 < holder.asked)
            .filter_map(|holder| holder.rate)
            .sum(),
        peers: traffic.verified.len(),
        phase: phase.word().to_owned(),
        note: reason.map(|reason| reason.to_string()),
        reason: reason.map(|reason| reason.code().to_owned()),
        sources: sources(standing, traffic),
        ..PullProgress::default()
    }
}

/// Who has some of the model, and then who has given some and is gone.
fn sources(standing: &Standing, traffic: &Traffic) -> Vec<TransferSource> {
    let holders = &standing.outlook.holders;
    let came = |source: &Source| traffic.verified.get(source).copied().unwrap_or(0);
    let here = holders.iter().map(|holder| TransferSource {
        peer: holder.peer.to_string(),
        path: holder.route.to_string(),
        rate: holder.rate,
        bytes: came(&Source::Peer(holder.peer)),
        asked: holder.asked,
        state: match holder.state {
            HolderState::Good => "good",
            HolderState::Paused(_) => "paused",
            HolderState::Stalled(_) => "stalled",
            HolderState::Useless => "useless",
        }
        .to_owned(),
    });
    let gone = traffic.verified.iter().filter_map(|(source, &bytes)| {
        let (path, state) = match source {
            Source::Peer(id) if holders.iter().any(|holder| holder.peer == *id) => return None,
            Source::Peer(_) => ("direct", "gone"),
            Source::Origin(_) => ("origin", "good"),
        };
        let (path, state) = (path.to_owned(), state.to_owned());
        Some(TransferSource { peer: source.to_string(), path, bytes, state, ..TransferSource::default() })
    });
    here.chain(gone).collect()
}

/// `verdict`: why the model cannot be run, if it cannot.
pub(super) fn model(summary: ModelSummary, verdict: Result<(), String>) -> ModelInfo {
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
        shared_bytes: summary.shared_bytes,
        pinned: summary.pinned,
        complete: summary.held_chunks == summary.chunks,
        runs: verdict.is_ok(),
        why_not: verdict.err().map(|why| sentence(&why)),
    }
}

pub(super) fn detail(info: ModelInfo, manifest: Arc<Manifest>, have: Option<&Bitmap>) -> ModelDetail {
    let checkpoint = Checkpoint::by_names(manifest, &Families::default());
    let manifest = checkpoint.manifest();
    let held = |id| {
        let at = manifest.position(id);
        at.is_some_and(|at| have.is_some_and(|have| have.contains(at)))
    };
    let files = manifest.files().iter().map(|file| FileInfo {
        path: file.path.clone(),
        size: file.size,
        sha256: hex::encode(file.sha256),
    });
    let groups = checkpoint.groups().iter().map(|entry| {
        let chunks = checkpoint.group_chunks(&entry.group);
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
