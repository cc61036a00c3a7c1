//! What is said about texts as vectors.

use serde::{Deserialize, Serialize};

/// Texts as vectors, as OpenAI's API writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// `list`.
    pub object: String,
    /// One for each text, in their order.
    pub data: Vec<Embedding>,
    /// The model, as the client called it.
    pub model: String,
    /// What was read for it.
    pub usage: EmbeddingUsage,
}

/// A text as a vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Which of the texts it is, from 0.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector, in one of two spellings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Its elements.
    Floats(Vec<f32>),
    /// The base64 of its elements, each as four bytes, little-endian.
    Base64(String),
}

/// Tokens of the texts that were embedded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Tokens of all texts.
    pub prompt_tokens: usize,
    /// The same: nothing is generated.
    pub total_tokens: usize,
}

/// Texts as vectors, in the order of the texts: what `surf-node embed --json` writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EmbedResult {
    /// One for each text.
    pub data: Vec<Vec<f32>>,
}
