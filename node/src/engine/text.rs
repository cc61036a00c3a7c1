//! Text to tokens and back, by the model's own tokenizer.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Encoding, PostProcessor as _, Tokenizer, TruncationDirection};

use super::{
    EngineError, byte_bpe,
    detokenizer::{Decoder, Detokenizer},
    files::Files,
    template::Template,
    wordpiece,
};

/// Bytes of a prompt. Longer than any context, short enough to be tokenised in a second or two.
const PROMPT_BYTES_MAX: usize = 4 << 20;

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
    detokenizer: Option<Arc<Detokenizer>>,
    template: Option<Template>,
    eos: Vec<u32>,
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
        let detokenizer = tokenizer.as_ref().map(Detokenizer::of).transpose();
        let detokenizer = detokenizer.map_err(|error| EngineError::file("tokenizer.json", error))?;
        let (tokenizer, detokenizer) = (tokenizer.map(Arc::new), detokenizer.map(Arc::new));
        Ok(Self { tokenizer, detokenizer, template: Template::read(files)?, eos: eos(files)? })
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

    /// The bytes of one token by itself, special ones too. `first`: as the first of a text.
    pub(crate) fn token_bytes(&self, id: u32, first: bool) -> Vec<u8> {
        self.detokenizer.as_ref().map_or_else(Vec::new, |detokenizer| detokenizer.bytes(id, first))
    }

    /// A decoder for a whole text, with special tokens if `special`.
    pub(crate) fn echo_decoder(&self, special: bool) -> Decoder {
        Decoder::new(self.detokenizer.clone(), special)
    }

    /// A decoder for what follows a prompt. `echoes`: whether its reader sees the prompt's tokens too.
    pub(crate) fn decoder(&self, prompt: &[u32], echoes: bool) -> Decoder {
        Decoder::after(self.detokenizer.clone(), prompt, echoes)
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
    fn a_conversation_becomes_what_the_template_says() {
        let text = text();
        let message = Message { role: "user".into(), content: "Hi".into() };
        let ids = text.encode_chat(&[message]).unwrap();
        assert_eq!((ids[0], ids[ids.len() - 2..].to_vec()), (4, vec![6, 5]));
        assert_eq!(text.eos(), [2]);
        assert_eq!(text.token_bytes(6, true), b"<|end|>");
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
