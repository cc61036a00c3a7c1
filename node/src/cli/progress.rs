//! How far long work is, for whoever watches: a bar on a terminal; with `-v` a line now and then
//! elsewhere; else nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{human, output::Output};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

const STYLE: &str = "{prefix} [{bar:28}] {msg}";

/// What is shown of work in progress.
#[derive(Debug)]
pub(crate) struct Progress {
    verb: &'static str,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { output: Output, next: Instant },
    Nothing,
}

impl Progress {
    /// Begins to show work that `verb` names, such as `pulling`.
    pub(crate) fn new(output: &Output, verb: &'static str) -> Self {
        let shown = if output.json || output.quiet {
            Shown::Nothing
        } else if output.watched {
            let style = ProgressStyle::with_template(STYLE).expect("a constant").progress_chars("=> ");
            Shown::Bar(ProgressBar::new(0).with_style(style).with_prefix(verb))
        } else if 0 < output.verbose {
            Shown::Lines { output: output.clone(), next: Instant::now() }
        } else {
            Shown::Nothing
        };
        Self { verb, shown }
    }

    /// Shows `done` of `total` bytes, and `more` about it.
    pub(crate) fn bytes(&mut self, done: u64, total: u64, more: &str) {
        if total == 0 {
            // Nobody has said yet how much it is.
            let more = more.strip_prefix(" · ").unwrap_or(more);
            return self.show(0, 1, more);
        }
        let share = human::percent(done, total);
        self.show(done, total, &format!("{share} of {}{more}", human::bytes(total)));
    }

    /// Shows `done` of `total`, in the words of `message`.
    pub(crate) fn show(&mut self, done: u64, total: u64, message: &str) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(message.to_owned());
            }
            Shown::Lines { output, next } if *next <= Instant::now() => {
                output.note(&format!("{}: {message}", self.verb));
                *next = Instant::now() + LINE_EVERY;
            }
            Shown::Lines { .. } | Shown::Nothing => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // What remains on the screen is the result, or the error.
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
