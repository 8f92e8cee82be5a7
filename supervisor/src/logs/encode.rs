//! Canonical lines in the form a sink wants them.

use super::journal;
use super::queue::Chunk;
use super::text::TextEncoder;
use bytes::Bytes;

/// How lines are written.
#[derive(Debug)]
pub(super) enum Encoder {
    /// As they are.
    Json,
    /// For people.
    Text(TextEncoder),
    /// Datagrams for the journal, each behind its length (see [`journal`]).
    Journal,
}

impl Encoder {
    /// The lines of `chunk` as the sink takes them; the same bytes, not a copy, when that is JSON.
    pub(super) fn encoded(&self, chunk: &Chunk) -> Bytes {
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
