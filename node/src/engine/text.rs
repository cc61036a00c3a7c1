//! Text to tokens and back, by the model's own tokenizer.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::{
    EngineError,
    detokenizer::{Decoder, Detokenizer},
    files::Files,
    sandbox::{Ask, Clock, Fit, Sandbox, What},
    template,
    tokenizer::Vocabulary,
};

/// Bytes of a prompt. Longer than any context, short enough to be tokenised in a second or two.
pub(crate) const PROMPT_BYTES_MAX: usize = 4 << 20;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who says it: `system`, `user`, `assistant`, …
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Tokenizer, chat template and end-of-text tokens of a model.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    tokenizer: Option<Sandbox>,
    detokenizer: Option<Arc<Detokenizer>>,
    template: Option<Sandbox>,
    eos: Vec<u32>,
}

impl Text {
    /// From the repository's files. A model without a tokenizer understands token ids only. Waits for the
    /// tokenizer; a template is looked at when somebody chats, and what is wrong with it is told then.
    pub(crate) fn read(files: &Files) -> Result<Self, EngineError> {
        let (mut tokenizer, mut detokenizer) = (None, None);
        if let Some(files) = files.of_tokenizer() {
            let sandbox = Sandbox::start(What::Tokenizer, &files)?;
            if let Some(vocabulary) = sandbox.ready()? {
                let wrong = |reason| EngineError::file("tokenizer.json", reason);
                let vocabulary = Vocabulary::unpack(&vocabulary).ok_or(EngineError::Stopped)?;
                let decoding = Detokenizer::new(vocabulary.tokens, &vocabulary.decoder).map_err(wrong)?;
                (tokenizer, detokenizer) = (Some(sandbox), Some(Arc::new(decoding)));
            }
        }
        let template = files.of_template();
        let template = template.map(|files| Sandbox::start(What::Template, &files)).transpose()?;
        Ok(Self { tokenizer, detokenizer, template, eos: eos(files)? })
    }

    /// Tokens that end a text.
    pub(crate) fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The tokens of `text`, with those that the tokenizer puts around it; at most `most`.
    pub(crate) async fn encode(&self, text: String, most: usize) -> Result<Vec<u32>, EngineError> {
        self.ask(text.into(), true, Fit::Refuse(most)).await
    }

    /// The same, with the end of the text cut off if there are more than `most` otherwise.
    pub(crate) async fn encode_within(&self, text: String, most: usize) -> Result<Vec<u32>, EngineError> {
        self.ask(text.into(), true, Fit::Cut(most)).await
    }

    /// The tokens of a conversation, up to where the model is to answer; at most `most`.
    pub(crate) async fn encode_chat(
        &self,
        messages: &[Message],
        most: usize,
    ) -> Result<Vec<u32>, EngineError> {
        let none = || EngineError::Request("the model has no chat template; give it text".to_owned());
        let template = self.template.as_ref().ok_or_else(none)?;
        if PROMPT_BYTES_MAX < messages.iter().map(|message| message.content.len()).sum() {
            return Err(too_long());
        }
        let conversation = template::conversation(messages)?;
        let text = template.ask(Ask::Render { clock: Clock::now() }, conversation.into()).await?;
        // The template has put special tokens where they belong.
        self.ask(text.ok_or_else(none)?, false, Fit::Refuse(most)).await
    }

    /// The bytes of one token by itself, special ones too. `first`: as the first of a text.
    pub(crate) fn token_bytes(&self, id: u32, first: bool) -> Vec<u8> {
        self.detokenizer.as_ref().map_or_else(Vec::new, |detokenizer| detokenizer.bytes(id, first))
    }

    /// Bytes that the text of one token may have.
    pub(crate) fn piece_bytes_max(&self) -> usize {
        self.detokenizer.as_ref().map_or(0, |detokenizer| detokenizer.piece_bytes_max())
    }

    /// A decoder for a whole text, with special tokens if `special`.
    pub(crate) fn echo_decoder(&self, special: bool) -> Decoder {
        Decoder::new(self.detokenizer.clone(), special)
    }

    /// A decoder for what follows a prompt. `echoes`: whether its reader sees the prompt's tokens too.
    pub(crate) fn decoder(&self, prompt: &[u32], echoes: bool) -> Decoder {
        Decoder::after(self.detokenizer.clone(), prompt, echoes)
    }

    async fn ask(&self, text: Bytes, special: bool, fit: Fit) -> Result<Vec<u32>, EngineError> {
        let none =
            || EngineError::Request("the model has no tokenizer that is known; give it token ids".to_owned());
        let tokenizer = self.tokenizer.as_ref().ok_or_else(none)?;
        if PROMPT_BYTES_MAX < text.len() {
            return Err(too_long());
        }
        let ids = tokenizer.ask(Ask::Encode { special, fit }, text).await?.ok_or_else(none)?;
        Ok(ids.as_chunks().0.iter().map(|id| u32::from_ne_bytes(*id)).collect())
    }
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
        let ids = futures::executor::block_on(text.encode_chat(&[message], 512)).unwrap();
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
