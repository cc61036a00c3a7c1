//! Runs a model while its weights arrive. The only user of candle, gemm, tokenizers and minijinja.
//!
//! An [`Engine`] is a handle to an actor on a thread of its own: requests go in, tokens come out,
//! and both ways are bounded. One pass over the model serves all requests in flight; a new one joins
//! at the next pass, and one whose receiver was dropped leaves.
//!
//! Reading order, from the outside in:
//! - [`request`](Request): what can be asked, and what comes back.
//! - `actor`: who is in the next pass. `sequence`: one request in flight. `batch`: whole rows at once.
//! - `model`: one pass, group after group. `pass`: what it is about. `cache`: what it remembers.
//!   `source`: what a decoder looks back at.
//! - `arch`: which groups, and what each is made of. `parts`: tensors to layers, as they are `stored`.
//! - `attention`, `plain_attention`, `latent`, `mlp`, `experts`, `router`, `norm`, `rotary`, `distances`,
//!   `linear`: the layers. `kernels`: their arithmetic; `compute`: their large products on a device.
//! - `files`: the small files of a model, and `gguf`: what stands for them in a GGUF file.
//! - `memory`: how the memory budget is shared. `budget`: reservations of it. `widths`: what a pass takes.
//!   `caught`: panics as errors.
//! - `sampling`, `stop`, `text`, `detokenizer`: from logits to text.
//! - `sandbox`: the process that holds `tokenizer`, `wordpiece`, `byte_bpe` or `template`: from text to tokens.
//! - `sentence`: from vectors of tokens to one of the text.
//! - `check`: is it right? Compares with what another implementation computed. `reading`: how far apart are two models?
//! - `pack`: floats to blocks of fewer bits, for who publishes.
//!
//! What it deliberately is not: it knows no files, chunks or peers. Weights come from
//! [`Weights`], and a weight that cannot be had fails the requests in flight, not the engine.

mod actor;
mod arch;
mod attention;
mod batch;
mod budget;
mod byte_bpe;
mod cache;
mod caught;
mod check;
mod compute;
mod detokenizer;
mod distances;
mod error;
mod experts;
mod fields;
mod files;
mod gguf;
mod host;
mod kernels;
mod latent;
mod linear;
mod memory;
mod mlp;
mod model;
mod norm;
mod pack;
mod parts;
mod pass;
mod plain_attention;
mod projection;
mod reading;
mod request;
mod rotary;
mod router;
mod sampling;
mod sandbox;
mod sentence;
mod sequence;
mod source;
mod stop;
mod stored;
mod template;
mod text;
mod tokenizer;
mod widths;
mod wordpiece;

#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    mpsc::{SyncSender, TrySendError, sync_channel},
};

use surf_chunker::Checkpoint;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

pub use batch::{Output, Row, What};
pub use check::Report;
pub use error::EngineError;
pub use files::Files;
pub use gguf::Wanted;
pub use memory::Shares;
pub use pack::{Packing, Unpackable};
pub use reading::Reading;
pub use request::{Done, Event, FinishReason, Prompt, Request, Token};
pub use sampling::{Logprob, Sampling};
pub use sandbox::enter as enter_sandbox;
pub use sentence::normalize;
pub use text::Message;

use crate::{config, journal::Journal, weights::Weights};
use actor::{Actor, Command};
use arch::{Kind, Shape};
use caught::caught;
use compute::Compute;
use memory::{WeightSizes, Working};
use model::Model;
use sentence::Sentence;
use sequence::{Job, Sequence};
use stored::Stored;
use text::Text;
use widths::{PassSize, Widths};

/// Requests that may wait for a place. Beyond it the answer is [`EngineError::Busy`].
const QUEUE_MAX: usize = 64;

/// Events that may wait for a client. One that takes nothing is left out of passes until it does.
const EVENTS_MAX: usize = 64;

/// Bytes of results that one [`Engine::forward`] may give.
const OUTPUT_BYTES_MAX: u64 = 1 << 30;

/// Bytes of vectors that one [`Engine::embed`] may give: 2,048 texts with 4,096 elements each. Written as
/// numbers, they are several times as many.
const VECTOR_BYTES_MAX: u64 = 32 << 20;

/// Tokens of texts that are embedded before others have their turn.
const EMBED_TOKENS_MAX: usize = 4096;

/// How files of weights are called, understood or not.
const WEIGHTS: [&str; 13] = [
    "bin",
    "ckpt",
    "ggml",
    "gguf",
    "h5",
    "llamafile",
    "mlmodel",
    "msgpack",
    "onnx",
    "pt",
    "pth",
    "safetensors",
    "tflite",
];

/// Files that an error names, if there are many.
const NAMED_MAX: usize = 3;

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
    /// How texts become vectors, or why they cannot.
    sentence: Arc<Result<Sentence, EngineError>>,
    device: Arc<str>,
    /// What requests are checked against.
    limits: Limits,
    pass: Arc<Widths>,
    /// Whether its requests are computed in f32 throughout, whatever is configured.
    exact: bool,
}

/// What one request may take, if it is alone.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Bytes of keys and values, and of results.
    bytes: u64,
    /// Tokens that an encoder can see at once.
    encoded: usize,
}

/// Texts as vectors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// One for each text, all of one length.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub tokens: usize,
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
        let load = || Self::load_on(Compute::of(config)?, config.memory, files, weights, journal);
        caught("loading the model", load)
    }

    /// The same, with products computed by `compute`.
    fn load_on(
        compute: Compute,
        memory: u64,
        files: &Files,
        weights: Arc<dyn Weights>,
        journal: Arc<Journal>,
    ) -> Result<Self, EngineError> {
        let threads = memory::threads();
        let (shape, widths, shares) = described(files, weights.checkpoint(), memory, threads)?;
        let working = Working::new(&shape, widths, shares.work, threads)?;
        Self::load_in(compute, working, files, weights, journal)
    }

    /// The same, with `working` for all but weights.
    fn load_in(
        compute: Compute,
        working: Working,
        files: &Files,
        weights: Arc<dyn Weights>,
        journal: Arc<Journal>,
    ) -> Result<Self, EngineError> {
        let pass = working.widths();
        let limits = Limits { bytes: working.budget().left(), encoded: working.rows_alone() };
        let device = Arc::from(compute.name());
        let architecture = arch::read(files, weights.checkpoint())?;
        let text = Arc::new(Text::read(files)?);
        let model =
            Model::new(architecture, weights, journal, compute, working)?.stored(Stored::read(files)?);
        let shape = model.shape();
        let (commands, queue) = sync_channel(QUEUE_MAX);
        let actor = Actor::new(model, Arc::clone(&text), queue);
        std::thread::Builder::new()
            .name("surf-engine".to_owned())
            .spawn(move || actor.run())
            .map_err(|error| EngineError::Device(format!("no thread to run the model on: {error}")))?;
        let sentence = Arc::new(Sentence::read(files));
        Ok(Self { commands, text, shape, sentence, device, limits, pass, exact: false })
    }

    /// Starts to answer `request`, when it has been tokenised. Dropping the future takes it back.
    ///
    /// The last event is [`Event::Done`] or [`Event::Failed`]. Dropping the receiver cancels; one from
    /// which nothing is taken for a minute is given up.
    pub async fn generate(&self, mut request: Request) -> Result<mpsc::Receiver<Event>, EngineError> {
        request.sampling.check()?;
        match self.shape.kind {
            Kind::Encoder { .. } => {
                let reason = "the model is an encoder, which generates no text; ask it for embeddings";
                return Err(EngineError::Request(reason.to_owned()));
            }
            Kind::Seq2Seq { .. } if request.echo => {
                let reason = "the model's answer does not continue its prompt, so there is nothing to echo";
                return Err(EngineError::Request(reason.to_owned()));
            }
            Kind::Seq2Seq { .. } | Kind::Causal => (),
        }
        if STOPS_MAX < request.stop.len() || request.stop.iter().any(|stop| STOP_BYTES_MAX < stop.len()) {
            let reason = format!("at most {STOPS_MAX} stop strings of {STOP_BYTES_MAX} bytes are looked for");
            return Err(EngineError::Request(reason));
        }
        let asked = Instant::now();
        // A prompt may be long, and is kept as tokens from here on.
        let prompt = match std::mem::replace(&mut request.prompt, Prompt::Tokens(Vec::new())) {
            Prompt::Text(text) => self.text.encode(text, self.context()).await?,
            Prompt::Tokens(tokens) => tokens,
            Prompt::Chat(messages) => self.text.encode_chat(&messages, self.context()).await?,
        };
        self.check_tokens(&prompt)?;
        let taken = match self.shape.kind {
            // The prompt is the encoder's; the decoder has a token to start with.
            Kind::Seq2Seq { .. } => 1,
            Kind::Causal | Kind::Encoder { .. } => prompt.len(),
        };
        let needed = Sequence::bytes_of(&request, prompt.len(), self.shape, &self.text);
        self.check_memory("the prompt", prompt.len(), needed)?;
        let room = self.context() - taken;
        let tokens_max = request.max_tokens.map_or(room, |max| max.min(room));
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        self.send(Command::Generate(Box::new(Job {
            prompt,
            tokens_max,
            exact: self.exact,
            request,
            events,
            asked,
        })))?;
        Ok(receiver)
    }

    /// What the model makes of every position of each of `rows`: an encoder hidden states, others
    /// logits. Requests in flight wait meanwhile.
    pub async fn forward(&self, rows: Vec<Row>) -> Result<Vec<Output>, EngineError> {
        let mut bytes = 0u64;
        for row in &rows {
            self.check_tokens(&row.tokens)?;
            row.decoder.iter().try_for_each(|tokens| self.check_tokens(tokens))?;
            row.check(self.shape)?;
            self.check_memory("a row", row.tokens.len(), batch::kept_bytes(row, self.shape))?;
            bytes = bytes.saturating_add(batch::result_bytes(row, self.shape));
        }
        let allowed = OUTPUT_BYTES_MAX.min(self.limits.bytes / 2);
        if allowed < bytes {
            return Err(EngineError::no_memory(format!("the result of {} rows", rows.len()), bytes, allowed));
        }
        let what = match self.shape.kind {
            Kind::Encoder { .. } => What::HiddenState,
            Kind::Causal | Kind::Seq2Seq { .. } => What::Logits,
        };
        self.run(rows, what).await
    }

    /// Each of `texts` as a vector, made as the repository says; without a word on it, the mean of the
    /// encoder's last hidden states, of length one. Text that is too long is cut.
    pub async fn embed(&self, texts: &[Prompt]) -> Result<Embedded, EngineError> {
        if self.shape.kind == Kind::Causal {
            let reason = "the model has no encoder, and embeddings are an encoder's";
            return Err(EngineError::Request(reason.to_owned()));
        }
        let sentence = self.sentence.as_ref().as_ref().map_err(Clone::clone)?;
        let tokens_max = sentence.tokens_max().map_or(self.context(), |max| max.min(self.context()));
        self.check_vectors(texts.len(), sentence)?;
        let mut embedded = Embedded::default();
        let mut texts = texts.iter();
        while texts.len() != 0 {
            let (mut rows, mut tokens) = (Vec::new(), 0);
            while tokens < EMBED_TOKENS_MAX
                && let Some(text) = texts.next()
            {
                let row = match text {
                    Prompt::Text(text) => {
                        self.text.encode_within(sentence.prepared(text), tokens_max).await?
                    }
                    Prompt::Tokens(tokens) => tokens.clone(),
                    Prompt::Chat(_) => {
                        return Err(EngineError::Request("a conversation cannot be embedded".to_owned()));
                    }
                };
                self.check_tokens(&row)?;
                tokens += row.len();
                rows.push(Row::from(row));
            }
            embedded.tokens += tokens;
            for output in self.run(rows, What::HiddenState).await? {
                embedded.vectors.push(sentence.pooled(&output.values, output.width));
            }
        }
        Ok(embedded)
    }

    /// Fails if the vectors of so many texts are more than one answer may hold.
    fn check_vectors(&self, texts: usize, sentence: &Sentence) -> Result<(), EngineError> {
        let (Kind::Encoder { width } | Kind::Seq2Seq { width, .. }) = self.shape.kind else { return Ok(()) };
        let bytes = (texts * sentence.width(width) * size_of::<f32>()) as u64;
        if VECTOR_BYTES_MAX < bytes {
            let [bytes, most] = [bytes, VECTOR_BYTES_MAX].map(budget::readable);
            let reason = format!(
                "the vectors of {texts} texts take {bytes}, and one answer holds {most}; ask for fewer"
            );
            return Err(EngineError::Request(reason));
        }
        Ok(())
    }

    async fn run(&self, rows: Vec<Row>, what: What) -> Result<Vec<Output>, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Forward { rows, what, exact: self.exact, reply })?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Runs the recorded inputs in `expected`, a safetensors file with `input_ids` and, where they were
    /// used, `attention_mask` and `decoder_input_ids`. Compares with the `logits` or the
    /// `last_hidden_state`, the `greedy_ids` and the `mean_pooled` in it. Passes if no error is greater
    /// than `tolerance` times the largest number of its kind. On a CPU it is computed in f32 throughout.
    pub async fn check(&self, expected: &[u8], tolerance: f32) -> Result<Report, EngineError> {
        check::check(&self.exactly(), expected, tolerance).await
    }

    /// A handle to the same model, whose requests are computed in f32 throughout on a CPU, whatever is configured.
    pub fn exactly(&self) -> Self {
        Self { exact: true, ..self.clone() }
    }

    /// Tokens that a prompt and its continuation may have together.
    pub fn context(&self) -> usize {
        self.shape.context
    }

    /// Bytes that a prompt of so many tokens takes while it is computed in one pass, beside weights: a bound.
    pub fn prompt_bytes(&self, tokens: usize) -> u64 {
        let size = PassSize { rows: tokens, keys: tokens, threads: memory::threads() };
        self.pass.pass_bytes(size).saturating_add(self.shape.cache.bytes(tokens))
    }

    /// What computes its products: `cpu`, `cuda:0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The bytes of one token by itself, special ones too; they may be a part of a character. `first`: as
    /// the first of a text, which some tokenizers write in another way.
    pub fn token_bytes(&self, id: u32, first: bool) -> Vec<u8> {
        self.text.token_bytes(id, first)
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

    /// Fails if `what`, of so many tokens, does not fit into memory even if it is alone.
    fn check_memory(&self, what: &str, tokens: usize, needed: u64) -> Result<(), EngineError> {
        let what = || format!("{what} of {tokens} tokens");
        if self.limits.bytes < needed {
            return Err(EngineError::no_memory(what(), needed, self.limits.bytes));
        }
        let encodes = !matches!(self.shape.kind, Kind::Causal);
        if encodes && self.limits.encoded < tokens {
            let reason = format!(
                "{} is encoded at once, and memory (--memory) has room for {}",
                what(),
                self.limits.encoded
            );
            return Err(EngineError::Request(reason));
        }
        Ok(())
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
    Compute::of(config).map(drop)
}

/// How the memory of `config` would be shared for the model that `files` and `manifest` describe, or why it
/// cannot run here. `files` need only hold the configuration; what is not in it may still be wrong.
pub fn shares(files: &Files, manifest: &Checkpoint, config: &config::Engine) -> Result<Shares, EngineError> {
    let (.., shares) = described(files, manifest, config.memory, memory::threads())?;
    Ok(shares)
}

/// Tokens in the vocabulary of the model that `files` and `manifest` describe, as its configuration says, or why it
/// cannot run here. `files` need only hold the configuration.
pub fn vocabulary(
    files: &Files,
    manifest: &Checkpoint,
    config: &config::Engine,
) -> Result<usize, EngineError> {
    let (shape, ..) = described(files, manifest, config.memory, memory::threads())?;
    Ok(shape.vocab)
}

/// Sizes of the model that `files` and `manifest` describe, and how `memory` bytes are shared for it.
fn described(
    files: &Files,
    manifest: &Checkpoint,
    memory: u64,
    threads: usize,
) -> Result<(Shape, Widths, Shares), EngineError> {
    runnable(manifest)?;
    let architecture = arch::read(files, manifest)?;
    let (shape, widths) = (architecture.shape(), architecture.widths());
    let sizes = WeightSizes::of(manifest);
    let shares = Shares::new(&shape, &widths, &sizes, memory, threads)?;
    Ok((shape, widths, shares))
}

/// Fails for a model that is distributed like any other, but whose weights cannot be loaded.
pub fn runnable(manifest: &Checkpoint) -> Result<(), EngineError> {
    if let Some(fault) = manifest.fault() {
        return Err(EngineError::Weightless(fault.to_owned()));
    }
    if !manifest.tensors().is_empty() {
        return Ok(());
    }
    let is_of_weights = |path: &&str| {
        path.rsplit_once('.')
            .is_some_and(|(_, extension)| WEIGHTS.contains(&&*extension.to_ascii_lowercase()))
    };
    let paths = manifest.files().iter().map(|file| file.path.as_str());
    Err(EngineError::NoWeights {
        found: paths.filter(is_of_weights).take(NAMED_MAX).map(str::to_owned).collect(),
    })
}
