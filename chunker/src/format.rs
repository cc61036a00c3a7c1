//! Which format a file is of, and its tensors, whatever the format. Told by its bytes alone: neither its name nor
//! the files beside it have a say, so the same bytes are cut the same way wherever they lie.
//!
//! Part of the manifest's format, like the readers that it calls.

use std::io::{self, Read, Seek, SeekFrom};

use crate::{FileFault, HeaderFault, gguf, header, header::Header, pickle};

/// Formats that hold weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    Gguf,
    /// Zip files, as PyTorch writes them; others are zip files too.
    Pickle,
}

/// Bytes by which a format is told.
const HEAD_SIZE: u64 = 9;

/// Why a file has no tensors.
#[derive(Debug)]
pub(crate) enum Stop {
    Io(io::Error),
    Fault(FileFault),
}

impl<F: Into<FileFault>> From<F> for Stop {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Format {
    /// The format of a file of `size` bytes that begins with `head`.
    fn of(head: &[u8], size: u64) -> Option<Self> {
        if head.starts_with(gguf::MAGIC) {
            Some(Self::Gguf)
        } else if head.starts_with(pickle::ZIP) {
            Some(Self::Pickle)
        } else {
            header::begins(head, size).then_some(Self::Safetensors)
        }
    }

    /// The format that the name of a file promises.
    pub(crate) fn by_name(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "safetensors" => Some(Self::Safetensors),
            "gguf" => Some(Self::Gguf),
            "bin" | "pt" | "pth" => Some(Self::Pickle),
            _ => None,
        }
    }

    /// The tensors of a file of `size` bytes that is of this format.
    pub(crate) fn read(self, file: &mut (impl Read + Seek), size: u64) -> Result<Header, Stop> {
        file.seek(SeekFrom::Start(0))?;
        match self {
            Self::Safetensors => header::read(file, size),
            Self::Gguf => gguf::read(file, size),
            Self::Pickle => pickle::read(file, size),
        }
    }
}

/// The tensors of a file of `size` bytes; `None` if there are none to be read.
pub(crate) fn read(file: &mut (impl Read + Seek), size: u64) -> io::Result<Option<Header>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(HEAD_SIZE.min(size)).read_to_end(&mut head)?;
    let Some(format) = Format::of(&head, size) else { return Ok(None) };
    match format.read(file, size) {
        Ok(header) => Ok(Some(header).filter(|header| !header.tensors.is_empty())),
        Err(Stop::Fault(_)) => Ok(None),
        Err(Stop::Io(error)) => Err(error),
    }
}

/// Why a file of `size` bytes called `path` is not the file of weights that its name promises; `None` if it
/// promises nothing, or keeps it.
pub(crate) fn fault(path: &str, file: &mut (impl Read + Seek), size: u64) -> io::Result<Option<FileFault>> {
    let Some(format) = Format::by_name(path) else { return Ok(None) };
    match format.read(file, size) {
        Ok(header) if header.tensors.is_empty() => Ok(Some(HeaderFault::Empty.into())),
        Ok(_) => Ok(None),
        Err(Stop::Fault(fault)) => Ok(Some(fault)),
        Err(Stop::Io(error)) => Err(error),
    }
}
