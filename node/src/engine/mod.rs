//! Runs a model while its weights arrive. The only user of candle, gemm, tokenizers and minijinja.
//!
//! An [`Engine`] is a handle to an actor on a thread of its own: requests go in, tokens come out,
//! and both ways are bounded. One pass over the model serves all requests in flight; a new one joins
//! at the next pass, and one whose receiver was dropped leaves.
//!
//! Reading order, from the outside in:
//! - [`request`](Request): what can be asked, and what comes back.
//! - `actor`: who is in the next pass. `sequence`: one request in flight.
//! - `model`: one pass, group after group. `pass`: what it is about. `cache`: what it remembers.
//! - `arch`: which groups, and what each is made of. `parts`: tensors to layers.
//! - `attention`, `latent`, `mlp`, `experts`, `router`, `norm`, `rotary`, `linear`: the layers. `kernels`: their
//!   arithmetic.
//! - `sampling`, `stop`, `text`, `template`: from logits to text, and from text to tokens.
//! - `check`: is it right? Compares with what another implementation computed.
//!
//! What it deliberately is not: it knows no files, chunks or peers. Weights come from
//! [`Weights`], and a weight that cannot be had fails the requests in flight, not the engine.

mod actor;
mod arch;
mod attention;
mod cache;
mod check;
mod error;
mod experts;
mod fields;
mod files;
mod host;
mod kernels;
mod latent;
mod linear;
mod mlp;
mod model;
mod norm;
mod parts;
mod pass;
mod request;
mod rotary;
mod router;
mod sampling;
mod sequence;
mod stop;
mod template;
mod text;

#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    mpsc::{SyncSender, TrySendError, sync_channel},
};

use candle_core::Device;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

pub use check::Report;
pub use error::EngineError;
pub use files::Files;
pub use request::{Done, Event, FinishReason, Prompt, Request, Token};
pub use sampling::{Logprob, Sampling};
pub use text::Message;

use crate::{config, journal::Journal, weights::Weights};
use actor::{Actor, Command};
use arch::Shape;
use model::Model;
use sequence::Job;
use text::Text;

/// Requests that may wait for a place. Beyond it the answer is [`EngineError::Busy`].
const QUEUE_MAX: usize = 64;

/// Events that may wait for a client. One that takes nothing is left out of passes until it does.
const EVENTS_MAX: usize = 64;

/// Bytes of keys and values that all sequences may fill together.
const CACHE_BYTES_MAX: u64 = 8 << 30;

/// Bytes of logits that one [`Engine::forward`] may give.
const LOGITS_BYTES_MAX: u64 = 1 << 30;

/// Stop strings of one request, and bytes in each.
const STOPS_MAX: usize = 64;
const STOP_BYTES_MAX: usize = 1024;

/// A running model. Clones are handles to the same one; when the last is dropped, it finishes what
/// is in flight and ends.
#[derive(Clone, Debug)]
pub struct Engine {
    commands: SyncSender<Command>,
    text: Arc<Text>,
    shape: Shape,
}

/// Logits of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Elements for each position.
    pub vocab: usize,
    /// By positions.
    pub values: Vec<f32>,
}

impl Engine {
    /// Reads the configuration and the tokenizer in `files`, and starts a thread that runs the model.
    /// Fetches no weights.
    pub fn load(
        files: &Files,
        weights: Arc<dyn Weights>,
        config: &config::Engine,
        journal: Arc<Journal>,
    ) -> Result<Self, EngineError> {
        let device = device(config)?;
        let architecture = arch::read(files)?;
        let text = Arc::new(Text::read(files)?);
        let model = Model::new(architecture, weights, journal, device)?;
        let shape = model.shape();
        let (commands, queue) = sync_channel(QUEUE_MAX);
        let actor = Actor::new(model, Arc::clone(&text), queue);
        std::thread::Builder::new()
            .name("surf-engine".to_owned())
            .spawn(move || actor.run())
            .map_err(|error| EngineError::Device(format!("no thread to run the model on: {error}")))?;
        Ok(Self { commands, text, shape })
    }

    /// Starts to answer `request`. Tokenizes on this thread, which for a long prompt takes a while.
    ///
    /// The last event is [`Event::Done`] or [`Event::Failed`]. Dropping the receiver cancels; one from
    /// which nothing is taken for a minute is given up.
    pub fn generate(&self, request: Request) -> Result<mpsc::Receiver<Event>, EngineError> {
        request.sampling.check()?;
        if STOPS_MAX < request.stop.len() || request.stop.iter().any(|stop| STOP_BYTES_MAX < stop.len()) {
            let reason = format!("at most {STOPS_MAX} stop strings of {STOP_BYTES_MAX} bytes are looked for");
            return Err(EngineError::Request(reason));
        }
        let asked = Instant::now();
        let prompt = match &request.prompt {
            Prompt::Text(text) => self.text.encode(text)?,
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat(messages) => self.text.encode_chat(messages)?,
        };
        self.check_tokens(&prompt)?;
        let room = self.context() - prompt.len();
        let tokens_max = request.max_tokens.map_or(room, |max| max.min(room));
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        self.send(Command::Generate(Box::new(Job { prompt, tokens_max, request, events, asked })))?;
        Ok(receiver)
    }

    /// The logits at every position of each of `sequences`. Requests in flight wait meanwhile.
    pub async fn forward(&self, sequences: Vec<Vec<u32>>) -> Result<Vec<Logits>, EngineError> {
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        sequences.iter().try_for_each(|sequence| self.check_tokens(sequence))?;
        let per_token = self.shape.vocab as u64 * 4 + self.shape.cache.token_bytes();
        if LOGITS_BYTES_MAX < (tokens as u64).saturating_mul(per_token) {
            let reason = format!("logits for {tokens} tokens are more than one answer may hold");
            return Err(EngineError::Request(reason));
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Forward { sequences, reply })?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Runs the recorded inputs in `expected`, a safetensors file with `input_ids`, and compares with
    /// the `logits` and `greedy_ids` in it. Passes if the largest error is at most `tolerance` times
    /// the largest logit.
    pub async fn check(&self, expected: &[u8], tolerance: f32) -> Result<Report, EngineError> {
        check::check(self, expected, tolerance).await
    }

    /// Tokens that a prompt and its continuation may have together.
    pub fn context(&self) -> usize {
        let affordable = CACHE_BYTES_MAX / self.shape.cache.token_bytes().max(1);
        self.shape.context.min(usize::try_from(affordable).unwrap_or(usize::MAX))
    }

    /// The text of one token, special ones too.
    pub fn token_text(&self, id: u32) -> String {
        self.text.token(id)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), EngineError> {
        let (context, vocab) = (self.context(), self.shape.vocab);
        if tokens.is_empty() {
            return Err(EngineError::Request("the prompt is empty".to_owned()));
        }
        if context < tokens.len() {
            let reason = format!("the prompt has {} tokens; the context holds {context}", tokens.len());
            return Err(EngineError::Request(reason));
        }
        match tokens.iter().find(|&&id| vocab <= id as usize) {
            Some(id) => {
                Err(EngineError::Request(format!("token {id} is not among the model's {vocab} tokens")))
            }
            None => Ok(()),
        }
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Busy(QUEUE_MAX),
            TrySendError::Disconnected(_) => EngineError::Stopped,
        })
    }
}

/// Whether this build can compute as `config` says, on this machine.
pub fn usable(config: &config::Engine) -> Result<(), EngineError> {
    device(config).map(drop)
}

fn device(config: &config::Engine) -> Result<Device, EngineError> {
    if let config::Device::Cuda(number) = config.device {
        let reason = format!("this build has no CUDA, so device cuda:{number} cannot compute; use the CPU");
        return Err(EngineError::Device(reason));
    }
    match config.dtype {
        config::Precision::Auto | config::Precision::F32 => Ok(Device::Cpu),
        config::Precision::Bf16 | config::Precision::F16 => {
            Err(EngineError::Device("a CPU computes in f32; leave the dtype to auto".to_owned()))
        }
    }
}
