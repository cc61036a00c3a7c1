//! The letters that byte-level tokenizers write bytes with: those that can be seen stand for themselves,
//! the others for letters from U+0100 on.

use std::{collections::HashMap, sync::LazyLock};

static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut others = (0x100..).filter_map(char::from_u32);
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => Some((char::from(byte), byte)),
        _ => Some((others.next()?, byte)),
    };
    (0..=u8::MAX).filter_map(letter).collect()
});

/// The bytes that `token` stands for; its own, if not all of it are such letters.
pub(super) fn bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|letter| BYTES.get(&letter).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}
