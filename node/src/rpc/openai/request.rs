//! Requests of OpenAI's API, checked and turned into what the engine is asked for.
//!
//! Which fields there are is in [`fields`](super::fields); those that are served must make sense.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    answer::Shape,
    fields::{BodyFields, Route},
    messages::messages,
};
use crate::{
    engine::{Prompt, Request, Sampling},
    rpc::error::ApiError,
};

/// Tokens generated when a text completion does not say how many, as in OpenAI's API.
const MAX_TOKENS_DEFAULT: usize = 16;
/// Answers to one request: prompts times `n`. Each takes a place in the engine's queue.
const CHOICES_MAX: usize = 64;
/// Strings that end a generation. Each is looked for after every token.
const STOPS_MAX: usize = 16;
/// Bytes in a string that ends a generation. Text is held back for as long as one may be beginning.
const STOP_SIZE_MAX: usize = 256;
/// Likely tokens told for each position.
const TOP_LOGPROBS_MAX: usize = 20;
/// As in OpenAI's API. Beyond it every token is about as likely.
const TEMPERATURE_MAX: f32 = 2.0;

/// A request that makes sense.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) shape: Shape,
    pub(super) model: String,
    pub(super) prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub(super) n: usize,
    pub(super) stream: bool,
    /// Whether a stream ends with the number of tokens.
    pub(super) include_usage: bool,
    /// `None`: as many as the context has room for.
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    /// How many likely tokens to tell for each position; `None`: nothing.
    pub(super) logprobs: Option<usize>,
    pub(super) echo: bool,
    /// Whether to go on when the model says that the text is at its end.
    pub(super) ignore_eos: bool,
}

impl Wanted {
    /// Reads the body of `POST /v1/completions` or `POST /v1/chat/completions`.
    pub(super) fn parse(shape: Shape, body: Map<String, Value>) -> Result<Self, ApiError> {
        let mut fields = BodyFields::new(Route::Generate(shape), body)?;
        let model: String = fields.required("model")?;
        let prompts = match shape {
            Shape::Text => prompts(&mut fields, "prompt")?,
            Shape::Chat => vec![Prompt::Chat(messages(fields.required("messages")?)?)],
        };
        let n = fields.within("n", 1, CHOICES_MAX)?.unwrap_or(1);
        if CHOICES_MAX < prompts.len().saturating_mul(n) {
            return Err(ApiError::param("n", format!("prompts × n is at most {CHOICES_MAX}")));
        }
        let stream = fields.optional("stream")?.unwrap_or(false);
        let options: Option<StreamOptions> = fields.optional("stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::param("stream_options", "stream_options is only for stream: true"));
        }
        let echo = match shape {
            Shape::Text => fields.optional("echo")?.unwrap_or(false),
            Shape::Chat => false,
        };
        Ok(Self {
            shape,
            model,
            prompts,
            n,
            stream,
            include_usage: options.is_some_and(|options| options.include_usage),
            max_tokens: max_tokens(&mut fields, shape, echo)?,
            sampling: sampling(&mut fields)?,
            stop: stops(&mut fields)?,
            logprobs: logprobs(&mut fields, shape)?,
            echo,
            ignore_eos: fields.optional("ignore_eos")?.unwrap_or(false),
        })
    }

    /// What the engine is asked for, one for each choice of the answer, in order. Prompts are copied when
    /// their turn comes, so that many choices do not hold many copies.
    pub(super) fn requests(self) -> impl Iterator<Item = Request> + Send + 'static {
        (0..self.prompts.len() * self.n).map(move |index| Request {
            prompt: self.prompts[index / self.n].clone(),
            max_tokens: self.max_tokens,
            sampling: Sampling {
                // The same dice for each choice would give the same answer n times.
                seed: self.sampling.seed.map(|seed| seed.wrapping_add((index % self.n) as u64)),
                ..self.sampling
            },
            stop: self.stop.clone(),
            logprobs: self.logprobs,
            echo: self.echo,
            ignore_eos: self.ignore_eos,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
    /// Padding against eavesdroppers, which OpenAI's clients may ask for or not. Others decide that here.
    #[serde(default, rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// A prompt of `/v1/completions`, or what `/v1/embeddings` is to embed.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// The texts, or the tokens of texts, in the field `name`.
pub(super) fn prompts(fields: &mut BodyFields, name: &str) -> Result<Vec<Prompt>, ApiError> {
    let refused = |reason: &str| ApiError::param(name, format!("{name} {reason}"));
    let expected = || refused("is a string, a list of strings, a list of token ids, or a list of those");
    let written = fields.take(name).ok_or_else(|| refused("is missing"))?;
    let prompts = match serde_json::from_value(written).map_err(|_| expected())? {
        Written::Text(text) => vec![Prompt::Text(text)],
        Written::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        Written::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Written::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let is_empty = |prompt: &Prompt| matches!(prompt, Prompt::Tokens(tokens) if tokens.is_empty());
    if prompts.is_empty() || prompts.iter().any(is_empty) {
        return Err(refused("is empty"));
    }
    Ok(prompts)
}

fn max_tokens(fields: &mut BodyFields, shape: Shape, echo: bool) -> Result<Option<usize>, ApiError> {
    // With `echo`, nothing need be generated: this is how a text is scored.
    let least = if echo { 0 } else { 1 };
    let newer = fields.within("max_completion_tokens", least, usize::MAX)?;
    let older = fields.within("max_tokens", least, usize::MAX)?;
    let unsaid = match shape {
        Shape::Text => Some(MAX_TOKENS_DEFAULT),
        Shape::Chat => None,
    };
    Ok(newer.or(older).or(unsaid))
}

fn sampling(fields: &mut BodyFields) -> Result<Sampling, ApiError> {
    let temperature: f32 = fields.within("temperature", 0.0, TEMPERATURE_MAX)?.unwrap_or(1.0);
    let top_p: Option<f32> = fields.within("top_p", 0.0, 1.0)?;
    // -1 is how vLLM's clients say "all".
    let top_k: i64 = fields.within("top_k", -1, i64::from(u32::MAX))?.unwrap_or(0);
    let seed: Option<i64> = fields.optional("seed")?;
    Ok(Sampling {
        temperature,
        // Nothing at all cannot be chosen from; the likeliest token alone is what 0 means.
        top_p: top_p.map(|top_p| top_p.max(f32::MIN_POSITIVE)),
        top_k: usize::try_from(top_k).unwrap_or(0),
        seed: seed.map(i64::cast_unsigned),
    })
}

fn stops(fields: &mut BodyFields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(list) => serde_json::from_value(list)
            .map_err(|_| ApiError::param("stop", "stop is a string or a list of strings"))?,
    };
    let fits = |stop: &String| (1..=STOP_SIZE_MAX).contains(&stop.len());
    if STOPS_MAX < stops.len() || !stops.iter().all(fits) {
        let message = format!("stop is at most {STOPS_MAX} strings of 1 to {STOP_SIZE_MAX} bytes");
        return Err(ApiError::param("stop", message));
    }
    Ok(stops)
}

fn logprobs(fields: &mut BodyFields, shape: Shape) -> Result<Option<usize>, ApiError> {
    match shape {
        Shape::Text => fields.within("logprobs", 0, TOP_LOGPROBS_MAX),
        Shape::Chat => {
            let wanted = fields.optional("logprobs")?.unwrap_or(false);
            let top = fields.within("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
            match (wanted, top) {
                (false, Some(1..)) => {
                    Err(ApiError::param("top_logprobs", "top_logprobs needs logprobs: true"))
                }
                (wanted, top) => Ok(wanted.then(|| top.unwrap_or(0))),
            }
        }
    }
}
