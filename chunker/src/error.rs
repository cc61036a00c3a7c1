//! Everything that can be wrong with a folder, by file and tensor.
//!
//! Paths are as the user would write them: under the folder that was given, before any link.

use std::{error::Error, io, path::PathBuf};

use surf_protocol::{
    limits::{CHUNK_SIZE_MAX, PATH_SIZE_MAX, TENSOR_RANK_MAX},
    manifest::{ManifestError, TagError},
};

use crate::{
    header::{HEADER_SIZE_MAX, NAME_SIZE_MAX},
    list::ENTRIES_MAX,
};

const _: () = assert!(HEADER_SIZE_MAX > CHUNK_SIZE_MAX as u64, "headers may take several chunks");

/// Why a folder or file could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The system refused.
    #[error("cannot read {path:?}: {source}")]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name that other machines could not write.
    #[error("the name of {path:?} is not UTF-8; rename it to publish it")]
    NotUtf8 {
        /// The file or folder.
        path: PathBuf,
    },
    /// A name that a manifest cannot hold.
    #[error(
        "the path {path:?} is longer than {PATH_SIZE_MAX} bytes or contains a backslash; rename it to publish it"
    )]
    Name {
        /// The file or folder.
        path: PathBuf,
    },
    /// A link out of the folder, which may publish what was not meant to be.
    #[error("the link {link:?} leaves the folder, to {target:?}; allow that by following links")]
    LinkLeaves {
        /// The link.
        link: PathBuf,
        /// Where it ends.
        target: PathBuf,
    },
    /// A link to nothing, or to itself.
    #[error("the link {link:?} leads nowhere")]
    LinkBroken {
        /// The link.
        link: PathBuf,
        /// What became of following it.
        source: io::Error,
    },
    /// A link to a folder that it is in.
    #[error("the link {link:?} leads back to a folder that holds it")]
    LinkLoop {
        /// The link.
        link: PathBuf,
    },
    /// A socket, pipe or device.
    #[error("{path:?} is neither a file nor a folder")]
    Special {
        /// The thing.
        path: PathBuf,
    },
    /// More files than any model has.
    #[error("{path:?} holds more than {ENTRIES_MAX} files and folders")]
    TooMany {
        /// The folder that was given.
        path: PathBuf,
    },
    /// A file that was written to while it was read.
    #[error("{file:?} changed while it was read; try again when it rests")]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// Whoever takes the chunks could not take one.
    #[error("a chunk of {file:?} could not be kept: {source}")]
    Sink {
        /// The file.
        file: PathBuf,
        /// What the sink said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// More than a manifest can hold.
    #[error("the folder does not fit a manifest")]
    Manifest(#[from] ManifestError),
}

/// Why a file is not read as a file of weights. It is published all the same, as bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// The file, or its header, as a whole.
    #[error(transparent)]
    Header(#[from] HeaderFault),
    /// One tensor of it.
    #[error("tensor {tensor:?}: {fault}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        fault: TensorFault,
    },
}

impl FileFault {
    /// Characters of a name that are told.
    const TOLD_MAX: usize = 200;

    pub(crate) fn tensor(tensor: &str, fault: TensorFault) -> Self {
        Self::Tensor { tensor: tensor.chars().take(Self::TOLD_MAX).collect(), fault }
    }
}

/// What is wrong with a file of weights, or its header, as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum HeaderFault {
    #[error("it ends before its header begins, after {size} bytes")]
    Short { size: u64 },
    #[error("it is a git-lfs pointer; fetch the file itself with `git lfs pull`")]
    Pointer,
    #[error("its header of {header} bytes is larger than the {HEADER_SIZE_MAX} that are allowed")]
    TooLarge { header: u64 },
    #[error("its header of {header} bytes is larger than the file of {size} bytes")]
    PastEnd { header: u64, size: u64 },
    #[error("its header cannot be read: {0}")]
    Malformed(String),
    #[error("{0} bytes at its end belong to no tensor")]
    Trailing(u64),
    #[error("it does not begin as its format does")]
    Magic,
    #[error("it holds no tensors")]
    Empty,
    #[error("it is of a version, or holds values, that this program does not know")]
    Unknown,
    #[error("its {size} bytes end inside its header")]
    Cut { size: u64 },
    #[error("it counts {count} {what}, which its {size} bytes cannot hold")]
    Count { what: &'static str, count: u64, size: u64 },
    #[error("it counts {count} {what}; at most {max} are read")]
    TooMany { what: &'static str, count: u64, max: u64 },
    #[error(
        "it was saved by PyTorch before 1.6, in a way that is not read; save it again, best as safetensors"
    )]
    Legacy,
    #[error("its numbers are big-endian, which are not read")]
    BigEndian,
    #[error("it is no zip file as PyTorch writes them: {0}")]
    Zip(&'static str),
    #[error("it names {0:?}, which no table of tensors needs; who loads it with PyTorch may run it")]
    Global(String),
    #[error("its pickle has an operation (0x{0:02x}) that no table of tensors needs")]
    Operation(u8),
    #[error("it aligns tensors to {0} bytes, which is no power of two up to 65536")]
    Alignment(u64),
}

/// What is wrong with one tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum TensorFault {
    #[error("its entry cannot be read: {0}")]
    Malformed(String),
    #[error("the header names it twice")]
    Twice,
    #[error(transparent)]
    Tag(TagError),
    #[error("its bytes end ({end}) before they begin ({begin})")]
    Backwards { begin: u64, end: u64 },
    #[error("its bytes end at {end}, but the file has only {data} bytes of data")]
    PastEnd { end: u64, data: u64 },
    #[error("its shape {shape:?} of {dtype} does not take {size} bytes")]
    Size { dtype: String, shape: Vec<u64>, size: u64 },
    #[error("its name has more than {NAME_SIZE_MAX} bytes")]
    LongName,
    #[error("it has {0} dimensions; at most {TENSOR_RANK_MAX} are read")]
    Rank(usize),
    #[error("its bytes overlap those of {0:?}")]
    Overlap(String),
    #[error("{0} bytes before it belong to no tensor")]
    Hole(u64),
    #[error("its shape {shape:?} is not whole rows of {dtype}")]
    Blocks { dtype: String, shape: Vec<u64> },
    #[error("it has {0} dimensions; the format allows 4")]
    Dimensions(u32),
    #[error("it begins at {offset}, which is no multiple of {alignment}")]
    Alignment { offset: u64, alignment: u64 },
    #[error("its elements do not lie one behind the other; save it again after `.contiguous()`")]
    Strided,
    #[error("its bytes should be {0:?} in the file, which is not there")]
    Storage(String),
}
