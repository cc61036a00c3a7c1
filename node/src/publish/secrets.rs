//! What belongs to nodes alone, and is never published: keys, tokens, and the folders that hold them.
//!
//! Links and copies are found as well, because files are told by what they are on the disk and by what is in
//! them, not by their names alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use surf_chunker::{Listed, Options, read_regular};

use super::PublishError;

/// Bytes of a file that may be a key or a token. The largest key has 80 or so.
const SECRET_SIZE_MAX: u64 = 4096;

/// How the keys of private swarms begin.
const SWARM_KEY: &[u8] = b"surf-key:";

/// The key of a node in libp2p's own encoding: its size, and its beginning (Ed25519, 64 bytes).
const NODE_KEY: (usize, [u8; 4]) = (68, [8, 1, 18, 64]);

/// The key of a node, as every node calls it.
const NODE_KEY_FILE: &str = "identity.key";

/// What is not to be published.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// The node's data folder. Folders of the user's may be in it, but no files.
    data_dir: PathBuf,
    /// Folders of which nothing is published.
    folders: Vec<PathBuf>,
    /// What clients of the RPC present.
    token: Option<String>,
}

impl Secrets {
    /// Those of the node that has these folders and this token.
    pub fn new(data_dir: &Path, store_dir: &Path, token: Option<&str>) -> Self {
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let data_dir = real(data_dir);
        let folders = vec![real(store_dir), data_dir.join(super::quantize::FOLDER)];
        Self { data_dir, folders, token: token.map(str::to_owned) }
    }

    /// Fails if publishing `path` would share a secret.
    pub fn check(&self, path: &Path, options: &Options) -> Result<(), PublishError> {
        let files = surf_chunker::list(path, options)?;
        let secret = files.iter().find_map(|file| Some((file, self.what(file)?)));
        secret.map_or(Ok(()), |(file, what)| {
            let path = if path.is_dir() { path.join(&file.path) } else { path.to_owned() };
            Err(PublishError::Secret { path, what })
        })
    }

    /// Whether `dir` is the node's data folder or one of those that it keeps for itself.
    pub fn owns(&self, dir: &Path) -> bool {
        let existing = dir.ancestors().find_map(|folder| fs::canonicalize(folder).ok());
        let within = |folder: &PathBuf| existing.as_ref().is_some_and(|dir| dir.starts_with(folder));
        existing.as_ref() == Some(&self.data_dir) && dir.exists() || self.folders.iter().any(within)
    }

    /// Which secret a file is.
    fn what(&self, file: &Listed) -> Option<&'static str> {
        if file.real.parent() == Some(&self.data_dir)
            || self.folders.iter().any(|folder| file.real.starts_with(folder))
        {
            return Some("belongs to this node's data folder");
        }
        if SECRET_SIZE_MAX < file.size {
            return None;
        }
        // What cannot be read cannot be published either.
        let bytes = read_regular(&file.real, SECRET_SIZE_MAX).ok()?;
        let is_named = file.real.file_name().is_some_and(|name| name == NODE_KEY_FILE);
        let is_key = bytes.len() == NODE_KEY.0 && bytes.starts_with(&NODE_KEY.1);
        if is_named || is_key || self.is_own_key(&bytes) {
            return Some("is the key of a node");
        }
        let text = bytes.trim_ascii();
        if text.starts_with(SWARM_KEY) {
            return Some("is the key of a private swarm");
        }
        let token = self.token.as_ref().is_some_and(|token| text == token.as_bytes());
        token.then_some("holds the token of this node's RPC")
    }

    fn is_own_key(&self, bytes: &[u8]) -> bool {
        !bytes.is_empty() && fs::read(self.data_dir.join(NODE_KEY_FILE)).is_ok_and(|key| key == bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with a model, and beside it the data folder of a node.
    fn home() -> (tempfile::TempDir, Secrets) {
        let home = tempfile::tempdir().unwrap();
        let node = home.path().join("node");
        fs::create_dir_all(node.join("store/chunks")).unwrap();
        fs::create_dir_all(node.join("models")).unwrap();
        fs::create_dir_all(home.path().join("model")).unwrap();
        fs::write(home.path().join("model/config.json"), "{}").unwrap();
        fs::write(node.join("models/config.json"), "{}").unwrap();
        fs::write(node.join("identity.key"), [7; 32]).unwrap();
        fs::write(node.join("store/chunks/ab"), "x").unwrap();
        let secrets = Secrets::new(&node, &node.join("store"), Some("open-sesame"));
        (home, secrets)
    }

    fn refused(secrets: &Secrets, path: &Path) -> Option<PathBuf> {
        match secrets.check(path, &Options { follow_links: true }) {
            Ok(()) => None,
            Err(PublishError::Secret { path, .. }) => Some(path),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_data_folder_is_nobody_else_s() {
        let (home, secrets) = home();
        let at = |name: &str| home.path().join(name);
        assert_eq!(refused(&secrets, home.path()), Some(at("node/identity.key")));
        assert_eq!(refused(&secrets, &at("node/store")), Some(at("node/store/chunks/ab")));
        assert!(refused(&secrets, &at("node/identity.key")).is_some());
        assert_eq!(refused(&secrets, &at("model")), None);
        assert_eq!(refused(&secrets, &at("node/models")), None, "a folder of the user's");
        assert!(secrets.owns(&at("node")) && secrets.owns(&at("node/store/new/x")));
        assert!(
            !secrets.owns(&at("node/models")) && !secrets.owns(&at("node/new")) && !secrets.owns(&at("new"))
        );
        symlink(at("node"), at("model/link")).unwrap();
        assert!(refused(&secrets, &at("model")).is_some());
    }

    #[test]
    fn copies_of_keys_and_tokens_are_found_by_what_is_in_them() {
        let libp2p = [&NODE_KEY.1[..], &[9; 64]].concat();
        let swarm = format!("surf-key:{}\n", "0".repeat(72));
        for (name, bytes) in [
            ("renamed.bin", &[7; 32][..]),
            ("identity.key", &[1, 2, 3]),
            ("other", &libp2p),
            ("swarm.txt", swarm.as_bytes()),
            ("notes", b" open-sesame\n"),
        ] {
            let (home, secrets) = home();
            let model = home.path().join("model");
            fs::write(model.join(name), bytes).unwrap();
            assert_eq!(refused(&secrets, &model), Some(model.join(name)));
            fs::write(model.join(name), [bytes, &[b'x'; 8192]].concat()).unwrap();
            assert_eq!(refused(&secrets, &model), None, "too large for a secret");
        }
    }
}
