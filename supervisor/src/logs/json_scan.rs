//! Scans a broker's line once, to tell a flat JSON object from plain text and to find the place for `tenant` and `pid`.
//!
//! The scan builds no tree, because at full speed a tree costs more than all other work on the line together.

use memchr::memchr2;
use std::borrow::Cow;

/// Result of the scan of a well-formed line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineShape {
    /// Offset at which `"tenant":…,"pid":…,` may be inserted: after the leading `timestamp` and `level` and their
    /// comma, with another key after it.
    pub(super) splice_at: usize,
    /// True when the line has a key `tenant` or `pid`, or an escaped key that may be one of these.
    pub(super) contested: bool,
}

/// One JSON value of a flat object, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonValue<'a> {
    /// The text between the quotes, with its escapes.
    String(&'a str),
    /// A number, `true`, `false` or `null`.
    Bare(&'a str),
}

const TIMESTAMP: u8 = 1;
const LEVEL: u8 = 2;
const TARGET: u8 = 4;
const MESSAGE: u8 = 8;
const REQUIRED: u8 = TIMESTAMP | LEVEL | TARGET;

/// Scans `line`, which must contain no line feed. Returns `None` when the line is plain text: not one flat JSON object
/// with the strings `timestamp`, `level` and `target`, each once.
pub(super) fn scan(line: &[u8]) -> Option<LineShape> {
    if line.first() != Some(&b'{') || line.last() != Some(&b'}') {
        return None;
    }
    // The loop has no early exit so that it compiles to vector instructions. JSON forbids control characters inside
    // strings, and no broker writes them between values.
    if line
        .iter()
        .fold(false, |found, byte| found | (*byte < 0x20))
    {
        return None;
    }
    let text = std::str::from_utf8(line).ok()?;
    let mut pairs = JsonPairs::new(text);
    let mut seen = 0u8;
    let mut leading = true;
    let mut splice_at = 1;
    let mut contested = false;
    while let Some((key, value)) = pairs.next_checked()? {
        let known = match key {
            "timestamp" => TIMESTAMP,
            "level" => LEVEL,
            "target" => TARGET,
            "message" => MESSAGE,
            "tenant" | "pid" => {
                contested = true;
                0
            }
            _ => {
                contested |= key.contains('\\');
                0
            }
        };
        if known != 0 {
            // A line with two `level` keys is refused, because JSON readers disagree on which of them counts.
            if seen & known != 0 || (known != MESSAGE && !matches!(value, JsonValue::String(_))) {
                return None;
            }
            seen |= known;
        }
        leading &= known & (TIMESTAMP | LEVEL) != 0;
        if leading && text.as_bytes().get(pairs.at) == Some(&b',') {
            splice_at = pairs.at + 1;
        }
    }
    (seen & REQUIRED == REQUIRED).then_some(LineShape {
        splice_at,
        contested,
    })
}

/// Iterator over the pairs of a flat object, in order.
pub(super) struct JsonPairs<'a> {
    text: &'a str,
    at: usize,
    first: bool,
}

impl<'a> JsonPairs<'a> {
    /// Creates an iterator over the pairs of `text`, which begins with `{`.
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 1,
            first: true,
        }
    }

    fn skip_spaces(&mut self) {
        while self.text.as_bytes().get(self.at) == Some(&b' ') {
            self.at += 1;
        }
    }

    /// Returns the next pair: the outer `None` means no flat object, the inner `None` means the end.
    #[allow(
        clippy::option_option,
        reason = "three outcomes, two of which are used with `?`"
    )]
    fn next_checked(&mut self) -> Option<Option<(&'a str, JsonValue<'a>)>> {
        let bytes = self.text.as_bytes();
        self.skip_spaces();
        match bytes.get(self.at)? {
            b'}' if self.first || self.at + 1 == bytes.len() => {
                return (self.at + 1 == bytes.len()).then_some(None);
            }
            b',' if !self.first => {
                self.at += 1;
                self.skip_spaces();
            }
            _ if self.first => {}
            _ => return None,
        }
        self.first = false;
        let key = self.string()?;
        self.skip_spaces();
        if bytes.get(self.at)? != &b':' {
            return None;
        }
        self.at += 1;
        self.skip_spaces();
        let value = match bytes.get(self.at)? {
            b'"' => JsonValue::String(self.string()?),
            _ => JsonValue::Bare(self.bare()?),
        };
        // Move `at` to the comma or brace that follows, because the splice position depends on it; the next call checks
        // it.
        self.skip_spaces();
        Some(Some((key, value)))
    }

    fn string(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        if bytes.get(self.at)? != &b'"' {
            return None;
        }
        let start = self.at + 1;
        let mut at = start;
        loop {
            at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
            if bytes[at] == b'"' {
                break;
            }
            at += match bytes.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                b'u' => escape_length(bytes.get(at..)?)?,
                _ => return None,
            };
        }
        self.at = at + 1;
        self.text.get(start..at)
    }

    fn bare(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.at..)?;
        let length = rest.bytes().position(|b| matches!(b, b',' | b'}' | b' '))?;
        let word = &rest[..length];
        if !matches!(word, "true" | "false" | "null") && !is_number(word.as_bytes()) {
            return None;
        }
        self.at += length;
        Some(word)
    }
}

impl<'a> Iterator for JsonPairs<'a> {
    type Item = (&'a str, JsonValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_checked().flatten()
    }
}

/// Returns the length in bytes of a `\uXXXX` escape, or of the surrogate pair that it begins. Returns `None` for a lone
/// surrogate, because JSON readers disagree on its meaning.
fn escape_length(bytes: &[u8]) -> Option<usize> {
    match unit(bytes)? {
        0xd800..=0xdbff => match unit(bytes.get(6..)?)? {
            0xdc00..=0xdfff => Some(12),
            _ => None,
        },
        0xdc00..=0xdfff => None,
        _ => Some(6),
    }
}

fn unit(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |sum, byte| {
        Some(sum * 16 + char::from(*byte).to_digit(16)?)
    })
}

/// Returns true when `word` is a JSON number: no leading zero or plus, and digits on both sides of a point. At most 32
/// bytes and two digits of exponent are accepted, because many readers refuse a number beyond a double.
fn is_number(word: &[u8]) -> bool {
    if word.len() > 32 {
        return false;
    }
    fn digits(word: &[u8]) -> Option<&[u8]> {
        let count = word.iter().take_while(|b| b.is_ascii_digit()).count();
        (count > 0).then(|| &word[count..])
    }
    let word = word.strip_prefix(b"-").unwrap_or(word);
    let mut rest = match word.strip_prefix(b"0") {
        Some(rest) => rest,
        None => match digits(word) {
            Some(rest) => rest,
            None => return false,
        },
    };
    if let Some(fraction) = rest.strip_prefix(b".") {
        match digits(fraction) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let unsigned = exponent
            .strip_prefix(b"+")
            .or_else(|| exponent.strip_prefix(b"-"))
            .unwrap_or(exponent);
        match digits(unsigned) {
            Some(after) if unsigned.len() <= 2 => rest = after,
            _ => return false,
        }
    }
    rest.is_empty()
}

/// Returns the text of a JSON string. `raw` is the part between the quotes of a string that the scan accepted.
pub(super) fn unescape(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let (character, length) = match rest.as_bytes().get(1) {
            Some(b'n') => ('\n', 2),
            Some(b'r') => ('\r', 2),
            Some(b't') => ('\t', 2),
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(b'u') => {
                let length = escape_length(rest.as_bytes()).unwrap_or(6);
                let high = unit(rest.as_bytes()).unwrap_or(0xfffd);
                let code = if length == 12 {
                    let low = rest.as_bytes().get(6..).and_then(unit).unwrap_or(0xdc00);
                    0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    high
                };
                (
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
                    length,
                )
            }
            Some(other) => (char::from(*other), 2),
            None => break,
        };
        text.push(character);
        rest = rest.get(length..).unwrap_or_default();
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// Appends `text` escaped for use between the quotes of a JSON string.
pub(super) fn escape_into(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[start..at]);
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(other >> 4)]);
                out.push(HEX[usize::from(other & 15)]);
            }
        }
        start = at + 1;
    }
    out.extend_from_slice(&bytes[start..]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const LINE: &str = r#"{"timestamp":"t","level":"INFO","target":"x","message":"hi","n":-1.5e3}"#;

    #[test]
    fn ours_go_behind_timestamp_and_level() {
        let shape = scan(LINE.as_bytes()).unwrap();
        assert_eq!(
            &LINE[..shape.splice_at],
            r#"{"timestamp":"t","level":"INFO","#
        );
        assert!(!shape.contested);
    }

    #[test]
    fn what_is_not_one_flat_object_is_text() {
        for bad in [
            "",
            "{",
            "{}",
            "}",
            "hello",
            r#"{"timestamp":"t","level":"INFO"}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x"},{}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","o":{}}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","o":[1]}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","o":01}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","o":tru}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","o":"\x"}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","o":"\ud800"}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x","level":"WARN"}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x",}"#,
            r#"{"timestamp":"t","level":"INFO","target":"x"}}"#,
            r#"{"timestamp":1,"level":"INFO","target":"x"}"#,
        ] {
            assert_eq!(scan(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_key_that_reads_tenant_once_unescaped_is_seen() {
        let line = r#"{"timestamp":"t","level":"INFO","target":"x","\u0074enant":"evil"}"#;
        assert!(scan(line.as_bytes()).unwrap().contested);
    }

    proptest! {
        #[test]
        fn the_scan_accepts_only_what_a_json_parser_accepts(line in r#"\{("timestamp":"t",)("level":"INFO",)("target":"x")(,"[a-z\\"]{0,3}":("[a-z\\u0-9"]{0,8}"|[0-9eE.+-]{1,5}|null|\{\}|\[1\]))*\}"#) {
            if scan(line.as_bytes()).is_some() {
                let value: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(&line);
                prop_assert!(value.is_ok(), "{line}");
            }
        }

        #[test]
        fn escape_then_unescape_is_the_same_text(text in "\\PC*|(\\x00|\\x1b|\\n|\"|\\\\|a){0,9}") {
            let mut raw = Vec::new();
            escape_into(&mut raw, &text);
            let raw = String::from_utf8(raw).unwrap();
            prop_assert_eq!(unescape(&raw), text.as_str());
            let parsed: String = serde_json::from_str(&format!("\"{raw}\"")).unwrap();
            prop_assert_eq!(parsed, text);
        }
    }
}
