//! Text as Python and Jinja2 treat it: methods of strings, and filters that minijinja lacks.

use minijinja::{
    Environment, Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind, from_args},
};
use minijinja_contrib::filters;

use super::python::{arguments, repr, tuple};

/// Characters that text may be padded to.
const WIDTH_MAX: usize = 1 << 20;

pub(super) fn extend(environment: &mut Environment<'static>) {
    environment.add_filter("count", |value: &Value| -> Result<usize, Error> {
        let missing = || Error::new(ErrorKind::InvalidOperation, "the value has no length");
        value.len().ok_or_else(missing)
    });
    environment.add_filter("center", |text: String, width: Option<usize>| -> Result<String, Error> {
        padded(&text, width.unwrap_or(80), ' ', Side::Both)
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", |text: String| {
        text.split(|c: char| !is_word(c)).filter(|w| !w.is_empty()).count()
    });
    environment.add_filter("wordwrap", wordwrap);
    environment.add_filter("indent", indent);
    environment.add_filter("title", |text: String| titled(&text));
    environment.add_filter("striptags", filters::striptags);
    environment.add_filter("filesizeformat", file_size);
    environment.add_filter("forceescape", |text: String| escaped(&text));
    environment.add_filter("escape", |text: String| escaped(&text));
    environment.add_filter("e", |text: String| escaped(&text));
    environment.add_filter("pprint", |value: &Value| repr(&sorted(value)));
    environment.add_filter("random", |items: Vec<Value>| -> Value {
        let at = rand::random_range(0..items.len().max(1));
        items.into_iter().nth(at).unwrap_or_default()
    });
    environment.add_filter("xmlattr", attributes);
    environment.add_filter("replace", |text: String, from: String, to: String, count: Option<usize>| {
        count.map_or_else(|| text.replace(&from, &to), |count| text.replacen(&from, &to, count))
    });
    environment.add_filter("int", integer);
    environment.add_filter("urlencode", url_encoded);
}

/// A dictionary by its keys.
fn sorted(value: &Value) -> Value {
    if value.kind() != ValueKind::Map {
        return value.clone();
    }
    let mut keys: Vec<Value> = value.try_iter().into_iter().flatten().collect();
    keys.sort();
    Value::from_pairs(keys.into_iter().map(|key| (key.clone(), value.get_item(&key).unwrap_or_default())))
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Where padding goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Both,
}

fn padded(text: &str, width: usize, with: char, side: Side) -> Result<String, Error> {
    if WIDTH_MAX < width {
        return Err(invalid("the width is more than a text may have"));
    }
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    // Python's: an odd one goes left of a text in an odd width, and right in an even one.
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let pad = |count| std::iter::repeat_n(with, count);
    Ok(pad(left).chain(text.chars()).chain(pad(missing - left)).collect())
}

/// A method of `text`; `None` if it is one of those that are known elsewhere.
pub(super) fn method(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let side = match name {
        "center" => Some(Side::Both),
        "ljust" => Some(Side::Right),
        "rjust" => Some(Side::Left),
        _ => None,
    };
    if let Some(side) = side {
        let (width, with): (usize, Option<char>) = from_args(arguments)?;
        return padded(text, width, with.unwrap_or(' '), side).map(|text| Some(text.into()));
    }
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => stripped(text, name, arguments)?,
        "split" | "rsplit" => split(text, name == "rsplit", arguments)?,
        "splitlines" => splitlines(text, arguments)?,
        "partition" | "rpartition" => partition(text, name == "rpartition", arguments)?,
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, arguments)?,
        "removeprefix" | "removesuffix" => {
            let (end,): (&str,) = from_args(arguments)?;
            let rest = if name == "removeprefix" { text.strip_prefix(end) } else { text.strip_suffix(end) };
            rest.unwrap_or(text).into()
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(arguments)?;
            expanded(text, size.unwrap_or(8))?.into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let digits = padded(digits, width.saturating_sub(sign.len()), '0', Side::Left)?;
            format!("{sign}{digits}").into()
        }
        "swapcase" | "casefold" | "title" | "istitle" | "isdecimal" | "isdigit" | "isidentifier"
        | "capitalize" | "isprintable" | "encode" => {
            let () = from_args(arguments)?;
            return Ok(plain(text, name));
        }
        _ => return Ok(None),
    }))
}

/// Methods without arguments.
fn plain(text: &str, name: &str) -> Option<Value> {
    let swapped = |letter: char| -> String {
        if letter.is_uppercase() { letter.to_lowercase().collect() } else { letter.to_uppercase().collect() }
    };
    let starts = |letter: char| letter.is_alphabetic() || letter == '_';
    Some(match name {
        "swapcase" => text.chars().map(swapped).collect::<String>().into(),
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "title" => titled_as_python(text).into(),
        "capitalize" => {
            let mut letters = text.chars();
            let first = letters.next().map(|letter| letter.to_uppercase().to_string());
            (first.unwrap_or_default() + &letters.as_str().to_lowercase()).into()
        }
        "istitle" => {
            let is_cased = text.chars().any(|letter| letter.is_uppercase() || letter.is_lowercase());
            (is_cased && titled_as_python(text) == text).into()
        }
        "isdecimal" | "isdigit" => {
            (!text.is_empty() && text.chars().all(|letter| letter.is_ascii_digit())).into()
        }
        "isidentifier" => (text.starts_with(starts) && text.chars().all(is_word)).into(),
        "isprintable" => (!text.chars().any(char::is_control)).into(),
        _ => return None,
    })
}

fn stripped(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (letters,): (Option<Value>,) = from_args(arguments)?;
    let letters: Option<Vec<char>> =
        letters.filter(|letters| !letters.is_none()).map(|letters| letters.to_string().chars().collect());
    let goes = |letter: char| match &letters {
        Some(letters) => letters.contains(&letter),
        None => letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter),
    };
    Ok(match name {
        "lstrip" => text.trim_start_matches(goes),
        "rstrip" => text.trim_end_matches(goes),
        _ => text.trim_matches(goes),
    }
    .into())
}

fn split(text: &str, from_right: bool, given: &[Value]) -> Result<Value, Error> {
    let (given, named) = arguments(given)?;
    let (by, most): (Option<Value>, Option<i64>) = from_args(given)?;
    let by = by.or(named.get("sep")?).filter(|by| !by.is_none());
    let most = most.or(named.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    named.assert_all_used()?;
    let by = by.as_ref().map(|by| by.as_str().ok_or_else(|| invalid("what splits a text is a text")));
    let parts: Vec<&str> = match by.transpose()? {
        Some("") => return Err(invalid("nothing cannot split a text")),
        Some(by) => match (from_right, most) {
            (_, None) => text.split(by).collect(),
            (false, Some(most)) => text.splitn(most.saturating_add(1), by).collect(),
            (true, Some(most)) => {
                let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), by).collect();
                parts.reverse();
                parts
            }
        },
        None => split_at_space(text, from_right, most.unwrap_or(usize::MAX)),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Words, of which at most `most` are split off; the rest keeps its spaces.
fn split_at_space(text: &str, from_right: bool, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while parts.len() < most {
        let cut = if from_right {
            rest = rest.trim_end();
            rest.rfind(char::is_whitespace).map(|at| {
                let next = at + rest[at..].chars().next().map_or(1, char::len_utf8);
                (&rest[next..], &rest[..at])
            })
        } else {
            rest = rest.trim_start();
            rest.find(char::is_whitespace).map(|at| (&rest[..at], &rest[at..]))
        };
        let Some((part, others)) = cut else { break };
        parts.push(part);
        rest = others;
    }
    let rest = if from_right { rest.trim_end() } else { rest.trim_start() };
    let rest = if parts.len() < most { rest.trim() } else { rest };
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn splitlines(text: &str, given: &[Value]) -> Result<Value, Error> {
    let (given, named) = arguments(given)?;
    let (keep,): (Option<bool>,) = from_args(given)?;
    let keep = keep.or(named.get("keepends")?).unwrap_or(false);
    let ends = |letter: char| {
        matches!(
            letter,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let length = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { length };
        lines.push(Value::from(&rest[..if keep { end } else { at }]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest.into());
    }
    Ok(lines.into())
}

fn partition(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (by,): (&str,) = from_args(arguments)?;
    if by.is_empty() {
        return Err(invalid("nothing cannot split a text"));
    }
    let found = if from_right { text.rsplit_once(by) } else { text.split_once(by) };
    Ok(match found {
        Some((before, after)) => tuple([before.into(), by.into(), after.into()]),
        None if from_right => tuple(["".into(), "".into(), text.into()]),
        None => tuple([text.into(), "".into(), "".into()]),
    })
}

fn search(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
    let length = text.chars().count();
    let place = |at: i64| {
        let at = if at < 0 { at.saturating_add(length as i64).max(0) } else { at };
        usize::try_from(at).unwrap_or(0).min(length)
    };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(i64::MAX)));
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
    let within = &text[byte(start)..byte(end.max(start))];
    if name == "count" {
        return Ok(Value::from(if what.is_empty() {
            within.chars().count() + 1
        } else {
            within.matches(what).count()
        }));
    }
    let found = if name.starts_with('r') { within.rfind(what) } else { within.find(what) };
    match found {
        Some(at) => Ok(Value::from(start + within[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid("the text is not in the other")),
    }
}

fn expanded(text: &str, size: usize) -> Result<String, Error> {
    if WIDTH_MAX < size {
        return Err(invalid("the width is more than a text may have"));
    }
    let (mut out, mut column) = (String::new(), 0);
    for letter in text.chars() {
        match letter {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            _ => {
                out.push(letter);
                column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}

/// Every run of letters with a capital, as Python's method does it.
fn titled_as_python(text: &str) -> String {
    let (mut out, mut inside) = (String::new(), false);
    for letter in text.chars() {
        if inside {
            out.extend(letter.to_lowercase())
        } else {
            out.extend(letter.to_uppercase())
        }
        inside = letter.is_alphabetic();
    }
    out
}

/// Every word with a capital, as Jinja2's filter does it.
fn titled(text: &str) -> String {
    let (mut out, mut inside) = (String::new(), false);
    for letter in text.chars() {
        if inside {
            out.extend(letter.to_lowercase())
        } else {
            out.extend(letter.to_uppercase())
        }
        inside = !(letter.is_whitespace() || "-({[<".contains(letter));
    }
    out
}

fn truncate(text: String, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    type Given = (Option<usize>, Option<bool>, Option<String>, Option<usize>);
    let (length, killwords, end, leeway): Given = from_args(&given)?;
    let length = length.or(named.get("length")?).unwrap_or(255);
    let killwords = killwords.or(named.get("killwords")?).unwrap_or(false);
    let end = end.or(named.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(named.get("leeway")?).unwrap_or(5);
    named.assert_all_used()?;
    let shorter = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| invalid("truncate: the length is less than the end's"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(shorter).collect();
    let kept = if killwords { &kept } else { kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words) };
    Ok(format!("{kept}{end}"))
}

fn wordwrap(text: String, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    type Given = (Option<usize>, Option<bool>, Option<String>, Option<bool>);
    let (width, breaks, line, _): Given = from_args(&given)?;
    let width = width.or(named.get("width")?).unwrap_or(79).max(1);
    let breaks = breaks.or(named.get("break_long_words")?).unwrap_or(true);
    let line = line.or(named.get("wrapstring")?).unwrap_or_else(|| "\n".to_owned());
    let _: Option<bool> = named.get("break_on_hyphens")?;
    named.assert_all_used()?;
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let (mut current, mut length) = (String::new(), 0);
        for word in paragraph.split_inclusive(' ') {
            let mut word: Vec<char> = word.chars().collect();
            loop {
                let solid = word.iter().rposition(|letter| *letter != ' ').map_or(0, |at| at + 1);
                if length + solid <= width {
                    break;
                }
                if 0 < length {
                    lines.push(std::mem::take(&mut current).trim_end().to_owned());
                    length = 0;
                } else if breaks {
                    lines.push(word.drain(..width).collect());
                } else {
                    break;
                }
            }
            length += word.len();
            current.extend(word);
        }
        lines.push(current.trim_end().to_owned());
    }
    Ok(lines.join(&line))
}

fn indent(text: String, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let (width, first, blank): (Option<Value>, Option<bool>, Option<bool>) = from_args(&given)?;
    let width = width.or(named.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let with = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(i64::try_from(width)?).unwrap_or(0).min(WIDTH_MAX)),
    };
    let mut out = String::new();
    // Jinja2 adds an end to the last line, lest it be lost.
    for (at, line) in text.split('\n').enumerate() {
        if at != 0 {
            out.push('\n');
        }
        if (at != 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&with);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn file_size(size: f64, binary: Option<bool>) -> String {
    let binary = binary.unwrap_or(false);
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if size == 1.0 {
        return "1 Byte".to_owned();
    }
    if size < base {
        return format!("{} Bytes", size as i64);
    }
    let (mut unit, mut at) = (base, 0);
    while at < 7 && base <= size / unit {
        unit *= base;
        at += 1;
    }
    let name = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    }[at];
    format!("{:.1} {name}", size / unit)
}

pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

fn attributes(values: &Value, space: Option<bool>) -> Result<String, Error> {
    if values.kind() != ValueKind::Map {
        return Err(invalid("xmlattr: attributes are a dictionary"));
    }
    let mut out = String::new();
    for key in values.try_iter()? {
        let value = values.get_item(&key)?;
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let name = key.to_string();
        if name.contains(|letter: char| letter.is_whitespace() || "/>=".contains(letter)) {
            return Err(invalid("xmlattr: the name of an attribute has a letter that it may not have"));
        }
        let gap = if out.is_empty() && space == Some(false) { "" } else { " " };
        out.push_str(&format!("{gap}{}=\"{}\"", escaped(&name), escaped(&value.to_string())));
    }
    Ok(out)
}

/// The number that `value` is or writes in a base; the default if it is none.
fn integer(value: Value, default: Option<Value>, base: Option<u32>) -> Result<Value, Error> {
    let default = default.unwrap_or_else(|| Value::from(0));
    let Some(text) = value.as_str() else {
        return match value.kind() {
            ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => Ok(value),
            ValueKind::Number => {
                Ok(f64::try_from(value).map_or(default, |number| Value::from(number as i128)))
            }
            _ => Ok(default),
        };
    };
    let base = base.unwrap_or(10);
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = digits.to_ascii_lowercase();
    let named = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(start, _)| lower.starts_with(start));
    let (digits, base) = match named {
        Some((_, named)) if base == named || base == 0 => (&lower[2..], named),
        _ if base == 0 => (&*lower, 10),
        _ => (&*lower, base),
    };
    if !(2..=36).contains(&base) {
        return Err(invalid("int: a base is from 2 to 36"));
    }
    let whole = i128::from_str_radix(digits, base).ok().map(|number| Value::from(sign * number));
    Ok(whole.or_else(|| Some(Value::from(text.parse::<f64>().ok()? as i128))).unwrap_or(default))
}

/// Text as a part of a URL, or a dictionary as its query.
fn url_encoded(value: &Value) -> Result<String, Error> {
    let encoded = |text: &str, keeps: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                    out.push(char::from(byte))
                }
                _ if keeps.as_bytes().contains(&byte) => out.push(char::from(byte)),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    };
    let in_query = |value: &Value| encoded(&value.to_string(), " ").replace(' ', "+");
    if value.kind() != ValueKind::Map {
        return Ok(encoded(&value.to_string(), "/"));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        pairs.push(format!("{}={}", in_query(&key), in_query(&value.get_item(&key)?)));
    }
    Ok(pairs.join("&"))
}
