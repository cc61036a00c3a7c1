//! What the node and its clients tell each other: the JSON of the RPC, and so of `--json`.
//!
//! These are the documents of `INTERFACE.md`. Fields are added, never renamed. Sizes are in bytes,
//! rates in bytes per second, and every field says its unit where that is not enough. Model ids are
//! written `surf:` and 64 hexadecimal digits, peers as libp2p peer ids.

mod embeddings;
mod names;
mod origin;
mod publish;
mod shown;
mod store;

use serde::{Deserialize, Serialize};

pub use embeddings::{EmbedResult, Embedding, EmbeddingUsage, Embeddings, Vector};
pub use names::{LookUpRequest, NameInfo, NameRequest};
pub use origin::{OriginSyncRequest, OriginSynced};
pub use publish::{
    PublishEvent, PublishPhase, PublishProgress, PublishRequest, Published, Quality, Quantized,
};
pub(crate) use shown::{escaped, is_obeyed, sentence};
pub use store::{ScrubStatus, StoreStatus};

/// The state of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who the node is.
    pub peer_id: String,
    /// The version of the program.
    pub version: String,
    /// Multiaddresses of the control plane, each ending in `/p2p/…`.
    pub listen: Vec<String>,
    /// Where the data plane listens, `IP:PORT`.
    pub transfer: String,
    /// Where the RPC is, as a URL. The RPC fills this in; the node does not know it.
    pub rpc: String,
    /// The folder that holds everything the node keeps.
    pub data_dir: String,
    /// Seconds since the node started.
    pub uptime_s: u64,
    /// Connected peers.
    pub peers: usize,
    /// How others reach this node.
    #[serde(default)]
    pub reach: ReachStatus,
    /// What the store holds.
    pub store: StoreStatus,
    /// Models whose manifest is here.
    pub models: usize,
    /// Models that are ready to run.
    pub loaded: Vec<LoadedModel>,
    /// What is being fetched.
    pub transfers: Vec<TransferStatus>,
    /// How much may move.
    #[serde(default)]
    pub limits: Limits,
}

/// How much may move, over all peers together. Rates are bytes per second; `null`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// What is sent to peers.
    pub up: Option<u64>,
    /// What peers send.
    pub down: Option<u64>,
    /// What origins send.
    pub origin: Option<u64>,
    /// Connections of the data plane, in both directions.
    pub connections: usize,
}

/// Limits to change. What is left out stays; `"none"` takes a limit away; else a rate such as `20Mbit` or
/// `4MiB`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    /// What is sent to peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<String>,
    /// What peers send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
    /// What origins send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// How others reach the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReachStatus {
    /// Whether they can dial it: `public`, `private` or `unknown`.
    pub outlook: String,
    /// Peers through which it can be met, if they cannot.
    pub relays: Vec<String>,
    /// Whether it relays for others.
    pub relaying: bool,
    /// What is wrong with nodes that the user named to join through, one sentence each.
    #[serde(default)]
    pub unreached: Vec<String>,
    /// Whether another node runs with this node's identity, as when a data folder was copied.
    #[serde(default)]
    pub shared_identity: bool,
}

/// A model that is ready to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Its id.
    pub model: String,
    /// What computes it: `cpu`, `cuda:0`.
    pub device: String,
    /// Bytes of weights that may stay in memory.
    pub memory: u64,
    /// Groups that stay in memory from pass to pass.
    pub resident_groups: usize,
    /// Groups of the model.
    pub groups: usize,
    /// Requests that are being answered.
    pub active: usize,
    /// Forward passes so far.
    pub passes: u64,
}

/// A model that is being fetched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// Its id.
    pub model: String,
    /// What for: `pull` or `inference`.
    pub purpose: String,
    /// How far it is.
    #[serde(flatten)]
    pub progress: PullProgress,
}

/// A model whose manifest is here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its id.
    pub model: String,
    /// Names it goes by on this node.
    pub aliases: Vec<String>,
    /// Files in it.
    pub files: usize,
    /// Tensors in it.
    pub tensors: usize,
    /// Groups of tensors in it.
    pub groups: usize,
    /// Distinct chunks in it.
    pub chunks: usize,
    /// Bytes in its files.
    pub bytes: u64,
    /// Chunks of it that are here.
    pub held_chunks: usize,
    /// Bytes of those.
    pub held_bytes: u64,
    /// Bytes of its chunks that another model here has too.
    #[serde(default)]
    pub shared_bytes: u64,
    /// Whether its chunks are kept whatever the quota.
    pub pinned: bool,
    /// Whether all of it is here.
    pub complete: bool,
    /// Whether this node can run it, as far as its small files tell.
    #[serde(default)]
    pub runs: bool,
    /// Why not, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A model, and what it is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelDetail {
    /// The same as in the list of models.
    #[serde(flatten)]
    pub info: ModelInfo,
    /// Its files, sorted by path.
    #[serde(rename = "file_list")]
    pub files: Vec<FileInfo>,
    /// Its groups, in the order in which one pass uses them.
    #[serde(rename = "group_list")]
    pub groups: Vec<GroupInfo>,
}

/// A file of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Where in the folder, with `/` between parts.
    pub path: String,
    /// Bytes in it.
    pub size: u64,
    /// SHA-256 of it, in hexadecimal.
    pub sha256: String,
}

/// A group of tensors that inference needs together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Which part of the model: `embed`, `layer 3`, `head`.
    pub group: String,
    /// Tensors in it.
    pub tensors: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Bytes of those that are here.
    pub held_bytes: u64,
}

/// A peer that the node is connected to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Who it is.
    pub peer: String,
    /// Multiaddresses of its control plane.
    pub addrs: Vec<String>,
    /// Addresses of its data plane, `IP:PORT`.
    pub data_addrs: Vec<String>,
    /// How it is reached: `local` (this machine), `lan`, `direct`, `punched` (both opened a way through
    /// their NATs) or `relayed`.
    pub path: String,
    /// Measured round trip in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Bytes sent to its data plane, as UDP carries them.
    pub sent: u64,
    /// Bytes received from its data plane, as UDP carries them.
    pub received: u64,
    /// Bytes per second sent to it over the last seconds.
    #[serde(default)]
    pub rate_up: u64,
    /// Bytes per second received from it over the last seconds.
    #[serde(default)]
    pub rate_down: u64,
}

/// What long work answers: progress, any number of times, and then its result.
///
/// Over HTTP each is a line of JSON; a failure is a last line `{"event":"error","message","code"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Step<P, D> {
    /// How far it is.
    Progress(P),
    /// It is done.
    Done(D),
}

/// How much of something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Amount {
    /// Bytes done.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What pulling tells.
pub type PullEvent = Step<PullProgress, Pulled>;
/// What exporting tells.
pub type ExportEvent = Step<Amount, Exported>;
/// What verifying tells.
pub type VerifyEvent = Step<Amount, Verified>;

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Bytes of the model that are here, from before this pull too.
    pub bytes: u64,
    /// Bytes of the model.
    pub total: u64,
    /// Bytes that came for this pull.
    pub fetched_bytes: u64,
    /// Bytes that came in vain: wrong, or already here.
    pub wasted_bytes: u64,
    /// Of those, bytes that another peer sent sooner.
    #[serde(default)]
    pub duplicate_bytes: u64,
    /// Bytes per second, over the last seconds.
    pub rate: u64,
    /// Peers that have sent something.
    pub peers: usize,
    /// Seconds until the end at this rate.
    pub eta_s: Option<u64>,
    /// What is going on: `manifest` or `looking` (for someone who has it), `chunks` (they come),
    /// `waiting` (for peers that cannot be asked now), `done`.
    pub phase: String,
    /// Why it is slow or does not move, in words, if it is or does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The same for programs: `nobody_has_it`, `lost_chunks`, `nobody_answers`, `sole_holder_away`,
    /// `stalled_peers`, `from_origin`, `relayed_peers`, `sole_holder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who has some of it, and what comes from there.
    #[serde(default)]
    pub sources: Vec<TransferSource>,
}

/// Someone who has some of a model that is being fetched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransferSource {
    /// The peer, or the URL of the origin.
    pub peer: String,
    /// How it is reached: `local`, `lan`, `direct`, `punched`, `relayed` or `origin`.
    pub path: String,
    /// Bytes per second that it has given lately, once there was something to measure.
    pub rate: Option<u64>,
    /// Bytes that came from there, verified.
    pub bytes: u64,
    /// Chunks that it has been asked for.
    pub asked: usize,
    /// `good`, `paused`, `stalled`, `useless`; `gone` if it no longer says what it has.
    pub state: String,
}

/// All of a model is here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pulled {
    /// Its id.
    pub model: String,
    /// Bytes of the model.
    pub bytes: u64,
    /// Bytes that came for this pull.
    pub fetched_bytes: u64,
    /// Bytes that came in vain: wrong, or already here.
    pub wasted_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Where the bytes came from, most first.
    pub sources: Vec<PullSource>,
}

/// Where bytes came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PullSource {
    /// The peer, or the URL of the origin.
    pub peer: String,
    /// Bytes that came from there.
    pub bytes: u64,
    /// How it was reached: `local`, `lan`, `direct` or `origin`.
    pub path: String,
}

/// A model's files were written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// Its id.
    pub model: String,
    /// Files written.
    pub files: usize,
    /// Bytes in them.
    pub bytes: u64,
}

/// Room was made in the store, or could be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Freed {
    /// Bytes that were freed.
    pub freed_bytes: u64,
}

/// Chunks were hashed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// Chunks checked.
    pub checked: u64,
    /// Chunks whose bytes were not what they should be.
    pub bad: u64,
    /// Bad chunks that were fetched again.
    pub repaired: u64,
    /// Chunks that a model names and that are not here.
    #[serde(default)]
    pub missing: u64,
}

/// A model was run and compared with recorded outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Its id.
    pub model: String,
    /// Numbers compared.
    pub compared: u64,
    /// The largest |got − expected|.
    pub max_abs_err: f64,
    /// The same as a share of the largest |expected| of the tensor.
    pub max_rel_err: f64,
    /// Share of positions whose most likely token is the recorded one. `None`: none was recorded.
    pub argmax_agree: Option<f64>,
    /// Share of greedily chosen tokens that are the recorded ones. `None`: none was recorded.
    pub greedy_agree: Option<f64>,
    /// Whether `max_rel_err` is within the tolerance.
    pub pass: bool,
}

/// Which model, for what needs no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRequest {
    /// A model id, a prefix of one, an alias, or a signed name.
    pub model: String,
}

/// How a part of the node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Which part.
    pub part: &'static str,
    /// That it is well, or why it is not.
    pub state: Result<String, String>,
}

/// Nothing can be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoRequest {}

/// What to export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// A model id, a prefix of one, an alias, or a signed name.
    pub model: String,
    /// The folder to write to, as an absolute path on the node's machine.
    pub dir: String,
}

/// What to verify.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// A model, or everything.
    #[serde(default)]
    pub model: Option<String>,
    /// Whether to fetch bad chunks again.
    #[serde(default)]
    pub repair: bool,
}

/// How a check is made; the body of the request is the safetensors file of recorded outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// A model id, a prefix of one, an alias, or a signed name.
    pub model: String,
    /// The largest `max_rel_err` that passes.
    #[serde(default = "tolerance_default")]
    pub tolerance: f64,
}

/// The largest relative error that passes a check, unless told otherwise.
pub const TOLERANCE_DEFAULT: f64 = 1e-3;

fn tolerance_default() -> f64 {
    TOLERANCE_DEFAULT
}

/// How a generation went: the `surf` object of a final chunk or whole answer of `/v1/…`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were generated.
    pub completion_tokens: usize,
    /// Milliseconds from the request to the first token.
    pub ttft_ms: f64,
    /// Tokens per second after the first.
    pub tokens_per_s: f64,
    /// What of the weights was in memory.
    pub cache: CacheStats,
}

/// What of a model's weights was in memory when it was needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Forward passes.
    pub passes: u64,
    /// Times a group that stays in memory was there when a pass needed it.
    pub hits: u64,
    /// Times a group that does not stay had come before a pass needed it.
    pub ready: u64,
    /// Times a pass had to wait for a group.
    pub misses: u64,
    /// The same, for each group in the order of a pass.
    pub per_group: Vec<GroupCache>,
    /// Bytes of weights that stay in memory.
    pub resident_bytes: u64,
}

/// The same for one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupCache {
    /// Which part of the model.
    pub group: String,
    /// Times it was there because it stays in memory.
    pub hits: u64,
    /// Times it does not stay and had come before it was needed.
    pub ready: u64,
    /// Times a pass had to wait for it.
    pub misses: u64,
    /// Bytes in it.
    pub bytes: u64,
}

/// An error, as OpenAI's API writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// One sentence that names the thing.
    pub message: String,
    /// The kind, in OpenAI's words: `invalid_request_error`, `server_error`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter at fault, if it is one.
    #[serde(default)]
    pub param: Option<String>,
    /// The kind, for programs: `not_found`, `invalid`, `busy`, `failed`, …
    #[serde(default)]
    pub code: Option<String>,
}

#[cfg(test)]
mod tests;
