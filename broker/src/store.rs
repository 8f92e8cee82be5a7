//! The SQL: one file per resource, each statement a `&'static str`, each result a plain row.
//!
//! A store knows neither HTTP nor the caller. It takes any [`Sql`](crate::db::Sql), so the same function works on a
//! connection and inside a transaction. Rows serialise as the API shows them, so no row holds a secret column (hashes).
//! Lists come in the order (created_at, id) unless the contract names another.

#[macro_use]
mod row;

pub mod agents;
pub mod audit_log;
pub mod credentials;
pub mod deliveries;
pub mod deployment_health;
pub mod diagnostics;
pub mod events;
pub mod fleet;
pub mod gauges;
pub mod generators;
pub mod labels;
pub mod objects;
pub mod outbox;
pub mod paks;
pub mod registrations;
pub mod stack_matching;
pub mod stacks;
pub mod targets;
pub mod telemetry;
pub mod templates;
pub mod webhooks;
pub mod work_order_log;
pub mod work_orders;

use chrono::{DateTime, Datelike, Utc};

/// The largest number of rows of a list that grows by itself; the newest rows are kept.
macro_rules! most_rows {
    () => {
        "10000"
    };
}
use most_rows;

/// The number of text bytes after which a list ends, with the row that reaches it. So an answer has at most this size
/// plus the largest text. The newest row is always there, however long it is.
macro_rules! most_bytes {
    () => {
        "16777216"
    };
}
use most_bytes;

/// Returns true when a time fits both a column and RFC 3339 (years 1 to 9999).
pub fn storable_time(time: DateTime<Utc>) -> bool {
    (1..=9999).contains(&time.year())
}
