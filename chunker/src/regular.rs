//! Opening files that others may have put something else in the place of.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    path::Path,
};

/// Opens the file at `path` to be read. What is no file is an error, and nobody waits for the other end of a pipe.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "this is no file")),
    }
}

/// All bytes of the file at `path`. One of more than `size_max` bytes is an error.
pub fn read_regular(path: &Path, size_max: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let size = file.metadata()?.len();
    if size_max < size {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes are too many")));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(size_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_an_error_and_nobody_waits() {
        use std::fs;

        use super::*;

        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        let pipe = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(pipe.success());
        for what in [path("pipe"), dir.path().to_owned(), "/dev/zero".into()] {
            let error = open_regular(&what).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{}", what.display());
        }
        fs::write(path("file"), "bytes").unwrap();
        assert_eq!(read_regular(&path("file"), 5).unwrap(), b"bytes");
        assert_eq!(read_regular(&path("file"), 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
