//! Reads the audit log, which `emit` writes.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row::{self, Columns, FromColumns};
use crate::db::{DbError, Sql};

/// An entry of the audit log as it was written.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct AuditLog {
    pub id: Uuid,
    pub timestamp: DateTime<Utc>,
    /// `admin`, `agent`, `generator` or `system`.
    pub actor_type: String,
    pub actor_id: Option<Uuid>,
    pub action: String,
    pub resource_type: String,
    pub resource_id: Option<Uuid>,
    pub details: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    pub created_at: DateTime<Utc>,
}

/// An entry with the current name of its actor.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditLogEntry {
    /// The entry.
    #[serde(flatten)]
    pub log: AuditLog,
    /// `admin`, `system`, or the name of the agent or generator, also of a deleted one; null when there is none.
    pub actor_name: Option<String>,
}

/// The actions that a filter selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Exactly this action.
    Exactly(String),
    /// All actions with this prefix.
    Prefix(String),
}

/// The conditions that a selected entry must meet; unset fields are no condition.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// The kind of actor.
    pub actor_type: Option<String>,
    /// The actor.
    pub actor_id: Option<Uuid>,
    /// The action.
    pub action: Option<Action>,
    /// The kind of resource.
    pub resource_type: Option<String>,
    /// The resource.
    pub resource_id: Option<Uuid>,
    /// Earliest time, inclusive.
    pub from: Option<DateTime<Utc>>,
    /// Latest time, exclusive.
    pub to: Option<DateTime<Utc>>,
}

/// One page of the selected entries, newest first.
#[derive(Debug)]
pub struct AuditPage {
    /// The number of all selected entries.
    pub total: i64,
    /// The entries of this page.
    pub entries: Vec<AuditLogEntry>,
}

/// Builds the conditions of a filter. Each applies only if its parameter is set, except `$first`, which always applies,
/// because a plan made for any parameters can use an index only for an unconditional condition.
macro_rules! meant {
    ($first:literal) => {
        concat!(
            $first,
            " AND a.timestamp >= coalesce($7::timestamptz, '-infinity')
              AND a.timestamp < coalesce($8::timestamptz, 'infinity')
              AND ($1::text IS NULL OR a.actor_type = $1::text)
              AND ($2::uuid IS NULL OR a.actor_id = $2::uuid)
              AND ($3::text IS NULL OR a.action = $3::text)
              AND ($4::text IS NULL OR starts_with(a.action, $4::text))
              AND ($5::text IS NULL OR a.resource_type = $5::text)
              AND ($6::uuid IS NULL OR a.resource_id = $6::uuid)
              AND ($9::text IS NULL OR a.action ~<~ $9::text)"
        )
    };
}

macro_rules! page {
    ($first:literal) => {
        concat!(
            "SELECT all_of_them.total, p.id, p.timestamp, p.actor_type, p.actor_id, p.action, p.resource_type, p.resource_id,
                    p.details, p.ip_address, p.user_agent, p.created_at,
                    CASE p.actor_type WHEN 'agent' THEN ag.name WHEN 'generator' THEN g.name ELSE p.actor_type END
               FROM (SELECT count(*) AS total FROM audit_log a WHERE ",
            meant!($first),
            ") AS all_of_them
               LEFT JOIN (
                    SELECT a.id, a.timestamp, a.actor_type, a.actor_id, a.action, a.resource_type, a.resource_id,
                           a.details, a.ip_address, a.user_agent, a.created_at
                      FROM audit_log a WHERE ",
            meant!($first),
            " ORDER BY a.timestamp DESC, a.id DESC LIMIT $10 OFFSET $11) AS p ON true
               LEFT JOIN agents ag ON p.actor_type = 'agent' AND ag.id = p.actor_id
               LEFT JOIN generators g ON p.actor_type = 'generator' AND g.id = p.actor_id
              ORDER BY p.timestamp DESC, p.id DESC"
        )
    };
}

impl AuditFilter {
    /// Returns the statement whose first condition usually selects the fewest entries.
    fn statement(&self) -> &'static str {
        match self {
            Self {
                resource_id: Some(_),
                ..
            } => page!("a.resource_id = $6::uuid"),
            Self {
                actor_id: Some(_), ..
            } => page!("a.actor_id = $2::uuid"),
            Self {
                action: Some(Action::Exactly(_)),
                ..
            } => page!("a.action = $3::text"),
            Self {
                action: Some(Action::Prefix(_)),
                ..
            } => page!("a.action ~>=~ $4::text AND a.action ~<~ $9::text"),
            Self {
                resource_type: Some(_),
                ..
            } => page!("a.resource_type = $5::text"),
            Self {
                actor_type: Some(_),
                ..
            } => page!("a.actor_type = $1::text"),
            _ => page!("true"),
        }
    }
}

/// Returns the first text that sorts after every text with this prefix, byte by byte; `None` for the empty prefix.
fn after(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// Returns the selected entries, newest first, at most `limit` from `offset` on.
pub fn page(
    db: &mut impl Sql,
    mut filter: AuditFilter,
    limit: i64,
    offset: i64,
) -> Result<AuditPage, DbError> {
    let beyond = match &filter.action {
        Some(Action::Prefix(prefix)) => after(prefix),
        _ => None,
    };
    // An empty prefix matches every action.
    filter.action = filter
        .action
        .filter(|action| *action != Action::Prefix(String::new()));
    let (exactly, prefix) = match &filter.action {
        None => (None, None),
        Some(Action::Exactly(action)) => (Some(action), None),
        Some(Action::Prefix(prefix)) => (None, Some(prefix)),
    };
    let rows: Vec<(i64, Option<AuditLogEntry>)> = row::all(
        db,
        filter.statement(),
        &[
            &filter.actor_type,
            &filter.actor_id,
            &exactly,
            &prefix,
            &filter.resource_type,
            &filter.resource_id,
            &filter.from,
            &filter.to,
            &beyond,
            &limit,
            &offset,
        ],
    )?;
    let total = rows.first().map_or(0, |(total, _)| *total);
    // A page without entries is one row that holds only the total.
    let entries = rows.into_iter().filter_map(|(_, entry)| entry).collect();
    Ok(AuditPage { total, entries })
}

impl FromColumns for Option<AuditLogEntry> {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        let Some(id) = columns.take()? else {
            return Ok(None);
        };
        let log = AuditLog {
            id,
            timestamp: columns.take()?,
            actor_type: columns.take()?,
            actor_id: columns.take()?,
            action: columns.take()?,
            resource_type: columns.take()?,
            resource_id: columns.take()?,
            details: columns.take()?,
            ip_address: columns.take()?,
            user_agent: columns.take()?,
            created_at: columns.take()?,
        };
        let actor_name = columns.take()?;
        Ok(Some(AuditLogEntry { log, actor_name }))
    }
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn what_comes_after_a_prefix_sorts_after_all_that_begin_with_it_and_before_all_else() {
        assert_eq!(after("agent.").as_deref(), Some("agent/"));
        assert_eq!(after("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(after("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!((after(""), after("\u{10ffff}")), (None, None));
    }
}
