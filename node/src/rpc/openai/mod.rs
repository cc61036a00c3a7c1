//! OpenAI's API: models, completions and chat completions, streaming as server-sent events, and
//! embeddings.
//!
//! [`request`] says what is asked for ([`fields`]: which fields there are; [`messages`]: conversations), [`answer`] how what the engine tells is written; here the two
//! are joined. Each choice of an answer is a request to the engine. Dropping the answer, as happens
//! when the client goes away, drops the engine's receivers, and that cancels the generation.

mod answer;
mod embeddings;
mod fields;
mod logprobs;
mod messages;
mod request;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, TryFutureExt, future, stream};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

pub(super) use self::embeddings::embeddings;
use self::{
    answer::{Choice, Head, Piece, Shape, Usage},
    logprobs::Scored,
    request::Wanted,
};
use super::{
    App, clock_unix,
    error::ApiError,
    extract::{Json, Tail},
    metrics::Metrics,
    work::aside,
};
use crate::{
    api::{CacheStats, GenerationStats, GroupCache},
    engine::{Done, Event, Prompt, Request, Token},
    node::{Generation, Node, NodeError},
};

/// Choices of one answer that are generated at once. The others wait for their turn.
const CHOICES_AT_ONCE: usize = 8;

/// Bytes of an answer that is given whole, before they are written as JSON.
const WHOLE_SIZE_MAX: usize = 64 << 20;

/// How long a stream waits for its first token before it begins without: until then a failure has
/// an HTTP status of its own.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a stream that has nothing to tell says so, lest something on the way closes it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// `GET /v1/models`: what can run.
pub(super) async fn models(State(app): State<App>) -> axum::Json<Value> {
    let models = app.node.models().await;
    let entries = models.iter().filter(|info| info.runs).flat_map(|info| {
        let names = std::iter::once(&info.model).chain(&info.aliases);
        names.map(|name| model_entry(name, &info.model, app.started_unix))
    });
    axum::Json(json!({"object": "list", "data": entries.collect::<Vec<_>>()}))
}

/// `GET /v1/models/{id}`
pub(super) async fn model(State(app): State<App>, Tail(name): Tail) -> Result<axum::Json<Value>, ApiError> {
    let info = app.node.model(&name).await?.info;
    match info.why_not {
        Some(why) => Err(ApiError::not_found(format!("the model {} cannot run: {why}", info.model))),
        None => Ok(axum::Json(model_entry(&name, &info.model, app.started_unix))),
    }
}

/// `POST /v1/completions`
pub(super) async fn completions(
    State(app): State<App>,
    Json(body): Json<Map<String, Value>>,
) -> Result<Response, ApiError> {
    generate(app, aside(move || Wanted::parse(Shape::Text, body)).await?).await
}

/// `POST /v1/chat/completions`
pub(super) async fn chat_completions(
    State(app): State<App>,
    Json(body): Json<Map<String, Value>>,
) -> Result<Response, ApiError> {
    generate(app, aside(move || Wanted::parse(Shape::Chat, body)).await?).await
}

/// `created` is when the node started: a model has no date.
fn model_entry(name: &str, model: &str, created: u64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "surf", "root": model})
}

/// Something that the engine tells about one choice of an answer.
#[derive(Debug)]
struct Told {
    index: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    Piece(Piece),
    /// The end, and what of the weights was in memory since the beginning.
    End(Done, CacheStats),
}

async fn generate(app: App, wanted: Wanted) -> Result<Response, ApiError> {
    let mut run = Run::new(&wanted, clock_unix(), app.metrics);
    let (model, stream) = (wanted.model.clone(), wanted.stream);
    let mut told = Box::pin(until_stopped(listen(app.node, model, wanted.requests()), app.stop));
    if !stream {
        while let Some(told) = told.next().await {
            run.push(told?)?;
        }
        return aside(move || run.whole().map(|answer| axum::Json(answer).into_response())).await;
    }
    let first = match tokio::time::timeout(PATIENCE, told.next()).await {
        Ok(Some(told)) => run.chunk(told?),
        Ok(None) => return Err(broke_off()),
        Err(_) => None,
    };
    Ok(sse(first, told, run))
}

/// What is `told`, and an error in place of the rest when `stop` is cancelled.
fn until_stopped(
    told: impl Stream<Item = Result<Told, ApiError>> + Send + 'static,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Told, ApiError>> + Send + 'static {
    stream::unfold(Some((Box::pin(told), stop)), async |state| {
        let (mut told, stop) = state?;
        tokio::select! {
            biased;
            () = stop.cancelled() => Some((Err(ApiError::stopping()), None)),
            next = told.next() => next.map(|next| (next, Some((told, stop)))),
        }
    })
}

/// What the engine tells about each choice, as it comes.
fn listen(
    node: Node,
    model: String,
    requests: impl Iterator<Item = Request> + Send + 'static,
) -> impl Stream<Item = Result<Told, ApiError>> + Send + 'static {
    let choices = requests.enumerate().map(move |(index, request)| {
        let (node, model) = (node.clone(), model.clone());
        let scored = request.logprobs.is_some();
        let prompt = match &request.prompt {
            Prompt::Text(text) if request.echo => Some(text.clone()),
            Prompt::Text(_) | Prompt::Tokens(_) | Prompt::Chat(_) => None,
        };
        let started = async move { node.generate(&model, request).await.map_err(ApiError::from) };
        started
            .map_ok(move |generation| choice(index, generation, scored, prompt))
            .try_flatten_stream()
            .boxed()
    });
    stream::iter(choices).flatten_unordered(CHOICES_AT_ONCE)
}

/// What is told about choice `index`. `scored`: whether probabilities were asked for. `prompt`: the
/// prompt, if it is text and is to be given back.
fn choice(
    index: usize,
    generation: Generation,
    scored: bool,
    prompt: Option<String>,
) -> impl Stream<Item = Result<Told, ApiError>> {
    let before = generation.cache();
    let state = (generation, before, prompt, 0);
    stream::unfold(state, move |(mut generation, before, mut prompt, mut echoed)| async move {
        let event = generation.next().await?;
        let bytes = |id, first| generation.token_bytes(id, first);
        let what = match event {
            Event::Prompt(tokens) => {
                // Tokens put together are not always the text that they were made of.
                let (piece, length) = echo(&tokens, prompt.take(), scored, bytes);
                echoed = length;
                Ok(What::Piece(piece))
            }
            Event::Token(token) => {
                let tokens = scored.then(|| Scored::new(&token, echoed, bytes)).into_iter().collect();
                Ok(What::Piece(Piece { text: token.text, tokens }))
            }
            Event::Done(done) => Ok(What::End(done, since(&before, generation.cache()))),
            Event::Failed(error) => Err(NodeError::from(error).into()),
        };
        Some((what.map(|what| Told { index, what }), (generation, before, prompt, echoed)))
    })
}

/// The prompt as it is given back, and how many characters it has. `written`: as the client wrote it, if
/// as text.
fn echo(
    tokens: &[Token],
    written: Option<String>,
    scored: bool,
    bytes: impl Fn(u32, bool) -> Vec<u8>,
) -> (Piece, usize) {
    let mut scores: Vec<Scored> = match scored {
        true => tokens.iter().map(|token| Scored::new(token, 0, &bytes)).collect(),
        false => Vec::new(),
    };
    let text = match written {
        Some(text) => {
            logprobs::place(&text, scores.iter_mut().zip(tokens));
            text
        }
        None => tokens.iter().map(|token| token.text.as_str()).collect(),
    };
    let length = text.chars().count();
    (Piece { text, tokens: scores }, length)
}

/// The rest of a stream, after its `first` chunk.
fn sse(
    first: Option<Value>,
    told: impl Stream<Item = Result<Told, ApiError>> + Send + 'static,
    run: Run,
) -> Response {
    let chunks = told.map(Some).chain(stream::once(future::ready(None)));
    let chunks = chunks.scan(Some(run), |state, told| {
        let Some(run) = state else { return future::ready(None) };
        let data = match told {
            Some(told) => told.map(|told| run.chunk(told).into_iter().map(text).collect()),
            None => run.ending(),
        };
        future::ready(Some(data.unwrap_or_else(|error| {
            // Nothing follows an error, not even `[DONE]`.
            *state = None;
            vec![text(json!(error.body()))]
        })))
    });
    let data = stream::iter(first.map(text)).chain(chunks.flat_map(stream::iter));
    let events = data.map(|data| Ok::<_, Infallible>(SseEvent::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn text(value: Value) -> String {
    value.to_string()
}

/// An answer as it comes about.
struct Run {
    head: Head,
    choices: Vec<Choice>,
    /// Answers to each prompt.
    n: usize,
    unfinished: usize,
    usage: Usage,
    /// Bytes that were kept for an answer that is given whole.
    size: usize,
    /// Of the choice that ended last.
    stats: Option<GenerationStats>,
    metrics: Metrics,
}

impl Run {
    fn new(wanted: &Wanted, created: u64, metrics: Metrics) -> Self {
        let kind = match wanted.shape {
            Shape::Text => "cmpl",
            Shape::Chat => "chatcmpl",
        };
        let count = wanted.prompts.len() * wanted.n;
        Self {
            head: Head {
                shape: wanted.shape,
                id: format!("{kind}-{:032x}", rand::random::<u128>()),
                created,
                model: wanted.model.clone(),
                logprobs: wanted.logprobs.is_some(),
                include_usage: wanted.include_usage,
            },
            choices: (0..count).map(Choice::new).collect(),
            n: wanted.n,
            unfinished: count,
            usage: Usage::default(),
            size: 0,
            stats: None,
            metrics,
        }
    }

    /// The chunk for what was told, unless it would say nothing.
    fn chunk(&mut self, told: Told) -> Option<Value> {
        match told.what {
            What::Piece(piece) => self.head.chunk(&mut self.choices[told.index], piece),
            What::End(done, cache) => {
                let stats = self.done(told.index, &done, cache);
                let rest = Piece { text: done.text, tokens: Vec::new() };
                Some(self.head.finish(&mut self.choices[told.index], rest, done.reason, &stats))
            }
        }
    }

    /// Keeps what was told, for an answer that is given whole.
    fn push(&mut self, told: Told) -> Result<(), ApiError> {
        match told.what {
            What::Piece(piece) => {
                self.size += piece.size();
                if WHOLE_SIZE_MAX < self.size {
                    let most = WHOLE_SIZE_MAX >> 20;
                    let message = format!("the answer has more than {most} MiB; ask for it as a stream");
                    return Err(ApiError::invalid(message));
                }
                self.choices[told.index].push(piece);
            }
            What::End(done, cache) => {
                self.done(told.index, &done, cache);
                let choice = &mut self.choices[told.index];
                choice.push(Piece { text: done.text, tokens: Vec::new() });
                choice.end(done.reason);
            }
        }
        Ok(())
    }

    fn done(&mut self, index: usize, done: &Done, cache: CacheStats) -> GenerationStats {
        self.unfinished -= 1;
        self.usage.completion_tokens += done.completion_tokens;
        // Each prompt counts once, however many answers it has.
        if index.is_multiple_of(self.n) {
            self.usage.prompt_tokens += done.prompt_tokens;
        }
        let after_first = done.took.saturating_sub(done.ttft).as_secs_f64();
        let pace = done.completion_tokens.saturating_sub(1) as f64 / after_first;
        let stats = GenerationStats {
            prompt_tokens: done.prompt_tokens,
            completion_tokens: done.completion_tokens,
            ttft_ms: done.ttft.as_secs_f64() * 1e3,
            tokens_per_s: if pace.is_finite() { pace } else { 0.0 },
            cache,
        };
        self.metrics.generated(&stats);
        self.stats = Some(stats.clone());
        stats
    }

    /// What a stream ends with.
    fn ending(&self) -> Result<Vec<String>, ApiError> {
        if self.unfinished != 0 {
            return Err(broke_off());
        }
        let usage = self.head.include_usage.then(|| text(self.head.usage(self.usage)));
        Ok(usage.into_iter().chain(["[DONE]".to_owned()]).collect())
    }

    /// The answer, once everything has been pushed.
    fn whole(self) -> Result<Value, ApiError> {
        if self.unfinished != 0 {
            return Err(broke_off());
        }
        Ok(self.head.whole(self.choices, self.usage, self.stats.as_ref()))
    }
}

fn broke_off() -> ApiError {
    ApiError::failed("the engine stopped before the answer was complete")
}

/// What was counted after `before`, of counts that only grow.
fn since(before: &CacheStats, after: CacheStats) -> CacheStats {
    let old: HashMap<&str, &GroupCache> =
        before.per_group.iter().map(|old| (old.group.as_str(), old)).collect();
    let per_group = after.per_group.into_iter().map(|new| {
        let old = old.get(new.group.as_str()).copied().cloned().unwrap_or_default();
        GroupCache {
            hits: new.hits.saturating_sub(old.hits),
            ready: new.ready.saturating_sub(old.ready),
            misses: new.misses.saturating_sub(old.misses),
            ..new
        }
    });
    CacheStats {
        passes: after.passes.saturating_sub(before.passes),
        hits: after.hits.saturating_sub(before.hits),
        ready: after.ready.saturating_sub(before.ready),
        misses: after.misses.saturating_sub(before.misses),
        per_group: per_group.collect(),
        resident_bytes: after.resident_bytes,
    }
}
