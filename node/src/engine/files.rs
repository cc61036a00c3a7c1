//! The small files of a model's repository: configuration, tokenizer, chat template.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Map, Value};
use surf_chunker::json;

use super::{EngineError, byte_bpe, sentence, template};

/// Any of these makes a tokenizer; `merges.txt` and the configuration go with them.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "vocab.json", "vocab.txt"];

/// Any of these may hold a chat template.
const TEMPLATES: [&str; 3] = ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"];

/// Files of a repository by their path in it. Those that the engine looks for are [`Files::WANTED`].
#[derive(Clone, Debug, Default)]
pub struct Files(pub HashMap<String, Bytes>);

impl Files {
    /// Everything that the engine reads, where it is there.
    pub const WANTED: [&str; 10] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        "vocab.txt",
        "modules.json",
        "sentence_bert_config.json",
    ];

    /// Whether the file at `path` is a chat template that has a name, of which there may be any number.
    pub fn is_template(path: &str) -> bool {
        let name = path.strip_prefix(template::FOLDER).and_then(|path| path.strip_suffix(template::SUFFIX));
        name.is_some_and(|name| !name.is_empty() && !name.contains('/'))
    }

    /// What a tokenizer is made of, if there is something.
    pub(crate) fn of_tokenizer(&self) -> Option<Self> {
        let is_there = TOKENIZERS.iter().any(|name| self.0.contains_key(*name));
        let others = [
            "config.json",
            "merges.txt",
            "added_tokens.json",
            "special_tokens_map.json",
            "tokenizer_config.json",
        ];
        is_there.then(|| self.some(|name| TOKENIZERS.contains(&name) || others.contains(&name)))
    }

    /// What a chat template is made of, if there may be one.
    pub(crate) fn of_template(&self) -> Option<Self> {
        let holds = |name: &str| TEMPLATES.contains(&name) || Self::is_template(name);
        let is_there = self.0.keys().any(|name| holds(name));
        is_there.then(|| self.some(|name| holds(name) || name == "special_tokens_map.json"))
    }

    fn some(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let wanted = self.0.iter().filter(|(name, _)| wanted(name));
        Self(wanted.map(|(name, bytes)| (name.clone(), bytes.clone())).collect())
    }

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
