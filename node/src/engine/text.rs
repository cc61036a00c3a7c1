//! Text to tokens and back, by the model's own tokenizer.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Encoding, PostProcessor as _, Tokenizer, TruncationDirection};

use super::{EngineError, byte_bpe, files::Files, template::Template, wordpiece};

/// Bytes of a prompt. Longer than any context, short enough to be tokenised in a second or two.
const PROMPT_BYTES_MAX: usize = 4 << 20;

/// Tokens that may be waited for to complete a character. Four bytes make one at most; a model that
/// goes on producing bytes that are none must not hold its text back for ever.
const PENDING_MAX: usize = 8;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it: `system`, `user`, `assistant`, …
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Tokenizer, chat template and end-of-text tokens of a model.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<Template>,
    eos: Vec<u32>,
}

/// Turns tokens to text as they come, whole characters at a time.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    tokenizer: Option<Arc<Tokenizer>>,
    /// Tokens that still matter: those before `shown` give context, those after are to be shown.
    ids: Vec<u32>,
    shown: usize,
}

impl Text {
    /// From the repository's files. A model without a tokenizer understands token ids only.
    pub(crate) fn read(files: &Files) -> Result<Self, EngineError> {
        let tokenizer = match files.0.get("tokenizer.json") {
            None => match byte_bpe::read(files)? {
                Some(tokenizer) => Some(tokenizer),
                None => wordpiece::read(files)?,
            },
            Some(bytes) => {
                let wrong = |error| EngineError::file("tokenizer.json", error);
                let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(wrong)?;
                tokenizer.with_padding(None);
                tokenizer.with_truncation(None).map_err(wrong)?;
                Some(tokenizer)
            }
        };
        let tokenizer = tokenizer.map(Arc::new);
        Ok(Self { tokenizer, template: Template::read(files)?, eos: eos(files)? })
    }

    /// Tokens that end a text.
    pub(crate) fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The tokens of `text`, with those that the tokenizer puts around it.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.encode_with(text, true)
    }

    /// The same, with the end of the text cut off if there are more than `tokens_max` otherwise.
    pub(crate) fn encode_within(&self, text: &str, tokens_max: usize) -> Result<Vec<u32>, EngineError> {
        let (tokenizer, mut encoding) = self.encoding(text, false)?;
        let around = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        encoding.truncate(tokens_max.saturating_sub(around), 0, TruncationDirection::Right);
        let whole = tokenizer.post_process(encoding, None, true).map_err(untokenized)?;
        Ok(whole.get_ids().to_vec())
    }

    /// The tokens of a conversation, up to where the model is to answer.
    pub(crate) fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        let Some(template) = &self.template else {
            return Err(EngineError::Request("the model has no chat template; give it text".to_owned()));
        };
        if PROMPT_BYTES_MAX < messages.iter().map(|message| message.content.len()).sum() {
            return Err(too_long());
        }
        // The template has put special tokens where they belong.
        self.encode_with(&template.render(messages)?, false)
    }

    /// The text of one token by itself, special ones too.
    pub(crate) fn token(&self, id: u32) -> String {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer.and_then(|tokenizer| tokenizer.decode(&[id], false).ok()).unwrap_or_default()
    }

    /// A decoder for what follows a prompt.
    pub(crate) fn decoder(&self, prompt: &[u32]) -> Decoder {
        // Some tokenizers write the first token of a text differently; so there is one before.
        let ids = prompt[prompt.len().saturating_sub(PENDING_MAX)..].to_vec();
        Decoder { tokenizer: self.tokenizer.clone(), shown: ids.len(), ids }
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, EngineError> {
        self.encoding(text, special).map(|(_, encoding)| encoding.get_ids().to_vec())
    }

    fn encoding(&self, text: &str, special: bool) -> Result<(&Tokenizer, Encoding), EngineError> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(EngineError::Request(
                "the model has no tokenizer that is known; give it token ids".to_owned(),
            ));
        };
        if PROMPT_BYTES_MAX < text.len() {
            return Err(too_long());
        }
        Ok((tokenizer, tokenizer.encode_fast(text, special).map_err(untokenized)?))
    }
}

impl Decoder {
    /// Text that has become certain with `id`. Special tokens have none.
    pub(crate) fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let patience_ends = PENDING_MAX <= self.ids.len() - self.shown;
        let text = self.fresh().unwrap_or_default();
        if patience_ends || !(text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER)) {
            self.ids.drain(..self.shown);
            self.shown = self.ids.len();
            return text;
        }
        String::new()
    }

    /// What is left, without half a character at its end.
    pub(crate) fn finish(&mut self) -> String {
        let text = self.fresh().unwrap_or_default();
        self.shown = self.ids.len();
        text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned()
    }

    /// Text of the tokens that have not been shown.
    fn fresh(&self) -> Option<String> {
        let tokenizer = self.tokenizer.as_ref()?;
        let before = tokenizer.decode(&self.ids[..self.shown], true).ok()?;
        let all = tokenizer.decode(&self.ids, true).ok()?;
        all.get(before.len()..).map(str::to_owned)
    }
}

fn untokenized(error: tokenizers::Error) -> EngineError {
    EngineError::Request(format!("tokenizing: {error}"))
}

fn too_long() -> EngineError {
    EngineError::Request(format!("the prompt is longer than {PROMPT_BYTES_MAX} bytes"))
}

/// `eos_token_id` of the generation configuration, else of the model's: a number or a list.
fn eos(files: &Files) -> Result<Vec<u32>, EngineError> {
    for file in ["generation_config.json", "config.json"] {
        let ids = match files.object(file)?.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
        };
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        let wrong = || EngineError::file(file, "eos_token_id must be token ids");
        return ids.iter().map(id).collect::<Option<_>>().ok_or_else(wrong);
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Text {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/llama");
        let read =
            |name: &&str| Some((name.to_string(), std::fs::read(format!("{folder}/{name}")).ok()?.into()));
        Text::read(&Files(Files::WANTED.iter().filter_map(read).collect())).unwrap()
    }

    #[test]
    fn text_comes_back_piece_by_piece_in_whole_characters() {
        let text = text();
        for original in ["The node announces", "Zwölf Boxkämpfer 机器学习 🌊🏄!", "  two  spaces\n", "🦭"]
        {
            let ids = text.encode(original).unwrap();
            let mut decoder = text.decoder(&[]);
            let mut shown = String::new();
            for &id in &ids {
                let piece = decoder.push(id);
                assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
                shown += &piece;
            }
            assert_eq!(shown + &decoder.finish(), original);
        }
    }

    #[test]
    fn half_a_character_at_the_end_is_not_shown() {
        let text = text();
        let ids = text.encode("a🦭").unwrap();
        let mut decoder = text.decoder(&[]);
        let shown: String = ids[..ids.len() - 1].iter().map(|&id| decoder.push(id)).collect();
        assert_eq!(shown + &decoder.finish(), "a");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hold_it_back_for_ever() {
        let text = text();
        let seal = text.encode("🦭").unwrap();
        let mut decoder = text.decoder(&[]);
        let shown: String = std::iter::repeat_n(seal[0], 40).map(|id| decoder.push(id)).collect();
        assert!(shown.contains(char::REPLACEMENT_CHARACTER));
        assert!(decoder.ids.len() <= 3 * PENDING_MAX, "{}", decoder.ids.len());
        let special: String = std::iter::repeat_n(6, 40).map(|id| decoder.push(id)).collect();
        assert_eq!(special, "");
        assert!(decoder.ids.len() <= 3 * PENDING_MAX);
    }

    #[test]
    fn a_conversation_becomes_what_the_template_says() {
        let text = text();
        let message = Message { role: "user".into(), content: "Hi".into() };
        let ids = text.encode_chat(&[message]).unwrap();
        assert_eq!((ids[0], ids[ids.len() - 2..].to_vec()), (4, vec![6, 5]));
        assert_eq!(text.eos(), [2]);
        assert_eq!(text.token(6), "<|end|>");
    }

    #[test]
    fn end_of_text_may_be_several_tokens() {
        let read = |file: &str, json: &str| eos(&Files([(file.to_owned(), json.to_owned().into())].into()));
        assert_eq!(read("config.json", r#"{"eos_token_id": [2, 6]}"#).unwrap(), [2, 6]);
        assert_eq!(read("generation_config.json", r#"{"eos_token_id": 3}"#).unwrap(), [3]);
        assert_eq!(read("config.json", r#"{"eos_token_id": null}"#).unwrap(), [0u32; 0]);
        assert!(read("config.json", r#"{"eos_token_id": -1}"#).is_err());
        assert!(read("config.json", r#"{"eos_token_id": ["a"]}"#).is_err());
    }
}
