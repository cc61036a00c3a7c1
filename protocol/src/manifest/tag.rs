//! What a file calls the type of a tensor's elements.
//!
//! The format knows no types: a tag is compared and passed on, and a reader says what it means. Up to 23
//! bytes in place, because a manifest may hold hundreds of thousands.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes in a tag. The longest that files have today are 21.
const SIZE_MAX: usize = 23;

/// A type's name in a file, of 1 to 23 bytes: `BF16`, `ggml:12`, `torch.float32`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    bytes: [u8; SIZE_MAX],
    size: u8,
}

/// A text that is no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the type {0:?} is empty or longer than {SIZE_MAX} bytes")]
pub struct TagError(pub String);

impl Tag {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Made of a text, and cut nowhere.
        std::str::from_utf8(&self.bytes[..usize::from(self.size)]).unwrap_or_default()
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let mut bytes = [0; SIZE_MAX];
        match bytes.get_mut(..text.len()) {
            Some(start) if !text.is_empty() => start.copy_from_slice(text.as_bytes()),
            _ => return Err(TagError(text.chars().take(100).collect())),
        }
        Ok(Self { bytes, size: text.len() as u8 })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Tag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Tag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a type of 1 to {SIZE_MAX} bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Tag, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_short_text() {
        for text in ["BF16", "torch.float8_e4m3fnuz", "x", &"y".repeat(23)] {
            assert_eq!(text.parse::<Tag>().unwrap().as_str(), text);
        }
        assert!("".parse::<Tag>().is_err() && "x".repeat(24).parse::<Tag>().is_err());
        assert!(std::mem::size_of::<Tag>() == 24);
    }
}
