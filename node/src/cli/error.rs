//! How a command fails: one sentence that names the thing, a hint apart from it, an exit status.

use std::process::ExitCode;

use super::human;

/// Exit statuses, as documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It was tried and did not work.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No such model or name, or nobody reachable holds a needed chunk.
    NotFound = 3,
    /// No node is running at the RPC address.
    NoNode = 4,
}

/// Why a command ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// What the program ends with.
    pub exit: Exit,
    /// One sentence, without a full stop. Empty: nothing is to be said.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CliError {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// It was tried and did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The command line, the environment or the configuration makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// No node is running there.
    pub fn no_node(message: impl Into<String>) -> Self {
        Self::new(Exit::NoNode, message)
    }

    /// Nobody reads our output any more, which is no failure: `surf-node models | head -1`.
    pub fn closed() -> Self {
        Self::new(Exit::Done, "")
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Says on stderr what went wrong, if anything did, and gives the exit status.
pub fn report(result: Result<(), CliError>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if !error.message.is_empty() {
        eprintln!("error: {}", human::plain(&error.message));
    }
    if let Some(hint) = error.hint {
        eprintln!("hint: {}", human::plain(&hint));
    }
    ExitCode::from(error.exit as u8)
}

/// From now on, a panic is one sentence rather than a backtrace.
pub fn quieten_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let words = words(panic.payload()).unwrap_or("no reason was given");
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        eprintln!("error: this is a bug in surf-node{}: {words}", place.unwrap_or_default());
    }));
}

/// What a panic says, in either of the types that `panic!` makes.
fn words(payload: &dyn std::any::Any) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}
