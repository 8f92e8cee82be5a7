//! The cost of regular expressions, counted before the match.
//!
//! The engine's time is bounded by the size of the compiled expression times the length of the text, so that product
//! counts.

use regex::{Regex, RegexBuilder};

use super::metered_thread;

/// The size limits tried in turn for an expression, in bytes; larger expressions are refused.
const SIZES: [usize; 4] = [8 << 10, 64 << 10, 512 << 10, 4 << 20];
/// The longest expression, in bytes.
pub(super) const TEXT: usize = 2048;
/// The units of matching work (size times text length) that count as one byte of the allowance; both take about a
/// nanosecond.
const PER_BYTE: usize = 64;

/// Compiles an expression. Returns it with the size that [`pay`] counts.
pub(super) fn compile(pattern: &str) -> Result<(Regex, usize), String> {
    if pattern.len() > TEXT {
        return Err(format!(
            "a pattern may have at most {TEXT} bytes, this one has {}",
            pattern.len()
        ));
    }
    let mut error = String::new();
    for size in SIZES {
        metered_thread::spend(size / PER_BYTE);
        match RegexBuilder::new(pattern).size_limit(size).build() {
            Ok(regex) => return Ok((regex, size)),
            Err(why) => error = why.to_string(),
        }
    }
    Err(error)
}

/// Spends the cost of matching an expression of this size against that many bytes.
pub(super) fn pay(size: usize, bytes: usize) {
    metered_thread::spend(size.saturating_mul(bytes) / PER_BYTE);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn usual_expressions_count_little_and_large_ones_much() {
        for (pattern, size) in [
            ("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", SIZES[0]),
            (r"^\w+$", SIZES[1]),
            ("^.{1,253}$", SIZES[2]),
            (r"\w{1,63}", SIZES[3]),
        ] {
            assert_eq!(compile(pattern).unwrap().1, size, "{pattern}");
        }
        for pattern in [r"\w{1000}", "(", "(?=a)b", "x{1000}{1000}"] {
            compile(pattern).unwrap_err();
        }
        compile(&"a".repeat(TEXT + 1)).unwrap_err();
    }
}
