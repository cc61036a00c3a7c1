//! Requests and answers against the shapes that OpenAI documents.

use std::time::Duration;

use futures::stream;

use super::{answer::Shape, *};
use crate::engine::{Done, FinishReason, Logprob, Message, Sampling};

fn parse(shape: Shape, body: Value) -> Result<Wanted, ApiError> {
    let Value::Object(body) = body else { panic!("{body} is no object") };
    Wanted::parse(shape, body)
}

fn text_request(more: Value) -> Result<Wanted, ApiError> {
    let mut body = json!({"model": "tiny", "prompt": "Once"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parse(Shape::Text, body)
}

fn chat_request(more: Value) -> Result<Wanted, ApiError> {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parse(Shape::Chat, body)
}

fn requests(wanted: &Wanted) -> Vec<Request> {
    wanted.clone().requests().collect()
}

fn token(text: &str) -> What {
    What::Piece(Piece { text: text.into(), tokens: Vec::new() })
}

fn done(reason: FinishReason, prompt_tokens: usize, completion_tokens: usize) -> What {
    let (ttft, took) = (Duration::from_millis(250), Duration::from_millis(1250));
    let done = Done { text: String::new(), reason, prompt_tokens, completion_tokens, ttft, took };
    What::End(done, CacheStats { passes: 4, hits: 30, misses: 10, ..CacheStats::default() })
}

fn told(index: usize, what: What) -> Told {
    Told { index, what }
}

/// What has no equality of its own is compared as it is shown.
fn shown(value: impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

fn run(wanted: &Wanted) -> Run {
    let mut run = Run::new(wanted, 1_700_000_000, Metrics::default());
    run.head.id = "id".into();
    run
}

#[test]
fn what_is_not_said_is_as_openai_says() {
    let wanted = text_request(json!({"user": "me", "unknown": null})).unwrap();
    let sampling = Sampling { temperature: 1.0, top_p: None, top_k: 0, seed: None };
    let expected = Request {
        prompt: Prompt::Text("Once".into()),
        max_tokens: Some(16),
        sampling,
        stop: Vec::new(),
        logprobs: None,
        echo: false,
        ignore_eos: false,
    };
    assert_eq!(shown(requests(&wanted)), shown([expected]));
    assert!(!wanted.stream && !wanted.include_usage);
    let nulls =
        json!({"n": null, "stop": null, "seed": null, "temperature": null, "stream": null, "suffix": null});
    assert_eq!(shown(text_request(nulls).unwrap()), shown(text_request(json!({})).unwrap()));
    assert_eq!(chat_request(json!({})).unwrap().max_tokens, None);
}

#[test]
fn everything_that_is_said_reaches_the_engine() {
    let wanted = text_request(json!({
        "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 40, "seed": -1, "stop": ["a", "b"], "logprobs": 3,
        "echo": true, "stream": true, "stream_options": {"include_usage": true},
    }))
    .unwrap();
    let request = requests(&wanted).remove(0);
    let sampling = Sampling { temperature: 0.0, top_p: Some(0.5), top_k: 40, seed: Some(u64::MAX) };
    assert_eq!((request.max_tokens, request.sampling), (Some(5), sampling));
    assert_eq!((request.stop, request.logprobs, request.echo), (vec!["a".into(), "b".into()], Some(3), true));
    assert!(wanted.stream && wanted.include_usage);
    assert_eq!(requests(&text_request(json!({"stop": "."})).unwrap())[0].stop, ["."]);
    let chat = chat_request(json!({"max_completion_tokens": 9, "max_tokens": 5, "logprobs": true})).unwrap();
    assert_eq!((chat.max_tokens, chat.logprobs), (Some(9), Some(0)));
    assert_eq!(chat_request(json!({"logprobs": true, "top_logprobs": 2})).unwrap().logprobs, Some(2));
}

#[test]
fn prompts_come_in_four_forms() {
    let text = |text: &str| Prompt::Text(text.into());
    for (prompt, expected) in [
        (json!("a"), vec![text("a")]),
        (json!(""), vec![text("")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
    ] {
        assert_eq!(shown(text_request(json!({ "prompt": prompt })).unwrap().prompts), shown(expected));
    }
    for prompt in
        [json!(null), json!([]), json!([[]]), json!(1), json!([-1]), json!(["a", 1]), json!({}), json!([1.5])]
    {
        let error = text_request(json!({ "prompt": prompt })).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("prompt"), "{prompt}");
    }
}

#[test]
fn choices_are_prompts_times_n_with_dice_of_their_own() {
    let wanted = text_request(json!({"prompt": ["a", "b"], "n": 2, "seed": 7})).unwrap();
    let got: Vec<_> =
        wanted.clone().requests().map(|request| (request.prompt, request.sampling.seed)).collect();
    let text = |text: &str| Prompt::Text(text.into());
    let expected = [(text("a"), Some(7)), (text("a"), Some(8)), (text("b"), Some(7)), (text("b"), Some(8))];
    assert_eq!(shown(got), shown(expected));
}

#[test]
fn messages_may_be_in_parts() {
    let wanted = chat_request(json!({"messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null},
    ]}))
    .unwrap();
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let expected = vec![message("system", "S"), message("user", "ab"), message("assistant", "")];
    assert_eq!(shown(wanted.prompts), shown([Prompt::Chat(expected)]));
    let picture = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    for messages in [picture, json!([]), json!("Hi"), json!([{"content": "x"}])] {
        let error = chat_request(json!({ "messages": messages })).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages"), "{messages}");
    }
}

#[test]
fn nonsense_is_refused_with_the_name_of_the_parameter() {
    for (param, value) in [
        ("model", json!(null)),
        ("model", json!(7)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.1)),
        ("top_p", json!(-1)),
        ("top_k", json!(-2)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("n", json!(0)),
        ("n", json!(1000)),
        ("seed", json!("x")),
        ("stop", json!(7)),
        ("stop", json!([""])),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!("x".repeat(257))),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("echo", json!("yes")),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("presence_penalty", json!(0.5)),
        ("logit_bias", json!({"50256": -100})),
        ("best_of", json!(3)),
        ("suffix", json!("x")),
    ] {
        let error = text_request(json!({ param: value })).unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{param}: {value}");
    }
    assert_eq!(chat_request(json!({"top_logprobs": 2})).unwrap_err().param.as_deref(), Some("top_logprobs"));
    assert_eq!(chat_request(json!({"tools": [{}]})).unwrap_err().param.as_deref(), Some("tools"));
    let neutral = json!({
        "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "logit_bias": {}, "suffix": "",
        "response_format": {"type": "text"},
    });
    text_request(neutral).unwrap();
}

#[test]
fn a_scored_text_needs_no_new_tokens() {
    let wanted = text_request(json!({"echo": true, "max_tokens": 0, "logprobs": 1})).unwrap();
    assert_eq!(wanted.max_tokens, Some(0));
}

#[test]
fn a_whole_text_completion_is_as_documented() {
    let wanted = text_request(json!({"n": 2})).unwrap();
    let mut run = run(&wanted);
    for event in [told(1, token("B")), told(0, token(" a")), told(0, token("")), told(0, token("b"))] {
        run.push(event).unwrap();
    }
    run.push(told(0, done(FinishReason::Length, 3, 2))).unwrap();
    run.push(told(1, done(FinishReason::Stop, 3, 1))).unwrap();
    let mut answer = run.whole().unwrap();
    assert_eq!(answer["surf"]["cache"]["hits"], 30);
    answer.as_object_mut().unwrap().remove("surf");
    let expected = json!({
        "id": "id", "object": "text_completion", "created": 1_700_000_000, "model": "tiny",
        "choices": [
            {"index": 0, "text": " ab", "logprobs": null, "finish_reason": "length"},
            {"index": 1, "text": "B", "logprobs": null, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    });
    assert_eq!(answer, expected);
}

#[test]
fn a_whole_chat_completion_is_as_documented() {
    let mut run = run(&chat_request(json!({})).unwrap());
    run.push(told(0, token("Hello"))).unwrap();
    run.push(told(0, done(FinishReason::Stop, 9, 1))).unwrap();
    let mut answer = run.whole().unwrap();
    answer.as_object_mut().unwrap().remove("surf");
    let expected = json!({
        "id": "id", "object": "chat.completion", "created": 1_700_000_000, "model": "tiny",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": null},
            "logprobs": null, "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    });
    assert_eq!(answer, expected);
}

#[test]
fn logprobs_are_as_documented() {
    let bytes = |id, _| ["é", "b", "c"][id as usize].as_bytes().to_vec();
    let token = |id, text: &str, offset, logprob| Token {
        id,
        text: text.into(),
        bytes: text.into(),
        offset,
        first: false,
        logprob,
    };
    let second = Logprob { logprob: -0.5, top: vec![(1, -0.5), (2, -2.0)] };
    let tokens = [token(0, "é", 0, None), token(1, "b", 1, Some(second))];
    let tokens = tokens.iter().map(|token| Scored::new(token, 0, bytes)).collect();
    let piece = Piece { text: "éb".into(), tokens };
    let mut text = run(&text_request(json!({"logprobs": 2, "echo": true})).unwrap());
    let mut chat = run(&chat_request(json!({"logprobs": true, "top_logprobs": 2})).unwrap());
    for run in [&mut text, &mut chat] {
        run.push(told(0, What::Piece(piece.clone()))).unwrap();
        run.push(told(0, done(FinishReason::Stop, 1, 1))).unwrap();
    }
    let expected = json!({
        "tokens": ["é", "b"], "token_logprobs": [null, -0.5], "top_logprobs": [null, {"b": -0.5, "c": -2.0}],
        "text_offset": [0, 1],
    });
    assert_eq!(text.whole().unwrap()["choices"][0]["logprobs"], expected);
    let content = &chat.whole().unwrap()["choices"][0]["logprobs"]["content"];
    let expected = json!({
        "token": "b", "logprob": -0.5, "bytes": [98],
        "top_logprobs": [{"token": "b", "logprob": -0.5, "bytes": [98]}, {"token": "c", "logprob": -2.0, "bytes": [99]}],
    });
    assert_eq!((&content[1], &content[0]["bytes"]), (&expected, &json!([195, 169])));
}

/// The data of a stream of `events`.
async fn streamed(wanted: &Wanted, events: Vec<Result<Told, ApiError>>) -> Vec<String> {
    let response = sse(None, stream::iter(events), run(wanted));
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let bytes = axum::body::to_bytes(response.into_body(), 100_000).await.unwrap();
    let text = String::from_utf8(bytes.into()).unwrap();
    let events = text.split_terminator("\n\n");
    events.map(|event| event.strip_prefix("data: ").expect("nothing but data").to_owned()).collect()
}

fn values(data: &[String]) -> Vec<Value> {
    data.iter().map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

#[tokio::test]
async fn a_streamed_chat_is_as_documented() {
    let wanted = chat_request(json!({"stream": true, "stream_options": {"include_usage": true}})).unwrap();
    let events = vec![
        Ok(told(0, token("Hel"))),
        Ok(told(0, token(""))),
        Ok(told(0, token("lo"))),
        Ok(told(0, done(FinishReason::Stop, 9, 3))),
    ];
    let mut got = values(&streamed(&wanted, events).await);
    assert_eq!(got.pop().unwrap(), json!("[DONE]"));
    let chunk = |choices: Value, usage: Value| {
        json!({
            "id": "id", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "tiny",
            "choices": choices, "usage": usage,
        })
    };
    let choice = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        chunk(json!([choice]), Value::Null)
    };
    assert_eq!(got[0], choice(json!({"role": "assistant", "content": "Hel"}), Value::Null));
    assert_eq!(got[1], choice(json!({"content": "lo"}), Value::Null));
    let surf = got[2].as_object_mut().unwrap().remove("surf").unwrap();
    assert_eq!(got[2], choice(json!({}), json!("stop")));
    assert_eq!(
        (&surf["ttft_ms"], &surf["tokens_per_s"], &surf["cache"]["passes"]),
        (&json!(250.0), &json!(2.0), &json!(4))
    );
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12});
    assert_eq!(got[3], chunk(json!([]), usage));
    assert_eq!(got.len(), 4);
}

#[tokio::test]
async fn a_streamed_text_ends_with_done_and_only_if_it_is_whole() {
    let wanted = text_request(json!({"stream": true})).unwrap();
    let got =
        streamed(&wanted, vec![Ok(told(0, token("a"))), Ok(told(0, done(FinishReason::Length, 1, 1)))]).await;
    let first = json!({
        "id": "id", "object": "text_completion", "created": 1_700_000_000, "model": "tiny",
        "choices": [{"index": 0, "text": "a", "logprobs": null, "finish_reason": null}],
    });
    assert_eq!((values(&got)[0].clone(), got.len(), got[2].as_str()), (first, 3, "[DONE]"));
    let cut = values(&streamed(&wanted, vec![Ok(told(0, token("a")))]).await);
    assert_eq!((&cut[1]["error"]["type"], cut.len()), (&json!("server_error"), 2));
    let failed = vec![Err(ApiError::not_found("nobody has chunk 0a")), Ok(told(0, token("a")))];
    let failed = values(&streamed(&wanted, failed).await);
    assert_eq!((&failed[0]["error"]["code"], failed.len()), (&json!("not_found"), 1));
}

#[test]
fn counts_are_those_of_this_answer() {
    let stats = |passes, hits, ready, misses, resident_bytes| CacheStats {
        passes,
        hits,
        ready,
        misses,
        per_group: vec![GroupCache { group: "head".into(), hits, ready, misses, bytes: 5 }],
        resident_bytes,
    };
    let (before, after) = (stats(3, 9, 1, 3, 1), stats(5, 13, 4, 5, 7));
    let expected = stats(2, 4, 3, 2, 7);
    assert_eq!(since(&before, after), expected);
}

#[tokio::test]
async fn text_that_was_held_back_comes_with_the_end() {
    let end = |text: &str| match done(FinishReason::Stop, 1, 2) {
        What::End(done, cache) => What::End(Done { text: text.into(), ..done }, cache),
        What::Piece(piece) => What::Piece(piece),
    };
    let wanted = chat_request(json!({"stream": true})).unwrap();
    let got = values(&streamed(&wanted, vec![Ok(told(0, token("a"))), Ok(told(0, end("b")))]).await);
    let last = &got[1]["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({"content": "b"}), &json!("stop")));
    let mut run = run(&text_request(json!({})).unwrap());
    run.push(told(0, token("a"))).unwrap();
    run.push(told(0, end("b"))).unwrap();
    assert_eq!(run.whole().unwrap()["choices"][0]["text"], "ab");
}

/// A model with many experts has many groups, and each answer counts what was used of each.
#[test]
fn what_was_used_is_counted_in_one_go() {
    let stats = |hits: u64| {
        let group =
            |at: u64| GroupCache { group: format!("expert {at}"), hits: hits + at, ..GroupCache::default() };
        CacheStats { hits, per_group: (0..200_000).map(group).collect(), ..CacheStats::default() }
    };
    // By comparing each with all others, this would take hours.
    let used = since(&stats(5), stats(12));
    assert!(used.hits == 7 && used.per_group.iter().all(|group| group.hits == 7));
}

/// `text_offset` counts what the client sees, streamed or not, also where a stop string takes text back.
#[tokio::test]
async fn tokens_come_with_the_text_that_they_are_part_of() {
    let piece = |text: &str, offset: usize, bytes: &[u8]| {
        let scored = Scored { bytes: bytes.into(), offset, logprob: Some(-1.0), top: Vec::new() };
        What::Piece(Piece { text: text.into(), tokens: vec![scored] })
    };
    let told = || {
        let end = match done(FinishReason::Stop, 1, 5) {
            What::End(end, cache) => What::End(Done { text: "<".into(), ..end }, cache),
            What::Piece(_) => unreachable!(),
        };
        let told = vec![
            piece("", 0, &[0xc3]),
            piece("é", 0, &[0xa9]),
            piece("b", 1, b"b"),
            piece("", 2, b"<"),
            piece("", 3, b"|x"),
        ];
        told.into_iter().chain([end]).map(|what| self::told(0, what))
    };
    let expected = [
        (json!(["\u{fffd}", "\u{fffd}"]), json!([0, 0])),
        (json!(["b"]), json!([1])),
        (json!(["<", "|x"]), json!([2, 3])),
    ];
    let wanted = text_request(json!({"logprobs": 0, "stream": true})).unwrap();
    let chunks = streamed(&wanted, told().map(Ok).collect()).await;
    let chunks = chunks.iter().filter(|chunk| *chunk != "[DONE]");
    let chunks: Vec<Value> = chunks.map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let streamed = chunks.iter().map(|chunk| {
        let logprobs = &chunk["choices"][0]["logprobs"];
        (logprobs["tokens"].clone(), logprobs["text_offset"].clone())
    });
    assert_eq!(streamed.collect::<Vec<_>>(), expected);
    let mut whole = run(&wanted);
    told().for_each(|told| whole.push(told).unwrap());
    let whole = whole.whole().unwrap();
    assert_eq!(whole["choices"][0]["text"], "éb<");
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 3]));
}
