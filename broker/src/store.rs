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

/// Reads every row with one function, or stops at the first that cannot be read.
fn all<T>(rows: Vec<Row>, read: impl Fn(&Row) -> Result<T, DbError>) -> Result<Vec<T>, DbError> {
    rows.iter().map(read).collect()
}

/// Whether a time fits both a column and RFC 3339, which knows the years 1 to 9999.
pub fn storable_time(time: DateTime<Utc>) -> bool {
    (1..=9999).contains(&time.year())
}
