//! Where words go: results to stdout, the rest to stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::{Globals, error::CliError, human};

/// How a command tells what it has to tell.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: u8,
    /// Whether someone watches stderr.
    pub(crate) watched: bool,
}

impl Output {
    pub(crate) fn new(globals: &Globals) -> Self {
        Self {
            json: globals.json,
            quiet: globals.quiet,
            verbose: globals.verbose,
            watched: io::stderr().is_terminal(),
        }
    }

    /// Writes a result: as JSON if that is wanted, else in `words`. Those may be a stranger's in part, so a
    /// terminal is not commanded by them.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        words: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        if self.json { self.object(value) } else { self.text(&human::plain(&words(value))) }
    }

    /// Writes `value` as a line of JSON.
    pub(crate) fn object(&self, value: &impl Serialize) -> Result<(), CliError> {
        let line = serde_json::to_string(value).expect("our own types have string keys and finite depth");
        self.piece(&format!("{line}\n"))
    }

    /// Writes lines of text. The last need not end; nothing at all writes no line.
    pub(crate) fn text(&self, text: &str) -> Result<(), CliError> {
        if text.is_empty() || text.ends_with('\n') {
            self.piece(text)
        } else {
            self.piece(&format!("{text}\n"))
        }
    }

    /// Writes part of a line, at once.
    pub(crate) fn piece(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::closed(),
            _ => CliError::failed(format!("stdout cannot be written: {error}")),
        })
    }

    /// Says something that is no result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            // If nobody can read it, it need not be said.
            let _ = writeln!(io::stderr().lock(), "{}", human::plain(text));
        }
    }
}
