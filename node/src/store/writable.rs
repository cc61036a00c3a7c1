//! Whether the store's folder is still there and can be written, asked by whoever watches the node.

use std::path::Path;

use rustix::{fs::Access, io::Errno};

use super::Store;

impl Store {
    /// Looks at the folders that the store writes to, and writes nothing. What is said is for people.
    pub fn writable(&self) -> Result<String, String> {
        let layout = &self.disk.layout;
        let folders = [layout.root().to_owned(), layout.incoming(), layout.manifests(), layout.index()];
        folders.iter().try_for_each(|folder| check(folder))?;
        Ok(format!("{} can be written", layout.root().display()))
    }
}

fn check(folder: &Path) -> Result<(), String> {
    let place = folder.display();
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => format!("{place} is gone"),
        error => format!("{place} cannot be written: {}", std::io::Error::from(error)),
    })
}
