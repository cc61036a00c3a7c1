//! Tokenizers of characters, as SentencePiece's, with bytes for those that have no token. Of the pairs
//! that make up a token, the one whose token has the highest score is merged first.

use std::collections::HashMap;

use serde_json::{Value, json};
use surf_chunker::gguf::Metadata;

use super::{
    Fault,
    tokenizer::{MERGES_MAX, NORMAL, Parts, UNKNOWN, USER_DEFINED, Vocabulary, special},
};

/// Bytes in a token that others merge to. SentencePiece's have some 90 at most.
const MERGED_SIZE_MAX: usize = 128;

/// What becomes of a space.
const SPACE: &str = "\u{2581}";

/// The tokenizer that `metadata` describes.
pub(super) fn sentence_piece<'a>(
    metadata: &Metadata<'a>,
    vocabulary: &Vocabulary<'a>,
) -> Result<Parts<'a>, Fault> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = metadata.find(SCORES).and_then(|scores| scores.as_list());
    let scores = scores.filter(|scores| scores.len() == vocabulary.tokens.len());
    let scores = scores.ok_or_else(|| format!("{SCORES} does not have one score for each token"))?;
    let scores: Vec<f64> = scores.iter().map(|score| score.as_f64().unwrap_or(f64::NEG_INFINITY)).collect();
    let prefix = metadata.find("tokenizer.ggml.add_space_prefix").and_then(|flag| flag.as_bool());
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown =
        special(metadata, "unknown").or_else(|| vocabulary.types.iter().position(|kind| *kind == UNKNOWN));
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        unknown: unknown.and_then(|id| vocabulary.tokens.get(id).copied()),
        byte_fallback: true,
        whole: false,
        merges: merges(vocabulary, &scores)?,
        begins: true,
    })
}

/// All pairs of tokens that make up a token, the best first.
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Result<Vec<(&'a str, &'a str)>, Fault> {
    let tokens = vocabulary.tokens.iter().copied().enumerate();
    let ids: HashMap<&str, usize> = tokens.clone().map(|(id, token)| (token, id)).collect();
    let mut found = Vec::new();
    for (id, token) in tokens {
        // Those that stand for a byte, or for nothing in a text, are not made of parts.
        if MERGED_SIZE_MAX < token.len() || !matches!(vocabulary.types[id], NORMAL | USER_DEFINED) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&first), Some(&second)) = (ids.get(left), ids.get(right)) {
                found.push((id, first, second, (left, right)));
            }
        }
        if MERGES_MAX < found.len() {
            return Err(format!("tokenizer.ggml.tokens has tokens made of others in over {MERGES_MAX} ways"));
        }
    }
    // Of equal scores, the earlier token, and the pair of earlier tokens.
    found.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then((a.0, a.1, a.2).cmp(&(b.0, b.1, b.2))));
    Ok(found.into_iter().map(|(.., pair)| pair).collect())
}
