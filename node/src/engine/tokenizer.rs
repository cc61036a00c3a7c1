//! The tokenizer of a model, as the child process has it: from its files, and from text to tokens.

use serde_json::Value;
use tokenizers::{PostProcessor as _, Tokenizer, TruncationDirection};

use super::{
    EngineError, byte_bpe,
    detokenizer::Detokenizer,
    files::Files,
    sandbox::{Fit, beginning},
    wordpiece,
};

/// Bytes of text that are tokenised at first, besides four for each token that there may be. If they
/// have too many tokens already, the rest is not looked at.
const PIECE_SIZE_MIN: usize = 64 << 10;

/// How much longer each further attempt is.
const PIECE_GROWTH: usize = 4;

/// Tokens by which a piece of a text may have more than the text: where it was cut, a word may fall
/// into letters.
const PIECE_TOKENS: usize = 256;

/// Bytes before the end of a piece where a space is looked for.
const WORD_SIZE_MAX: usize = 256;

/// See the module.
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
}

impl Encoder {
    /// From `tokenizer.json` or older files. `None` if there are none.
    pub(crate) fn read(files: &Files) -> Result<Option<Self>, EngineError> {
        Ok(read(files)?.map(|tokenizer| Self { tokenizer }))
    }

    /// What decoding needs of it.
    pub(crate) fn vocabulary(&self) -> Result<Vocabulary, EngineError> {
        Vocabulary::of(&self.tokenizer)
    }

    /// The tokens of `text`; if `special`, with those that the tokenizer puts around it.
    pub(crate) fn encode(&self, text: &str, special: bool, fit: Fit) -> Result<Vec<u32>, EngineError> {
        let (Fit::Refuse(most) | Fit::Cut(most)) = fit;
        let around = self.tokenizer.get_post_processor();
        let around = around.filter(|_| special).map_or(0, |processor| processor.added_tokens(false));
        let mut size = most.saturating_mul(4).saturating_add(PIECE_SIZE_MIN);
        loop {
            let piece = piece(text, size);
            let mut encoding = self.tokenizer.encode_fast(piece, false).map_err(untokenized)?;
            let tokens = encoding.len();
            let enough = most.saturating_add(PIECE_TOKENS) < tokens;
            if piece.len() < text.len() && !enough {
                size = size.saturating_mul(PIECE_GROWTH);
                continue;
            }
            match fit {
                Fit::Refuse(most) if enough && piece.len() < text.len() => return Err(too_many(None, most)),
                Fit::Refuse(most) if most < tokens + around => {
                    return Err(too_many(Some(tokens + around), most));
                }
                Fit::Refuse(_) => (),
                Fit::Cut(most) => {
                    encoding.truncate(most.saturating_sub(around), 0, TruncationDirection::Right);
                }
            }
            let whole = match special {
                true => self.tokenizer.post_process(encoding, None, true).map_err(untokenized)?,
                false => encoding,
            };
            return Ok(whole.get_ids().to_vec());
        }
    }
}

/// What decoding needs of a tokenizer: every token with its id, how the vocabulary writes it, and whether
/// it is special; and the decoder as `tokenizer.json` writes it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<(u32, String, bool)>,
    pub(crate) decoder: Value,
}

impl Vocabulary {
    fn of(tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let wrong = |error| EngineError::file("tokenizer.json", error);
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(wrong)?;
        let tokens = Detokenizer::tokens(tokenizer).collect();
        Ok(Self { tokens, decoder })
    }

    /// As bytes: how many tokens there are, the decoder, then the tokens; each part with its length before it.
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut bytes = (self.tokens.len() as u64).to_le_bytes().to_vec();
        let mut add = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        };
        add(self.decoder.to_string().as_bytes());
        for (id, text, is_special) in &self.tokens {
            add(&[&id.to_le_bytes()[..], &[u8::from(*is_special)], text.as_bytes()].concat());
        }
        bytes
    }

    /// `None` if the bytes are none of [`Vocabulary::pack`].
    pub(crate) fn unpack(bytes: &[u8]) -> Option<Self> {
        let (count, mut bytes) = bytes.split_first_chunk()?;
        let mut next = || {
            let (length, rest) = bytes.split_first_chunk()?;
            let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            bytes = rest;
            Some(part)
        };
        let decoder = serde_json::from_slice(next()?).ok()?;
        let mut tokens = Vec::new();
        while let Some(part) = next() {
            let (id, part) = part.split_first_chunk()?;
            let (is_special, text) = part.split_first()?;
            tokens.push((
                u32::from_le_bytes(*id),
                std::str::from_utf8(text).ok()?.to_owned(),
                *is_special != 0,
            ));
        }
        let is_whole = bytes.is_empty() && tokens.len() as u64 == u64::from_le_bytes(*count);
        is_whole.then_some(Self { tokens, decoder })
    }
}

/// The tokenizer, if the model has one.
pub(crate) fn read(files: &Files) -> Result<Option<Tokenizer>, EngineError> {
    let Some(bytes) = files.0.get("tokenizer.json") else {
        return match byte_bpe::read(files)? {
            Some(tokenizer) => Ok(Some(tokenizer)),
            None => wordpiece::read(files),
        };
    };
    let wrong = |error| EngineError::file("tokenizer.json", error);
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(wrong)?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(wrong)?;
    Ok(Some(tokenizer))
}

/// The first `size` bytes of `text`, or a little less: up to a space, if there is one.
fn piece(text: &str, size: usize) -> &str {
    if text.len() <= size {
        return text;
    }
    let piece = beginning(text, size);
    let last = piece.len().saturating_sub(WORD_SIZE_MAX);
    match piece.rfind(' ') {
        Some(space) if last <= space => &piece[..space],
        _ => piece,
    }
}

fn untokenized(error: tokenizers::Error) -> EngineError {
    EngineError::Request(format!("tokenizing: {error}"))
}

fn too_many(tokens: Option<usize>, context: usize) -> EngineError {
    let tokens = tokens.map_or(format!("more than {context}"), |tokens| tokens.to_string());
    EngineError::Request(format!("the prompt has {tokens} tokens; the context holds {context}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder(name: &str) -> Encoder {
        let folder = format!("{}/../tests/fixtures/models/{name}", env!("CARGO_MANIFEST_DIR"));
        let read =
            |name: &&str| Some((name.to_string(), std::fs::read(format!("{folder}/{name}")).ok()?.into()));
        Encoder::read(&Files(Files::WANTED.iter().filter_map(read).collect())).unwrap().unwrap()
    }

    #[test]
    fn a_text_that_cannot_fit_is_refused_after_a_piece_of_it() {
        let encoder = encoder("llama");
        let text = "once upon a time ".repeat(40_000);
        let error = encoder.encode(&text, true, Fit::Refuse(1000)).unwrap_err().to_string();
        assert_eq!(error, "the prompt has more than 1000 tokens; the context holds 1000");
        let all = encoder.encode(&text, true, Fit::Refuse(usize::MAX)).unwrap();
        let exact = encoder.encode(&text, true, Fit::Refuse(all.len())).unwrap();
        assert_eq!(exact, all);
        let error = encoder.encode(&text, true, Fit::Refuse(all.len() - 1)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the prompt has {} tokens", all.len())), "{error}");
    }

    #[test]
    fn a_text_is_cut_as_if_all_of_it_had_been_tokenised() {
        let encoder = encoder("llama");
        let text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ".repeat(20_000);
        let all = encoder.encode(&text, false, Fit::Refuse(usize::MAX)).unwrap();
        for most in [1, 7, 300, 5000] {
            assert_eq!(encoder.encode(&text, false, Fit::Cut(most)).unwrap(), all[..most]);
        }
    }

    #[test]
    fn a_vocabulary_crosses_a_pipe_and_garbage_is_none() {
        let vocabulary = encoder("llama").vocabulary().unwrap();
        assert_eq!(vocabulary.tokens.len(), 512);
        let bytes = vocabulary.pack();
        for cut in 0..bytes.len() {
            assert_eq!(Vocabulary::unpack(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(Vocabulary::unpack(&[0xff; 40]), None);
        assert_eq!(Vocabulary::unpack(&bytes), Some(vocabulary));
    }

    #[test]
    fn a_piece_ends_before_a_word() {
        assert_eq!(piece("one two", 5), "one");
        assert_eq!(piece("机器", 4), "机");
        assert_eq!(piece("one", 3), "one");
    }
}
