//! Measurements of real nodes. Every figure of `docs/benchmarks.md` comes from a command in here, and
//! is compared with something else in the same run: these are shared machines.
//!
//! - [`transfer`]: the program moves a file over loopback, beside bare quinn.
//! - [`engine`]: the program runs a Llama of a given shape, beside transformers.
//! - [`lookup`]: control planes find out who has something, and what being found costs.
//! - [`process`]: what a process has used, as the kernel tells.

pub mod engine;
pub mod lookup;
pub mod process;
pub mod quinn;
pub mod transfer;

use std::{fmt, io};

/// A measurement that could not be made, in words.
#[derive(Debug)]
pub struct Failed(pub String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl Failed {
    /// `what` could not be done, because of `why`.
    pub fn to(what: &str, why: impl fmt::Display) -> Self {
        Self(format!("cannot {what}: {why}"))
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
