//! Chat templates: Jinja, as transformers renders it.
//!
//! A template comes with the model, from strangers. It runs in a sandbox without files or network,
//! and with a bounded number of steps.

use std::sync::Arc;

use minijinja::{
    Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Kwargs, value::ValueKind,
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{EngineError, files::Files, text::Message};

/// Steps that rendering may take. Real templates need a few hundred for each message.
const FUEL: u64 = 10_000_000;

const NAME: &str = "chat_template";

/// Special tokens that templates may name.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// A chat template, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    environment: Arc<Environment<'static>>,
}

impl Template {
    /// `chat_template.jinja`, else what `tokenizer_config.json` says, else none.
    pub(crate) fn read(files: &Files) -> Result<Option<Self>, EngineError> {
        const CONFIG: &str = "tokenizer_config.json";
        let config = files.object(CONFIG)?;
        let (file, source) = match files.text("chat_template.jinja")? {
            Some(source) => ("chat_template.jinja", source),
            None => match config.get("chat_template").and_then(in_config) {
                Some(source) => (CONFIG, source),
                None => return Ok(None),
            },
        };
        let mut environment = environment();
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| EngineError::file(file, format!("chat template: {error}")))?;
        let map = files.object("special_tokens_map.json")?;
        for name in SPECIAL {
            let token = config.get(name).or_else(|| map.get(name));
            if let Some(token) =
                token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()))
            {
                environment.add_global(name, token.to_owned());
            }
        }
        Ok(Some(Self { environment: Arc::new(environment) }))
    }

    /// The conversation as text, up to where the model is to answer.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, EngineError> {
        let message = |message: &Message| {
            context! { role => message.role.as_str(), content => message.content.as_str() }
        };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let values = context! {
            messages => messages,
            add_generation_prompt => true,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let failed = |error: Error| EngineError::Request(format!("chat template: {error}"));
        self.environment.get_template(NAME).map_err(failed)?.render(values).map_err(failed)
    }
}

/// The template in a tokenizer's configuration: text, or the one called `default` of several.
fn in_config(value: &serde_json::Value) -> Option<&str> {
    let named = |name: &str| {
        let list = value.as_array()?;
        list.iter().find(|one| one.get("name").and_then(|one| one.as_str()) == Some(name))
    };
    let default = || named("default").or_else(|| value.as_array()?.first());
    value.as_str().or_else(|| default()?.get("template")?.as_str())
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are distinct"));
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime(&format, seconds_since_1970()));
    environment.add_filter("tojson", |value: Value, options: Kwargs| -> Result<String, Error> {
        let indent: Option<usize> = options.get("indent")?;
        // Accepted as transformers accepts them, and of no consequence here.
        for ignored in ["ensure_ascii", "separators", "sort_keys"] {
            let _: Option<Value> = options.get(ignored)?;
        }
        options.assert_all_used()?;
        let mut json = String::new();
        to_json(&value, indent.map(|indent| indent.min(16)), 0, &mut json)?;
        Ok(json)
    });
    environment
}

/// Writes JSON as Python's `json.dumps` does: a space after each colon and comma, nothing escaped
/// for HTML.
fn to_json(value: &Value, indent: Option<usize>, depth: usize, json: &mut String) -> Result<(), Error> {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let line = |depth: usize, json: &mut String| {
        if let Some(indent) = indent {
            json.push('\n');
            json.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => json.push_str("null"),
        ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => json.push_str(&value.to_string()),
        ValueKind::Map => {
            json.push('{');
            let mut first = true;
            for key in value.try_iter()? {
                if !std::mem::take(&mut first) {
                    json.push_str(comma);
                }
                line(depth + 1, json);
                json.push_str(&text(&key.to_string()));
                json.push_str(": ");
                to_json(&value.get_item(&key)?, indent, depth + 1, json)?;
            }
            if !first {
                line(depth, json);
            }
            json.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            json.push('[');
            let mut first = true;
            for item in value.try_iter()? {
                if !std::mem::take(&mut first) {
                    json.push_str(comma);
                }
                line(depth + 1, json);
                to_json(&item, indent, depth + 1, json)?;
            }
            if !first {
                line(depth, json);
            }
            json.push(']');
        }
        _ => json.push_str(&text(&value.to_string())),
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "templates that name today mean the real one")]
fn seconds_since_1970() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The conversions of `strftime` that templates use, in UTC. Others stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = date(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day since 1970, by counting in 400-year cycles that begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (cycle * 400 + year + u64::from(month <= 2), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Template {
        let files = [
            ("chat_template.jinja".to_owned(), source.to_owned().into()),
            (
                "tokenizer_config.json".to_owned(),
                r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#.into(),
            ),
        ];
        Template::read(&Files(files.into())).unwrap().unwrap()
    }

    fn render(source: &str, messages: &[(&str, &str)]) -> Result<String, EngineError> {
        let message =
            |&(role, content): &(&str, &str)| Message { role: role.into(), content: content.into() };
        template(source).render(&messages.iter().map(message).collect::<Vec<_>>())
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m['role'].upper() }}: {{ m.content.strip() }}{{ eos_token }}\n  {% endfor %}\n{% if tools is not none %}tools{% endif %}{% if add_generation_prompt %}go{% endif %}";
        let got = render(source, &[("user", " hi "), ("assistant", "yes")]).unwrap();
        assert_eq!(got, "<s>\nUSER: hi</s>\nASSISTANT: yes</s>\ngo");
    }

    #[test]
    fn a_template_may_refuse() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(source, &[]).is_err());
    }

    #[test]
    fn json_is_python_s() {
        let source = r#"{{ {"a": [1, 2.5, none, true], "b": "<ü>\"", "c": {}} | tojson }}"#;
        assert_eq!(render(source, &[]).unwrap(), r#"{"a": [1, 2.5, null, true], "b": "<ü>\"", "c": {}}"#);
        let source = r#"{{ {"a": [1, 2]} | tojson(indent=2) }}"#;
        assert_eq!(render(source, &[]).unwrap(), "{\n  \"a\": [\n    1,\n    2\n  ]\n}");
    }

    #[test]
    fn one_of_several_named_templates_is_the_default() {
        let read = |config: &str| {
            let files = [("tokenizer_config.json".to_owned(), config.to_owned().into())];
            Template::read(&Files(files.into())).unwrap().map(|template| template.render(&[]).unwrap())
        };
        assert_eq!(read(r#"{"chat_template": "one"}"#).unwrap(), "one");
        let several = r#"{"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}"#;
        assert_eq!(read(several).unwrap(), "b");
        assert_eq!(read("{}"), None);
    }

    #[test]
    fn dates_are_those_of_date() {
        // date -u -d @1709210096
        assert_eq!(strftime("%d %b %Y %H:%M:%S %a", 1_709_210_096), "29 Feb 2024 12:34:56 Thu");
        assert_eq!(strftime("%Y-%m-%d %A %B %% %q %", 0), "1970-01-01 Thursday January % %q %");
        assert_eq!(strftime("%y/%m/%d", 951_868_800), "00/03/01");
    }
}
