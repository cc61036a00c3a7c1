//! What can be asked of an engine, and what comes back.

use std::time::Duration;

use super::{EngineError, Logprob, Message, Sampling};

/// A prompt to continue, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// Tokens to generate at most; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// How to choose them.
    pub sampling: Sampling,
    /// Where to stop. Neither a stop string nor what follows it is shown.
    pub stop: Vec<String>,
    /// Whether to say how likely each token was, and how many alternatives to name.
    pub logprobs: Option<usize>,
    /// Whether to give the prompt's tokens first.
    pub echo: bool,
    /// Whether to go on when the model says that the text is at its end.
    pub ignore_eos: bool,
}

/// What to continue.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Text, with the special tokens that the tokenizer puts around it.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
    /// A conversation, by the model's chat template.
    Chat(Vec<Message>),
}

/// Something that an engine says about a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt's tokens, if they were asked for. Comes first.
    Prompt(Vec<Token>),
    /// A token was generated.
    Token(Token),
    /// All is said. Comes last.
    Done(Done),
    /// The request cannot be answered further. Comes last.
    Failed(EngineError),
}

/// A token of a prompt or of its continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// Text that has become certain with it: none while a character is incomplete or while it may be
    /// the beginning of a stop string; then the token after it brings the text of both.
    pub text: String,
    /// Its own bytes: what it adds to the text, be it a part of a character; of a special token, its name.
    pub bytes: Vec<u8>,
    /// Characters of the text, of the prompt's or of what is generated, before the one that its first
    /// byte is part of.
    pub offset: usize,
    /// Whether it is the first of the text, which some tokenizers write in another way.
    pub first: bool,
    /// How likely it was, if asked for. The first token of a prompt has none.
    pub logprob: Option<Logprob>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// Text that was held back until now.
    pub text: String,
    /// Why no more comes.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, not counting the one that says that the text is at its end.
    pub completion_tokens: usize,
    /// From the request to its first token, waiting for a place included.
    pub ttft: Duration,
    /// From the request to now.
    pub took: Duration,
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model or a stop string says so.
    Stop,
    /// It is as long as it may be.
    Length,
}

impl Request {
    /// Greedy, with nothing else set.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            logprobs: None,
            echo: false,
            ignore_eos: false,
        }
    }
}
