//! Hostile tokenizers and templates, each answered with a sentence by a process that may die of it.

mod cost;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::engine::{EngineError, files::Files};

/// What a question may take at most, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn sandbox(what: What, files: &[(&str, String)]) -> Sandbox {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.clone().into())).collect();
    Sandbox::start(what, &Files(files)).unwrap()
}

async fn asked(sandbox: &Sandbox, ask: Ask, body: &str) -> Result<Vec<u8>, String> {
    let answer = timeout(PATIENCE, sandbox.ask(ask, body.to_owned().into())).await.expect("no hang");
    match answer {
        Ok(answer) => Ok(answer.expect("it holds something").to_vec()),
        Err(EngineError::Request(reason)) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}

async fn rendered(template: &str) -> Result<String, String> {
    let sandbox = sandbox(What::Template, &[("chat_template.jinja", template.to_owned())]);
    let talk = json!({"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": true});
    let answer = asked(&sandbox, Ask::Render { clock: Clock::default() }, &talk.to_string()).await;
    answer.map(|text| String::from_utf8(text).unwrap())
}

const ENCODE: Ask = Ask::Encode { special: true, fit: Fit::Refuse(4096) };

/// A tokenizer of letters, with other parts.
fn tokenizer(parts: Value) -> String {
    let vocab: serde_json::Map<String, Value> =
        ('a'..='z').chain([' ']).zip(0..).map(|(letter, id)| (letter.to_string(), json!(id))).collect();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "a", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []});
    let mut all = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
    all.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    all.to_string()
}

/// Templates that take all there is of something: time, memory, stack.
const HOSTILE: &[(&str, &str)] = &[
    (
        "a list in itself, dropped",
        "{% set ns = namespace(x=[]) %}{% for a in range(700) %}{% for b in range(700) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x }}",
    ),
    (
        "a dictionary in itself",
        "{% set ns = namespace(x=[]) %}{% for a in range(700) %}{% for b in range(700) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{% endfor %}{{ ns.x | tojson }}",
    ),
    (
        "a tuple in itself",
        "{% set ns = namespace(x=()) %}{% for a in range(700) %}{% for b in range(700) %}{% set ns.x = (ns.x, 1) %}{% endfor %}{% endfor %}{{ ns.x == ns.x }}",
    ),
    (
        "a list twice in itself",
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    ),
    (
        "the same as JSON",
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ),
    (
        "the same, compared",
        "{% set ns = namespace(x=[1], y=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    ),
    (
        "a doubling text",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    ),
    (
        "a doubling sum",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    ),
    (
        "a doubling list",
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = (ns.x + ns.x) | list %}{% endfor %}{{ ns.x | length }}",
    ),
    ("a text times a billion", "{{ 'x' * 1000000000 }}"),
    ("a text times more than there is", "{{ 'x' * 9223372036854775807 }}"),
    ("a list times a billion", "{{ ([1] * 1000000000) | list | length }}"),
    (
        "replacements that grow",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x | replace('a', 'aaaaaaaaaa') %}{% endfor %}{{ ns.x }}",
    ),
    (
        "a joined text",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x | join(ns.x) %}{% endfor %}{{ ns.x }}",
    ),
    ("an absurd width", "{{ 'x'.center(1000000000000) }}"),
    ("a width of a filter", "{{ 'x' | center(99999999999999) }}"),
    ("a width in a format", "{{ '%999999999999d' % 1 }}"),
    ("a precision in a format", "{{ '%.2147483647f' | format(1.5) }}"),
    ("another format", "{{ '{:>99999999999}'.format(1) }}"),
    ("an indented text", "{{ ('a\n' * 100000) | indent(1000000) }}"),
    ("a macro that calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    (
        "two that call each other",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    ),
    ("a loop that calls itself", "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}"),
    ("itself, included", "{% include 'chat_template' %}"),
    ("itself, extended", "{% extends 'chat_template' %}"),
    (
        "a search in a long text",
        "{% set s = ('x' * 8000000) %}{% for i in range(100000) %}{% if ('y' ~ i) in s %}{% endif %}{% endfor %}",
    ),
    (
        "a count in a long text",
        "{% set s = ('x' * 8000000) %}{% for i in range(100000) %}{% if s.count('xx') == i %}{% endif %}{% endfor %}",
    ),
    (
        "a sort of much",
        "{% for i in range(1000) %}{% set x = range(100000) | list | sort(reverse=true) %}{% endfor %}",
    ),
    ("steps without end", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
    (
        "a long output",
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    ),
    ("an endless name of the day", "{{ strftime_now('%B' * 10000000) }}"),
    ("a huge power", "{{ 10 ** 1000000000 }}"),
    ("a huge slice", "{{ ('x' * 1000000)[::-1][::-9223372036854775808] }}"),
    ("batches of nothing", "{{ range(100000) | batch(1) | list | tojson(indent=1000000) }}"),
];

#[tokio::test]
async fn hostile_templates_get_a_sentence() {
    for (name, template) in HOSTILE {
        match rendered(template).await {
            Ok(text) => assert!(text.len() < 1 << 20, "{name}: {} bytes", text.len()),
            Err(reason) => {
                assert!(reason.contains("chat template") && reason.len() < 4096, "{name}: {reason}");
                assert!(!reason.contains('\n'), "{name}: {reason}");
            }
        }
    }
}

#[tokio::test]
async fn templates_that_do_not_parse_or_nest_too_deeply_get_a_sentence() {
    for template in [
        "{% if ".repeat(10_000),
        "{{ ".to_owned() + &"(".repeat(100_000),
        "{{ ".to_owned() + &"[".repeat(100_000) + &"]".repeat(100_000) + " }}",
        "{{ ".to_owned() + &"not ".repeat(100_000) + "x }}",
        "{{ 1".to_owned() + &" + 1".repeat(200_000) + " }}",
        "{% for x in y %}".repeat(5_000),
        "{#".to_owned(),
        "\u{0}{{ \u{0} }}".to_owned(),
    ] {
        if let Err(reason) = rendered(&template).await {
            assert!(reason.contains("chat") && reason.len() < 4096, "{reason}");
        }
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "most of it is a table of inputs")]
async fn hostile_tokenizers_get_a_sentence() {
    let sequence = |kind: &str, all: Vec<Value>| json!({"type": "Sequence", kind: all});
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"});
    let prepend = json!({"type": "Prepend", "prepend": "a".repeat(1 << 20)});
    let split = |regex: &str| json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}});
    let added = |content: &str| json!({"added_tokens": [{"id": 27, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]});
    let mut deep = json!({"type": "Lowercase"});
    for _ in 0..60 {
        deep = sequence("normalizers", vec![deep]);
    }
    for (name, parts) in [
        ("replacements that grow", json!({"normalizer": sequence("normalizers", vec![grow; 12])})),
        ("prefixes that add up", json!({"normalizer": sequence("normalizers", vec![prepend; 200])})),
        (
            "a replacement of nothing",
            json!({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "aaaa"}}),
        ),
        (
            "a replacement of any",
            json!({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*b|"}, "content": "a".repeat(1 << 16)}}),
        ),
        ("a regex that goes back", split(r"(a+)+$b|(?=(a+)+b)\1")),
        ("another", split(r"(?:(?:a|aa)+)+(?=b)(?<!x)c")),
        ("a large one", split("(?:a{1,1000}){1,1000}")),
        ("one that looks back", split(r"(?<=(a|b|c)(a|b|c))(.*)*\2\1x")),
        ("one that is none", split("(((")),
        ("a deep sequence", json!({"normalizer": deep})),
        (
            "garbage as a map of characters",
            json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA//////////8="}}),
        ),
        (
            "an empty map of characters",
            json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}),
        ),
        ("an added token of nothing", added("")),
        ("a long added token", added(&"ab".repeat(1 << 20))),
        (
            "a high id",
            json!({"added_tokens": [{"id": 4294967295u32, "content": "x", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]}),
        ),
        (
            "a template that names nobody",
            json!({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}], "pair": [], "special_tokens": {}}}),
        ),
        (
            "a template of many",
            json!({"post_processor": {"type": "TemplateProcessing", "single": vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 100_000], "pair": [], "special_tokens": {}}}),
        ),
        ("an unknown type", json!({"normalizer": {"type": "Nonsense"}})),
        ("no vocabulary", json!({"model": {"type": "BPE", "vocab": {}, "merges": []}})),
        ("merges of nobody", json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})),
        ("scores of none", json!({"model": {"type": "Unigram", "unk_id": 99, "vocab": []}})),
        (
            "a score that is none",
            json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1e308], ["", 0.0], ["aa", 1e308]]}}),
        ),
        (
            "words without an unknown one",
            json!({"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 18446744073709551615u64, "vocab": {"a": 0}}}),
        ),
        (
            "a model of another kind",
            json!({"model": {"type": "WordLevel", "vocab": {"a": 4294967295u32}, "unk_token": "b"}}),
        ),
    ] {
        let sandbox = sandbox(What::Tokenizer, &[("tokenizer.json", tokenizer(parts))]);
        for text in ["a".repeat(2000) + "!", "abc abc".to_owned(), String::new(), "机\u{0}\u{301}".to_owned()]
        {
            match asked(&sandbox, ENCODE, &text).await {
                Ok(ids) => assert!(ids.len() <= 4 * 4096, "{name}"),
                Err(reason) => assert!(reason.len() < 4096 && !reason.contains('\n'), "{name}: {reason}"),
            }
        }
    }
}

#[tokio::test]
async fn files_that_are_no_tokenizer_are_named() {
    for text in
        ["", "{}", "[]", "null", "{\"model\": 1}", "\u{0}", &"[".repeat(200_000), &"{\"a\":".repeat(100_000)]
    {
        let sandbox = sandbox(What::Tokenizer, &[("tokenizer.json", text.to_owned())]);
        let error = asked(&sandbox, ENCODE, "a").await.unwrap_err();
        assert!(error.starts_with("tokenizer.json: "), "{error}");
        assert!(sandbox.ready().is_err());
    }
    let sandbox = sandbox(What::Tokenizer, &[("tokenizer_config.json", "{}".to_owned())]);
    assert!(sandbox.ready().unwrap().is_none());
}

/// One that dies of a question answers the next.
#[tokio::test]
async fn a_child_that_died_is_replaced() {
    let grow = json!({"type": "Replace", "pattern": {"String": "x"}, "content": "xxxxxxxxxxxxxxxx"});
    let grow = json!({"normalizer": {"type": "Sequence", "normalizers": vec![grow; 12]}});
    let sandbox = sandbox(What::Tokenizer, &[("tokenizer.json", tokenizer(grow))]);
    for _ in 0..2 {
        let error = asked(&sandbox, ENCODE, "x").await.unwrap_err();
        assert!(error.contains("the tokenizer takes more than"), "{error}");
        let ids = asked(&sandbox, ENCODE, "bad").await.unwrap();
        assert_eq!(ids, [1u32, 0, 3].map(u32::to_ne_bytes).concat());
    }
}

/// Who leaves takes the question back: the next one does not wait for its time to run out.
#[tokio::test]
async fn a_question_that_is_dropped_ends() {
    let endless = "{% if messages[0].content == 'endless' %}{% set s = 'x' * 8000000 %}{% for i in range(1000000) %}{{ 'y' in s }}{% endfor %}{% endif %}short";
    let sandbox = sandbox(What::Template, &[("chat_template.jinja", endless.to_owned())]);
    let talk = |content: &str| json!({"messages": [{"role": "user", "content": content}]}).to_string();
    let ask = Ask::Render { clock: Clock::default() };
    for _ in 0..3 {
        let question = sandbox.ask(ask.clone(), talk("endless").into());
        drop(timeout(Duration::from_millis(1), question).await);
    }
    assert_eq!(asked(&sandbox, ask, &talk("hi")).await.unwrap(), b"short");
}

#[tokio::test]
async fn too_many_questions_are_told_so() {
    let slow = "{% for i in range(100000) %}{% endfor %}x";
    let sandbox = sandbox(What::Template, &[("chat_template.jinja", slow.to_owned())]);
    let asks = (0..200).map(|at| {
        let body = json!({"messages": [], "at": at}).to_string();
        sandbox.ask(Ask::Render { clock: Clock::default() }, body.into())
    });
    let answers = futures::future::join_all(asks).await;
    let busy = answers.iter().filter(|answer| matches!(answer, Err(EngineError::Busy(_)))).count();
    assert!(0 < busy && busy < 200, "{busy}");
}
