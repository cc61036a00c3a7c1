//! Numbers and tables for people. Understandable without colour, and in a pipe.

use std::borrow::Cow;

use crate::api::{escaped, is_obeyed};

/// Characters between columns.
const GAP: &str = "  ";

/// Digits of a model id to show: no two models of one user will share so many.
const MODEL_DIGITS: usize = 12;

/// `bytes` to three digits: `512 B`, `1.50 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded up to 1024 belongs to the next unit.
    while 1023.5 <= value && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// `seconds` as `850 ms`, `12.3 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1e3);
    }
    if seconds < 99.95 {
        return format!("{} s", three_digits(seconds));
    }
    let whole = seconds.round() as u64;
    let (large, small, names) = match whole {
        0..3600 => (whole / 60, whole % 60, ("min", "s")),
        3600..86_400 => (whole / 3600, whole % 3600 / 60, ("h", "min")),
        _ => (whole / 86_400, whole % 86_400 / 3600, ("d", "h")),
    };
    if small == 0 {
        format!("{large} {}", names.0)
    } else {
        format!("{large} {} {small} {}", names.0, names.1)
    }
}

/// `part` of `whole` in whole percent, and 100 only if it is all.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if part == whole {
        return "100%".to_owned();
    }
    format!("{}%", u128::from(part) * 100 / u128::from(whole.max(1)))
}

/// `text` with what a terminal would obey written out. Lines and tabs stay.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_obeyed(c) && !matches!(c, '\n' | '\t'))
}

/// A name from elsewhere, on one line.
pub(crate) fn name(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed)
}

/// The beginning of a model id, by which the commands know the model as well.
pub(crate) fn model(id: &str) -> &str {
    id.get(..surf_protocol::id::MODEL_ID_PREFIX.len() + MODEL_DIGITS).unwrap_or(id)
}

/// Where the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under their titles, in columns as wide as they need to be.
pub(crate) fn table<const N: usize>(columns: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|at| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([columns[at].0.chars().count()]).max().unwrap_or(0)
    });
    let line = |cells: [&str; N]| {
        let padded = (0..N).map(|at| {
            let space = " ".repeat(widths[at] - cells[at].chars().count());
            match columns[at].1 {
                Align::Left => format!("{}{space}", cells[at]),
                Align::Right => format!("{space}{}", cells[at]),
            }
        });
        format!("{}\n", padded.collect::<Vec<_>>().join(GAP).trim_end())
    };
    let titles = line(columns.map(|(title, _)| title));
    rows.iter().fold(titles, |text, row| text + &line(std::array::from_fn(|at| row[at].as_str())))
}

/// Names and their values, one per line.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}{GAP}{value}\n")).collect()
}

fn three_digits(value: f64) -> String {
    let places = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (5 << 40, "5.00 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn times_have_two_units() {
        for (time, text) in [
            (0.0, "0 ms"),
            (0.0426, "43 ms"),
            (0.9999, "1.00 s"),
            (12.34, "12.3 s"),
            (99.96, "1 min 40 s"),
            (120.0, "2 min"),
            (7_500.0, "2 h 5 min"),
            (360_000.0, "4 d 4 h"),
        ] {
            assert_eq!(seconds(time), text);
        }
    }

    #[test]
    fn only_all_is_a_hundred_percent() {
        assert_eq!(
            (percent(999, 1000), percent(5, 5), percent(0, 0), percent(1, 0)),
            ("99%".into(), "100%".into(), "100%".into(), "100%".into())
        );
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [["ä".to_owned(), "5 B".to_owned()], ["name".to_owned(), "10 MiB".to_owned()]];
        let text = table([("MODEL", Align::Left), ("SIZE", Align::Right)], &rows);
        assert_eq!(text, "MODEL    SIZE\nä         5 B\nname   10 MiB\n");
    }

    #[test]
    fn a_short_id_is_shown_whole() {
        assert_eq!(model("surf:0123456789abcdef"), "surf:0123456789ab");
        assert_eq!(model("tiny"), "tiny");
    }

    #[test]
    fn terminals_are_not_commanded() {
        assert_eq!(plain("a\u{1b}[2J\tb\nc\u{9b}d\u{202e}e"), "a\\u{1b}[2J\tb\nc\\u{9b}d\\u{202e}e");
        assert_eq!(name("a\nb\r"), "a\\nb\\r");
        assert!(matches!(plain("Grüße 波 👩‍🚀"), Cow::Borrowed(_)));
    }
}
