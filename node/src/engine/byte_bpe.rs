//! A tokenizer from `vocab.json` and `merges.txt`, for models that were saved before there was a
//! `tokenizer.json`: GPT-2's and its relatives', whose tokens are made of bytes. Put together as
//! transformers 5 does.

use serde_json::{Map, Value, json};
use surf_chunker::json as python_json;
use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::NFC,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::{roberta::RobertaProcessing, template::TemplateProcessing},
};

use super::{EngineError, fields::Fields, files::Files, gguf};

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const CONFIG: &str = "tokenizer_config.json";
const ADDED: &str = "added_tokens.json";
const SPECIAL: &str = "special_tokens_map.json";

/// The files that are read, where there is no `tokenizer.json`.
pub(crate) const FILES: [&str; 3] = [VOCAB, MERGES, ADDED];

/// Tokens that a configuration names, in the order in which they are added.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// In what the relatives differ.
struct Kind {
    /// As `tokenizer_class` says, without `Fast`.
    classes: &'static [&'static str],
    /// As `model_type` says, where there is no class.
    model_types: &'static [&'static str],
    /// Whether text is composed first.
    composed: bool,
    /// How text is split, where not as GPT-2 does.
    split: Option<&'static str>,
    /// Whether a text stands between two tokens.
    enclosed: bool,
    /// Tokens that a configuration need not name.
    named: &'static [(&'static str, &'static str)],
}

const END: &str = "<|endoftext|>";

/// The first is what others mean that have such a vocabulary.
const KINDS: [Kind; 4] = [
    Kind {
        classes: &["GPT2Tokenizer", "CodeGenTokenizer"],
        model_types: &["gpt2", "phi", "starcoder2"],
        composed: false,
        split: None,
        enclosed: false,
        named: &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
    },
    Kind {
        classes: &["Qwen2Tokenizer"],
        model_types: &["qwen2", "qwen2_moe", "qwen3", "qwen3_moe"],
        composed: true,
        split: Some(gguf::QWEN2),
        enclosed: false,
        named: &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
    },
    Kind {
        classes: &["GPTNeoXTokenizer"],
        model_types: &["gpt_neox", "olmo"],
        composed: true,
        split: None,
        enclosed: false,
        named: &[("bos_token", END), ("eos_token", END), ("unk_token", END), ("pad_token", "<|padding|>")],
    },
    Kind {
        classes: &["RobertaTokenizer"],
        model_types: &["roberta"],
        composed: false,
        split: None,
        enclosed: true,
        named: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
    },
];

/// The tokenizer, if both files are there, and are of a kind that is known.
pub(crate) fn read(files: &Files) -> Result<Option<Tokenizer>, EngineError> {
    let (Some(vocab), Some(merges)) = (files.0.get(VOCAB), files.text(MERGES)?) else { return Ok(None) };
    let vocab: Vocab = python_json::read(vocab).map_err(|error| EngineError::file(VOCAB, error))?;
    let config = files.object(CONFIG)?;
    let fields = Fields::new(&config);
    let model = files.object("config.json")?;
    let Some(kind) = kind(fields.text("tokenizer_class")?, Fields::new(&model).text("model_type")?, &vocab)
    else {
        return Ok(None);
    };
    let prefix_space = fields.flag("add_prefix_space")?.unwrap_or(false);
    let mut tokenizer = plain(kind, vocab, merges, prefix_space)?;
    let added = Added::read(kind, files, &config)?;
    tokenizer.add_tokens(added.tokens()).map_err(|error| EngineError::file(CONFIG, error))?;
    let id = |name: &str| {
        let token = added.name(name)?;
        Some((token.to_owned(), tokenizer.token_to_id(token)?))
    };
    if kind.enclosed {
        let (sep, cls) = (id("sep_token"), id("cls_token"));
        if let (Some(sep), Some(cls)) = (sep, cls) {
            let around = RobertaProcessing::new(sep, cls).add_prefix_space(prefix_space);
            tokenizer.with_post_processor(Some(around));
        }
        return Ok(Some(tokenizer));
    }
    let wanted = |flag: &str, name: &str| {
        Ok::<_, EngineError>(match fields.flag(flag)? {
            Some(true) => id(name),
            Some(false) | None => None,
        })
    };
    let (begin, end) = (wanted("add_bos_token", "bos_token")?, wanted("add_eos_token", "eos_token")?);
    if begin.is_some() || end.is_some() {
        let around = around(begin, end).map_err(|error| EngineError::file(CONFIG, error))?;
        tokenizer.with_post_processor(Some(around));
    }
    Ok(Some(tokenizer))
}

/// As its class says, else the kind of model, else as GPT-2 if every byte is a token.
fn kind(class: Option<&str>, model_type: Option<&str>, vocab: &Vocab) -> Option<&'static Kind> {
    let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class));
    let by_class = |kind: &&Kind| class.is_some_and(|class| kind.classes.contains(&class));
    let by_type = |kind: &&Kind| model_type.is_some_and(|name| kind.model_types.contains(&name));
    let of_bytes = || {
        let letters = ('!'..='~').chain('\u{a1}'..='\u{ac}').chain('\u{ae}'..='\u{143}');
        letters.map(|letter| letter.to_string()).all(|letter| vocab.contains_key(&letter))
    };
    let found = KINDS.iter().find(by_class).or_else(|| KINDS.iter().find(by_type));
    found.or_else(|| of_bytes().then_some(&KINDS[0]))
}

/// The tokenizer without tokens that are added.
fn plain(kind: &Kind, vocab: Vocab, merges: &str, prefix_space: bool) -> Result<Tokenizer, EngineError> {
    let wrong = |error: tokenizers::Error| EngineError::file(MERGES, error);
    let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    let pair = |line: &str| {
        let (first, second) = line.split_once(' ')?;
        Some((first.to_owned(), second.to_owned()))
    };
    let merges: Option<Vec<_>> = lines.map(pair).collect();
    let merges = merges.ok_or_else(|| EngineError::file(MERGES, "has a line that is no pair of tokens"))?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    if kind.composed {
        tokenizer.with_normalizer(Some(NFC)).map_err(wrong)?;
    }
    match kind.split {
        None => {
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix_space, true, true)));
        }
        Some(pattern) => {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(wrong)?;
            let bytes = ByteLevel::new(prefix_space, true, false);
            let both: Vec<PreTokenizerWrapper> = vec![split.into(), bytes.into()];
            tokenizer.with_pre_tokenizer(Some(Sequence::new(both)));
        }
    }
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// Puts these tokens around a text.
fn around(
    begin: Option<(String, u32)>,
    end: Option<(String, u32)>,
) -> serde_json::Result<TemplateProcessing> {
    let special = |token: &Option<(String, u32)>| {
        token.as_ref().map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": 0}}))
    };
    let sequence = |id: &str| -> Vec<Value> {
        let text = Some(json!({"Sequence": {"id": id, "type_id": 0}}));
        [special(&begin), text, special(&end)].into_iter().flatten().collect()
    };
    let pair = [sequence("A"), sequence("B")].concat();
    let tokens: Map<String, Value> = begin
        .iter()
        .chain(&end)
        .map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    serde_json::from_value(json!({
        "type": "TemplateProcessing", "single": sequence("A"), "pair": pair, "special_tokens": tokens,
    }))
}

/// Tokens that are found in text before it is taken apart.
struct Added {
    /// Those with a number of their own, in its order.
    numbered: Vec<AddedToken>,
    /// By the names that configurations have for them.
    named: Vec<(&'static str, AddedToken)>,
    /// Others that are special.
    more: Vec<AddedToken>,
}

impl Added {
    /// From `tokenizer_config.json`, else from the files that were there before it had them all.
    fn read(kind: &Kind, files: &Files, config: &Map<String, Value>) -> Result<Self, EngineError> {
        let wrong = |file| move |reason: &str| EngineError::file(file, reason);
        let mut said = config.clone();
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
        if decoder.is_none() {
            said.extend(files.object(SPECIAL)?);
        }
        let mut named: Vec<(&'static str, AddedToken)> = Vec::new();
        for name in NAMED {
            let default = kind.named.iter().find(|(known, _)| *known == name);
            let token = match said.get(name) {
                Some(Value::Null) => None,
                Some(value) => Some(token(value).ok_or_else(|| wrong(CONFIG)("names a token that is none"))?),
                None => default.map(|(_, content)| AddedToken::from(*content, true)),
            };
            named.extend(token.map(|token| (name, AddedToken { special: true, ..token })));
        }
        let more =
            ["additional_special_tokens", "extra_special_tokens"].iter().filter_map(|name| said.get(*name));
        let more = more.filter_map(Value::as_array).flatten();
        let more: Vec<AddedToken> =
            more.filter_map(token).map(|token| AddedToken { special: true, ..token }).collect();
        // As in transformers: a list of further special tokens does not make one of an added token that is none.
        let is_named = |content: &str| named.iter().any(|(_, token)| token.content == content);
        let mut numbered: Vec<(u64, AddedToken)> = Vec::new();
        if let Some(decoder) = decoder {
            for (id, value) in decoder {
                let added = id.parse().ok().zip(token(value));
                numbered.push(added.ok_or_else(|| wrong(CONFIG)("has an added token that is none"))?);
            }
        } else {
            for (content, id) in files.object(ADDED)? {
                let id = id.as_u64().ok_or_else(|| wrong(ADDED)("has a token whose id is none"))?;
                numbered.push((id, AddedToken::from(&*content, is_named(&content))));
            }
        }
        numbered.sort_by_key(|(id, _)| *id);
        let numbered = numbered.into_iter().map(|(_, token)| {
            let special = token.special || is_named(&token.content);
            AddedToken { special, ..token }
        });
        Ok(Self { numbered: numbered.collect(), named, more })
    }

    /// All of them, each once.
    fn tokens(&self) -> Vec<AddedToken> {
        let all = self.numbered.iter().chain(self.named.iter().map(|(_, token)| token)).chain(&self.more);
        let mut tokens: Vec<AddedToken> = Vec::new();
        for token in all {
            if !tokens.iter().any(|other| other.content == token.content) {
                tokens.push(token.clone());
            }
        }
        tokens
    }

    /// The token that configurations call `name`.
    fn name(&self, name: &str) -> Option<&str> {
        let found = self.named.iter().find(|(known, _)| *known == name);
        found.map(|(_, token)| token.content.as_str())
    }
}

/// A token as text, or with how it is found.
fn token(value: &Value) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, true));
    }
    let content = value.get("content")?.as_str()?;
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Recorded {
        shared: Map<String, Value>,
        texts: Vec<String>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        files: Map<String, Value>,
        ids: Vec<Vec<u32>>,
        bare: Vec<Vec<u32>>,
        decoded: Vec<String>,
    }

    fn files<'a>(parts: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Files {
        let text = |value: &Value| value.as_str().unwrap().to_owned().into();
        Files(parts.into_iter().map(|(name, value)| (name.clone(), text(value))).collect())
    }

    fn recorded() -> Recorded {
        let json = include_str!("../../../tests/fixtures/vocabularies.json");
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn texts_are_cut_as_transformers_cuts_them() {
        let recorded = recorded();
        assert!(!recorded.cases.is_empty());
        for case in &recorded.cases {
            let tokenizer = read(&files(recorded.shared.iter().chain(&case.files))).unwrap().unwrap();
            for (at, text) in recorded.texts.iter().enumerate() {
                let ids = |special| tokenizer.encode(&**text, special).unwrap().get_ids().to_vec();
                assert_eq!(ids(true), case.ids[at], "{}: {text:?}", case.name);
                assert_eq!(ids(false), case.bare[at], "{}: {text:?}", case.name);
                assert_eq!(tokenizer.decode(&ids(true), true).unwrap(), case.decoded[at], "{}", case.name);
            }
        }
    }

    #[test]
    fn other_tokenizers_are_left_alone_and_odd_files_named() {
        let with = |name: &str, text: &str| {
            let mut files = files(&recorded().shared);
            files.0.insert(name.to_owned(), text.to_owned().into());
            read(&files)
        };
        let few = r#"{"a": 0, "b": 1}"#;
        assert!(with("vocab.json", few).unwrap().is_none(), "no vocabulary of bytes");
        let error = |name, text| with(name, text).unwrap_err().to_string();
        assert!(error("vocab.json", r#"{"a": -1}"#).starts_with("vocab.json: "));
        assert_eq!(error("merges.txt", "ab"), "merges.txt: has a line that is no pair of tokens");
        assert!(error("merges.txt", "a nothing").starts_with("merges.txt: "));
        assert!(error("added_tokens.json", r#"{"a": "b"}"#).starts_with("added_tokens.json: "));
        let mut alone = files(&recorded().shared);
        alone.0.remove("merges.txt");
        assert!(read(&alone).unwrap().is_none());
    }
}
