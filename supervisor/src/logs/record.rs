//! The lines that pass from the readers through the queue to the sink, the memory and the followers.

use super::line_format::LineOrigin;
use brokkr_tenant::TenantName;
use bytes::Bytes;
use std::sync::Arc;

/// Cost in bytes of a chunk beside its text; otherwise thousands of short lines would exceed the bounds.
pub(super) const CHUNK_COST: usize = 96;

/// Tenant of a line; `None` for the supervisor's lines about no tenant.
pub(super) type LogSource = Option<TenantName>;

/// Whole canonical lines of one origin.
#[derive(Debug, Clone)]
pub(super) struct LogChunk {
    pub(super) origin: Arc<LineOrigin>,
    pub(super) bytes: Bytes,
    pub(super) lines: u32,
}

impl LogChunk {
    /// Returns the number of bytes that the chunk counts against a bound.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + CHUNK_COST
    }
}
