//! Sizes and durations as written in files.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Invalid, invalid::shown};

/// A number of bytes, written as an integer with `K`, `M` or `G` (powers of 1024) or without a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Makes a size of a number of bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Parses a size: `262144`, `256K`, `256M`, `1G`. The largest is 2^64 - 1 bytes.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| {
            Invalid::new(format!("{} is not a size: {why}", shown(text)))
                .hint("write an integer and K, M or G, for example \"256M\"")
        };
        let (number, unit) = split(text);
        let factor: u64 = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            "G" => 1 << 30,
            _ => return Err(refuse("the unit is unknown")),
        };
        let number = integer(number).ok_or_else(|| refuse("it must begin with an integer"))?;
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| refuse("it is too large"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0 & ((1 << shift) - 1) == 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Parses a duration: an integer with `ms`, `s`, `m` or `h`. The longest is 2^64 - 1 milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let refuse = |why: &str| {
        Invalid::new(format!("{} is not a duration: {why}", shown(text)))
            .hint("write an integer and ms, s, m or h, for example \"500ms\" or \"2s\"")
    };
    let (number, unit) = split(text);
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(refuse("the unit is missing")),
        _ => return Err(refuse("the unit is unknown")),
    };
    let number = integer(number).ok_or_else(|| refuse("it must begin with an integer"))?;
    number
        .checked_mul(factor)
        .map(Duration::from_millis)
        .ok_or_else(|| refuse("it is too long"))
}

/// Formats a duration in the largest unit that holds it exactly; fractions of a millisecond are dropped.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if ms != 0 && ms.is_multiple_of(factor) {
            return format!("{}{unit}", ms / factor);
        }
    }
    format!("{ms}ms")
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

/// Parses digits only, because `u64::from_str` would also accept `+5`.
fn integer(text: &str) -> Option<u64> {
    if text.is_empty() {
        None
    } else {
        text.parse().ok()
    }
}

/// Durations in JSON, as text in the form of the file.
pub(crate) mod duration_text {
    use super::{Duration, format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(ByteSize::parse("256M").unwrap().get(), 256 * 1024 * 1024);
        assert_eq!(ByteSize::parse("3").unwrap().get(), 3);
        for bad in [
            "",
            "M",
            "1.5G",
            "256MB",
            "256 M",
            "-1K",
            "+1K",
            "1k",
            "99999999999999999999",
            "17179869184G",
        ] {
            assert!(ByteSize::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_need_their_unit() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_duration("0s").unwrap(), Duration::ZERO);
        for bad in [
            "",
            "5",
            "5 s",
            "5S",
            "1.5s",
            "-1s",
            "s",
            "1d",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_size_reads_back_as_written(bytes: u64) {
            prop_assert_eq!(ByteSize::parse(&ByteSize(bytes).to_string()).unwrap().get(), bytes);
        }

        #[test]
        fn a_duration_reads_back_as_written(ms: u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }
    }
}
