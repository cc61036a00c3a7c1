//! What the engine tells, as OpenAI's API writes it: chunks of a stream, or one whole answer.
//!
//! Pure: the id, the time and the numbers come in as values.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::logprobs::{self, Scored};
use crate::{api::GenerationStats, engine::FinishReason};

/// Which of the two APIs an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `/v1/completions`
    Text,
    /// `/v1/chat/completions`
    Chat,
}

/// What all chunks of an answer have in common.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) shape: Shape,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The model, as the client called it.
    pub(super) model: String,
    /// Whether likely tokens were asked for.
    pub(super) logprobs: bool,
    /// Whether a stream ends with the number of tokens.
    pub(super) include_usage: bool,
}

/// Text that was added to a choice, and the tokens that it comes from, as far as their probabilities
/// were asked for. A token whose text is held back is told with that text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) tokens: Vec<Scored>,
}

/// One of the answers to a request, as far as it has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    index: usize,
    /// Characters so far.
    length: usize,
    started: bool,
    /// What was pushed, for an answer that is given whole.
    text: String,
    tokens: Vec<Scored>,
    /// Tokens whose text has not come yet.
    waiting: VecDeque<Scored>,
    finish: Option<FinishReason>,
}

/// Tokens in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
}

impl Piece {
    /// Bytes that it takes, or nearly.
    pub(super) fn size(&self) -> usize {
        self.text.len() + self.tokens.iter().map(Scored::size).sum::<usize>()
    }
}

impl Choice {
    pub(super) fn new(index: usize) -> Self {
        Self { index, ..Self::default() }
    }

    /// Adds a piece, for an answer that is given whole.
    pub(super) fn push(&mut self, piece: Piece) {
        let (text, tokens) = self.place(piece);
        self.text.push_str(&text);
        self.tokens.extend(tokens);
    }

    /// Ends an answer that is given whole.
    pub(super) fn end(&mut self, reason: FinishReason) {
        let rest = self.rest();
        self.tokens.extend(rest);
        self.finish = Some(reason);
    }

    /// The text of `piece`, and the tokens that the client sees with it.
    fn place(&mut self, piece: Piece) -> (String, Vec<Scored>) {
        self.length += piece.text.chars().count();
        self.waiting.extend(piece.tokens);
        let seen = self.waiting.iter().take_while(|token| token.offset < self.length).count();
        (piece.text, self.waiting.drain(..seen).collect())
    }

    /// Tokens whose text never came. They stand at the end.
    fn rest(&mut self) -> Vec<Scored> {
        let length = self.length;
        let rest = self.waiting.drain(..);
        rest.map(|token| Scored { offset: token.offset.min(length), ..token }).collect()
    }
}

impl Head {
    /// The chunk for what was added to `choice`, unless it would say nothing.
    pub(super) fn chunk(&self, choice: &mut Choice, piece: Piece) -> Option<Value> {
        let (text, tokens) = choice.place(piece);
        // A token may be only the first half of a character.
        if text.is_empty() && tokens.is_empty() {
            return None;
        }
        Some(self.next(choice, text, tokens, None))
    }

    /// The chunk that ends `choice`, with the last that was added to it.
    pub(super) fn finish(
        &self,
        choice: &mut Choice,
        piece: Piece,
        reason: FinishReason,
        stats: &GenerationStats,
    ) -> Value {
        let (text, mut tokens) = choice.place(piece);
        tokens.extend(choice.rest());
        let mut chunk = self.next(choice, text, tokens, Some(reason));
        chunk["surf"] = json!(stats);
        chunk
    }

    /// The chunk that ends a stream whose client asked for the number of tokens.
    pub(super) fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.envelope(self.chunk_object(), json!([]));
        chunk["usage"] = usage.value();
        chunk
    }

    /// The whole answer.
    pub(super) fn whole(&self, choices: Vec<Choice>, usage: Usage, stats: Option<&GenerationStats>) -> Value {
        let choices: Vec<Value> = choices.into_iter().map(|choice| self.whole_choice(choice)).collect();
        let object = match self.shape {
            Shape::Text => "text_completion",
            Shape::Chat => "chat.completion",
        };
        let mut answer = self.envelope(object, json!(choices));
        answer["usage"] = usage.value();
        if let Some(stats) = stats {
            answer["surf"] = json!(stats);
        }
        answer
    }

    fn whole_choice(&self, choice: Choice) -> Value {
        let logprobs = self.logprobs_of(&choice.tokens);
        let finish = choice.finish.map(finish_reason);
        match self.shape {
            Shape::Text => {
                json!({"index": choice.index, "text": choice.text, "logprobs": logprobs, "finish_reason": finish})
            }
            Shape::Chat => json!({
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": finish,
            }),
        }
    }

    fn next(
        &self,
        choice: &mut Choice,
        text: String,
        tokens: Vec<Scored>,
        finish: Option<FinishReason>,
    ) -> Value {
        let logprobs = if tokens.is_empty() { Value::Null } else { self.logprobs_of(&tokens) };
        let finish = finish.map(finish_reason);
        let first = !std::mem::replace(&mut choice.started, true);
        let index = choice.index;
        let choice = match self.shape {
            Shape::Text => {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
            Shape::Chat => {
                let mut delta = json!({});
                if first {
                    delta["role"] = json!("assistant");
                }
                if !text.is_empty() {
                    delta["content"] = json!(text);
                }
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        let mut chunk = self.envelope(self.chunk_object(), json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn chunk_object(&self) -> &'static str {
        match self.shape {
            Shape::Text => "text_completion",
            Shape::Chat => "chat.completion.chunk",
        }
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    fn logprobs_of(&self, tokens: &[Scored]) -> Value {
        match (self.logprobs, self.shape) {
            (false, _) => Value::Null,
            (true, Shape::Text) => logprobs::of_text(tokens),
            (true, Shape::Chat) => logprobs::of_chat(tokens),
        }
    }
}

impl Usage {
    fn value(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
