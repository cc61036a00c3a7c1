//! transformers' `strftime_now`: the local time, as Python's `datetime.now().strftime` writes it.

use std::fmt::Write as _;

use chrono::{DateTime, FixedOffset};

use crate::engine::sandbox::Clock;

/// Characters that one conversion may be padded to.
const WIDTH_MAX: usize = 64;

impl Clock {
    /// Now, where this machine is.
    pub(crate) fn now() -> Self {
        let now = chrono::Local::now();
        Self {
            seconds: now.timestamp(),
            micros: now.timestamp_subsec_micros(),
            ahead: now.offset().local_minus_utc(),
        }
    }

    fn local(self) -> Option<DateTime<FixedOffset>> {
        let utc = DateTime::from_timestamp(self.seconds, self.micros.checked_mul(1000)?)?;
        Some(utc.with_timezone(&FixedOffset::east_opt(self.ahead)?))
    }
}

/// `now` as `format` says, with the flags and widths of C. What is no conversion stays as it is.
pub(super) fn strftime(format: &str, now: Clock) -> String {
    let Some(now) = now.local() else { return format.to_owned() };
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = conversion(rest, &now, &mut out);
        rest = &rest[length..];
    }
    out + rest
}

/// Writes what the conversion at the beginning of `text` says, and returns its length.
fn conversion(text: &str, now: &DateTime<FixedOffset>, out: &mut String) -> usize {
    let flags = text[1..].bytes().take_while(|byte| b"_-0^#".contains(byte)).count();
    let digits = text[1 + flags..].bytes().take_while(u8::is_ascii_digit).count();
    let (flags, width) = (&text[1..1 + flags], &text[1 + flags..1 + flags + digits]);
    let start = 1 + flags.len() + width.len();
    let Some(letter) = text[start..].chars().next() else {
        out.push_str(text);
        return text.len();
    };
    let length = start + letter.len_utf8();
    let Some(plain) = value(letter, now) else {
        out.push_str(&text[..length]);
        return length;
    };
    let mut written = plain;
    for flag in flags.chars() {
        match flag {
            '-' => written = stripped(&written).to_owned(),
            '_' => written = padded(stripped(&written), ' ', written.chars().count()),
            '0' => written = padded(written.trim_start(), '0', written.chars().count()),
            '^' => written = written.to_uppercase(),
            _ if letter == 'p' || letter == 'Z' => written = written.to_lowercase(),
            _ => written = written.to_uppercase(),
        }
    }
    if let Ok(width) = width.parse::<usize>() {
        let with = match (flags.contains('_'), written.bytes().all(|byte| byte.is_ascii_digit())) {
            (false, true) => '0',
            _ => ' ',
        };
        written = padded(&written, with, width.min(WIDTH_MAX));
    }
    out.push_str(&written);
    length
}

/// What one conversion means. Python's local time without a zone has neither a name nor an offset.
fn value(letter: char, now: &DateTime<FixedOffset>) -> Option<String> {
    let format = match letter {
        '%' => return Some("%".to_owned()),
        'n' => return Some("\n".to_owned()),
        't' => return Some("\t".to_owned()),
        'z' | 'Z' => return Some(String::new()),
        'f' => return Some(format!("{:06}", now.timestamp_subsec_micros())),
        's' => return Some(now.timestamp().to_string()),
        'c' => "%a %b %e %H:%M:%S %Y",
        'x' => "%m/%d/%y",
        'X' => "%H:%M:%S",
        'r' => "%I:%M:%S %p",
        'a' => "%a",
        'A' => "%A",
        'b' => "%b",
        'h' => "%h",
        'B' => "%B",
        'C' => "%C",
        'd' => "%d",
        'D' => "%D",
        'e' => "%e",
        'F' => "%F",
        'g' => "%g",
        'G' => "%G",
        'H' => "%H",
        'I' => "%I",
        'j' => "%j",
        'k' => "%k",
        'l' => "%l",
        'm' => "%m",
        'M' => "%M",
        'p' => "%p",
        'P' => "%P",
        'R' => "%R",
        'S' => "%S",
        'T' => "%T",
        'u' => "%u",
        'U' => "%U",
        'V' => "%V",
        'w' => "%w",
        'W' => "%W",
        'y' => "%y",
        'Y' => "%Y",
        _ => return None,
    };
    let mut out = String::new();
    write!(out, "{}", now.format(format)).ok()?;
    Some(out)
}

/// Without what pads a number, but with its last digit.
fn stripped(number: &str) -> &str {
    let rest = number.trim_start_matches([' ', '0']);
    if rest.is_empty() && !number.is_empty() { &number[number.len() - 1..] } else { rest }
}

fn padded(text: &str, with: char, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    std::iter::repeat_n(with, missing).chain(text.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, format: &str) -> String {
        strftime(format, Clock { seconds, micros: 42, ahead: 0 })
    }

    /// Python's `datetime.fromtimestamp(…).strftime`, in UTC.
    #[test]
    fn conversions_are_those_of_python() {
        let leap = 1_709_210_096; // 2024-02-29 12:34:56
        for (format, expected) in [
            ("%d %b %Y", "29 Feb 2024"),
            ("%Y-%m-%d %H:%M:%S %a %A %B", "2024-02-29 12:34:56 Thu Thursday February"),
            ("%-d|%-m|%-j|%-I|%-y", "29|2|60|12|24"),
            ("%e|%F|%D|%j|%p|%I|%P", "29|2024-02-29|02/29/24|060|PM|12|pm"),
            ("%R|%T|%r|%c|%x|%X", "12:34|12:34:56|12:34:56 PM|Thu Feb 29 12:34:56 2024|02/29/24|12:34:56"),
            ("%u|%w|%U|%W|%V|%G|%g|%C|%h", "4|4|08|09|09|2024|24|20|Feb"),
            ("%f|%z|%Z|%s|%k|%l", "000042|||1709210096|12|12"),
            ("%^a|%#p|%^B|%_m|%5Y|%10d|%_5d|%n%t%%", "THU|pm|FEBRUARY| 2|02024|0000000029|   29|\n\t%"),
            ("%", "%"),
            ("%q %é %", "%q %é %"),
            ("%-", "%-"),
            ("100%", "100%"),
        ] {
            assert_eq!(at(leap, format), expected, "{format}");
        }
        assert_eq!(at(951_868_800, "%e|%-d|%_d|%I %p|%-H|%y/%m/%d"), " 1|1| 1|12 AM|0|00/03/01");
    }

    #[test]
    fn time_is_local_and_absurd_formats_and_clocks_do_no_harm() {
        let clock = Clock { seconds: 0, micros: 0, ahead: 14 * 3600 };
        assert_eq!(strftime("%F %H:%M", clock), "1970-01-01 14:00");
        assert_eq!(strftime("%F", Clock { ahead: -12 * 3600, ..clock }), "1969-12-31");
        assert!(strftime("%99999999999999999999d%9999d%-_0^#", clock).len() < 300);
        assert_eq!(strftime("%F", Clock { seconds: i64::MAX, micros: u32::MAX, ahead: i32::MIN }), "%F");
    }
}
