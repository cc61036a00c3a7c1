//! What a tokenizer's decoder does to tokens, one stage after the other, without waiting for the last
//! token. Joined, what comes out is what `tokenizers` makes of all tokens at once.
//!
//! The decoder is a stranger's: its texts are short, a pattern sees short tokens alone, and what would grow
//! beyond [`GROWN_SIZE_MAX`] stays as it was.

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;

use super::{
    letters,
    utf8::{Broken, Utf8},
};

/// Stages of a decoder. Those that are in use have five at most.
const STAGES_MAX: usize = 16;

/// Bytes that a stage makes of one token at most, if that is more than the token has.
const GROWN_SIZE_MAX: usize = 1024;

/// Bytes of a text that a decoder looks for or puts in. Those that are in use have a few.
const TEXT_SIZE_MAX: usize = 256;

/// Patterns of a decoder. Those that are in use have one at most.
const PATTERNS_MAX: usize = 2;

/// Bytes of a token that a pattern sees; a longer one stays as it is. Looking for a pattern may take the square of
/// this many steps: some 100 µs.
const PATTERN_TOKEN_SIZE_MAX: usize = 256;

/// Steps that a pattern may go back on one token: some 100 µs.
const BACKTRACKS_MAX: usize = 10_000;

/// Bytes of each part of a pattern when it is compiled.
const COMPILED_SIZE_MAX: usize = 1 << 20;

/// One stage.
#[derive(Debug)]
pub(super) enum Stage {
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Metaspace {
        replacement: char,
        drops_first: bool,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    WordEnd {
        suffix: String,
    },
    Ctc {
        pad: String,
        delimiter: String,
        cleanup: bool,
    },
    ByteFallback,
    ByteLevel,
    /// Tokens with spaces between, where there is no decoder.
    Spaces,
}

#[derive(Debug)]
pub(super) enum Pattern {
    Text(String),
    Regex(Box<Regex>),
}

/// A stage in its place.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stage: Stage,
    /// Whether what comes in is one text that grows, and not tokens.
    fused: bool,
}

/// What a stage remembers of a text.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Whether something came before.
    started: bool,
    /// Characters dropped at the start.
    dropped: usize,
    /// Whether the last token ends a word.
    spaced: bool,
    /// The last token.
    previous: Option<String>,
    /// Text that waits for what follows.
    held: String,
    utf8: Utf8,
}

/// A decoder as `tokenizer.json` writes it.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Written {
    Sequence {
        decoders: Vec<Written>,
    },
    Replace {
        pattern: WrittenPattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Metaspace {
        replacement: char,
        #[serde(default)]
        prepend_scheme: Option<String>,
        #[serde(default)]
        add_prefix_space: Option<bool>,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    #[serde(rename = "BPEDecoder")]
    WordEnd {
        suffix: String,
    },
    #[serde(rename = "CTC")]
    Ctc {
        pad_token: String,
        word_delimiter_token: String,
        cleanup: bool,
    },
    ByteFallback {},
    ByteLevel {},
    Fuse {},
}

#[derive(Deserialize)]
enum WrittenPattern {
    String(String),
    Regex(String),
}

/// The stages of `decoder`, which is `null` where there is none.
pub(super) fn read(decoder: &Value) -> Result<Vec<Link>, String> {
    if decoder.is_null() {
        return Ok(vec![Link { stage: Stage::Spaces, fused: false }]);
    }
    let written = Written::deserialize(decoder).map_err(|error| error.to_string())?;
    let (mut links, mut fused) = (Vec::new(), false);
    add(written, &mut links, &mut fused)?;
    let patterns = links.iter().filter(|link| link.stage.is_pattern()).count();
    if PATTERNS_MAX < patterns {
        return Err(format!("its decoder has {patterns} patterns; it may have {PATTERNS_MAX}"));
    }
    Ok(links)
}

fn add(written: Written, links: &mut Vec<Link>, fused: &mut bool) -> Result<(), String> {
    let stage = match written {
        Written::Sequence { decoders } => {
            return decoders.into_iter().try_for_each(|decoder| add(decoder, links, fused));
        }
        Written::Fuse {} => {
            *fused = true;
            return Ok(());
        }
        Written::Replace { pattern, content } => {
            let (WrittenPattern::String(looked_for) | WrittenPattern::Regex(looked_for)) = &pattern;
            short(looked_for)?;
            short(&content)?;
            let pattern = match pattern {
                WrittenPattern::String(text) => Pattern::Text(text),
                WrittenPattern::Regex(text) => {
                    let mut builder = RegexBuilder::new(&text);
                    builder.backtrack_limit(BACKTRACKS_MAX).delegate_size_limit(COMPILED_SIZE_MAX);
                    Pattern::Regex(Box::new(builder.build().map_err(|error| error.to_string())?))
                }
            };
            Stage::Replace { pattern, content }
        }
        Written::Strip { content, start, stop } => Stage::Strip { content, start, stop },
        Written::Metaspace { replacement, prepend_scheme, add_prefix_space } => {
            let never = prepend_scheme.map_or(add_prefix_space == Some(false), |scheme| scheme == "never");
            Stage::Metaspace { replacement, drops_first: !never }
        }
        Written::WordPiece { prefix, cleanup } => {
            short(&prefix)?;
            Stage::WordPiece { prefix, cleanup }
        }
        Written::WordEnd { suffix } => {
            short(&suffix)?;
            Stage::WordEnd { suffix }
        }
        Written::Ctc { pad_token, word_delimiter_token, cleanup } => {
            short(&pad_token)?;
            short(&word_delimiter_token)?;
            Stage::Ctc { pad: pad_token, delimiter: word_delimiter_token, cleanup }
        }
        Written::ByteFallback {} => Stage::ByteFallback,
        Written::ByteLevel {} => Stage::ByteLevel,
    };
    if links.len() == STAGES_MAX {
        return Err(format!("it has more than {STAGES_MAX} stages"));
    }
    let was_fused = std::mem::replace(fused, *fused || matches!(stage, Stage::ByteLevel));
    links.push(Link { stage, fused: was_fused });
    Ok(())
}

/// Fails if a text that a decoder knows is longer than any that is in use.
fn short(text: &str) -> Result<(), String> {
    match text.len() <= TEXT_SIZE_MAX {
        true => Ok(()),
        false => Err(format!("its decoder has a text of {} bytes; {TEXT_SIZE_MAX} are read", text.len())),
    }
}

impl Stage {
    fn is_pattern(&self) -> bool {
        matches!(self, Self::Replace { pattern: Pattern::Regex(_), .. })
    }
}

impl State {
    /// As after a text whose beginning no longer matters.
    pub(super) fn going_on() -> Self {
        Self { started: true, dropped: usize::MAX, ..Self::default() }
    }

    /// Whether everything that came in has come out.
    pub(super) fn is_settled(&self) -> bool {
        self.held.is_empty() && !self.utf8.is_pending()
    }
}

impl Link {
    /// Takes a token, or more of a text, and adds to `out` what is certain. Returns how many characters
    /// of that stand for broken bytes that came before.
    pub(super) fn push(&self, state: &mut State, item: String, out: &mut Vec<String>) -> usize {
        let first = !state.started || self.fused;
        state.started = true;
        let text = match &self.stage {
            Stage::Replace { pattern: Pattern::Text(from), content } if self.fused => {
                replace_growing(&mut state.held, &item, from, content)
            }
            Stage::Replace { pattern, content } => pattern.replace(&item, content).unwrap_or(item),
            Stage::Strip { content, start, stop } if self.fused => {
                let rest = item.trim_start_matches(|letter| {
                    let drops = letter == *content && state.dropped < *start;
                    state.dropped = if drops { state.dropped + 1 } else { usize::MAX };
                    drops
                });
                state.held.push_str(rest);
                let kept = state.held.trim_end_matches(*content).len();
                let ends = state.held[kept..].chars().count().saturating_sub(*stop);
                let from = kept + ends * content.len_utf8();
                let held = state.held.split_off(from);
                std::mem::replace(&mut state.held, held)
            }
            Stage::Strip { content, start, stop } => strip(&item, *content, *start, *stop).to_owned(),
            Stage::Metaspace { replacement, drops_first } => {
                let space = if first && *drops_first { "" } else { " " };
                item.replace(*replacement, space)
            }
            Stage::WordPiece { prefix, cleanup } => word_piece(&item, first, prefix, *cleanup),
            Stage::WordEnd { suffix } => word_end(state, &item, suffix, self.fused),
            Stage::Ctc { pad, delimiter, cleanup } => {
                if !self.fused && state.previous.as_ref() == Some(&item) {
                    return 0;
                }
                let text = ctc(&item, pad, delimiter, *cleanup);
                state.previous = Some(item);
                text
            }
            Stage::ByteFallback => {
                let mut text = String::new();
                let byte = if self.fused { None } else { byte(&item) };
                let late = match byte {
                    Some(byte) => state.utf8.push(&[byte], Broken::EachByte, &mut text),
                    None => state.utf8.give_up(Broken::EachByte, &mut text),
                };
                out.extend(Some(text).filter(|text| !text.is_empty()));
                out.extend(byte.is_none().then_some(item));
                return late;
            }
            Stage::ByteLevel => {
                let mut text = String::new();
                let late = state.utf8.push(&letters::bytes(&item), Broken::EachBeginning, &mut text);
                out.extend(Some(text).filter(|text| !text.is_empty()));
                return late;
            }
            Stage::Spaces if first => item,
            Stage::Spaces => format!(" {item}"),
        };
        out.push(text);
        0
    }

    /// Bytes that it makes of one token of `bytes` bytes at most.
    pub(super) fn bytes_max(&self, bytes: usize) -> usize {
        match &self.stage {
            Stage::Replace { pattern: Pattern::Text(from), content } if content.len() <= from.len() => bytes,
            Stage::Replace { .. } => bytes + GROWN_SIZE_MAX + TEXT_SIZE_MAX,
            // A broken byte becomes a character of three, and is written as one of two.
            Stage::ByteLevel => bytes + bytes / 2,
            Stage::ByteFallback | Stage::Strip { .. } | Stage::Metaspace { .. } | Stage::Ctc { .. } => bytes,
            Stage::WordPiece { .. } | Stage::WordEnd { .. } | Stage::Spaces => bytes + 1,
        }
    }

    /// What comes out when nothing more comes in. Half a character is shown as broken only if `ended`.
    pub(super) fn finish(&self, state: &mut State, ended: bool) -> Option<String> {
        match &self.stage {
            Stage::Replace { .. } => Some(std::mem::take(&mut state.held)).filter(|held| !held.is_empty()),
            _ if ended => self.give_up(state),
            _ => None,
        }
    }

    /// What stands for half a character that never becomes one.
    pub(super) fn give_up(&self, state: &mut State) -> Option<String> {
        let broken = match self.stage {
            Stage::ByteFallback => Broken::EachByte,
            Stage::ByteLevel => Broken::EachBeginning,
            _ => return None,
        };
        let mut text = String::new();
        state.utf8.give_up(broken, &mut text);
        Some(text).filter(|text| !text.is_empty())
    }

    /// The bytes of `token` by itself, if this is where tokens become bytes.
    pub(super) fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self.stage {
            Stage::ByteFallback if !self.fused => byte(token).map(|byte| vec![byte]),
            Stage::ByteLevel => Some(letters::bytes(token)),
            _ => None,
        }
    }
}

impl Pattern {
    /// `None` if it would take too long, or grow too much.
    fn replace(&self, text: &str, content: &str) -> Option<String> {
        match self {
            Self::Text(from) if from.is_empty() => None,
            Self::Text(from) => {
                let grown = text.matches(from.as_str()).count().saturating_mul(content.len());
                (text.len().saturating_add(grown) <= GROWN_SIZE_MAX.max(text.len()))
                    .then(|| text.replace(from.as_str(), content))
            }
            Self::Regex(_) if PATTERN_TOKEN_SIZE_MAX < text.len() => None,
            Self::Regex(regex) => {
                let (mut replaced, mut at) = (String::new(), 0);
                for found in regex.find_iter(text) {
                    let found = found.ok()?;
                    replaced.push_str(&text[at..found.start()]);
                    replaced.push_str(content);
                    at = found.end();
                    if GROWN_SIZE_MAX < replaced.len() {
                        return None;
                    }
                }
                Some(replaced + &text[at..])
            }
        }
    }
}

/// Adds `more` to what is held of a text that grows; returns what of it is certain, with `content` for
/// each `from`.
fn replace_growing(held: &mut String, more: &str, from: &str, content: &str) -> String {
    held.push_str(more);
    if from.is_empty() {
        return std::mem::take(held);
    }
    let (mut text, mut rest) = (String::new(), held.as_str());
    while let Some(at) = rest.find(from)
        && text.len() <= GROWN_SIZE_MAX
    {
        text.push_str(&rest[..at]);
        text.push_str(content);
        rest = &rest[at + from.len()..];
    }
    // The longest end that may be the beginning of another.
    let least = rest.len().saturating_sub(from.len() - 1);
    let begins = |at: &usize| rest.is_char_boundary(*at) && from.starts_with(&rest[*at..]);
    let from_here = (least..rest.len()).find(begins).unwrap_or(rest.len());
    text.push_str(&rest[..from_here]);
    *held = rest[from_here..].to_owned();
    text
}

fn strip(token: &str, content: char, start: usize, stop: usize) -> &str {
    let mut rest = token;
    for _ in 0..start.min(token.len()) {
        let Some(shorter) = rest.strip_prefix(content) else { break };
        rest = shorter;
    }
    for _ in 0..stop.min(token.len()) {
        let Some(shorter) = rest.strip_suffix(content) else { break };
        rest = shorter;
    }
    rest
}

fn word_piece(token: &str, first: bool, prefix: &str, cleanup: bool) -> String {
    let text = match token.strip_prefix(prefix) {
        _ if first => token.to_owned(),
        Some(rest) => rest.to_owned(),
        None => format!(" {token}"),
    };
    if cleanup { cleaned(&text) } else { text }
}

/// `token` without the suffix that ends a word. The space that it stands for comes with the next token,
/// because after the last one there is none.
fn word_end(state: &mut State, token: &str, suffix: &str, fused: bool) -> String {
    if suffix.is_empty() {
        return token.to_owned();
    }
    if fused {
        return token.replace(suffix, "");
    }
    let before = if std::mem::replace(&mut state.spaced, token.ends_with(suffix)) { " " } else { "" };
    let word = token.strip_suffix(suffix).unwrap_or(token);
    format!("{before}{}", word.replace(suffix, " "))
}

fn ctc(token: &str, pad: &str, delimiter: &str, cleanup: bool) -> String {
    let text = if pad.is_empty() { token.to_owned() } else { token.replace(pad, "") };
    match cleanup {
        true if delimiter.is_empty() => cleaned(&text),
        true => cleaned(&text).replace(delimiter, " "),
        false => text,
    }
}

/// English without the spaces that tokens of words bring.
fn cleaned(text: &str) -> String {
    const CLEANER: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    CLEANER.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The byte that `<0x41>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
