//! What is said about publishing.

use serde::{Deserialize, Serialize};

use super::{Amount, Step};

/// What publishing tells.
pub type PublishEvent = Step<PublishProgress, Published>;

/// How far publishing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PublishProgress {
    /// What is being done.
    #[serde(default)]
    pub phase: PublishPhase,
    /// How much of it is done.
    #[serde(flatten)]
    pub amount: Amount,
}

/// What is done to publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishPhase {
    /// Weights are quantised.
    Quantizing,
    /// Files are cut and hashed, and copied where that is wanted.
    #[default]
    Publishing,
    /// The quantised model is compared with what it was.
    Measuring,
}

/// What to publish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The folder or file, as an absolute path on the node's machine.
    pub path: String,
    /// A name for it on this node.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether the name may be taken from another model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Whether to copy the bytes into the store, rather than to read them where they are.
    #[serde(default)]
    pub copy: bool,
    /// Whether to follow links that leave the folder.
    #[serde(default)]
    pub follow_links: bool,
    /// What to quantise the weights to first: `q8_0`, `q6_k`, `q5_k`, `q4_k`, `q4_0`, `q3_k` or `q2_k`. Such a
    /// model is always copied into the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
    /// Whether to leave it unmeasured what that costs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_measure: bool,
}

/// A model was published.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// Its id.
    pub model: String,
    /// Its name on this node, if it was given one.
    pub name: Option<String>,
    /// Files in it.
    pub files: usize,
    /// Tensors in it.
    pub tensors: usize,
    /// Groups of tensors in it.
    pub groups: usize,
    /// Distinct chunks in it.
    pub chunks: usize,
    /// Chunks that the node did not have before.
    pub new_chunks: usize,
    /// Bytes in its files.
    pub bytes: u64,
    /// Bytes of `new_chunks`.
    pub new_bytes: u64,
    /// What the publisher should know: that the model cannot be run, and why. Each one sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// What quantising came to, if the model was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<Quantized>,
}

/// What quantising came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// What to, as in the request.
    pub kind: String,
    /// Tensors that became blocks of fewer bits. The others stayed as they are.
    pub tensors: usize,
    /// Bytes in the files that were published, before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// How far the model is from what it was; `null` if that was not measured.
    pub quality: Option<Quality>,
    /// Why it could not be, where it should have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmeasured: Option<String>,
}

/// How far a quantised model is from what it was, on a page of English.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Tokens of the page that were read.
    pub tokens: u64,
    /// Mean Kullback-Leibler divergence of its predictions from those before, in nats.
    pub kl_divergence: f64,
    /// Perplexity before.
    pub perplexity_before: f64,
    /// Perplexity now.
    pub perplexity: f64,
}
