//! Opening files that others may have put something else in the place of.

use std::{
    fs::{File, OpenOptions},
    io,
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

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_an_error_and_nobody_waits() {
        use std::{fs, io::Read as _};

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
        let mut text = String::new();
        open_regular(&path("file")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "bytes");
    }
}
