//! What one question to a child may cost.

use std::time::Duration;

use super::wire::{Ask, What};

/// Processor time for a template. Real ones take less than a millisecond for a long conversation; an
/// answer of one sentence is due within a second.
const RENDER_CPU: Duration = Duration::from_millis(400);

/// Memory for a template, and for each byte of the conversation: as JSON, as values, and as text
/// that filters copy.
const RENDER_MEMORY: u64 = 40 << 20;
const RENDER_MEMORY_PER_BYTE: u64 = 10;

/// Processor time for tokenising, and for each byte of text: ten times what real tokenizers take.
const ENCODE_CPU: Duration = Duration::from_millis(400);
const ENCODE_CPU_PER_BYTE: Duration = Duration::from_nanos(2_500);

/// Memory for tokenising, and for each byte of text. The library keeps where each byte of the
/// normalized text came from (16 bytes), twice while it splits, and every token as text.
const ENCODE_MEMORY: u64 = 48 << 20;
const ENCODE_MEMORY_PER_BYTE: u64 = 256;

/// The same for loading, by bytes of the files. Parsing a vocabulary takes some 15 times its size.
const LOAD_CPU: Duration = Duration::from_millis(600);
const LOAD_CPU_PER_BYTE: Duration = Duration::from_nanos(400);
const LOAD_MEMORY: u64 = 96 << 20;
const LOAD_MEMORY_PER_BYTE: u64 = 32;

/// How much longer a question may take by the clock than by the processor: a machine may be busy
/// with something else.
const PATIENCE: u32 = 20;

/// Bytes of an answer. A prompt is at most 4 MiB and its tokens have 4 bytes each; a vocabulary is no
/// larger than the files that it is in, of which each has at most 64 MiB.
pub(super) const BODY_SIZE_MAX: u64 = 256 << 20;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Bytes beyond those that the child has when it is asked for the first time.
    pub(super) memory: u64,
    pub(super) cpu: Duration,
    pub(super) clock: Duration,
}

impl Bounds {
    /// For a question with a body of `size` bytes.
    pub(super) fn of(ask: &Ask, size: usize) -> Self {
        let count = u32::try_from(size).unwrap_or(u32::MAX);
        let size = size as u64;
        let (memory, cpu) = match ask {
            Ask::Load { what: What::Template, .. } | Ask::Render { .. } => {
                (RENDER_MEMORY + RENDER_MEMORY_PER_BYTE * size, RENDER_CPU)
            }
            Ask::Load { what: What::Tokenizer, .. } => {
                (LOAD_MEMORY + LOAD_MEMORY_PER_BYTE * size, LOAD_CPU + LOAD_CPU_PER_BYTE * count)
            }
            Ask::Encode { .. } => {
                (ENCODE_MEMORY + ENCODE_MEMORY_PER_BYTE * size, ENCODE_CPU + ENCODE_CPU_PER_BYTE * count)
            }
        };
        Self { memory, cpu, clock: cpu * PATIENCE }
    }
}

/// Milliseconds in a tick of Linux' accounting of processor time, as programs see it.
#[cfg(target_os = "linux")]
const TICK_MS: u64 = 10;

/// How long a process has computed, from what Linux says in its `stat`.
#[cfg(target_os = "linux")]
pub(super) fn computed(stat: &str) -> Option<Duration> {
    // The name of the program, in parentheses, may have spaces; user and system time are 11 and 12
    // fields after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * TICK_MS))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 100 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(computed(stat), Some(Duration::from_millis(420)));
        assert_eq!(computed("7 (x"), None);
        assert_eq!(computed("7 (x) S 1"), None);
    }
}
