//! The fields that requests may have: served, harmless, or refused by name. None is ignored.
//!
//! An answer that looks right and is not is worse than an error that names the field. So a field that would
//! change the answer is refused unless it asks for what happens anyway, and so is one that nobody knows.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::Shape;
use crate::rpc::error::ApiError;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v1/completions` or `/v1/chat/completions`.
    Generate(Shape),
    /// `/v1/embeddings`.
    Embed,
}

/// Served by both routes that generate.
const SERVED: &[&str] = &[
    "ignore_eos",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "model",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
];
const SERVED_TEXT: &[&str] = &["echo", "prompt"];
const SERVED_CHAT: &[&str] = &["messages", "top_logprobs"];
const SERVED_EMBED: &[&str] = &["dimensions", "encoding_format", "input", "model"];

/// Fields that clients send and that change no answer: who asks, how to bill, keep and cache it, and
/// settings of what is off anyway.
const HARMLESS: &[&str] = &[
    "cache_prompt",
    "cache_salt",
    "chat_id",
    "conversation_id",
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "id",
    "id_slot",
    "keep_alive",
    "metadata",
    "mirostat_eta",
    "mirostat_tau",
    "parallel_tool_calls",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "repeat_last_n",
    "request_id",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "user",
    "xtc_threshold",
];

/// Fields, each with the values that pass.
type Refused = &'static [(&'static str, &'static [&'static str])];

/// Fields that would change the answer, each with the values (as JSON) that ask for what happens anyway.
/// `null`, `""`, `[]` and `{}` always do.
const REFUSED: Refused = &[
    ("add_generation_prompt", &["true"]),
    ("allowed_token_ids", &[]),
    ("audio", &[]),
    ("bad_words", &[]),
    ("best_of", &["1"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &[]),
    ("continue_final_message", &["false"]),
    ("detokenize", &["true"]),
    ("documents", &[]),
    ("dry_multiplier", &["0"]),
    ("dynatemp_range", &["0"]),
    ("early_stopping", &["false"]),
    ("enable_thinking", &[]),
    ("extra_body", &[]),
    ("frequency_penalty", &["0"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &[]),
    ("grammar", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_json_object", &["false"]),
    ("guided_regex", &[]),
    ("include_stop_str_in_output", &["false"]),
    ("json_schema", &[]),
    ("length_penalty", &["1"]),
    ("logit_bias", &[]),
    ("logits_processors", &[]),
    ("lora", &[]),
    ("min_p", &["0"]),
    ("min_tokens", &["0"]),
    ("mirostat", &["0"]),
    ("mirostat_mode", &["0"]),
    ("mm_processor_kwargs", &[]),
    ("modalities", &["[\"text\"]"]),
    ("n_keep", &["0"]),
    ("n_predict", &["-1"]),
    ("n_probs", &["0"]),
    ("no_repeat_ngram_size", &["0"]),
    ("num_ctx", &[]),
    ("options", &[]),
    ("prediction", &[]),
    ("presence_penalty", &["0"]),
    ("prompt_logprobs", &[]),
    ("reasoning", &[]),
    ("reasoning_effort", &[]),
    ("regex", &[]),
    ("repeat_penalty", &["1"]),
    ("repetition_penalty", &["1"]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("samplers", &[]),
    ("skip_special_tokens", &["true"]),
    ("smoothing_factor", &["0"]),
    ("spaces_between_special_tokens", &["true"]),
    ("stop_token_ids", &[]),
    ("structural_tag", &[]),
    ("structured_outputs", &[]),
    ("suffix", &[]),
    ("system", &[]),
    ("template", &[]),
    ("tfs_z", &["1"]),
    ("think", &[]),
    ("thinking", &[]),
    ("timings_per_token", &["false"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &[]),
    ("top_a", &["0"]),
    ("truncate_prompt_tokens", &[]),
    ("typical", &["1"]),
    ("typical_p", &["1"]),
    ("use_beam_search", &["false"]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    ("xtc_probability", &["0"]),
];

/// Where special tokens stand around a prompt is for the tokenizer to say, and around a chat for its template.
const REFUSED_TEXT: Refused =
    &[("add_special_tokens", &["true"]), ("messages", &[]), ("top_logprobs", &["0"])];
const REFUSED_CHAT: Refused = &[("add_special_tokens", &["false"]), ("echo", &["false"]), ("prompt", &[])];
const REFUSED_EMBED: Refused = &[
    ("add_special_tokens", &["true"]),
    ("input_type", &[]),
    ("instruction", &[]),
    ("messages", &[]),
    ("normalize", &[]),
    ("prompt", &[]),
    ("prompt_name", &[]),
    ("task", &[]),
    ("truncate", &[]),
    ("truncate_prompt_tokens", &[]),
];

/// The fields of a request, each taken once. `null` counts as absent.
#[derive(Debug)]
pub(super) struct BodyFields(Map<String, Value>);

impl BodyFields {
    /// The fields of `body`, none of which would be ignored.
    pub(super) fn new(route: Route, body: Map<String, Value>) -> Result<Self, ApiError> {
        for (name, value) in &body {
            check(route, name, value, &body)?;
        }
        Ok(Self(body))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let value = self.take(name).map(serde_json::from_value).transpose();
        value.map_err(|error| ApiError::param(name, format!("{name}: {error}")))
    }

    pub(super) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.optional(name)?.ok_or_else(|| ApiError::param(name, format!("{name} is missing")))
    }

    /// A number from `least` to `most`.
    pub(super) fn within<T>(&mut self, name: &str, least: T, most: T) -> Result<Option<T>, ApiError>
    where
        T: DeserializeOwned + PartialOrd + std::fmt::Display,
    {
        let value: Option<T> = self.optional(name)?;
        match value {
            Some(value) if !(least <= value && value <= most) => {
                Err(ApiError::param(name, format!("{name} is {value}; it must be from {least} to {most}")))
            }
            value => Ok(value),
        }
    }
}

/// Refuses the field `name` of `body`, or does not.
fn check(route: Route, name: &str, value: &Value, body: &Map<String, Value>) -> Result<(), ApiError> {
    let (served, own, common): ([&[&str]; 3], Refused, Refused) = match route {
        Route::Generate(Shape::Text) => ([SERVED, SERVED_TEXT, HARMLESS], REFUSED_TEXT, REFUSED),
        Route::Generate(Shape::Chat) => ([SERVED, SERVED_CHAT, HARMLESS], REFUSED_CHAT, REFUSED),
        Route::Embed => ([&[], SERVED_EMBED, HARMLESS], REFUSED_EMBED, &[]),
    };
    if value.is_null() || served.iter().any(|names| names.contains(&name)) {
        return Ok(());
    }
    let Some((_, neutral)) = own.iter().chain(common).find(|(refused, _)| *refused == name) else {
        return Err(ApiError::param(name, format!("the field {name:?} is not known here")));
    };
    let neutral = neutral.iter().filter_map(|text| serde_json::from_str(text).ok());
    // The best of as many as are given are all of them.
    let is_all = name == "best_of" && body.get("n") == Some(value);
    if is_all || is_empty(value) || neutral.into_iter().any(|neutral| same(&neutral, value)) {
        return Ok(());
    }
    Err(ApiError::param(name, format!("{name} is not supported")))
}

/// Whether `value` holds nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether two values mean the same: 0 and 0.0 do.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    const ROUTES: [Route; 3] = [Route::Generate(Shape::Text), Route::Generate(Shape::Chat), Route::Embed];

    fn verdict(route: Route, body: Value) -> Result<(), Option<String>> {
        let body = body.as_object().unwrap().clone();
        BodyFields::new(route, body).map(drop).map_err(|error| error.param)
    }

    #[test]
    fn no_field_is_in_two_lists() {
        for (served, refused) in [(SERVED_TEXT, REFUSED_TEXT), (SERVED_CHAT, REFUSED_CHAT)] {
            let all: Vec<&str> = [SERVED, served, HARMLESS].concat();
            let all = all.into_iter().chain(refused.iter().chain(REFUSED).map(|(name, _)| *name));
            let (count, distinct) = (all.clone().count(), all.collect::<BTreeSet<_>>());
            assert_eq!(count, distinct.len());
        }
        for (_, values) in [REFUSED, REFUSED_TEXT, REFUSED_CHAT, REFUSED_EMBED].concat() {
            values.iter().for_each(|value| drop(serde_json::from_str::<Value>(value).unwrap()));
        }
    }

    /// Whatever would change the answer is refused under its own name, and so is what nobody knows.
    #[test]
    fn no_field_is_ignored() {
        for (name, value) in [
            ("min_p", json!(0.05)),
            ("repetition_penalty", json!(1.1)),
            ("presence_penalty", json!(-0.5)),
            ("logit_bias", json!({"5": -100})),
            ("chat_template_kwargs", json!({"enable_thinking": false})),
            ("guided_json", json!({"type": "object"})),
            ("guided_choice", json!(["a", "b"])),
            ("grammar", json!("root ::= x")),
            ("response_format", json!({"type": "json_object"})),
            ("response_format", json!({"type": "json_schema", "json_schema": {}})),
            ("tools", json!([{"type": "function"}])),
            ("tool_choice", json!("required")),
            ("functions", json!([{}])),
            ("best_of", json!(3)),
            ("suffix", json!("end")),
            ("typical_p", json!(0.9)),
            ("mirostat", json!(2)),
            ("min_tokens", json!(5)),
            ("stop_token_ids", json!([5])),
            ("bad_words", json!(["x"])),
            ("skip_special_tokens", json!(false)),
            ("include_stop_str_in_output", json!(true)),
            ("use_beam_search", json!(true)),
            ("truncate_prompt_tokens", json!(10)),
            ("prompt_logprobs", json!(0)),
            ("reasoning_effort", json!("high")),
            ("modalities", json!(["text", "audio"])),
            ("add_generation_prompt", json!(false)),
            ("no_such_field", json!(0)),
            ("Temperature", json!(0)),
        ] {
            for route in ROUTES {
                assert_eq!(
                    verdict(route, json!({ name: value })),
                    Err(Some(name.into())),
                    "{route:?} {name}"
                );
            }
        }
        let [text, chat, embed] = ROUTES;
        assert_eq!(verdict(chat, json!({"echo": true})), Err(Some("echo".into())));
        assert_eq!(verdict(chat, json!({"prompt": "x"})), Err(Some("prompt".into())));
        assert_eq!(verdict(text, json!({"messages": [{}]})), Err(Some("messages".into())));
        assert_eq!(
            verdict(text, json!({"add_special_tokens": false})),
            Err(Some("add_special_tokens".into()))
        );
        assert_eq!(verdict(embed, json!({"temperature": 0})), Err(Some("temperature".into())));
    }

    #[test]
    fn what_asks_for_nothing_special_passes() {
        let neutral = json!({
            "min_p": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0, "tools": [],
            "tool_choice": "auto", "logit_bias": {}, "suffix": "", "best_of": 1, "response_format": {"type": "text"},
            "stop_token_ids": [], "skip_special_tokens": true, "use_beam_search": false, "length_penalty": 1,
            "guided_json": null, "modalities": ["text"], "typical_p": 1, "min_tokens": 0, "whatever": null,
        });
        for route in [Route::Generate(Shape::Text), Route::Generate(Shape::Chat)] {
            assert_eq!(verdict(route, neutral.clone()), Ok(()));
            assert_eq!(verdict(route, json!({"n": 3, "best_of": 3})), Ok(()));
        }
    }

    /// What common clients send when their users ask for nothing special.
    #[test]
    fn common_clients_are_understood() {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        for body in [
            // openai-python, with everything about accounts that it offers.
            json!({"model": "m", "messages": messages, "metadata": {"a": "b"}, "store": false, "user": "me",
                "safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h",
                "service_tier": "auto", "parallel_tool_calls": true}),
            // LangChain and LlamaIndex.
            json!({"model": "m", "messages": messages, "stream": true, "temperature": 0.7, "n": 1,
                "stream_options": {"include_usage": true}, "frequency_penalty": null, "logprobs": false}),
            // Open WebUI.
            json!({"model": "m", "messages": messages, "stream": true, "chat_id": "c", "session_id": "s", "id": "i",
                "max_tokens": 5, "top_p": 0.9, "seed": 3, "stop": ["x"], "user": "u"}),
            // LiteLLM and aider.
            json!({"model": "m", "messages": messages, "temperature": 0, "stream": true, "tool_choice": null}),
        ] {
            assert_eq!(verdict(Route::Generate(Shape::Chat), body), Ok(()));
        }
        // vLLM's benchmark, and lm-evaluation-harness.
        let bench = json!({"model": "m", "prompt": "x", "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 8,
            "logprobs": 1, "stream": true, "ignore_eos": true, "best_of": 1, "echo": true, "seed": 1234});
        assert_eq!(verdict(Route::Generate(Shape::Text), bench), Ok(()));
        let embed =
            json!({"model": "m", "input": ["x"], "encoding_format": "base64", "user": "u", "dimensions": 3});
        assert_eq!(verdict(Route::Embed, embed), Ok(()));
    }
}
