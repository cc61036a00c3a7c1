//! One request in flight: what the model has seen of it, and what its client has been told.

use std::time::Duration;

use candle_core::Tensor;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Done, EngineError, Event, FinishReason, Request, Token,
    arch::{Kind, Shape},
    cache::{CacheShape, KvCache},
    model::{Input, Want},
    pass::Entry,
    sampling::{self, Sampler},
    source::Source,
    stop::Stops,
    text::{Decoder, Text},
};

/// Alternatives that may be named for each token.
const ALTERNATIVES_MAX: usize = 128;

/// Events that one pass may cause: the prompt, a token, the end.
const EVENTS_PER_PASS: usize = 3;

/// A request that has been checked.
#[derive(Debug)]
pub(crate) struct Job {
    /// At least one token, all of them the model's, no more than its context.
    pub(crate) prompt: Vec<u32>,
    /// Tokens to generate. With the prompt no more than the context.
    pub(crate) tokens_max: usize,
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
    cache: KvCache,
    /// What an encoder says of the prompt, if the model has one.
    source: Looking,
    sampler: Sampler,
    stops: Stops,
    decoder: Decoder,
    echoed: Vec<Token>,
    ttft: Option<Duration>,
    /// Since when the client has taken nothing.
    full_since: Option<Instant>,
}

/// What a decoder has to look back at.
#[derive(Debug)]
enum Looking {
    /// Nothing: the prompt is what it continues.
    Nowhere,
    /// The prompt, which was not encoded yet.
    Not(CacheShape),
    Back(Box<Source>),
}

/// Whether a sequence goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It wants another pass.
    Pass,
    /// Its client has been told everything.
    Over,
}

impl Job {
    /// Bytes of keys and values that it may need.
    pub(crate) fn cache_bytes(&self, shape: CacheShape) -> u64 {
        shape.token_bytes().saturating_mul((self.prompt.len() + self.tokens_max) as u64)
    }
}

impl Sequence {
    pub(crate) fn new(job: Job, shape: Shape, text: &Text) -> Self {
        let (tokens, source) = match shape.kind {
            Kind::Seq2Seq { start } => (vec![start], Looking::Not(shape.cache)),
            Kind::Causal | Kind::Encoder { .. } => (job.prompt.clone(), Looking::Nowhere),
        };
        Self {
            cache: KvCache::new(shape.cache),
            sampler: Sampler::new(job.request.sampling),
            stops: Stops::new(job.request.stop.clone()),
            decoder: text.decoder(&tokens),
            given: tokens.len(),
            tokens,
            source,
            echoed: Vec::new(),
            ttft: None,
            full_since: None,
            job,
        }
    }

    /// Bytes of keys and values that it may need.
    pub(crate) fn cache_bytes(&self, shape: CacheShape) -> u64 {
        self.job.cache_bytes(shape)
    }

    /// The prompt, if it is to be encoded first.
    pub(crate) fn unencoded(&self) -> Option<&[u32]> {
        matches!(self.source, Looking::Not(_)).then_some(&self.job.prompt)
    }

    /// Takes what the encoder says of the prompt.
    pub(crate) fn encoded(&mut self, hidden: Tensor) -> Result<(), EngineError> {
        if let Looking::Not(shape) = self.source {
            self.source = Looking::Back(Box::new(Source::new(hidden, shape)?));
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

    /// Tokens that the model has not seen. Never none.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Its part in a pass, of at most `tokens_max` tokens.
    pub(crate) fn input(&mut self, tokens_max: usize) -> Input<'_> {
        let seen = self.cache.len();
        let end = self.tokens.len().min(seen + tokens_max);
        let scores_prompt =
            self.job.request.echo && self.job.request.logprobs.is_some() && seen < self.job.prompt.len();
        let want = match (scores_prompt, end == self.tokens.len()) {
            (true, _) => Want::All,
            (false, true) => Want::Last,
            (false, false) => Want::Nothing,
        };
        let source = match &mut self.source {
            Looking::Back(source) => Some(&mut **source),
            Looking::Nowhere | Looking::Not(_) => None,
        };
        let (tokens, cache) = (&self.tokens[seen..end], &mut self.cache);
        Input { entry: Entry { tokens, positions: None, cache, source }, want }
    }

    /// Goes on with the logits of a pass, by positions of `vocab` elements.
    pub(crate) fn advance(&mut self, logits: &[f32], vocab: usize, text: &Text) -> Result<Next, EngineError> {
        if self.cache.len() <= self.job.prompt.len() && self.job.request.echo {
            self.echo(logits, vocab, text);
        }
        if self.cache.len() < self.tokens.len() {
            return Ok(Next::Pass);
        }
        let generated = self.tokens.len() - self.given;
        if generated == 0 && self.job.request.echo {
            let echoed = std::mem::take(&mut self.echoed);
            self.tell(Event::Prompt(echoed));
        }
        if self.job.tokens_max == 0 {
            return Ok(self.finish(FinishReason::Length));
        }
        let last = &logits[logits.len() - vocab..];
        let id = self.sampler.next(last)?;
        self.ttft.get_or_insert_with(|| self.job.asked.elapsed());
        if text.eos().contains(&id) && !self.job.request.ignore_eos {
            return Ok(self.finish(FinishReason::Stop));
        }
        self.tokens.push(id);
        let fresh = self.decoder.push(id);
        let checked = self.stops.push(&fresh);
        let alternatives = self.job.request.logprobs.map(|top| top.min(ALTERNATIVES_MAX));
        let logprob = alternatives.map(|top| sampling::logprob(last, id, top));
        self.tell(Event::Token(Token { id, text: checked.text, logprob }));
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

    /// Notes the prompt's tokens that the last pass has scored, or, if they need no score, that they
    /// are there.
    fn echo(&mut self, logits: &[f32], vocab: usize, text: &Text) {
        let (from, to) = (self.echoed.len(), self.job.prompt.len().min(self.cache.len() + 1));
        let seen_before = self.cache.len() - logits.len() / vocab;
        for at in from..to {
            let id = self.tokens[at];
            let logprob = self.job.request.logprobs.and_then(|top| {
                let row = at.checked_sub(seen_before + 1)?;
                let logits = logits.get(row * vocab..(row + 1) * vocab)?;
                Some(sampling::logprob(logits, id, top.min(ALTERNATIVES_MAX)))
            });
            self.echoed.push(Token { id, text: text.token(id), logprob });
        }
    }

    /// Ends with the text that is still held back.
    fn finish(&mut self, reason: FinishReason) -> Next {
        let rest = self.decoder.finish();
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
