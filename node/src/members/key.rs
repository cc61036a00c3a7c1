//! The key of a private swarm: 32 random bytes, written as one line that can be sent to a friend.
//!
//! The key itself never leaves the machine: each plane gets a key of its own, derived one way, and proves
//! that one. Printed for debugging it says nothing.

use std::{fmt, path::Path, str::FromStr};

use crate::secret::{self, SecretError};

/// What a written key starts with.
const PREFIX: &str = "surf-key:";

const SIZE: usize = 32;

/// Bytes that tell a typing error from a key. One in four thousand million slips through.
const CHECK_SIZE: usize = 4;

/// Bytes of a key file: a line of 81. More would not be one.
const FILE_SIZE_MAX: u64 = 1024;

/// What the members of a private swarm share. Written `surf-key:` and 72 hexadecimal digits: the key,
/// and a checksum that notices a typing error.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmKey([u8; SIZE]);

/// Text that is no swarm key. Does not repeat the text, which may be almost one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotASwarmKey {
    /// It has another form.
    #[error("a swarm key is {PREFIX} and 72 hexadecimal digits, as `surf-node key new` prints it")]
    Form,
    /// It has the right form, but the checksum is that of another key.
    #[error("the swarm key has a typing error: its checksum does not match")]
    Checksum,
}

/// The key in a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SwarmKeyError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] SecretError),
    /// The file holds something else.
    #[error("{path} holds no swarm key: {cause}", path = path.display())]
    NotAKey {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        #[source]
        cause: NotASwarmKey,
    },
}

impl SwarmKey {
    /// A new key.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The key in the file at `path`, which nobody else may read.
    pub fn load(path: &Path) -> Result<Self, SwarmKeyError> {
        let bytes = secret::read(path, FILE_SIZE_MAX)?;
        let not_a_key = |cause| SwarmKeyError::NotAKey { path: path.to_owned(), cause };
        let text = str::from_utf8(&bytes).map_err(|_| not_a_key(NotASwarmKey::Form))?;
        text.parse().map_err(not_a_key)
    }

    /// Writes the key to a new file at `path`, for nobody else to read.
    pub fn save_new(&self, path: &Path) -> Result<(), SecretError> {
        secret::write_new(path, format!("{}\n", self.reveal()).as_bytes())
    }

    /// The key as text, for whoever is to have it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", hex::encode([&self.0[..], &checksum(&self.0)].concat()))
    }

    /// What the control plane proves and encrypts with.
    pub(crate) fn of_control_plane(&self) -> [u8; SIZE] {
        blake3::derive_key("surf-node 2026-11 control plane of a private swarm", &self.0)
    }

    /// What the data plane proves.
    pub(crate) fn of_data_plane(&self) -> [u8; SIZE] {
        blake3::derive_key("surf-node 2026-11 data plane of a private swarm", &self.0)
    }
}

impl FromStr for SwarmKey {
    type Err = NotASwarmKey;

    fn from_str(text: &str) -> Result<Self, NotASwarmKey> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(NotASwarmKey::Form)?;
        let mut bytes = [0; SIZE + CHECK_SIZE];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NotASwarmKey::Form)?;
        let (key, check) = bytes.split_first_chunk::<SIZE>().expect("more than a key");
        if check == checksum(key) { Ok(Self(*key)) } else { Err(NotASwarmKey::Checksum) }
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(…)")
    }
}

fn checksum(key: &[u8; SIZE]) -> [u8; CHECK_SIZE] {
    let whole = blake3::derive_key("surf-node 2026-11 checksum of a swarm key", key);
    *whole.first_chunk().expect("32 bytes have 4")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_any_wrong_digit_is_noticed() {
        let key = SwarmKey::generate();
        let text = key.reveal();
        assert_eq!(format!(" {text}\n").parse(), Ok(key.clone()));
        assert_eq!(text.to_uppercase().replacen("SURF-KEY", "surf-key", 1).parse(), Ok(key));
        for at in PREFIX.len()..text.len() {
            let other = if &text[at..=at] == "7" { "8" } else { "7" };
            let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(wrong.parse::<SwarmKey>(), Err(NotASwarmKey::Checksum), "digit {at}");
        }
        for wrong in ["", "surf-key:", &text[1..], &text[..text.len() - 1], &format!("{text}0"), "surf-key:é"]
        {
            assert_eq!(wrong.parse::<SwarmKey>(), Err(NotASwarmKey::Form), "{wrong}");
        }
    }

    /// These bytes are deployed: with others, members no longer understand each other. From a BLAKE3 written
    /// in Python from its paper.
    #[test]
    fn golden() {
        let key = SwarmKey([7; SIZE]);
        let seven = "07".repeat(SIZE);
        assert_eq!(key.reveal(), format!("surf-key:{seven}2b804f9a"));
        assert_eq!(
            hex::encode(key.of_control_plane()),
            "e749b97655b56ba625dae3fc0caea576824efa6942391cbd75cc6343d1c5a19b"
        );
        assert_eq!(
            hex::encode(key.of_data_plane()),
            "77c52a8736b2acf1fd9accfe7c4c65f67bc3a2c33f48b8aaa5f2807020024661"
        );
    }

    #[test]
    fn it_is_not_told_by_accident() {
        let key = SwarmKey([7; SIZE]);
        let members = crate::members::Members { key: Some(key.clone()), ..Default::default() };
        assert!(!format!("{key:?} {members:?}").contains('7'));
    }

    #[test]
    fn a_file_is_made_once_and_only_for_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.key");
        let key = SwarmKey::generate();
        key.save_new(&path).unwrap();
        assert_eq!(SwarmKey::load(&path).unwrap(), key);
        let again = SwarmKey::generate().save_new(&path).unwrap_err();
        assert!(again.to_string().contains("swarm.key"), "{again}");
        assert_eq!(SwarmKey::load(&path).unwrap(), key, "nothing is overwritten");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            mode(0o644);
            let exposed = SwarmKey::load(&path).unwrap_err();
            assert!(matches!(exposed, SwarmKeyError::File(SecretError::Exposed { mode: 0o644, .. })));
            mode(0o600);
        }
        for wrong in [&b"surf-key:12"[..], b"\xff\xfe", b"", &[b'0'; 5000]] {
            std::fs::write(&path, wrong).unwrap();
            let error = SwarmKey::load(&path).unwrap_err();
            assert!(error.to_string().contains("swarm.key holds no swarm key: a swarm key is"), "{error}");
        }
    }
}
