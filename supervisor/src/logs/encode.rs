//! Encodes canonical lines in the format of the sink.

use super::journal;
use super::record::LogChunk;
use super::text::TextEncoder;
use bytes::Bytes;

/// Format in which lines go to the sink.
#[derive(Debug)]
pub(super) enum Encoder {
    /// Canonical lines, unchanged.
    Json,
    /// Text for people.
    Text(TextEncoder),
    /// Datagrams for the journal, each after its length (see [`journal`]).
    Journal,
}

impl Encoder {
    /// Returns the lines of `chunk` in the sink's format; JSON shares the chunk's bytes without a copy.
    pub(super) fn encoded(&self, chunk: &LogChunk) -> Bytes {
        let lines = chunk.bytes.split_inclusive(|byte| *byte == b'\n');
        let mut out = Vec::with_capacity(chunk.bytes.len());
        match self {
            Encoder::Json => return chunk.bytes.clone(),
            Encoder::Text(text) => lines.for_each(|line| text.encode(line, &mut out)),
            Encoder::Journal => {
                lines.for_each(|line| journal::encode(&chunk.origin, line, &mut out))
            }
        }
        out.into()
    }
}
