//! Stop strings. Text that may be the beginning of one is held back until it is clear.

/// Looks for stop strings in text that comes piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
}

/// What became of some text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// What can be shown now.
    pub(crate) text: String,
    /// Whether a stop string was found; it, and what follows it, is not shown.
    pub(crate) stopped: bool,
}

impl Stops {
    /// Empty stop strings count for nothing.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds `text`.
    pub(crate) fn push(&mut self, text: &str) -> Checked {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Checked { text: std::mem::take(&mut self.held), stopped: true };
        }
        let from = self.doubtful();
        let doubtful = self.held.split_off(from);
        Checked { text: std::mem::replace(&mut self.held, doubtful), stopped: false }
    }

    /// What is still held, now that nothing more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the longest end of the text begins that is a beginning of a stop string.
    fn doubtful(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(1) - 1;
        let begins = |&from: &usize| {
            self.held.is_char_boundary(from)
                && self.stops.iter().any(|stop| stop.starts_with(&self.held[from..]))
        };
        (self.held.len().saturating_sub(longest)..self.held.len()).find(begins).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(stops: &[&str]) -> Stops {
        Stops::new(stops.iter().map(ToString::to_string).collect())
    }

    fn all(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = self::stops(stops);
        let mut shown = String::new();
        for piece in pieces {
            let checked = matcher.push(piece);
            shown.push_str(&checked.text);
            if checked.stopped {
                return (shown, true);
            }
        }
        (shown + &matcher.finish(), false)
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_not_shown() {
        let mut matcher = stops(&["<|end|>"]);
        assert_eq!(matcher.push("a<").text, "a");
        assert_eq!(matcher.push("|en").text, "");
        assert_eq!(matcher.push("d|").text, "");
        assert_eq!(matcher.push(">b"), Checked { text: String::new(), stopped: true });
    }

    #[test]
    fn what_turns_out_to_be_none_is_shown() {
        let mut matcher = stops(&["\n\n", "END"]);
        assert_eq!(matcher.push("one\n").text, "one");
        assert_eq!(matcher.push("two EN").text, "\ntwo ");
        assert_eq!(matcher.push("EN").text, "EN");
        assert_eq!(matcher.finish(), "EN");
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(all(&["b", "a"], &["xyab"]), ("xy".to_owned(), true));
        assert_eq!(all(&[""], &["xy"]), ("xy".to_owned(), false));
        assert_eq!(all(&["ü"], &["x", "ü"]), ("x".to_owned(), true));
        assert_eq!(all(&["üü"], &["xü", "y"]), ("xüy".to_owned(), false));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[ab]{0,20}", stop in "[ab]{1,4}", cuts in prop::collection::vec(0..20usize, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let expected = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(all(&[&stop], &pieces), expected);
        }
    }
}
