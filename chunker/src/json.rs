//! JSON as Python writes and reads it: `NaN`, `Infinity` and `-Infinity` are numbers, and so is what is
//! too large for a double.
//!
//! JSON has no such numbers, and neither has `serde_json`. So an infinity becomes the largest double, which
//! bounds what an infinity bounds, and what is not a number becomes the text `NaN`: where a number is
//! needed, it is refused, and elsewhere it does no harm.

use serde::de::DeserializeOwned;

/// The value that `json` is.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| match finite(json) {
        Some(json) => serde_json::from_slice(&json),
        None => Err(error),
    })
}

/// `json` with other words for numbers that JSON does not have; `None` if there are none.
fn finite(json: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut at, mut changed) = (Vec::with_capacity(json.len()), 0, false);
    while at < json.len() {
        let rest = &json[at..];
        let length = match rest[0] {
            b'"' => string(rest),
            b'-' | b'0'..=b'9' | b'I' | b'N' => word(rest),
            _ => 1,
        };
        let (part, after) = rest.split_at(length);
        let instead: Option<&[u8]> = match part {
            b"NaN" => Some(b"\"NaN\""),
            b"Infinity" => Some(b"1.7976931348623157e308"),
            b"-Infinity" => Some(b"-1.7976931348623157e308"),
            _ => overflown(part),
        };
        changed |= instead.is_some();
        out.extend_from_slice(instead.unwrap_or(part));
        at = json.len() - after.len();
    }
    changed.then_some(out)
}

/// The largest number of its sign, if `part` is a number beyond it.
fn overflown(part: &[u8]) -> Option<&'static [u8]> {
    part.last().filter(|byte| byte.is_ascii_digit())?;
    match std::str::from_utf8(part).ok()?.parse::<f64>() {
        Ok(f64::INFINITY) => Some(b"1.7976931348623157e308"),
        Ok(f64::NEG_INFINITY) => Some(b"-1.7976931348623157e308"),
        _ => None,
    }
}

/// Bytes of the string that `json` begins with.
fn string(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

/// Bytes of the number or the name that `json` begins with.
fn word(json: &[u8]) -> usize {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
    json.iter().position(|byte| !is_part(byte)).unwrap_or(json.len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn numbers_are_those_of_python() {
        let text = r#"{"a": Infinity, "b": [-Infinity, NaN, 1e999, -1e400, 0.5, -3], "Infinity": "NaN \\\" Infinity"}"#;
        let expected = json!({
            "a": f64::MAX, "b": [f64::MIN, "NaN", f64::MAX, f64::MIN, 0.5, -3], "Infinity": "NaN \\\" Infinity",
        });
        assert_eq!(read::<Value>(text.as_bytes()).unwrap(), expected);
        assert_eq!(read::<String>(b"NaN").unwrap(), "NaN");
        assert_eq!(read::<f64>(b"1000000000000000019884624838656").unwrap(), 1e30);
    }

    #[test]
    fn what_is_no_json_stays_none() {
        for text in [
            "",
            "{",
            "[Infinit]",
            "[infinity]",
            "[nan]",
            "[+Infinity]",
            "[NaNN]",
            "\"NaN",
            "[\"\\",
            "{NaN: 1}x",
            "[1 NaN]",
        ] {
            assert!(read::<Value>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
