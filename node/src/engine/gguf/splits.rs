//! Byte-level tokenizers, as GPT-2's, and the ways in which they take text apart before they merge bytes.

use serde_json::{Value, json};
use surf_chunker::gguf::Metadata;

use super::{
    Fault,
    tokenizer::{MERGES_MAX, Parts, texts},
};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
const DIGIT: &str = r"\p{N}";

/// What one of them does.
#[derive(Clone, Copy, Default)]
struct Way {
    /// What is split off by itself, one after the other.
    splits: &'static [&'static str],
    /// Whether what is left is then split as GPT-2 does.
    words: bool,
    /// Whether what is a token as it is, is not merged from parts.
    whole: bool,
    /// Whether text is composed first (NFC).
    composed: bool,
    /// Whether a text begins with a token of its own, where the metadata does not say.
    begins: bool,
}

/// By what `tokenizer.ggml.pre` says.
fn way(kind: &str) -> Option<Way> {
    let by = |splits| Way { splits, ..Way::default() };
    Some(match kind {
        "default" | "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling"
        | "exaone4" | "mellum" | "gigachat" | "a.x-4.0" | "modern-bert" => {
            Way { words: true, ..Way::default() }
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            Way { whole: true, begins: true, ..by(&[LLAMA3]) }
        }
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => by(&[LLAMA3]),
        "qwen2" => Way { composed: true, ..by(&[QWEN2]) },
        "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open"
        | "grok-2" => by(&[QWEN2]),
        "qwen35" => by(&[QWEN35]),
        "tekken" => Way { whole: true, begins: true, ..by(&[TEKKEN]) },
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => by(&[GPT4O]),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => by(&DEEPSEEK3),
        "deepseek-coder" => by(&DEEPSEEK_CODER),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => Way { words: true, ..by(&[DIGIT]) },
        _ => return None,
    })
}

/// The tokenizer that `metadata` describes.
pub(super) fn byte_level<'a>(metadata: &Metadata<'a>) -> Result<Parts<'a>, Fault> {
    const MERGES: &str = "tokenizer.ggml.merges";
    const PRE: &str = "tokenizer.ggml.pre";
    let kind = metadata.find(PRE).and_then(|kind| kind.as_str()).unwrap_or("default");
    let way =
        way(kind).ok_or_else(|| format!("{PRE} is {kind:?}, a way to split text that is not supported"))?;
    let list = metadata.find(MERGES).and_then(|merges| merges.as_list());
    let list = list.ok_or_else(|| format!("{MERGES} must be a list of texts"))?;
    let merges: Option<Vec<_>> = texts(MERGES, list, MERGES_MAX)?.into_iter().map(pair).collect();
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let splits: Vec<Value> = way.splits.iter().map(split).chain([bytes(way.words)]).collect();
    Ok(Parts {
        normalizer: if way.composed { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": splits}),
        decoder: bytes(true),
        unknown: None,
        byte_fallback: false,
        whole: way.whole,
        merges: merges.ok_or_else(|| format!("{MERGES} must be pairs of tokens with a space between"))?,
        begins: way.begins,
    })
}

/// Two tokens with a space between, of which the first is never empty, and may be a space.
fn pair(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}
