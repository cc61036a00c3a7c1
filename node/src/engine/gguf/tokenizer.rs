//! The tokenizer in a GGUF file's metadata, as the `tokenizer.json` that it was made from.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};
use surf_chunker::gguf::{List, Metadata};

use super::{Fault, pieces, splits};

/// Tokens of a vocabulary, and bytes in all of them. The largest have a quarter of this.
const TOKENS_MAX: usize = 1 << 20;
const TOKENS_SIZE_MAX: usize = 16 << 20;

/// Bytes in all tokens that are found in text before it is taken apart. Some vocabularies have thousands.
const ADDED_SIZE_MAX: usize = 1 << 20;

/// Pairs of tokens that are merged. The largest vocabularies have half of this.
pub(super) const MERGES_MAX: usize = 1 << 20;

/// Bytes in a chat template. Some have ten thousand.
const TEMPLATE_SIZE_MAX: usize = 1 << 20;

/// Names of tokens that end a turn or a text, whatever the metadata says.
const ENDS: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
];

/// What tokens are for, as `tokenizer.ggml.token_type` numbers it.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;

const MODEL: &str = "tokenizer.ggml.model";

/// The vocabulary.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<&'a str>,
    /// As many.
    pub(super) types: Vec<u64>,
}

/// What kinds of tokenizers differ in.
pub(super) struct Parts<'a> {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) unknown: Option<&'a str>,
    /// Whether characters without a token are written as tokens of their bytes.
    pub(super) byte_fallback: bool,
    /// Whether what is a token as it is, is not merged from parts.
    pub(super) whole: bool,
    /// The best first.
    pub(super) merges: Vec<(&'a str, &'a str)>,
    /// Whether texts begin with a token of their own, where the metadata does not say.
    pub(super) begins: bool,
}

/// `tokenizer.json`.
#[derive(Serialize)]
struct Json<'a> {
    version: &'static str,
    added_tokens: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a>,
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, usize>,
    merges: Vec<(&'a str, &'a str)>,
}

/// `tokenizer.json`.
pub(super) fn tokenizer(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<String, Fault> {
    let parts = match metadata.find(MODEL).and_then(|model| model.as_str()) {
        Some("gpt2") => splits::byte_level(metadata)?,
        Some("llama") => pieces::sentence_piece(metadata, vocabulary)?,
        Some(other) => return Err(format!("{MODEL} is {other:?}; supported are gpt2 and llama")),
        None => return Err(format!("{MODEL} is missing")),
    };
    let flag = |key: &str| metadata.find(key).and_then(|flag| flag.as_bool());
    let begins = flag("tokenizer.ggml.add_bos_token").unwrap_or(parts.begins);
    let ends = flag("tokenizer.ggml.add_eos_token").unwrap_or(false);
    let around = |wanted: bool, name: &str| special(metadata, name).filter(|_| wanted);
    let tokenizer = Json {
        version: "1.0",
        added_tokens: vocabulary.added()?,
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: vocabulary.around(around(begins, "bos"), around(ends, "eos")),
        decoder: parts.decoder,
        model: Bpe {
            r#type: "BPE",
            unk_token: parts.unknown,
            fuse_unk: parts.unknown.is_some(),
            byte_fallback: parts.byte_fallback,
            ignore_merges: parts.whole,
            vocab: vocabulary.tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect(),
            merges: parts.merges,
        },
    };
    serde_json::to_string(&tokenizer).map_err(|error| error.to_string())
}

/// `tokenizer_config.json`: the chat template, and the special tokens that it may name.
pub(super) fn config(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<String, Fault> {
    const TEMPLATE: &str = "tokenizer.chat_template";
    let mut config = Map::new();
    if let Some(template) = metadata.find(TEMPLATE).and_then(|template| template.as_str()) {
        if TEMPLATE_SIZE_MAX < template.len() {
            return Err(format!("{TEMPLATE} has {} bytes; {TEMPLATE_SIZE_MAX} are read", template.len()));
        }
        config.insert("chat_template".to_owned(), json!(template));
    }
    for (name, field) in
        [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        if let Some(token) = special(metadata, name).and_then(|id| vocabulary.tokens.get(id)) {
            config.insert(field.to_owned(), json!(token));
        }
    }
    Ok(Value::Object(config).to_string())
}

/// `generation_config.json`: the tokens that end a text.
pub(super) fn generation(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> String {
    let mut ends: Vec<usize> = ["eos", "eot"].iter().filter_map(|name| special(metadata, name)).collect();
    let named = vocabulary.tokens.iter().zip(&vocabulary.types).enumerate();
    let named = named.filter(|(_, (token, kind))| **kind == CONTROL && ENDS.contains(token));
    ends.extend(named.map(|(id, _)| id));
    ends.sort_unstable();
    ends.dedup();
    json!({"eos_token_id": ends}).to_string()
}

/// The token that the metadata says is the one for `name`.
pub(super) fn special(metadata: &Metadata<'_>, name: &str) -> Option<usize> {
    let id = metadata.find(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64()?;
    usize::try_from(id).ok()
}

impl<'a> Vocabulary<'a> {
    /// The vocabulary, if there is one.
    pub(super) fn read(metadata: &Metadata<'a>) -> Result<Option<Self>, Fault> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let Some(list) = metadata.find(TOKENS) else { return Ok(None) };
        if let Some("none" | "no_vocab") = metadata.find(MODEL).and_then(|model| model.as_str()) {
            return Ok(None);
        }
        let list = list.as_list().ok_or_else(|| format!("{TOKENS} must be a list"))?;
        let tokens = texts(TOKENS, list, TOKENS_MAX)?;
        let types = match metadata.find(TYPES) {
            None => vec![NORMAL; tokens.len()],
            Some(types) => {
                let types = types.as_list().filter(|types| types.len() == tokens.len());
                let types = types.ok_or_else(|| format!("{TYPES} does not have one type for each token"))?;
                types.iter().map(|kind| kind.as_u64().unwrap_or(0)).collect()
            }
        };
        Ok(Some(Self { tokens, types }))
    }

    /// Tokens that are found in text before it is taken apart.
    fn added(&self) -> Result<Value, Fault> {
        let all = self.tokens.iter().zip(&self.types).enumerate();
        let added = all.filter(|(_, (_, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED));
        let size: usize = added.clone().map(|(_, (token, _))| token.len()).sum();
        if ADDED_SIZE_MAX < size {
            return Err(format!(
                "tokenizer.ggml.tokens has {size} bytes of tokens that are no parts of words"
            ));
        }
        let token = |(id, (token, kind)): (usize, (&&str, &u64))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED})
        };
        Ok(added.map(token).collect())
    }

    /// Puts these tokens around a text.
    fn around(&self, begin: Option<usize>, end: Option<usize>) -> Value {
        let token = |id: Option<usize>| Some((id?, *self.tokens.get(id?)?));
        let (begin, end) = (token(begin), token(end));
        if begin.is_none() && end.is_none() {
            return Value::Null;
        }
        let special = |token: Option<(usize, &str)>| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": 0}}))
        };
        let sequence = |id: &str| {
            let text = Some(json!({"Sequence": {"id": id, "type_id": 0}}));
            [special(begin), text, special(end)].into_iter().flatten().collect::<Vec<_>>()
        };
        let tokens: Map<String, Value> = begin
            .into_iter()
            .chain(end)
            .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        let pair = [sequence("A"), sequence("B")].concat();
        json!({"type": "TemplateProcessing", "single": sequence("A"), "pair": pair, "special_tokens": tokens})
    }
}

/// What is in the list called `key`, if that is texts and not too many.
pub(super) fn texts<'a>(key: &str, list: List<'a>, max: usize) -> Result<Vec<&'a str>, Fault> {
    if max < list.len() {
        return Err(format!("{key} has {} texts; at most {max} are read", list.len()));
    }
    let texts: Option<Vec<&str>> = list.iter().map(|text| text.as_str()).collect();
    let texts = texts.ok_or_else(|| format!("{key} must be a list of texts"))?;
    match texts.iter().map(|text| text.len()).sum::<usize>() {
        size if TOKENS_SIZE_MAX < size => {
            Err(format!("{key} has {size} bytes; at most {TOKENS_SIZE_MAX} are read"))
        }
        _ => Ok(texts),
    }
}
