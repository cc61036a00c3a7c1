//! How likely tokens were, as OpenAI's API writes it, and where they stand in the text.
//!
//! A token is its bytes; as text, what is no whole character of it is U+FFFD. `text_offset` counts
//! characters (code points) of the text that the client sees, up to the one that the token's first byte
//! is part of. A token that the text does not show stands where it would be.

use serde_json::{Map, Value, json};

use crate::engine::Token;

/// How far ahead a token of a prompt is looked for, where the tokenizer has changed the text.
const LOOK_AHEAD_BYTES: usize = 16;

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) bytes: Vec<u8>,
    /// Characters of the text before it.
    pub(super) offset: usize,
    /// `None` for the first token of a prompt, which follows nothing.
    pub(super) logprob: Option<f32>,
    /// The bytes of the likeliest tokens.
    pub(super) top: Vec<(Vec<u8>, f32)>,
}

impl Scored {
    /// `token`, after `before` characters of other text. `bytes`: of a token, as the first of a text or
    /// not.
    pub(super) fn new(token: &Token, before: usize, bytes: impl Fn(u32, bool) -> Vec<u8>) -> Self {
        let top = token.logprob.iter().flat_map(|logprob| &logprob.top);
        let top = top.map(|(id, logprob)| match *id == token.id {
            true => (token.bytes.clone(), *logprob),
            false => (bytes(*id, token.first), *logprob),
        });
        Self {
            bytes: token.bytes.clone(),
            offset: before + token.offset,
            logprob: token.logprob.as_ref().map(|logprob| logprob.logprob),
            top: top.collect(),
        }
    }

    /// Bytes that it takes, or nearly.
    pub(super) fn size(&self) -> usize {
        let top = self.top.iter().map(|(bytes, _)| size_of::<(Vec<u8>, f32)>() + bytes.len());
        size_of::<Self>() + self.bytes.len() + top.sum::<usize>()
    }
}

/// Where each of `tokens`, which the tokenizer made of `text`, stands in it.
pub(super) fn place<'a>(text: &str, tokens: impl Iterator<Item = (&'a mut Scored, &'a Token)>) {
    let (mut at, mut counted, mut characters) = (0, 0, 0);
    for (scored, token) in tokens {
        let rest = &text.as_bytes()[at..];
        let bytes = &token.bytes[..];
        // What has no text was put around the prompt, unless it stands right here.
        let ahead = if token.text.is_empty() { 1 } else { LOOK_AHEAD_BYTES };
        let found = rest.windows(bytes.len().max(1)).take(ahead).position(|part| part == bytes);
        let (skipped, length) = match (found, bytes.strip_prefix(b" ")) {
            (Some(skipped), _) => (skipped, bytes.len()),
            // Tokenizers put a space before a text's first word.
            (None, Some(word)) if rest.starts_with(word) => (0, word.len()),
            (None, _) if token.text.is_empty() => (0, 0),
            (None, _) => (0, bytes.len().min(rest.len())),
        };
        at += skipped;
        let start = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        if counted <= start {
            characters += text[counted..start].chars().count();
            counted = start;
        }
        scored.offset = characters;
        at += length;
    }
}

/// The `logprobs` of a choice of `/v1/completions`.
pub(super) fn of_text(tokens: &[Scored]) -> Value {
    let top = |token: &Scored| match token.logprob {
        None => Value::Null,
        Some(_) => by_text(&token.top),
    };
    json!({
        "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

/// The `logprobs` of a choice of `/v1/chat/completions`.
pub(super) fn of_chat(tokens: &[Scored]) -> Value {
    let entry = |bytes: &[u8], logprob: Option<f32>| json!({"token": text(bytes), "logprob": logprob, "bytes": bytes});
    let content = tokens.iter().map(|token| {
        let mut value = entry(&token.bytes, token.logprob);
        value["top_logprobs"] =
            token.top.iter().map(|(bytes, logprob)| entry(bytes, Some(*logprob))).collect();
        value
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// The likeliest tokens by their text. Where two have the same, the less likely one is named by its
/// bytes, so that none is lost.
fn by_text(top: &[(Vec<u8>, f32)]) -> Value {
    let mut named = Map::new();
    for (bytes, logprob) in top {
        let mut name = text(bytes);
        if named.contains_key(&name) {
            name = bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}"));
        }
        named.entry(name).or_insert(json!(logprob));
    }
    Value::Object(named)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, bytes: &[u8]) -> Token {
        Token { id: 0, text: text.into(), bytes: bytes.into(), offset: 0, first: false, logprob: None }
    }

    fn offsets(text: &str, tokens: &[Token]) -> Vec<usize> {
        let mut scored: Vec<Scored> =
            tokens.iter().map(|token| Scored::new(token, 0, |_, _| Vec::new())).collect();
        place(text, scored.iter_mut().zip(tokens));
        scored.iter().map(|scored| scored.offset).collect()
    }

    #[test]
    fn tokens_of_a_prompt_stand_where_their_text_is() {
        let bos = token("", b"<s>");
        let word = |word: &str| token(word, word.as_bytes());
        let (first, second) = (token("", b"\xc3"), token("é", b"\xa9"));
        let tokens = [bos.clone(), first, second, word("A"), word(" b")];
        assert_eq!(offsets("éA b", &tokens), [0, 0, 0, 1, 2]);
        // A space that the tokenizer has put there, and a special token that the client wrote.
        assert_eq!(offsets("a<s>b", &[word(" a"), bos.clone(), word("b")]), [0, 1, 4]);
        assert_eq!(offsets("a<s>b", &[bos.clone(), word(" a"), bos, word("b")]), [0, 0, 1, 4]);
        // What the tokenizer has left out or changed moves nothing beyond its end.
        assert_eq!(offsets("Ab  c", &[word("a"), word("b"), word("c")]), [0, 1, 4]);
        assert_eq!(offsets("a", &[word("abcdef"), word("b")]), [0, 1]);
    }

    #[test]
    fn likely_tokens_of_one_text_are_all_named() {
        let top = [(vec![0xf0], -1.0), (vec![0xf1], -2.0), (b"a".to_vec(), -3.0)];
        let expected = json!({"\u{fffd}": -1.0, "bytes:\\xf1": -2.0, "a": -3.0});
        assert_eq!(by_text(&top), expected);
    }
}
