//! The text of a template as minijinja takes it: with Jinja2's ends of lines, and with a scope where
//! transformers' `{% generation %}` stands.

/// transformers' tag around what the model said, which matters when masks for training are made. It
/// renders its body, in a scope of its own.
const TAGS: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];

/// `source`, prepared.
pub(super) fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    if !source.contains("generation") {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = &*source;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') => expression(rest, "}}"),
            Some(b'%') => {
                let tag = Tag::of(rest);
                if tag.name == "raw" {
                    raw(rest)
                } else {
                    if let Some((_, other)) = TAGS.iter().find(|(name, _)| *name == tag.name && tag.is_bare) {
                        out.push_str(&rest[..tag.start]);
                        out.push_str(other);
                        rest = &rest[tag.start + tag.name.len()..];
                        continue;
                    }
                    expression(rest, "%}")
                }
            }
            _ => 1,
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The name of a tag, and whether nothing follows it.
struct Tag<'a> {
    name: &'a str,
    start: usize,
    is_bare: bool,
}

impl<'a> Tag<'a> {
    /// Of what begins with `{%`.
    fn of(text: &'a str) -> Self {
        let inside = text[2..].strip_prefix(['-', '+']).unwrap_or(&text[2..]).trim_start();
        let start = text.len() - inside.len();
        let end = inside.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let (name, after) = inside.split_at(end.unwrap_or(inside.len()));
        let after = after.trim_start();
        let is_bare = after.strip_prefix(['-', '+']).unwrap_or(after).starts_with("%}");
        Self { name, start, is_bare }
    }
}

/// Bytes up to the end of what `end` closes, which is not in a string or in brackets.
fn expression(text: &str, end: &str) -> usize {
    let (mut depth, mut quote, mut is_escaped) = (0usize, None, false);
    for (at, byte) in text.bytes().enumerate().skip(2) {
        match (quote, byte) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), b'\\') => is_escaped = true,
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => (),
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, _) if depth == 0 && text[..].as_bytes()[at..].starts_with(end.as_bytes()) => {
                return at + end.len();
            }
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            (None, _) => (),
        }
    }
    text.len()
}

/// Bytes of a raw block, its tags included.
fn raw(text: &str) -> usize {
    let mut at = expression(text, "%}");
    while let Some(next) = text[at..].find("{%") {
        at += next;
        if Tag::of(&text[at..]).name == "endraw" {
            return at + expression(&text[at..], "%}");
        }
        at += 2;
    }
    text.len()
}
