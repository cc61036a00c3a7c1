//! What the user said about models: names, pins, and where published files stand. Kept in small
//! text files, because nobody else can give it back if it is lost.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use surf_protocol::ModelId;

use super::files::Stamp;

const VERSION: u32 = 1;

/// What the user said about one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    version: u32,
    /// Whether its chunks must not be evicted.
    pub(super) pinned: bool,
    /// Files of the manifest that stand in the user's own folders.
    pub(super) files: Vec<FileNote>,
}

/// A file of a manifest that stands in a folder of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileNote {
    /// Position in the manifest's list of files.
    pub(super) file: u32,
    /// Where it is. Absolute.
    pub(super) path: PathBuf,
    /// How it looked when it was cut.
    #[serde(flatten)]
    pub(super) stamp: Stamp,
    /// Offsets of chunks in it that turned out to be something else than when it was cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) bad: Vec<u64>,
}

impl Default for Note {
    fn default() -> Self {
        Self { version: VERSION, pinned: false, files: Vec::new() }
    }
}

impl Note {
    /// The text to store.
    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("paths were checked to be Unicode, and the rest is plain")
    }

    /// Reads what [`Note::encode`] wrote.
    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok().filter(|note: &Self| note.version == VERSION)
    }
}

/// The names that the user gave to models.
pub(super) type Aliases = BTreeMap<String, ModelId>;

/// The text to store.
pub(super) fn encode_aliases(aliases: &Aliases) -> Vec<u8> {
    let plain: BTreeMap<_, _> = aliases.iter().map(|(name, model)| (name, model.to_hex())).collect();
    serde_json::to_vec_pretty(&plain).expect("strings can be written")
}

/// Reads what [`encode_aliases`] wrote.
pub(super) fn decode_aliases(text: &[u8]) -> Option<Aliases> {
    let plain: BTreeMap<String, String> = serde_json::from_slice(text).ok()?;
    plain.into_iter().map(|(name, hex)| Some((name, hex.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This text is deployed. If this fails, raise [`VERSION`]; do not edit the expectation.
    #[test]
    fn golden_note() {
        let text = r#"{"version":1,"pinned":true,"files":[{"file":2,"path":"/m/a b.bin","size":9,"mtime_ns":7,"inode":5}]}"#;
        let stamp = Stamp { size: 9, mtime_ns: 7, inode: 5 };
        let file = FileNote { file: 2, path: "/m/a b.bin".into(), stamp, bad: Vec::new() };
        let note = Note { pinned: true, files: vec![file], ..Note::default() };
        assert_eq!(Note::decode(text.as_bytes()), Some(note.clone()));
        assert_eq!(serde_json::to_string(&note).unwrap(), text);
        assert_eq!(Note::decode(&note.encode()), Some(note));
    }

    #[test]
    fn another_version_or_noise_is_refused() {
        assert_eq!(Note::decode(br#"{"version":2,"pinned":true,"files":[]}"#), None);
        assert_eq!(Note::decode(b"{"), None);
        assert_eq!(decode_aliases(br#"{"tiny":"zz"}"#), None);
    }

    #[test]
    fn golden_aliases() {
        let aliases = Aliases::from([("org/tiny".to_owned(), ModelId::of(b""))]);
        let hex = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        let text = format!("{{\n  \"org/tiny\": \"{hex}\"\n}}");
        assert_eq!(encode_aliases(&aliases), text.as_bytes());
        assert_eq!(decode_aliases(text.as_bytes()), Some(aliases));
    }
}
