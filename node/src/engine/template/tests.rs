//! What Jinja2 makes of the same templates, and where the model keeps them.

use super::*;

const NOW: Clock = Clock { seconds: 1_709_210_096, micros: 0, ahead: 3600 };

fn files(files: &[(&str, &str)]) -> Files {
    Files(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned().into())).collect())
}

fn rendered(source: &str, variables: &Value) -> Result<String, EngineError> {
    let config = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;
    let files = files(&[("chat_template.jinja", source), ("tokenizer_config.json", config)]);
    let conversation = serde_json::to_string(variables).unwrap();
    Template::read(&files)?.unwrap().render(conversation.as_bytes(), NOW)
}

/// In the order in which it was written.
fn recorded() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates/templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list(recorded: &Value, name: &str) -> Vec<Value> {
    recorded.get_attr(name).unwrap().try_iter().unwrap().collect()
}

fn text(case: &Value, name: &str) -> Option<String> {
    case.get_attr(name).unwrap().as_str().map(str::to_owned)
}

fn variables(recorded: &Value, messages: Value, add_generation_prompt: bool) -> Value {
    let all = recorded.get_attr("variables").unwrap();
    let own = minijinja::context! { messages, add_generation_prompt, tools => (), documents => () };
    minijinja::context! { ..all, ..own }
}

/// What minijinja does not parse or know, and what it parses though Jinja2 does not.
const DIFFERENT: &[&str] = &[
    "{{ '%s is %d' % ('a', 3) }}",
    "{{ '%05.2f|%x|%r' % (3.14159, 255, 'q') }}",
    "{{ 'a' | urlize is defined }}",
    "{{ lipsum is defined }}",
    "{{ self is defined }}",
    "{{ +n }}",
    "{{ 1. }}",
    "{{ 1.e0 }}",
    "{{ 1 +}}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, z=3) }}",
];

#[test]
fn templates_render_as_jinja2_renders_them() {
    let recorded = recorded();
    let seen = variables(&recorded, recorded.get_attr("messages").unwrap(), true);
    let (mut wrong, cases) = (Vec::new(), list(&recorded, "cases"));
    assert!(450 < cases.len());
    for case in cases {
        let (source, expected) = (text(&case, "template").unwrap(), text(&case, "renders"));
        let got = rendered(&source, &seen);
        let agrees = got.as_ref().ok() == expected.as_ref();
        if agrees == DIFFERENT.contains(&&*source) {
            wrong.push(format!("{source:?}\n   Jinja2 {expected:?}\n   here   {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn conversations_render_as_jinja2_renders_them() {
    let recorded = recorded();
    let (chats, conversations) = (list(&recorded, "chats"), list(&recorded, "conversations"));
    assert!(100 <= conversations.len() && 10 <= chats.len());
    for case in conversations {
        let field = |name: &str| case.get_attr(name).unwrap();
        let source = &chats[usize::try_from(field("template")).unwrap()];
        let seen = variables(&recorded, field("messages"), field("add_generation_prompt").is_true());
        let got = rendered(source.as_str().unwrap(), &seen);
        assert_eq!(got.as_ref().ok(), text(&case, "renders").as_ref(), "{got:?}\n{source}");
    }
}

#[test]
fn the_default_of_several_templates_is_found_wherever_it_is() {
    let render = |all: &[(&str, &str)]| {
        Template::read(&files(all)).unwrap().map(|template| template.render(b"{}", NOW).unwrap())
    };
    let config = |json: &'static str| ("tokenizer_config.json", json);
    assert_eq!(render(&[config(r#"{"chat_template": "one"}"#)]).unwrap(), "one");
    let list =
        r#"{"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}"#;
    assert_eq!(render(&[config(list)]).unwrap(), "b");
    let dictionary = r#"{"chat_template": {"a_tool_use": "a", "default": "b"}}"#;
    assert_eq!(render(&[config(dictionary)]).unwrap(), "b");
    assert_eq!(render(&[("chat_template.json", r#"{"chat_template": "p"}"#)]).unwrap(), "p");
    let more = |name| (name, "more");
    let tools = more("additional_chat_templates/tool_use.jinja");
    assert_eq!(render(&[("chat_template.jinja", "file"), tools, config(list)]).unwrap(), "file");
    assert_eq!(render(&[more("additional_chat_templates/default.jinja"), config(list)]).unwrap(), "more");
    assert_eq!(render(&[tools, config(list)]).unwrap(), "b");
    assert_eq!(render(&[tools]).unwrap(), "more");
    assert_eq!(render(&[config("{}")]), None);
}

#[test]
fn the_time_is_that_of_the_one_who_asks() {
    let got = rendered("{{ strftime_now('%d %b %Y %H:%M') }}", &minijinja::context! {}).unwrap();
    assert_eq!(got, "29 Feb 2024 13:34");
}

#[test]
fn an_error_is_one_line_with_its_place() {
    let refuse = |source: &str| rendered(source, &minijinja::context! {}).unwrap_err().to_string();
    assert!(refuse("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    for source in [
        "{% if %}",
        "{{ nope() }}",
        "{% unknown %}",
        "{% include 'x' %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
    ] {
        let error = refuse(source);
        assert!(error.contains("chat template: ") && !error.contains('\n'), "{error}");
    }
    let long = refuse("{% for a in range(3000) %}{{ 'x' * 2000 }}{% endfor %}");
    assert!(long.contains("more than 4194304 bytes"), "{long}");
}
