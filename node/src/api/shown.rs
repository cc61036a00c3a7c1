//! Words of others in sentences of ours.

use std::{borrow::Cow, fmt::Write as _};

/// Bytes of a sentence, or nearly. A file of a model may hold a name of a megabyte.
const SENTENCE_SIZE_MAX: usize = 800;

/// One sentence, which may quote what a stranger wrote: what a terminal would obey is written out, and a long one
/// ends early.
pub(crate) fn sentence(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(SENTENCE_SIZE_MAX));
    for c in text.chars() {
        if SENTENCE_SIZE_MAX <= shown.len() {
            shown.push('…');
            break;
        }
        match is_obeyed(c) {
            // Writing to a string does not fail.
            true => drop(write!(shown, "{}", c.escape_default())),
            false => shown.push(c),
        }
    }
    shown
}

/// `text` with those of its characters written out that `is_bad` names.
pub(crate) fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let write = |c: char| if is_bad(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(write).collect())
}

/// Whether a terminal obeys it, or it makes text look like other text.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_short_and_obeys_nobody() {
        assert_eq!(sentence("tensor \"a\" is of type Ü"), "tensor \"a\" is of type Ü");
        assert_eq!(sentence("is\n\r\u{1b}[31m\0\u{2028}"), r"is\n\r\u{1b}[31m\u{0}\u{2028}");
        let long = sentence(&"機".repeat(1 << 20));
        assert!(long.ends_with("機…") && long.len() <= SENTENCE_SIZE_MAX + 6, "{}", long.len());
    }
}
