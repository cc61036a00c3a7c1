//! Bytes to characters as they come. A character whose bytes are not all here yet waits.

use std::ops::Range;

/// What stands for bytes that are part of no character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// One U+FFFD for each byte, as SentencePiece writes them.
    EachByte,
    /// One for the longest beginning of a character, as Unicode recommends and byte-level BPE does.
    EachBeginning,
}

/// The bytes of a character that is not complete: at most three.
#[derive(Clone, Debug, Default)]
pub(super) struct Utf8 {
    pending: Vec<u8>,
}

impl Utf8 {
    /// Whether a character waits for its end.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Adds `bytes`, and to `text` what they complete. Returns how many characters of it stand for
    /// broken bytes of earlier calls.
    pub(super) fn push(&mut self, bytes: &[u8], broken: Broken, text: &mut String) -> usize {
        let before = self.pending.len();
        let mut all = std::mem::take(&mut self.pending);
        all.extend_from_slice(bytes);
        let (mut at, mut late) = (0, 0);
        while at < all.len() {
            let valid = match std::str::from_utf8(&all[at..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    at = all.len();
                    break;
                }
                Err(error) => error,
            };
            let end = at + valid.valid_up_to();
            text.push_str(std::str::from_utf8(&all[at..end]).unwrap_or_default());
            at = end;
            let Some(length) = valid.error_len() else { break };
            late += replace(at..at + length, before, broken, text);
            at += length;
        }
        all.drain(..at);
        self.pending = all;
        late
    }

    /// Gives up what is pending. Returns how many characters stand for it.
    pub(super) fn give_up(&mut self, broken: Broken, text: &mut String) -> usize {
        match std::mem::take(&mut self.pending).len() {
            0 => 0,
            length => replace(0..length, length, broken, text),
        }
    }
}

/// Writes what stands for the broken bytes in `range`, which are some. Returns how many characters stand for bytes
/// before `before`.
fn replace(range: Range<usize>, before: usize, broken: Broken, text: &mut String) -> usize {
    let starts = match broken {
        Broken::EachByte => range,
        Broken::EachBeginning => range.start..range.start + 1,
    };
    text.extend(starts.clone().map(|_| char::REPLACEMENT_CHARACTER));
    starts.filter(|start| *start < before).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In pieces of any size, and whatever the bytes, as the standard library reads them whole.
        #[test]
        fn pieces_make_no_difference(
            pieces in prop::collection::vec(
                prop::collection::vec(prop::sample::select(vec![0x41, 0x80, 0xbf, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xed, 0xa0, 0xf0, 0x9f, 0xa6, 0xad, 0xf4, 0xff]), 0..4),
                0..12,
            ),
        ) {
            let (mut utf8, mut text) = (Utf8::default(), String::new());
            for piece in &pieces {
                utf8.push(piece, Broken::EachBeginning, &mut text);
                prop_assert!(utf8.pending.len() < 4);
            }
            utf8.give_up(Broken::EachBeginning, &mut text);
            prop_assert_eq!(text, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }
    }

    #[test]
    fn broken_bytes_are_told_once_and_where_they_belong() {
        let (mut utf8, mut text) = (Utf8::default(), String::new());
        assert_eq!(utf8.push(b"a\xe2\x82", Broken::EachByte, &mut text), 0);
        assert_eq!((text.as_str(), utf8.is_pending()), ("a", true));
        assert_eq!(utf8.push(b"b", Broken::EachByte, &mut text), 2);
        assert_eq!(text, "a\u{fffd}\u{fffd}b");
    }
}
