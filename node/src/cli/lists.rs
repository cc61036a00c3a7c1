//! What is there: `models`, `peers`, `status`.

use clap::Args;

use super::{
    Context,
    error::CliError,
    human::{self, Align},
    limit,
};
use crate::api::{self, LoadedModel, ModelDetail, ModelInfo, PeerView, TransferStatus};

/// List models, or show one
#[derive(Debug, Args)]
pub(crate) struct Models {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: Option<String>,
}

/// List the peers that the node is connected to
#[derive(Debug, Args)]
pub(crate) struct Peers {}

/// Show how the node is doing
#[derive(Debug, Args)]
pub(crate) struct Status {}

impl Models {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let client = context.client()?;
        match self.model {
            None => {
                let models: Vec<ModelInfo> = client.fetch(&["surf", "v1", "models"]).await?;
                context.output.result(&models, |models| self::models(models))
            }
            Some(model) => {
                let detail: ModelDetail = client.fetch(&["surf", "v1", "models", &model]).await?;
                context.output.result(&detail, self::detail)
            }
        }
    }
}

impl Peers {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let peers: Vec<PeerView> = context.client()?.fetch(&["surf", "v1", "peers"]).await?;
        context.output.result(&peers, |peers| self::peers(peers))
    }
}

impl Status {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let status: api::Status = context.client()?.fetch(&["surf", "v1", "status"]).await?;
        context.output.result(&status, self::status)
    }
}

fn models(models: &[ModelInfo]) -> String {
    if models.is_empty() {
        return "no models yet; `surf-node publish` or `surf-node pull` one".to_owned();
    }
    let row = |info: &ModelInfo| {
        [
            human::model(&info.model).to_owned(),
            info.aliases.join(", "),
            info.files.to_string(),
            human::bytes(info.bytes),
            human::percent(info.held_bytes, info.bytes),
            human::bytes(info.shared_bytes),
            if info.pinned { "pinned" } else { "" }.to_owned(),
        ]
    };
    let columns = [
        ("MODEL", Align::Left),
        ("NAMES", Align::Left),
        ("FILES", Align::Right),
        ("SIZE", Align::Right),
        ("HERE", Align::Right),
        ("SHARED", Align::Right),
        ("", Align::Left),
    ];
    human::table(columns, &models.iter().map(row).collect::<Vec<_>>())
}

fn detail(detail: &ModelDetail) -> String {
    let info = &detail.info;
    let held = format!("{} ({})", human::percent(info.held_bytes, info.bytes), human::bytes(info.held_bytes));
    let facts = human::pairs(&[
        ("model", info.model.clone()),
        ("names", info.aliases.join(", ")),
        ("size", human::bytes(info.bytes)),
        ("here", held),
        ("shared", format!("{} with other models here", human::bytes(info.shared_bytes))),
        ("chunks", format!("{} of {} here", info.held_chunks, info.chunks)),
        ("pinned", if info.pinned { "yes" } else { "no" }.to_owned()),
        ("runs", info.why_not.as_ref().map_or("yes".to_owned(), |why| format!("no: {why}"))),
    ]);
    let files = detail
        .files
        .iter()
        .map(|file| [human::name(&file.path).into_owned(), human::bytes(file.size), file.sha256.clone()]);
    let files = human::table(
        [("FILE", Align::Left), ("SIZE", Align::Right), ("SHA-256", Align::Left)],
        &files.collect::<Vec<_>>(),
    );
    let groups = detail.groups.iter().map(|group| {
        let here = human::percent(group.held_bytes, group.bytes);
        [human::name(&group.group).into_owned(), group.tensors.to_string(), human::bytes(group.bytes), here]
    });
    let groups = human::table(
        [("GROUP", Align::Left), ("TENSORS", Align::Right), ("SIZE", Align::Right), ("HERE", Align::Right)],
        &groups.collect::<Vec<_>>(),
    );
    format!("{facts}\n{files}\n{groups}")
}

fn peers(peers: &[PeerView]) -> String {
    if peers.is_empty() {
        return "no peers yet".to_owned();
    }
    let row = |peer: &PeerView| {
        let rtt = peer.rtt_ms.map_or("-".to_owned(), |rtt| human::seconds(rtt / 1e3));
        let addr = peer.data_addrs.first().or(peer.addrs.first()).cloned().unwrap_or_default();
        [
            peer.peer.clone(),
            peer.path.clone(),
            rtt,
            human::bytes(peer.sent),
            human::bytes(peer.received),
            format!("{}/s", human::bytes(peer.rate_up)),
            format!("{}/s", human::bytes(peer.rate_down)),
            addr,
        ]
    };
    let columns = [
        ("PEER", Align::Left),
        ("PATH", Align::Left),
        ("RTT", Align::Right),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
        ("UP", Align::Right),
        ("DOWN", Align::Right),
        ("ADDRESS", Align::Left),
    ];
    human::table(columns, &peers.iter().map(row).collect::<Vec<_>>())
}

fn reach(reach: &api::ReachStatus) -> String {
    let relays = match reach.relays.len() {
        0 => String::new(),
        relays => format!(", met through {relays} relays"),
    };
    let relaying = if reach.relaying { ", relays for others" } else { "" };
    let shared = if reach.shared_identity { ", another node has this one's identity" } else { "" };
    format!("{}{relays}{relaying}{shared}", reach.outlook)
}

fn status(status: &api::Status) -> String {
    let store = &status.store;
    let used = format!(
        "{} of {} used, {} in files of yours; {} chunks",
        human::bytes(store.used),
        human::bytes(store.quota),
        human::bytes(store.referenced),
        store.chunks
    );
    let free = store.free.map(|free| format!("; {} free on the disk", human::bytes(free)));
    let evicts = format!(
        "beyond {}, down to {}{}",
        human::bytes(store.high),
        human::bytes(store.low),
        free.unwrap_or_default()
    );
    let mut facts = vec![
        ("peer", status.peer_id.clone()),
        ("version", status.version.clone()),
        ("up", human::seconds(status.uptime_s as f64)),
        ("rpc", status.rpc.clone()),
        ("transfer", status.transfer.clone()),
        ("data", status.data_dir.clone()),
        ("peers", status.peers.to_string()),
        ("reach", reach(&status.reach)),
        ("models", status.models.to_string()),
        ("store", used),
        ("evicts", evicts),
    ];
    if let Some(scrub) = &store.scrub {
        let (done, every) = ((scrub.done * 100.0).floor(), human::seconds(scrub.period_s as f64));
        facts
            .push(("scrub", format!("{done} % of the round of {every}; {} chunks found bad", store.damaged)));
    }
    if status.limits.up.or(status.limits.down).or(status.limits.origin).is_some() {
        facts.extend(limit::facts(&status.limits));
    }
    facts.extend(status.listen.iter().map(|addr| ("listen", addr.clone())));
    facts.extend(status.reach.unreached.iter().map(|why| ("warning", why.clone())));
    facts.extend(status.loaded.iter().map(|model| ("loaded", loaded(model))));
    facts.extend(status.transfers.iter().map(|transfer| ("fetching", self::transfer(transfer))));
    human::pairs(&facts)
}

fn loaded(model: &LoadedModel) -> String {
    format!(
        "{} on {}: {} of {} groups stay in memory (at most {}), {} passes, {} requests now",
        human::model(&model.model),
        model.device,
        model.resident_groups,
        model.groups,
        human::bytes(model.memory),
        model.passes,
        model.active,
    )
}

fn transfer(transfer: &TransferStatus) -> String {
    let progress = &transfer.progress;
    let mut text = format!(
        "{} for {}: {} of {}, {}/s from {} peers",
        human::model(&transfer.model),
        transfer.purpose,
        human::percent(progress.bytes, progress.total),
        human::bytes(progress.total),
        human::bytes(progress.rate),
        progress.sources.iter().filter(|source| 0 < source.asked).count(),
    );
    text += &progress.eta_s.map(|eta| format!(", {} left", human::seconds(eta as f64))).unwrap_or_default();
    text += &progress.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
    text
}
