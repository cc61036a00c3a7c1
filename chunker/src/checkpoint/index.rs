//! What a `….index.json` says: which tensor is in which shard.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use surf_protocol::limits::MANIFEST_TENSORS_MAX;

/// Bytes in an index. That of a mixture of experts with 91,000 tensors has 9 MB.
pub(super) const INDEX_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// How the path of an index ends, after that of the file that would hold everything.
pub(super) const SUFFIX: &str = ".index.json";

#[derive(serde::Deserialize)]
pub(super) struct Index {
    pub(super) weight_map: Pairs,
}

/// A map as it stands in the file, with what is there twice.
pub(super) struct Pairs(pub(super) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a map from at most {MANIFEST_TENSORS_MAX} tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    if pairs.len() == MANIFEST_TENSORS_MAX {
                        return Err(A::Error::invalid_length(pairs.len() + 1, &self));
                    }
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// Whether a path is relative and goes down only.
pub(super) fn inside(path: &str) -> bool {
    !path.contains(['\\', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// What numbered shards have in common, and how many there are: `model-00001-of-00003.safetensors` without its
/// number, and 3.
pub(super) fn unnumbered(path: &str) -> Option<(String, u64)> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (path, extension) = path.rsplit_once('.')?;
    let (rest, total) = path.rsplit_once("-of-")?;
    let (stem, at) = rest.rsplit_once('-')?;
    let count = Some(total).filter(|total| number(at) && number(total))?.parse().ok()?;
    Some((format!("{stem}-of-{total}.{extension}"), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_shards_have_one_name() {
        let named = |path: &str| unnumbered(path);
        assert_eq!(
            named("a/model-00002-of-00010.safetensors"),
            Some(("a/model-of-00010.safetensors".to_owned(), 10))
        );
        assert_eq!(named("model-x-of-3.safetensors"), None);
        assert_eq!(named("best-of-3.safetensors"), None);
    }

    #[test]
    fn a_shard_path_goes_down_only() {
        assert!(inside("a.safetensors") && inside("sub/a.safetensors") && inside("..a"));
        for path in ["../a", "a/../../b", "/etc/passwd", "", "a//b", "./a", "..\\a"] {
            assert!(!inside(path), "{path:?}");
        }
    }
}
