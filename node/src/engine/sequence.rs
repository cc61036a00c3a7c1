//! One request in flight: what the model has seen of it, and what its client has been told.

use std::{sync::Arc, time::Duration};

use candle_core::Tensor;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Done, EngineError, Event, FinishReason, Logprob, Prompt, Request, Token,
    arch::{Kind, Shape},
    budget::{MemoryBudget, Reservation},
    cache::{CacheShape, KvCache},
    detokenizer::{Decoder, Piece},
    memory::stepped,
    model::{Input, Want},
    pass::Entry,
    sampling::{self, Sampler},
    source::Source,
    stop::Stops,
    text::Text,
};

/// Alternatives that may be named for each token.
const ALTERNATIVES_MAX: usize = 128;

/// Bytes of a token of the prompt, in the lists that it is in.
const TOKEN_BYTES: u64 = 16;

/// Bytes of a token that is told: its text twice, in whatever form, and its likelihood. And of an alternative.
const TOLD_BYTES: u64 = 256;
const ALTERNATIVE_BYTES: u64 = 96;

/// Bytes of a token's text that these have room for.
const SHORT_BYTES: usize = 32;

/// Events that one pass may cause: the prompt, a token, the end.
const EVENTS_PER_PASS: usize = 3;

/// A request that has been checked.
#[derive(Debug)]
pub(crate) struct Job {
    /// At least one token, all of them the model's, no more than its context.
    pub(crate) prompt: Vec<u32>,
    /// Tokens to generate. With the prompt no more than the context.
    pub(crate) tokens_max: usize,
    /// Whether it is computed in f32 throughout, whatever is configured.
    pub(crate) exact: bool,
    /// What was asked for. Its prompt is the one above.
    pub(crate) request: Request,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) asked: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Sequence {
    job: Job,
    /// What the decoder was given (the prompt, or the token that it starts with) and what follows it.
    tokens: Vec<u32>,
    /// How many it was given.
    given: usize,
    shape: CacheShape,
    cache: KvCache,
    /// What an encoder says of the prompt, if the model has one.
    source: Looking,
    /// Bytes that it takes whatever it has seen.
    beside: u64,
    /// Memory for what it has seen, and for some more.
    memory: Option<Reservation>,
    /// How likely each token of the prompt was, after the first, as far as that is asked for and known.
    scores: Vec<Logprob>,
    /// Whether the prompt was told.
    echoed: bool,
    /// The token after all that were seen.
    drawn: Option<Result<Drawn, EngineError>>,
    sampler: Sampler,
    stops: Stops,
    decoder: Decoder,
    ttft: Option<Duration>,
    /// Since when the client has taken nothing.
    full_since: Option<Instant>,
}

/// Where the logits of a sequence's part in a pass go.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    /// The position whose logits come next.
    at: usize,
    /// How many tokens there are. The last one's logits choose the next token, if one is wanted.
    tokens: usize,
    draws: bool,
    prompt: &'a [u32],
    /// How many alternatives to name, if it is wanted how likely tokens are.
    top: Option<usize>,
    scores: Option<&'a mut Vec<Logprob>>,
    sampler: &'a mut Sampler,
    drawn: &'a mut Option<Result<Drawn, EngineError>>,
}

/// What a decoder has to look back at.
#[derive(Debug)]
enum Looking {
    /// Nothing: the prompt is what it continues.
    Nowhere,
    /// The prompt, which was not encoded yet.
    Not,
    Back(Box<Source>),
}

/// A token that was chosen, and how likely it was, if that is asked for.
type Drawn = (u32, Option<Logprob>);

/// Whether a sequence goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It wants another pass.
    Pass,
    /// Its client has been told everything.
    Over,
}

impl Job {
    /// Whether its prompt was given as tokens, and not as text.
    fn is_of_tokens(&self) -> bool {
        matches!(self.request.prompt, Prompt::Tokens(_))
    }
}

impl Sequence {
    pub(crate) fn new(job: Job, shape: Shape, text: &Text) -> Self {
        let (tokens, source) = match shape.kind {
            Kind::Seq2Seq { start, .. } => (vec![start], Looking::Not),
            Kind::Causal | Kind::Encoder { .. } => (job.prompt.clone(), Looking::Nowhere),
        };
        Self {
            shape: shape.cache,
            cache: KvCache::new(shape.cache),
            memory: None,
            scores: Vec::new(),
            drawn: None,
            sampler: Sampler::new(job.request.sampling),
            stops: Stops::new(job.request.stop.clone()),
            decoder: text.decoder(&tokens, job.request.echo && job.is_of_tokens()),
            given: tokens.len(),
            tokens,
            source,
            beside: beside(&job.request, job.prompt.len(), shape, text),
            echoed: false,
            ttft: None,
            full_since: None,
            job,
        }
    }

    /// Reserves memory for `more` tokens after those that it has seen, and for some steps beyond them, if
    /// these are left. False if not even those fit.
    pub(crate) fn reserve(&mut self, budget: &Arc<MemoryBudget>, more: usize) -> bool {
        let seen = self.cache.len() + more;
        if self.memory.as_ref().is_some_and(|memory| self.bytes(seen) <= memory.bytes()) {
            return true;
        }
        // All that it may ever have, if that is near.
        let all = self.given + self.job.tokens_max;
        for tokens in [stepped(seen).min(all.max(seen)), seen] {
            let bytes = self.bytes(tokens);
            let taken = match &mut self.memory {
                Some(memory) => memory.grow_to(bytes),
                None => budget.reserve(bytes).map(|memory| self.memory = Some(memory)).is_some(),
            };
            if taken {
                self.cache.grow(tokens);
                return true;
            }
        }
        false
    }

    /// Bytes that it takes with so many tokens in its cache.
    pub(crate) fn bytes(&self, tokens: usize) -> u64 {
        self.shape.bytes(tokens).saturating_add(self.beside)
    }

    /// Bytes that it adds when it grows next.
    pub(crate) fn step_bytes(&self) -> u64 {
        self.bytes(stepped(self.len())).saturating_sub(self.bytes(self.len()))
    }

    /// Gives back its memory. What it has seen is to be computed again.
    pub(crate) fn preempt(&mut self) {
        self.cache = KvCache::new(self.shape);
        if let Looking::Back(_) = self.source {
            self.source = Looking::Not;
        }
        self.memory = None;
    }

    /// Bytes that a sequence takes to begin with, for this request with a prompt of so many tokens.
    pub(crate) fn bytes_of(request: &Request, prompt_tokens: usize, shape: Shape, text: &Text) -> u64 {
        let given = if let Kind::Seq2Seq { .. } = shape.kind { 1 } else { prompt_tokens };
        shape.cache.bytes(given).saturating_add(beside(request, prompt_tokens, shape, text))
    }

    /// Tokens that it has, the prompt's included.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The prompt, if it is to be encoded first.
    pub(crate) fn unencoded(&self) -> Option<&[u32]> {
        matches!(self.source, Looking::Not).then_some(&self.job.prompt)
    }

    /// Takes what the encoder says of the prompt.
    pub(crate) fn encoded(&mut self, hidden: Tensor) -> Result<(), EngineError> {
        if let Looking::Not = self.source {
            self.source = Looking::Back(Box::new(Source::new(hidden, self.shape)?));
        }
        Ok(())
    }

    /// Whether nobody listens.
    pub(crate) fn cancelled(&self) -> bool {
        self.job.events.is_closed()
    }

    /// How long its client has left no room for what a pass may say; `None` if there is room.
    pub(crate) fn full_for(&mut self) -> Option<Duration> {
        if EVENTS_PER_PASS <= self.job.events.capacity() {
            self.full_since = None;
            return None;
        }
        Some(self.full_since.get_or_insert_with(Instant::now).elapsed())
    }

    /// Whether it is computed in f32 throughout, whatever is configured.
    pub(crate) fn is_exact(&self) -> bool {
        self.job.exact
    }

    /// Tokens that the model has not seen. Never none.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Its part in a pass, of at most `tokens_max` tokens, and where the logits go.
    pub(crate) fn input(&mut self, tokens_max: usize) -> (Input<'_>, Sink<'_>) {
        let seen = self.cache.len();
        let end = self.tokens.len().min(seen + tokens_max);
        let scores_prompt = self.scores_prompt();
        let want = match (scores_prompt, end == self.tokens.len()) {
            (true, _) => Want::All,
            (false, true) => Want::Last,
            (false, false) => Want::Nothing,
        };
        let sink = Sink {
            at: if want == Want::Last { end - 1 } else { seen },
            tokens: self.tokens.len(),
            draws: self.job.tokens_max != 0,
            prompt: &self.job.prompt,
            top: self.job.request.logprobs.map(|top| top.min(ALTERNATIVES_MAX)),
            scores: scores_prompt.then_some(&mut self.scores),
            sampler: &mut self.sampler,
            drawn: &mut self.drawn,
        };
        let source = match &mut self.source {
            Looking::Back(source) => Some(&mut **source),
            Looking::Nowhere | Looking::Not => None,
        };
        let (tokens, cache) = (&self.tokens[seen..end], &mut self.cache);
        (Input { entry: Entry { tokens, positions: None, cache, source }, want }, sink)
    }

    /// Goes on after a pass.
    pub(crate) fn advance(&mut self, text: &Text) -> Result<Next, EngineError> {
        if self.cache.len() < self.tokens.len() {
            return Ok(Next::Pass);
        }
        let generated = self.tokens.len() - self.given;
        if generated == 0 && self.job.request.echo {
            self.echo(text);
        }
        if self.job.tokens_max == 0 {
            return Ok(self.finish(FinishReason::Length));
        }
        let (id, logprob) = self.drawn.take().unwrap_or(Err(EngineError::NotFinite))?;
        self.ttft.get_or_insert_with(|| self.job.asked.elapsed());
        if text.eos().contains(&id) && !self.job.request.ignore_eos {
            return Ok(self.finish(FinishReason::Stop));
        }
        self.tokens.push(id);
        let Piece { text, bytes, offset, first } = self.decoder.push(id);
        let checked = self.stops.push(&text);
        self.tell(Event::Token(Token { id, text: checked.text, bytes, offset, first, logprob }));
        if checked.stopped {
            return Ok(self.done(FinishReason::Stop, String::new()));
        }
        if generated + 1 == self.job.tokens_max {
            return Ok(self.finish(FinishReason::Length));
        }
        Ok(Next::Pass)
    }

    /// Tells the client that it failed.
    pub(crate) fn fail(&self, error: EngineError) {
        self.tell(Event::Failed(error));
    }

    /// Whether tokens of the prompt are to be scored yet.
    fn scores_prompt(&self) -> bool {
        let Request { echo, logprobs, .. } = &self.job.request;
        *echo && !self.echoed && logprobs.is_some() && self.scores.len() + 1 < self.job.prompt.len()
    }

    /// Tells the prompt's tokens, with their scores, if these were asked for.
    fn echo(&mut self, text: &Text) {
        self.echoed = true;
        let scores = std::mem::take(&mut self.scores).into_iter().map(Some);
        let scores = std::iter::once(None).chain(scores).chain(std::iter::repeat(None));
        let ids = self.job.prompt.iter().zip(scores);
        // What is echoed of a prompt of text is that text, without the tokens around it.
        let mut decoder = text.echo_decoder(self.job.is_of_tokens());
        let tokens = ids.map(|(&id, logprob)| {
            let Piece { text, bytes, offset, first } = decoder.push(id);
            Token { id, text, bytes, offset, first, logprob }
        });
        self.tell(Event::Prompt(tokens.collect()));
    }

    /// Ends with the text that is still held back.
    fn finish(&mut self, reason: FinishReason) -> Next {
        // Half a character may still become one where the text is cut off, and only there.
        let rest = self.decoder.finish(reason == FinishReason::Stop);
        let checked = self.stops.push(&rest);
        if checked.stopped {
            return self.done(FinishReason::Stop, checked.text);
        }
        let held = self.stops.finish();
        self.done(reason, checked.text + &held)
    }

    fn done(&mut self, reason: FinishReason, text: String) -> Next {
        let took = self.job.asked.elapsed();
        self.tell(Event::Done(Done {
            text,
            reason,
            prompt_tokens: self.job.prompt.len(),
            completion_tokens: self.tokens.len() - self.given,
            ttft: self.ttft.unwrap_or(took),
            took,
        }));
        Next::Over
    }

    /// There is room: a sequence whose client left none was not in the pass. If nobody listens any
    /// more, nobody misses it.
    fn tell(&self, event: Event) {
        let _ = self.job.events.try_send(event);
    }
}

/// Bytes that a sequence takes beside its keys and values: what it looks back at, its tokens, and what is
/// told of a prompt that is echoed.
fn beside(request: &Request, prompt_tokens: usize, shape: Shape, text: &Text) -> u64 {
    let tokens = prompt_tokens as u64;
    let source = match shape.kind {
        // With the encoder's output, until its keys and values are made.
        Kind::Seq2Seq { width, .. } => {
            shape.cache.bytes(prompt_tokens).saturating_add(tokens * (width * size_of::<f32>()) as u64)
        }
        Kind::Causal | Kind::Encoder { .. } => 0,
    };
    let alternatives = request.logprobs.map_or(0, |top| top.min(ALTERNATIVES_MAX)) as u64;
    let longer = text.piece_bytes_max().saturating_sub(SHORT_BYTES) as u64;
    let told = TOLD_BYTES + 2 * longer + (ALTERNATIVE_BYTES + longer) * alternatives;
    let told = if request.echo { told } else { 0 };
    source.saturating_add(tokens * (TOKEN_BYTES + told))
}

impl Sink<'_> {
    /// Takes the logits of the next position that is wanted. Keeps of them what is asked for.
    pub(crate) fn see(&mut self, logits: &[f32]) {
        self.at += 1;
        let score = |id, top| sampling::logprob(logits, id, top);
        if let (Some(top), Some(&id)) = (self.top, self.prompt.get(self.at))
            && let Some(scores) = self.scores.as_mut().filter(|scores| scores.len() + 1 == self.at)
        {
            scores.push(score(id, top));
        }
        if self.at == self.tokens && self.draws {
            let drawn = self.sampler.next(logits);
            *self.drawn = Some(drawn.map(|id| (id, self.top.map(|top| score(id, top)))));
        }
    }
}
