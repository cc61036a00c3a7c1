//! Quantities as users write them: `512MiB`, `10GB`, `25%`, `100Mbit`, `30s`.
//!
//! Whole numbers throughout, so nothing is rounded that need not be; a number that does not fit is
//! an error, never a wrap or a clamp. What a quantity displays as reads back as the same quantity.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;

/// Digits after the point that are read. More are an error rather than ignored.
const FRACTION_DIGITS_MAX: u32 = 9;

/// Hundredths of a percent in the whole.
const WHOLE: u64 = 100 * 100;

/// A number of bytes, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Size {
    /// This many bytes.
    Bytes(u64),
    /// This many hundredths of a percent: 2500 is `25%`.
    Share(u16),
}

/// Bytes per second, written as bits (`100Mbit`) or bytes (`20MB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Written")]
pub struct Rate {
    /// Bytes per second. Never zero.
    pub bytes_per_s: u64,
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Written")]
pub struct Span(pub Duration);

/// Text that is not the quantity it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct NotAQuantity {
    text: String,
    expected: &'static str,
}

const SIZE: &str = "a size such as 512MiB, 8GiB, 10GB or 25%";
const RATE: &str = "a rate such as 100Mbit or 20MB (each second)";
const SPAN: &str = "a duration such as 500ms, 30s, 5m or 2h";

/// Units of bytes, the largest first, so that the first that divides a size is the one to show.
const BYTE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

const BIT_UNITS: &[(&str, u64)] =
    &[("Tbit", 1_000_000_000_000), ("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

const SPAN_UNITS_MS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Size {
    /// How many bytes this is where there are `whole`.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Share(share) => {
                let bytes = u128::from(whole) * u128::from(share) / u128::from(WHOLE);
                u64::try_from(bytes).expect("a share is at most the whole")
            }
        }
    }
}

impl FromStr for Size {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let error = || NotAQuantity { text: text.to_owned(), expected: SIZE };
        let (number, unit) = split(text).ok_or_else(error)?;
        if unit == "%" {
            let share = number.times(100).filter(|share| (1..=WHOLE).contains(share)).ok_or_else(error)?;
            return Ok(Size::Share(u16::try_from(share).expect("at most 10,000")));
        }
        let unit = if unit.is_empty() { "B" } else { unit };
        number.times(scale(BYTE_UNITS, unit).ok_or_else(error)?).map(Size::Bytes).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => write_exactly(f, *bytes, BYTE_UNITS),
            Size::Share(share) if share % 100 == 0 => write!(f, "{}%", share / 100),
            Size::Share(share) => write!(f, "{}.{:02}%", share / 100, share % 100),
        }
    }
}

impl FromStr for Rate {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let error = || NotAQuantity { text: text.to_owned(), expected: RATE };
        let (number, unit) = split(text).ok_or_else(error)?;
        let unit = unit.strip_suffix("/s").unwrap_or(unit);
        let bytes_per_s = match scale(BIT_UNITS, unit) {
            Some(bits) => number.times(bits).ok_or_else(error)? / 8,
            None => number.times(scale(BYTE_UNITS, unit).ok_or_else(error)?).ok_or_else(error)?,
        };
        // Nothing would ever move at less than a byte per second.
        if bytes_per_s == 0 { Err(error()) } else { Ok(Self { bytes_per_s }) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exactly(f, self.bytes_per_s, BYTE_UNITS)
    }
}

impl FromStr for Span {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let error = || NotAQuantity { text: text.to_owned(), expected: SPAN };
        let (number, unit) = split(text).ok_or_else(error)?;
        let millis = number.times(scale(SPAN_UNITS_MS, unit).ok_or_else(error)?).ok_or_else(error)?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exactly(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), SPAN_UNITS_MS)
    }
}

/// A decimal number without sign or exponent.
#[derive(Clone, Copy)]
struct Decimal {
    digits: u128,
    /// How many of the digits stand after the point.
    fraction: u32,
}

impl Decimal {
    /// `self` × `scale`, rounded down; `None` if it does not fit.
    fn times(self, scale: u64) -> Option<u64> {
        let scaled = self.digits.checked_mul(scale.into())? / 10u128.pow(self.fraction);
        u64::try_from(scaled).ok()
    }
}

/// The number that `text` starts with, and the unit that follows it.
fn split(text: &str) -> Option<(Decimal, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let places = u32::try_from(fraction.len()).ok().filter(|places| *places <= FRACTION_DIGITS_MAX)?;
    let whole: u64 = whole.parse().ok()?;
    let fraction: u64 = fraction.parse().ok()?;
    let digits = u128::from(whole) * 10u128.pow(places) + u128::from(fraction);
    Some((Decimal { digits, fraction: places }, unit.trim_start()))
}

fn scale(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, scale)| *scale)
}

fn write_exactly(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let whole = units.iter().find(|(_, scale)| value != 0 && value.is_multiple_of(*scale));
    let (name, scale) = whole.or(units.last()).expect("no table of units is empty");
    write!(f, "{}{name}", value / scale)
}

/// How a quantity may stand in a configuration file: as text, or as a bare number of bytes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl Written {
    fn into_text(self) -> String {
        match self {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        }
    }
}

macro_rules! from_written {
    ($($quantity:ty),*) => {$(
        impl TryFrom<Written> for $quantity {
            type Error = NotAQuantity;

            fn try_from(written: Written) -> Result<Self, NotAQuantity> {
                written.into_text().parse()
            }
        }
    )*};
}
from_written!(Size, Rate, Span);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_what_they_say() {
        for (text, bytes) in [
            ("0", 0),
            ("42", 42),
            ("42B", 42),
            ("512MiB", 512 << 20),
            ("8GiB", 8 << 30),
            ("10GB", 10_000_000_000),
            ("1.5 KiB", 1536),
            ("2tib", 2 << 40),
            (" 3kB ", 3000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size::Bytes(bytes)), "{text}");
        }
        assert_eq!("25%".parse(), Ok(Size::Share(2500)));
        assert_eq!("0.5%".parse(), Ok(Size::Share(50)));
        assert_eq!("25%".parse::<Size>().unwrap().of(8 << 30), 2 << 30);
        assert_eq!("100%".parse::<Size>().unwrap().of(u64::MAX), u64::MAX);
    }

    #[test]
    fn what_is_no_size_says_what_one_looks_like() {
        for text in
            ["", "MiB", "-1", "1e9", "1..5MB", "1.", ".5GB", "8G", "8 Gib it", "0%", "101%", "16777216TiB"]
        {
            let error = text.parse::<Size>().expect_err(text);
            assert_eq!(
                error.to_string(),
                format!("{text:?} is not a size such as 512MiB, 8GiB, 10GB or 25%")
            );
        }
    }

    #[test]
    fn rates_are_in_bits_or_bytes() {
        for (text, bytes_per_s) in
            [("100Mbit", 12_500_000), ("20MB", 20_000_000), ("1Gbit/s", 125_000_000), ("8bit", 1)]
        {
            assert_eq!(text.parse(), Ok(Rate { bytes_per_s }), "{text}");
        }
        for text in ["", "0", "0MB", "7bit", "fast", "25%"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_need_a_unit() {
        for (text, millis) in
            [("30s", 30_000), ("500ms", 500), ("1.5m", 90_000), ("2h", 7_200_000), ("1d", 86_400_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "30", "s", "30sec", "-1s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes in any::<u64>(), shift in 0u32..64, share in 1u16..=10_000) {
            let bytes = bytes >> shift;
            for size in [Size::Bytes(bytes), Size::Share(share)] {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
            let rate = Rate { bytes_per_s: bytes.max(1) };
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            let span = Span(Duration::from_millis(bytes));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn no_text_breaks_the_parser(text in "[0-9.a-zA-Z% /]{0,30}|.{0,30}") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Rate>();
            let _ = text.parse::<Span>();
        }

        #[test]
        fn a_share_is_never_more_than_the_whole(share in 1u16..=10_000, whole in any::<u64>()) {
            prop_assert!(Size::Share(share).of(whole) <= whole);
        }

        #[test]
        fn fractions_are_exact(whole in 0u64..1000, quarters in 0u64..4) {
            let text = format!("{whole}.{:02}GiB", quarters * 25);
            prop_assert_eq!(text.parse(), Ok(Size::Bytes((whole << 30) + quarters * (1 << 28))));
        }
    }
}
