//! The files of a quantised model, written in bounded memory.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use surf_chunker::{Listed, Parameter, open_regular};
use surf_protocol::Dtype;

use super::plan::{Plan, Rewritten};
use crate::{
    api::Amount,
    engine::{Packing, Unpackable},
};

/// Bytes of a tensor that are read at once, or one row of it.
const READ_SIZE: usize = 16 << 20;

/// Why a quantised model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system refused.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// A tensor cannot be quantised.
    #[error("tensor {tensor:?} of {path:?} {why}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: Unpackable,
    },
    /// Nobody waits for it any more.
    #[error("the work was given up")]
    Stopped,
}

/// Whoever writes, and tells how far it is.
pub(super) struct Writer<'a> {
    /// Whether nobody waits any more.
    pub(super) stopped: &'a AtomicBool,
    /// Told after every piece.
    pub(super) progress: &'a dyn Fn(Amount),
    /// Of the plan's [`Plan::read`].
    pub(super) done: u64,
    pub(super) total: u64,
}

impl Writer<'_> {
    /// Writes what `plan` says into the folder `to`. What stays is linked to.
    pub(super) fn write(&mut self, plan: &Plan, to: &Path) -> Result<(), WriteError> {
        for file in &plan.rewritten {
            self.rewrite(file, &place(to, &file.file)?)?;
        }
        link(&plan.kept, to)
    }

    fn rewrite(&mut self, file: &Rewritten, to: &Path) -> Result<(), WriteError> {
        let real = &file.file.real;
        let mut from = open_regular(real).map_err(failed(real))?;
        let mut writer = BufWriter::new(File::create_new(to).map_err(failed(to))?);
        writer.write_all(&file.header).map_err(failed(to))?;
        for (tensor, dtype) in &file.tensors {
            from.seek(SeekFrom::Start(tensor.offset)).map_err(failed(real))?;
            let packing = dtype.map(|dtype| packing(tensor, dtype));
            let row = packing.map_or(1, |packing| packing.row_bytes());
            let step = (READ_SIZE / row).max(1) * row;
            let mut left = tensor.size;
            let mut bytes = vec![0; step.min(left as usize)];
            while 0 < left {
                if self.stopped.load(Ordering::Relaxed) {
                    return Err(WriteError::Stopped);
                }
                bytes.truncate(left as usize);
                from.read_exact(&mut bytes).map_err(failed(real))?;
                let written = match packing {
                    Some(packing) => {
                        let (name, path) = (&tensor.name, real);
                        let fault =
                            |why| WriteError::Tensor { tensor: name.to_string(), path: path.clone(), why };
                        writer.write_all(&packing.pack(&bytes).map_err(fault)?)
                    }
                    None => writer.write_all(&bytes),
                };
                written.map_err(failed(to))?;
                left -= bytes.len() as u64;
                self.done += bytes.len() as u64;
                (self.progress)(Amount { bytes: self.done, total: self.total });
            }
        }
        writer.flush().map_err(failed(to))
    }
}

/// Links to `files` in the folder `to`.
pub(super) fn link<'a>(files: impl IntoIterator<Item = &'a Listed>, to: &Path) -> Result<(), WriteError> {
    for file in files {
        let to = place(to, file)?;
        point(&file.real, &to).map_err(failed(&to))?;
    }
    Ok(())
}

/// Makes `to` be the file at `real`.
fn point(real: &Path, to: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(real, to);
    // Elsewhere links need a permission that few users have.
    #[cfg(not(unix))]
    fs::copy(real, to).map(drop)
}

/// Where in the folder `to` a file belongs; its folder is there.
fn place(to: &Path, file: &Listed) -> Result<PathBuf, WriteError> {
    let path = to.join(&file.path);
    let folder = path.parent().expect("joined to a folder");
    fs::create_dir_all(folder).map_err(failed(folder))?;
    Ok(path)
}

fn packing(tensor: &Parameter, dtype: Dtype) -> Packing {
    let cols = tensor.shape.last().map_or(0, |&cols| cols as usize);
    Packing::new(tensor.dtype, dtype, cols).expect("floats in rows of whole blocks were chosen")
}

fn failed(path: &Path) -> impl Fn(io::Error) -> WriteError + '_ {
    |cause| WriteError::File { path: path.to_owned(), cause }
}
