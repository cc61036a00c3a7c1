//! Measurements of real nodes. Every figure of `docs/benchmarks.md` comes from a command in here, and
//! is compared with something else in the same run: these are shared machines.
//!
//! - [`transfer`]: the program moves a file over loopback, beside bare quinn.
//! - [`engine`]: the program runs a Llama of a given shape, beside transformers.
//! - [`kernels`]: the arithmetic alone, by format and instructions.
//! - [`lookup`]: control planes find out who has something, and what being found costs.
//! - [`process`]: what a process has used, as the kernel tells.

pub mod engine;
pub mod kernels;
pub mod lookup;
pub mod process;
pub mod quinn;
pub mod transfer;

use std::{
    fmt, fs,
    io::{self, Write},
    path::Path,
};

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

/// Writes `size` bytes that do not compress or repeat, the same for the same size and kind.
pub(crate) fn write_noise(path: &Path, kind: &[u8], size: u64) -> Result<(), Failed> {
    let mut noise = blake3::Hasher::new().update(kind).finalize_xof();
    let mut file = fs::File::create(path)?;
    let mut block = vec![0; 4 << 20];
    let mut left = size;
    while 0 < left {
        let now = (block.len() as u64).min(left) as usize;
        noise.fill(&mut block[..now]);
        file.write_all(&block[..now])?;
        left -= now as u64;
    }
    file.sync_all()?;
    Ok(())
}
