//! Splits the bytes of one pipe into canonical lines: flat JSON, one object per line, with the pipe's tenant and pid.

use super::json_scan::{self, JsonPairs, JsonValue};
use crate::handover::PartialLine;
use brokkr_tenant::TenantName;
use chrono::{DateTime, SecondsFormat, Utc};
use std::borrow::Cow;

/// Longest line in bytes; a longer line is cut.
pub(super) const MAX_LINE: usize = 16 * 1024;

/// Formats the time as every line shows it.
pub(super) fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Process that wrote a line, and the tenant that the line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LineOrigin {
    /// `None` on a line of the supervisor about no particular tenant.
    pub(super) tenant: Option<TenantName>,
    pub(super) pid: i32,
    /// True when the process is the supervisor, which also writes lines about tenants.
    pub(super) is_supervisor: bool,
    /// `"tenant":"acme","pid":4711`, formatted once.
    keys: Box<str>,
}

impl LineOrigin {
    /// Names the supervisor as the origin of a line about `tenant`, or about no tenant in particular.
    pub(super) fn supervisor(tenant: Option<TenantName>) -> Self {
        let pid = nix::unistd::getpid().as_raw();
        Self {
            is_supervisor: true,
            ..Self::new(tenant, pid)
        }
    }

    pub(super) fn new(tenant: Option<TenantName>, pid: i32) -> Self {
        let keys = match &tenant {
            Some(name) => format!("\"tenant\":\"{}\",\"pid\":{pid}", name.as_str()),
            None => format!("\"tenant\":null,\"pid\":{pid}"),
        };
        Self {
            tenant,
            pid,
            is_supervisor: false,
            keys: keys.into(),
        }
    }

    /// Appends one line written by the supervisor.
    pub(super) fn write(&self, out: &mut Vec<u8>, level: &str, target: &str, message: &str) {
        self.write_at(out, &timestamp(Utc::now()), level, target, message, "");
    }

    /// Appends one line; `fields` is empty or JSON of the form `,"key":value…`.
    pub(super) fn write_at(
        &self,
        out: &mut Vec<u8>,
        timestamp: &str,
        level: &str,
        target: &str,
        message: &str,
        fields: &str,
    ) {
        for part in [
            "{\"timestamp\":\"",
            timestamp,
            "\",\"level\":\"",
            level,
            "\",",
            &self.keys,
        ] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(b",\"target\":\"");
        json_scan::escape_into(out, target);
        out.extend_from_slice(b"\",\"message\":\"");
        json_scan::escape_into(out, message);
        out.push(b'"');
        out.extend_from_slice(fields.as_bytes());
        out.extend_from_slice(b"}\n");
    }

    /// Appends the canonical form of a broker's `line`, which has no line feed.
    fn canonical(&self, out: &mut Vec<u8>, line: &[u8], now: &str) {
        match json_scan::scan(line) {
            Some(shape) if !shape.contested => {
                let (before, after) = line.split_at(shape.splice_at);
                out.extend_from_slice(before);
                out.extend_from_slice(self.keys.as_bytes());
                out.push(b',');
                out.extend_from_slice(after);
                out.push(b'\n');
            }
            // The scan accepts only valid UTF-8, so nothing is lost here.
            Some(_) => self.rewritten(out, &String::from_utf8_lossy(line)),
            None => self.wrapped(out, &String::from_utf8_lossy(line), now),
        }
    }

    fn wrapped(&self, out: &mut Vec<u8>, text: &str, now: &str) {
        self.write_at(out, now, "WARN", "stderr", text, "");
    }

    /// Appends a valid line without its own `tenant` and `pid` keys, because only the supervisor sets these.
    fn rewritten(&self, out: &mut Vec<u8>, line: &str) {
        out.push(b'{');
        out.extend_from_slice(self.keys.as_bytes());
        for (key, value) in JsonPairs::new(line) {
            if matches!(json_scan::unescape(key).as_ref(), "tenant" | "pid") {
                continue;
            }
            out.extend_from_slice(b",\"");
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":");
            match value {
                JsonValue::String(raw) => {
                    out.push(b'"');
                    out.extend_from_slice(raw.as_bytes());
                    out.push(b'"');
                }
                JsonValue::Bare(word) => out.extend_from_slice(word.as_bytes()),
            }
        }
        out.extend_from_slice(b"}\n");
    }
}

/// Splits the bytes of one pipe into lines and keeps the unfinished last line.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    /// Beginning of the unfinished line, at most [`MAX_LINE`] bytes.
    partial_line: Vec<u8>,
    /// Number of further bytes of that line, which were discarded.
    beyond: usize,
}

impl LineSplitter {
    /// Creates a splitter that continues an unfinished line.
    pub(super) fn resume(partial_line: PartialLine) -> Self {
        let mut splitter = Self::default();
        splitter.keep(&partial_line.bytes);
        splitter.beyond = splitter.beyond.saturating_add(partial_line.beyond);
        splitter
    }

    /// Returns the unfinished line, for another splitter to continue.
    pub(super) fn leave(self) -> PartialLine {
        PartialLine {
            bytes: self.partial_line,
            beyond: self.beyond,
        }
    }

    /// Appends every line that ends in `block` to `out` in canonical form, and returns their number.
    pub(super) fn feed(
        &mut self,
        origin: &LineOrigin,
        mut block: &[u8],
        now: &str,
        out: &mut Vec<u8>,
    ) -> u32 {
        let mut lines = 0;
        while let Some(at) = memchr::memchr(b'\n', block) {
            let line = &block[..at];
            if self.partial_line.is_empty() && line.len() <= MAX_LINE {
                lines += emit(origin, line, 0, now, out);
            } else {
                self.keep(line);
                lines += self.end(origin, now, out);
            }
            block = &block[at + 1..];
        }
        self.keep(block);
        lines
    }

    /// Appends the unfinished line, if any, because the pipe delivers no more. Returns the number of lines, 0 or 1.
    pub(super) fn end(&mut self, origin: &LineOrigin, now: &str, out: &mut Vec<u8>) -> u32 {
        // `take` frees the buffers: there are thousands of pipes, and most never carry an unfinished line again.
        let partial_line = std::mem::take(&mut self.partial_line);
        let beyond = std::mem::take(&mut self.beyond);
        emit(origin, &partial_line, beyond, now, out)
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_LINE - self.partial_line.len();
        let kept = part.len().min(room);
        self.partial_line.extend_from_slice(&part[..kept]);
        self.beyond += part.len() - kept;
    }
}

/// Appends one line and returns 1; skips an empty line and returns 0.
fn emit(origin: &LineOrigin, line: &[u8], beyond: usize, now: &str, out: &mut Vec<u8>) -> u32 {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return 0;
    }
    if beyond == 0 {
        origin.canonical(out, line, now);
    } else {
        let text: Cow<'_, str> = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let marked = format!("{text}… [line cut: {} bytes]", line.len() + beyond);
        origin.wrapped(out, &marked, now);
    }
    1
}

/// Reads any bytes as a pipe's, and panics unless each line that comes of them is a flat JSON object with the pipe's own
/// tenant and pid, and both other formats take it. For fuzzing.
pub(crate) fn check_canonical_lines(data: &[u8]) {
    let Ok(tenant) = TenantName::parse("acme") else {
        return;
    };
    let origin = LineOrigin::new(Some(tenant), 4711);
    let now = "2026-11-30T12:00:00.000000Z";
    let mut whole = Vec::new();
    let mut splitter = LineSplitter::default();
    let mut lines = splitter.feed(&origin, data, now, &mut whole);
    lines += splitter.end(&origin, now, &mut whole);
    // The place where a pipe's blocks end must not matter.
    let (first, second) = data.split_at(data.len() / 2);
    let mut halves = Vec::new();
    let mut splitter = LineSplitter::default();
    splitter.feed(&origin, first, now, &mut halves);
    let mut splitter = LineSplitter::resume(splitter.leave());
    splitter.feed(&origin, second, now, &mut halves);
    splitter.end(&origin, now, &mut halves);
    assert_eq!(whole, halves, "the split of the blocks shows");

    assert_eq!(
        whole.iter().filter(|byte| **byte == b'\n').count(),
        lines as usize
    );
    for line in whole.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let parsed: Result<serde_json::Value, _> = serde_json::from_slice(line);
        let object = parsed.as_ref().ok().and_then(|value| value.as_object());
        let own = object.is_some_and(|object| {
            object.get("tenant").is_some_and(|tenant| tenant == "acme")
                && object.get("pid").is_some_and(|pid| *pid == 4711)
        });
        assert!(own, "{}", String::from_utf8_lossy(line));
        let times = |key: &str| {
            JsonPairs::new(&String::from_utf8_lossy(line))
                .filter(|(known, _)| json_scan::unescape(known) == key)
                .count()
        };
        assert_eq!((times("tenant"), times("pid")), (1, 1));
        let mut out = Vec::new();
        super::TextEncoder::default().encode(line, &mut out);
        super::journal::encode(&origin, line, &mut out);
    }
}
