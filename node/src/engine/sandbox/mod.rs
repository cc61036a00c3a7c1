//! Tokenizers and chat templates of strangers, each in a process of its own.
//!
//! Both are programs in all but name: a template can nest a value until dropping it overflows the
//! stack, a normalizer can double its text, a regex can take for ever. None of that can be bounded
//! inside our own process. So each loaded model has a child process for its tokenizer and, once
//! somebody chats, one for its template. A child is this same program, started with [`ARGUMENT`].
//!
//! - `wire`: what is said over its pipes. `bounds`: what one question may cost.
//! - `child`: the other side. It limits itself before it reads anything, and opens no file.
//! - `parent`: our side. It kills a child that exceeds its bounds, and starts another.
//!
//! A question that costs too much is answered with one sentence. The node, and every other model,
//! do not notice.

mod bounds;
mod child;
mod parent;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use parent::Sandbox;
pub(crate) use wire::{Ask, Clock, Fit, What, beginning};

/// The argument that makes this program a child.
const ARGUMENT: &str = "surf-sandbox-child";

/// Whether this program can be its own child: it called [`enter`] when it started. One that did not
/// would start itself again and again.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// To be called first in `main` by every program that runs models. Returns at once, unless this
/// process was started as a child: then it does a child's work and never returns.
pub fn enter() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == ARGUMENT) {
        child::run();
        std::process::exit(0);
    }
    ENTERED.store(true, Ordering::Relaxed);
}

fn entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}
