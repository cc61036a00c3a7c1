//! What an origin answered, in one sentence that says what to do.

use std::error::Error;

/// How `object_store` begins to say that a server refused; its type for that is private.
const REFUSED: &str = "Server returned non-2xx status code: ";

/// Bytes of a server's own words that are passed on.
const WORDS_MAX: usize = 120;

/// Why an origin did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Failure(String);

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        match status(&error) {
            Some(status) => Self(answered(status)),
            None => Self(short(&root(&error).to_string())),
        }
    }
}

/// The HTTP status that `error` is about.
fn status(error: &object_store::Error) -> Option<u16> {
    let words = root(error).to_string();
    words.strip_prefix(REFUSED)?.get(..3)?.parse().ok()
}

fn answered(status: u16) -> String {
    let what = match status {
        401 => "asks for credentials (401), and this program has none to give",
        403 => "forbids it (403); is the folder readable for its web server?",
        416 => "finds the range impossible (416), though none was asked for; is it a plain web server?",
        429 => "has too many requests (429); try again later",
        500..600 => return format!("the origin fails ({status}); its own log should say why"),
        _ => return format!("the origin answers with HTTP status {status}"),
    };
    format!("the origin {what}")
}

/// The innermost cause: outer ones repeat it, with the URL.
fn root<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

/// `words` in one line of bounded length.
fn short(words: &str) -> String {
    let line: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
