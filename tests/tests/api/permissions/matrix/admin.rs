//! Rows for audit log, configuration and PAKs.

use super::*;

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    ("GET /paks", "", "[PakSummary]", ["200", AR, AR, AR, AR]),
    ("GET /admin/audit-logs?actor_type=admin&limit=5", "", "AuditLogListResponse", ["200", AR, AR, AR, AR]),
    ("POST /admin/config/reload", "", "ConfigReloadResponse", ["200", AR, AR, AR, AR]),
];

pub(crate) fn names(_scene: &Scene<'_>) -> Names {
    Vec::new()
}
