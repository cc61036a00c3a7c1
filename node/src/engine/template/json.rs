//! transformers' `tojson`: Python's `json.dumps` with its options, in which nothing is escaped for HTML.

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind, from_args},
};

use super::python;

/// Spaces that an indent may have. Python knows no limit; nobody needs more.
const INDENT_MAX: usize = 64;

/// Values inside of each other. Python stops at some 1,000.
const DEPTH_MAX: usize = 500;

/// How JSON is written.
struct Options {
    ensure_ascii: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
    sort_keys: bool,
}

/// The filter with its arguments, in transformers' order.
pub(super) fn filter(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    type Given = (Option<Value>, Option<Value>, Option<Value>, Option<Value>);
    let (ensure_ascii, indent, separators, sort_keys): Given = from_args(&given)?;
    let option = |given: Option<Value>, name: &str| match given {
        Some(value) => Ok::<_, Error>(Some(value)),
        None => named.get::<Option<Value>>(name),
    };
    let ensure_ascii = option(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = indentation(option(indent, "indent")?)?;
    let separators = option(separators, "separators")?.filter(|value| !value.is_none());
    let sort_keys = option(sort_keys, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let (comma, colon) = match separators {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let mut json = String::new();
    Options { ensure_ascii, indent, comma, colon, sort_keys }.write(value, 0, &mut json)?;
    Ok(json)
}

fn indentation(value: Option<Value>) -> Result<Option<String>, Error> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    if let Some(text) = value.as_str() {
        return Ok(Some(text.chars().take(INDENT_MAX).collect()));
    }
    let spaces = i64::try_from(value)?;
    Ok(Some(" ".repeat(usize::try_from(spaces).unwrap_or(0).min(INDENT_MAX))))
}

impl Options {
    fn write(&self, value: &Value, depth: usize, json: &mut String) -> Result<(), Error> {
        if DEPTH_MAX < depth {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value nests too deeply"));
        }
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.push_str(&number(value)),
            ValueKind::String => self.text(&value.to_string(), json),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.all(['{', '}'], keys, depth, json, |key, json| {
                    self.text(&name(key)?, json);
                    json.push_str(&self.colon);
                    self.write(&value.get_item(key)?, depth + 1, json)
                })?;
            }
            ValueKind::Seq => {
                let items = value.try_iter()?.collect();
                self.all(['[', ']'], items, depth, json, |item, json| self.write(item, depth + 1, json))?;
            }
            kind => {
                let reason = format!("tojson: a value of type {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
        Ok(())
    }

    fn all(
        &self,
        [open, close]: [char; 2],
        items: Vec<Value>,
        depth: usize,
        json: &mut String,
        each: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, json: &mut String| {
            if let Some(indent) = &self.indent {
                json.push('\n');
                json.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
        };
        json.push(open);
        for (at, item) in items.iter().enumerate() {
            if at != 0 {
                json.push_str(&self.comma);
            }
            line(depth + 1, json);
            each(item, json)?;
        }
        if !items.is_empty() {
            line(depth, json);
        }
        json.push(close);
        Ok(())
    }

    fn text(&self, text: &str, json: &mut String) {
        json.push('"');
        for letter in text.chars() {
            match letter {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\r' => json.push_str("\\r"),
                '\t' => json.push_str("\\t"),
                '\u{8}' => json.push_str("\\b"),
                '\u{c}' => json.push_str("\\f"),
                ' '..='~' => json.push(letter),
                '\u{7f}'.. if !self.ensure_ascii => json.push(letter),
                _ => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        let _ = write!(json, "\\u{unit:04x}");
                    }
                }
            }
        }
        json.push('"');
    }
}

/// A number. Python writes what JSON has no numbers for as words.
fn number(value: &Value) -> String {
    match &*python::repr(value) {
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        "nan" => "NaN".to_owned(),
        number => number.to_owned(),
    }
}

/// The key of an object.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a key of type {kind} is no text")))
        }
    }
}
