//! Text form of a line for people: time, tenant, level, target, message, fields.
//!
//! A broker's text stays on its own line and in its column: control characters, including those that begin a terminal's
//! escape sequences, and characters that change the direction of text are shown as escapes.

use super::json_scan::{JsonPairs, JsonValue, unescape};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Writes canonical lines as text.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    /// Width of the tenant column: the length of the longest name so far.
    width: AtomicUsize,
}

impl Default for TextEncoder {
    fn default() -> Self {
        Self {
            width: AtomicUsize::new(8),
        }
    }
}

impl TextEncoder {
    /// Appends one canonical line as text, with its tenant.
    pub(crate) fn encode(&self, line: &[u8], out: &mut Vec<u8>) {
        let Some(parts) = Parts::of(line) else { return };
        let tenant = parts.tenant.unwrap_or("-");
        let width = self
            .width
            .fetch_max(tenant.len(), Ordering::Relaxed)
            .max(tenant.len());
        plain(out, parts.timestamp);
        out.push(b' ');
        out.extend_from_slice(tenant.as_bytes());
        pad(out, width + 1 - tenant.len());
        parts.level_onwards(out);
        out.push(b'\n');
    }
}

/// Returns one canonical line as text without time and tenant, as `last_words` shows it. A line that a broker did not
/// write as a log line, such as a panic, is shown as its bare text.
pub(super) fn brief(line: &[u8]) -> String {
    let mut out = Vec::new();
    if let Some(parts) = Parts::of(line) {
        if parts.target == "stderr" {
            plain(&mut out, parts.message);
        } else {
            parts.level_onwards(&mut out);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The known keys of a canonical line, as written.
struct Parts<'a> {
    timestamp: &'a str,
    level: &'a str,
    tenant: Option<&'a str>,
    target: &'a str,
    message: &'a str,
    text: &'a str,
    /// True when the line has other keys.
    fields: bool,
}

impl<'a> Parts<'a> {
    fn of(line: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?.trim_end();
        let mut parts = Parts {
            timestamp: "",
            level: "",
            tenant: None,
            target: "",
            message: "",
            text,
            fields: false,
        };
        if !text.starts_with('{') {
            return None;
        }
        for (key, value) in JsonPairs::new(text) {
            let (JsonValue::String(raw) | JsonValue::Bare(raw)) = value;
            match key {
                "timestamp" => parts.timestamp = raw,
                "level" => parts.level = raw,
                "tenant" => parts.tenant = matches!(value, JsonValue::String(_)).then_some(raw),
                "target" => parts.target = raw,
                "message" => parts.message = raw,
                "pid" => {}
                _ => parts.fields = true,
            }
        }
        Some(parts)
    }

    fn level_onwards(&self, out: &mut Vec<u8>) {
        let start = out.len();
        plain(out, self.level);
        pad(out, (start + 6).saturating_sub(out.len()).max(1));
        plain(out, self.target);
        out.extend_from_slice(b": ");
        plain(out, self.message);
        if !self.fields {
            return;
        }
        for (key, value) in JsonPairs::new(self.text) {
            if matches!(
                key,
                "timestamp" | "level" | "tenant" | "pid" | "target" | "message"
            ) {
                continue;
            }
            out.push(b' ');
            plain(out, key);
            out.push(b'=');
            match value {
                JsonValue::String(raw) if is_word(raw) => plain(out, raw),
                JsonValue::String(raw) => {
                    out.push(b'"');
                    shown(out, &unescape(raw), true);
                    out.push(b'"');
                }
                JsonValue::Bare(word) => plain(out, word),
            }
        }
    }
}

fn pad(out: &mut Vec<u8>, count: usize) {
    out.resize(out.len() + count, b' ');
}

fn is_word(raw: &str) -> bool {
    !raw.is_empty()
        && !raw
            .bytes()
            .any(|b| matches!(b, b' ' | b'"' | b'\\' | b'=' | b'\''))
}

/// Appends the text of a JSON string, with control and direction characters escaped.
fn plain(out: &mut Vec<u8>, raw: &str) {
    // Most strings need no unescaping and no escaping.
    if raw.bytes().fold(true, |fine, b| {
        fine & (0x20..0x7f).contains(&b) & (b != b'\\')
    }) {
        out.extend_from_slice(raw.as_bytes());
    } else {
        shown(out, &unescape(raw), false);
    }
}

fn shown(out: &mut Vec<u8>, text: &str, quoted: bool) {
    let mut buffer = [0; 4];
    for character in text.chars() {
        match character {
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '"' | '\\' if quoted => {
                out.push(b'\\');
                out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
            }
            c if c.is_control() || turns_or_breaks(c) => {
                out.extend_from_slice(c.escape_unicode().to_string().as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes()),
        }
    }
}

/// Returns true for line and paragraph separators and for characters that change the direction of text.
fn turns_or_breaks(character: char) -> bool {
    matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn text(line: &str) -> String {
        let mut out = Vec::new();
        TextEncoder::default().encode(line.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_shows_time_tenant_level_target_message_and_fields() {
        let line = "{\"timestamp\":\"T\",\"level\":\"WARN\",\"tenant\":\"acme\",\"pid\":7,\"target\":\"a::b\",\"message\":\"it is\",\"n\":1,\"path\":\"/x\",\"why\":\"two \\\"words\\\"\"}\n";
        assert_eq!(
            text(line),
            "T acme     WARN  a::b: it is n=1 path=/x why=\"two \\\"words\\\"\"\n"
        );
    }

    #[test]
    fn what_could_forge_a_line_or_drive_a_terminal_is_escaped() {
        let line = "{\"timestamp\":\"T\\u001b\",\"level\":\"WARN\",\"tenant\":\"acme\",\"pid\":7,\"target\":\"x\\n\",\"message\":\"a\\nT other INFO x: b\\u001b[2J\\u0000\\r\u{9b}\u{202e}\",\"k\\n\":\"v\\nw\"}\n";
        let shown = text(line);
        assert_eq!(shown.matches('\n').count(), 1, "{shown:?}");
        assert!(!shown.trim_end().chars().any(char::is_control), "{shown:?}");
        assert!(
            shown.contains("a\\nT other INFO x: b\\u{1b}[2J\\u{0}\\r\\u{9b}\\u{202e}"),
            "{shown}"
        );
    }
}
