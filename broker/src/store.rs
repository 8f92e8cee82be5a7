//! The SQL: one file per resource, each statement a `&'static str`, each answer a plain row.
//!
//! A store knows neither HTTP nor who is asking; it takes any [`Sql`](crate::db::Sql), so the same function works on a
//! connection and inside a transaction. Rows serialise as the API shows them, so columns that must not be seen (hashes) are
//! never read into one. Lists come in the order (created_at, id) unless the contract names another.

pub mod agent_marks;
pub mod agents;
pub mod association;
pub mod audit_log;
pub mod credentials;
pub mod deliveries;
pub mod diagnostics;
pub mod events;
pub mod fleet;
pub mod gauges;
pub mod generators;
pub mod health;
pub mod objects;
pub mod paks;
pub mod registrations;
pub mod stack_marks;
pub mod stacks;
pub mod targets;
pub mod telemetry;
pub mod template_marks;
pub mod templates;
pub mod webhooks;
pub mod work_order_log;
pub mod work_orders;

use chrono::{DateTime, Datelike, Utc};
use postgres::Row;

use crate::db::DbError;

/// Most rows of a list that grows without anybody's doing: the newest.
macro_rules! most_rows {
    () => {
        "10000"
    };
}
use most_rows;

/// In a list whose rows hold texts of any length, the row that reaches this many bytes of them is the last: with the
/// largest text there can be in it, an answer stays within a known size. The newest row is there however long it is.
macro_rules! most_bytes {
    () => {
        "16777216"
    };
}
use most_bytes;

/// Reads every row with one function, or stops at the first that cannot be read. A row is gone once it has been read: a
/// long list is not in memory twice.
fn all<T>(rows: Vec<Row>, read: impl Fn(&Row) -> Result<T, DbError>) -> Result<Vec<T>, DbError> {
    rows.into_iter().map(|row| read(&row)).collect()
}

/// Whether a time fits both a column and RFC 3339, which knows the years 1 to 9999.
pub fn storable_time(time: DateTime<Utc>) -> bool {
    (1..=9999).contains(&time.year())
}
