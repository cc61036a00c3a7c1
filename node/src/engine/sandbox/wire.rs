//! What is said over the pipes of a child: frames of a JSON head and a body of plain bytes.
//!
//! Both sides are the same program, so there are no versions. The parent bounds what it reads all the
//! same: the child handles hostile data.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::engine::EngineError;

/// Bytes of a head. The longest lists the files of a model, or quotes an error.
pub(super) const HEAD_SIZE_MAX: usize = 64 << 10;

/// Bytes of the text of an error. A template may raise one as long as it likes.
const REASON_SIZE_MAX: usize = 2 << 10;

/// Two lengths: the head's in 4 bytes, the body's in 8, little-endian.
pub(super) const LENGTHS_SIZE: usize = 12;

/// What a child holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// A tokenizer, from `tokenizer.json` or older files.
    Tokenizer,
    /// A chat template.
    Template,
}

/// What a child is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Once, first: take these files, by name and size. The body is the files, one after the other.
    Load {
        /// What to make of them.
        what: What,
        /// Their names and sizes.
        files: Vec<(String, u64)>,
    },
    /// The tokens of the body.
    Encode {
        /// Whether to add the tokens that the tokenizer puts around a text.
        special: bool,
        /// How many there may be.
        fit: Fit,
    },
    /// The text of the conversation in the body, which is JSON.
    Render {
        /// What templates take for the time.
        clock: Clock,
    },
}

/// How many tokens a text may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fit {
    /// So many, or it is refused.
    Refuse(usize),
    /// The text is cut after so many.
    Cut(usize),
}

/// A moment in local time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// Seconds since 1970, in UTC.
    pub(crate) seconds: i64,
    /// Microseconds of the second.
    pub(crate) micros: u32,
    /// Seconds that local time is ahead of UTC.
    pub(crate) ahead: i32,
}

/// What a child answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is done; the body is what was asked for.
    Done,
    /// There is nothing in the files to hold.
    Nothing,
    /// The request cannot be answered.
    Refused(String),
    /// A file of the model is not what it should be.
    File { file: String, reason: String },
    /// The library that read it failed, and said this.
    Panicked(String),
}

/// A question with what it may cost, as the child sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) ask: Ask,
    /// Bytes that it may take beyond what the child has taken so far.
    pub(super) memory: u64,
    /// Seconds of processor time after which the system ends it, should the parent not do so.
    pub(super) cpu_s: u64,
}

impl Answer {
    pub(super) fn of(error: &EngineError) -> Self {
        match error {
            EngineError::File { file, reason } => {
                Self::File { file: file.clone(), reason: shortened(reason) }
            }
            other => Self::Refused(shortened(&other.to_string())),
        }
    }
}

/// A frame as bytes, without the body.
pub(super) fn head(head: &impl Serialize, body: usize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(head)?;
    if HEAD_SIZE_MAX < json.len() {
        return Err(io::Error::other("the head of a frame is too long"));
    }
    let mut bytes = (json.len() as u32).to_le_bytes().to_vec();
    bytes.extend((body as u64).to_le_bytes());
    bytes.extend(json);
    Ok(bytes)
}

/// The lengths of head and body, within bounds.
pub(super) fn lengths(bytes: [u8; LENGTHS_SIZE], body_max: u64) -> io::Result<(usize, usize)> {
    let [a, b, c, d, body @ ..] = bytes;
    let (head, body) = (u32::from_le_bytes([a, b, c, d]) as usize, u64::from_le_bytes(body));
    if HEAD_SIZE_MAX < head || body_max < body {
        return Err(io::Error::other("a frame is longer than it may be"));
    }
    Ok((head, usize::try_from(body).map_err(io::Error::other)?))
}

pub(super) fn read_head<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(io::Error::other)
}

/// The beginning of `text`, if it is long.
pub(super) fn shortened(text: &str) -> String {
    if text.len() <= REASON_SIZE_MAX {
        return text.to_owned();
    }
    format!("{}…", beginning(text, REASON_SIZE_MAX))
}

/// At most `size` bytes of `text`, whole characters.
pub(crate) fn beginning(text: &str, size: usize) -> &str {
    let mut end = size.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
