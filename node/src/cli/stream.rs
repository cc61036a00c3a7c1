//! Lines and server-sent events, put together from whatever pieces the network hands over. Pure.

/// Bytes in a line. The longest are lists of peers and tokens with their likely neighbours.
const LINE_SIZE_MAX: usize = 16 * 1024 * 1024;

/// A line had no end in sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of more than {LINE_SIZE_MAX} bytes")]
pub(crate) struct TooLong;

/// Bytes in, whole lines out.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that end in `bytes`, without their ends. What is not UTF-8 is replaced.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut lines = Vec::new();
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        let unfinished = pieces.next_back().expect("splitting gives at least one piece");
        for piece in pieces {
            self.rest.extend_from_slice(piece);
            let line = std::mem::take(&mut self.rest);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            lines.push(String::from_utf8_lossy(line).into_owned());
        }
        self.rest.extend_from_slice(unfinished);
        if LINE_SIZE_MAX < self.rest.len() { Err(TooLong) } else { Ok(lines) }
    }
}

/// Bytes in, the data of whole events out.
#[derive(Debug, Default)]
pub(crate) struct Events {
    lines: Lines,
    data: Option<String>,
}

impl Events {
    /// The data of the events that end in `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        for line in self.lines.push(bytes)? {
            if line.is_empty() {
                events.extend(self.data.take());
                continue;
            }
            // A line that begins with a colon is a comment; other fields than data mean nothing here.
            let Some(data) = line.strip_prefix("data:") else { continue };
            let data = data.strip_prefix(' ').unwrap_or(data);
            match &mut self.data {
                Some(before) if LINE_SIZE_MAX < before.len() + data.len() => return Err(TooLong),
                Some(before) => {
                    before.push('\n');
                    before.push_str(data);
                }
                None => self.data = Some(data.to_owned()),
            }
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_are_what_the_standard_says() {
        let mut events = Events::default();
        let bytes = b": hello\n\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\ndata: lines\nid: 7\n\ndata: [DONE]\n\ndata: cut";
        assert_eq!(events.push(bytes), Ok(vec!["{\"a\":1}".into(), "two\nlines".into(), "[DONE]".into()]));
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; LINE_SIZE_MAX / 2];
        assert_eq!((lines.push(&piece), lines.push(&piece)), (Ok(vec![]), Ok(vec![])));
        assert_eq!(lines.push(b"x"), Err(TooLong));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_are_cut(
            texts in prop::collection::vec("[^\r\n]{0,12}", 0..8),
            cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let whole: String = texts.iter().map(|text| format!("{text}\n")).collect();
            let (mut lines, mut got, mut rest) = (Lines::default(), Vec::new(), whole.as_bytes());
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*cut));
                got.extend(lines.push(piece).unwrap());
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, texts);
        }
    }
}
