//! The small files of a model's repository: configuration, tokenizer, chat template.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Map, Value};
use surf_chunker::json;

use super::{EngineError, byte_bpe, sentence};

/// Files of a repository by their path in it. Those that the engine looks for are [`Files::WANTED`].
#[derive(Clone, Debug, Default)]
pub struct Files(pub HashMap<String, Bytes>);

impl Files {
    /// Everything that the engine reads, where it is there.
    pub const WANTED: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "vocab.txt",
        "modules.json",
        "sentence_bert_config.json",
    ];

    /// Files that those among [`Files::WANTED`] name, and that the engine reads too.
    pub fn named(&self) -> Vec<String> {
        let mut named = sentence::files(self);
        if !self.0.contains_key("tokenizer.json") {
            named.extend(byte_bpe::FILES.map(str::to_owned));
        }
        named
    }

    /// The file at `path`, or an error that names it.
    pub(crate) fn required(&self, path: &str) -> Result<&Bytes, EngineError> {
        self.0.get(path).ok_or_else(|| EngineError::file(path, "the model has no such file"))
    }

    /// The object in the JSON file at `path`; empty if there is no such file.
    pub(crate) fn object(&self, path: &str) -> Result<Map<String, Value>, EngineError> {
        let Some(bytes) = self.0.get(path) else { return Ok(Map::new()) };
        json::read(bytes).map_err(|error| EngineError::file(path, error))
    }

    /// The text in the file at `path`, if it is there.
    pub(crate) fn text(&self, path: &str) -> Result<Option<&str>, EngineError> {
        let Some(bytes) = self.0.get(path) else { return Ok(None) };
        std::str::from_utf8(bytes).map(Some).map_err(|error| EngineError::file(path, error))
    }
}
