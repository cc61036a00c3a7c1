//! Chat templates: Jinja, as transformers renders it. Lives in a child process (`sandbox`).
//!
//! A template comes with the model, from strangers. It sees no files and no network, and has a bounded
//! number of steps; memory and time are bounded by the process.
//!
//! minijinja is not Jinja2. `source` prepares what it does not parse, `python` adds filters, tests and
//! methods and writes values as Python does, `json` is transformers' `tojson`, `clock` its
//! `strftime_now`. `tests/fixtures/templates` holds what Jinja2 makes of some 500 templates.

mod clock;
mod find;
mod json;
mod python;
mod source;
mod words;

use std::io;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig};
use serde::Serialize;

pub(crate) use self::find::{FOLDER, SUFFIX};
use super::{
    EngineError,
    files::Files,
    sandbox::Clock,
    text::{Message, PROMPT_BYTES_MAX},
};

/// Steps that rendering may take. Real templates need a few hundred for each message.
const FUEL: u64 = 10_000_000;

const NAME: &str = "chat_template";

/// A chat template, compiled.
pub(crate) struct Template {
    environment: Environment<'static>,
}

/// What a template sees of a conversation, besides the names of special tokens.
#[derive(Serialize)]
struct Conversation<'a> {
    messages: &'a [Message],
    add_generation_prompt: bool,
    tools: Option<()>,
    documents: Option<()>,
}

/// A conversation as a child process is asked about it.
pub(crate) fn conversation(messages: &[Message]) -> Result<Vec<u8>, EngineError> {
    let conversation = Conversation { messages, add_generation_prompt: true, tools: None, documents: None };
    serde_json::to_vec(&conversation).map_err(|error| EngineError::Request(error.to_string()))
}

impl Template {
    /// The template that answers a conversation without tools. `None` if the model has none.
    pub(crate) fn read(files: &Files) -> Result<Option<Self>, EngineError> {
        let Some((file, source)) = find::default(files)? else { return Ok(None) };
        let mut environment = environment();
        environment
            .add_template_owned(NAME, source::prepared(&source))
            .map_err(|error| EngineError::file(file, format!("chat template: {}", sentence(&error))))?;
        for (name, token) in find::special_tokens(files)? {
            environment.add_global(name, token);
        }
        Ok(Some(Self { environment }))
    }

    /// The text of a conversation, which is JSON, up to where the model is to answer.
    pub(crate) fn render(&self, conversation: &[u8], now: Clock) -> Result<String, EngineError> {
        let failed = |error: Error| EngineError::Request(format!("chat template: {}", sentence(&error)));
        let values: Value = serde_json::from_slice(conversation)
            .map_err(|error| EngineError::Request(format!("the conversation is not as expected: {error}")))?;
        let mut environment = self.environment.clone();
        environment.add_function("strftime_now", move |format: String| clock::strftime(&format, now));
        let mut text = Bounded::default();
        let template = environment.get_template(NAME).map_err(failed)?;
        let rendered = template.render_captured_to(values, &mut text);
        if text.is_full {
            let reason = format!("chat template: the text has more than {PROMPT_BYTES_MAX} bytes");
            return Err(EngineError::Request(reason));
        }
        rendered.map_err(failed)?;
        String::from_utf8(text.bytes).map_err(|error| EngineError::Request(error.to_string()))
    }
}

/// A text that ends where a prompt must.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if PROMPT_BYTES_MAX < self.bytes.len() + bytes.len() {
            self.is_full = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are distinct"));
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
    });
    environment.add_filter("tojson", json::filter);
    python::extend(&mut environment);
    words::extend(&mut environment);
    environment
}

/// An error of a template in one line: what is wrong, and where.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    // The first cause says most; deeper ones repeat it.
    if let Some(inner) = cause.take() {
        text = format!("{text}: {inner}");
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests;
