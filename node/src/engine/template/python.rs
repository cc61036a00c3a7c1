//! Values as Python has them: how they are written, and what tests and methods say of them.

use std::{fmt, sync::Arc};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Value, escape_formatter,
    value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::words;

/// Values inside of each other that are written out.
const DEPTH_MAX: usize = 200;

/// Items of a range. transformers' sandbox has the same limit.
const RANGE_MAX: i64 = 100_000;

pub(super) fn extend(environment: &mut Environment<'static>) {
    environment.set_formatter(write);
    environment.set_unknown_method_callback(method);
    environment.add_test("iterable", |value: &Value| is_iterable(value));
    environment.add_test("sequence", |value: &Value| is_iterable(value) && is_sized(value));
    environment.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map);
    environment.add_test("callable", |value: &Value| {
        value.as_object().is_some_and(|_| value.kind() == ValueKind::Plain)
    });
    environment
        .add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("lower", |value: &Value| is_cased(&value.to_string(), char::is_lowercase));
    environment.add_test("upper", |value: &Value| is_cased(&value.to_string(), char::is_uppercase));
    environment.add_function("range", range);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Invalid)
        && (value.is_undefined() || value.try_iter().is_ok())
}

/// Whether Python's `len` and `[0]` would work.
fn is_sized(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Bytes | ValueKind::Undefined
    )
}

fn is_cased(text: &str, case: impl Fn(char) -> bool) -> bool {
    let mut letters = text.chars().filter(|letter| letter.is_lowercase() || letter.is_uppercase()).peekable();
    letters.peek().is_some() && letters.all(case)
}

/// What `{{ … }}` writes.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => Value::from(repr(value)),
        _ => value.clone(),
    };
    match state.auto_escape() {
        AutoEscape::None => escape_formatter(out, state, &text),
        _ if value.is_safe() => escape_formatter(out, state, &text),
        _ => out.write_str(&words::escaped(&text.to_string())).map_err(Error::from),
    }
}

/// The arguments of a call without names, and those with.
pub(super) fn arguments(all: &[Value]) -> Result<(&[Value], Kwargs), Error> {
    match all.split_last() {
        Some((last, rest)) if last.is_kwargs() => Ok((rest, Kwargs::try_from(last.clone())?)),
        _ => Ok((all, Kwargs::from_iter(std::iter::empty::<(&str, Value)>()))),
    }
}

/// Python's `range`: a list that is not written out.
#[derive(Debug)]
struct Range {
    start: i64,
    end: i64,
    step: i64,
    count: i64,
}

fn range(first: i64, second: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let invalid = |reason: &'static str| Error::new(ErrorKind::InvalidOperation, reason);
    let (start, end) = second.map_or((0, first), |end| (first, end));
    let step = step.unwrap_or(1);
    let far = i128::from(end) - i128::from(start);
    let count = match i128::from(step) {
        0 => return Err(invalid("range: the step is 0")),
        step if (far < 0) != (step < 0) => 0,
        step => (far.abs() + step.abs() - 1) / step.abs(),
    };
    match i64::try_from(count) {
        Ok(count) if count <= RANGE_MAX => Ok(Value::from_object(Range { start, end, step, count })),
        _ => Err(invalid("range: more than 100,000 numbers")),
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = i64::try_from(key.clone()).ok()?;
        (0..self.count).contains(&at).then(|| Value::from(self.start + at * self.step))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(usize::try_from(self.count).unwrap_or(0))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range({}, {}", self.start, self.end)?;
        if self.step != 1 {
            write!(f, ", {}", self.step)?;
        }
        f.write_str(")")
    }
}

/// Python's `repr`.
pub(super) fn repr(value: &Value) -> String {
    let mut text = String::new();
    write_repr(value, 0, &mut text);
    text
}

fn write_repr(value: &Value, depth: usize, text: &mut String) {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => text.push_str(&float(number)),
            Err(_) => text.push_str(&value.to_string()),
        },
        ValueKind::Seq | ValueKind::Map if DEPTH_MAX < depth => text.push_str("..."),
        ValueKind::Seq if value.downcast_object_ref::<Range>().is_some() => text.push_str(&value.to_string()),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            text.push(open);
            let mut items = 0;
            for item in value.try_iter().into_iter().flatten() {
                if items != 0 {
                    text.push_str(", ");
                }
                write_repr(&item, depth + 1, text);
                items += 1;
            }
            if items == 1 && value.is_tuple() {
                text.push(',');
            }
            text.push(close);
        }
        ValueKind::Map => {
            text.push('{');
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                if at != 0 {
                    text.push_str(", ");
                }
                write_repr(&key, depth + 1, text);
                text.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), depth + 1, text);
            }
            text.push('}');
        }
        ValueKind::Undefined => text.push_str("Undefined"),
        _ => text.push_str(&format!("{value:?}")),
    }
}

/// A float as Python writes it: the shortest digits that mean it, with an exponent where it is long.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-inf" } else { "inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => {
            let plain = number.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

/// Methods of Python's that values have here.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => words::method(value.as_str().unwrap_or_default(), name, arguments)?,
        ValueKind::Map => of_dictionary(value, name, arguments)?,
        ValueKind::Seq => of_list(value, name, arguments)?,
        _ => None,
    };
    match known {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn of_dictionary(value: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "copy" => {
            let () = from_args(arguments)?;
            value.clone()
        }
        "get" => {
            let (arguments, named) = self::arguments(arguments)?;
            named.assert_all_used()?;
            let (key, default): (&Value, Option<Value>) = from_args(arguments)?;
            let default = default.unwrap_or_else(|| Value::from(()));
            match value.get_item(key) {
                Ok(found) if !found.is_undefined() => found,
                _ => default,
            }
        }
        _ => return Ok(None),
    }))
}

fn of_list(value: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "copy" => {
            let () = from_args(arguments)?;
            value.clone()
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let at = value.try_iter()?.position(|item| item == *wanted);
            let missing = || Error::new(ErrorKind::InvalidOperation, "the value is not in the list");
            Value::from(at.ok_or_else(missing)?)
        }
        _ => return Ok(None),
    }))
}

/// A tuple.
pub(super) fn tuple(values: impl IntoIterator<Item = Value>) -> Value {
    Value::from(Tuple::new(values.into_iter().collect()))
}
