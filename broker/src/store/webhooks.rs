//! Webhook subscriptions: create, read, change and delete them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::row::{self, Columns, FromColumns};
use crate::db::{DbError, Sql};
use crate::webhook::endpoint::Sealed;

/// A subscription as the API shows it, without its URL and `Authorization` value, which are secret.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = WebhookResponse)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct Subscription {
    pub id: Uuid,
    pub name: String,
    pub has_url: bool,
    pub has_auth_header: bool,
    pub event_types: Vec<String>,
    /// Conditions on an event's data; null: all events.
    pub filters: Option<Filters>,
    pub target_labels: Option<Vec<String>>,
    pub enabled: bool,
    pub max_retries: i32,
    pub timeout_seconds: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub created_by: Option<String>,
}

/// Conditions on an event's data: each value that is set must be present and equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = WebhookFilters)]
pub struct Filters {
    /// Only events of this agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<Uuid>,
    /// Only events of this stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_id: Option<Uuid>,
}

/// A subscription to store.
#[derive(Debug)]
pub struct NewSubscription<'a> {
    /// The subscription's name.
    pub name: &'a str,
    /// The sealed URL and `Authorization` value.
    pub sealed: &'a Sealed,
    /// The id of the endpoint's host.
    pub lane: Uuid,
    /// Patterns of event types.
    pub event_types: &'a [String],
    /// Conditions on an event's data.
    pub filters: Option<Filters>,
    /// Labels of the agents that deliver; `None`: the broker delivers.
    pub target_labels: Option<&'a [String]>,
    /// The largest number of attempts.
    pub max_retries: i32,
    /// The timeout of one attempt.
    pub timeout_seconds: i32,
    /// The caller who created the subscription.
    pub created_by: &'a str,
}

/// The changes to a subscription. `None` keeps a value, `Some(None)` removes it.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "as in New")]
pub struct SubscriptionChange<'a> {
    pub name: Option<&'a str>,
    /// The sealed URL and the id of its host.
    pub url: Option<(&'a [u8], Uuid)>,
    pub auth_header: Option<Option<&'a [u8]>>,
    pub event_types: Option<&'a [String]>,
    pub filters: Option<Option<Filters>>,
    pub target_labels: Option<Option<&'a [String]>>,
    pub enabled: Option<bool>,
    pub max_retries: Option<i32>,
    pub timeout_seconds: Option<i32>,
}

macro_rules! columns {
    () => {
        "id, name, auth_header IS NOT NULL, event_types, filters, target_labels, enabled, max_retries, timeout_seconds,
         created_at, updated_at, created_by"
    };
}

impl FromColumns for Subscription {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        Ok(Self {
            id: columns.take()?,
            name: columns.take()?,
            has_url: true,
            has_auth_header: columns.take()?,
            event_types: columns.take()?,
            // Filters that cannot be parsed match no event, so they are shown as none.
            filters: columns
                .take::<Option<serde_json::Value>>()?
                .and_then(|value| serde_json::from_value(value).ok()),
            target_labels: columns.take()?,
            enabled: columns.take()?,
            max_retries: columns.take()?,
            timeout_seconds: columns.take()?,
            created_at: columns.take()?,
            updated_at: columns.take()?,
            created_by: columns.take()?,
        })
    }
}

impl FromColumns for Sealed {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        Ok(Self {
            url: columns.take()?,
            auth_header: columns.take()?,
        })
    }
}

/// Locks subscriptions against every other change until the end of the transaction. Each change begins with this lock,
/// because concurrent changes would otherwise compute [`note_interest`] from outdated rows.
pub fn lock(db: &mut impl Sql) -> Result<(), DbError> {
    const SQL: &str = "SELECT FROM brokkr_meta FOR NO KEY UPDATE";
    db.query(SQL, &[]).map(|_| ())
}

/// Switches the recording of events on or off: on exactly while an enabled subscription exists. Ends each change, in a
/// statement of its own so that it sees the change.
pub fn note_interest(db: &mut impl Sql) -> Result<(), DbError> {
    const SQL: &str = "\
        WITH now AS (SELECT EXISTS (SELECT FROM webhook_subscriptions WHERE enabled) AS wanted)
        UPDATE brokkr_meta SET wants_events = now.wanted FROM now WHERE wants_events <> now.wanted";
    db.execute(SQL, &[]).map(|_| ())
}

/// Returns every subscription, disabled ones included, newest first.
pub fn list(db: &mut impl Sql) -> Result<Vec<Subscription>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM webhook_subscriptions ORDER BY created_at DESC, id DESC"
    );
    row::all(db, SQL, &[])
}

/// Returns the subscription with this id.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Subscription>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM webhook_subscriptions WHERE id = $1"
    );
    row::optional(db, SQL, &[&id])
}

/// Returns true when there is a subscription with this id.
pub fn exists(db: &mut impl Sql, id: Uuid) -> Result<bool, DbError> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM webhook_subscriptions WHERE id = $1)";
    row::one(db, SQL, &[&id])
}

/// Returns true when any subscription is enabled.
pub fn any_enabled(db: &mut impl Sql) -> Result<bool, DbError> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM webhook_subscriptions WHERE enabled)";
    row::one(db, SQL, &[])
}

/// Returns the secrets of a subscription, and the timeout of one attempt in seconds.
pub fn endpoint(db: &mut impl Sql, id: Uuid) -> Result<Option<(Sealed, i32)>, DbError> {
    const SQL: &str =
        "SELECT url, auth_header, timeout_seconds FROM webhook_subscriptions WHERE id = $1";
    row::optional(db, SQL, &[&id])
}

/// Adds a subscription.
pub fn insert(db: &mut impl Sql, new: &NewSubscription<'_>) -> Result<Subscription, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO webhook_subscriptions (name, url, auth_header, lane, event_types, filters, target_labels, max_retries,
                timeout_seconds, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING ",
        columns!()
    );
    row::one(
        db,
        SQL,
        &[
            &new.name,
            &new.sealed.url,
            &new.sealed.auth_header,
            &new.lane,
            &new.event_types,
            &new.filters.map(json),
            &new.target_labels,
            &new.max_retries,
            &new.timeout_seconds,
            &new.created_by,
        ],
    )
}

/// Changes a subscription.
pub fn update(
    db: &mut impl Sql,
    id: Uuid,
    change: &SubscriptionChange<'_>,
) -> Result<Option<Subscription>, DbError> {
    const SQL: &str = concat!(
        "UPDATE webhook_subscriptions SET
                name = coalesce($2, name),
                url = coalesce($3, url),
                lane = coalesce($4, lane),
                auth_header = CASE WHEN $5 THEN $6 ELSE auth_header END,
                event_types = coalesce($7, event_types),
                filters = CASE WHEN $8 THEN $9 ELSE filters END,
                target_labels = CASE WHEN $10 THEN $11 ELSE target_labels END,
                enabled = coalesce($12, enabled),
                max_retries = coalesce($13, max_retries),
                timeout_seconds = coalesce($14, timeout_seconds)
          WHERE id = $1 RETURNING ",
        columns!()
    );
    row::optional(
        db,
        SQL,
        &[
            &id,
            &change.name,
            &change.url.map(|(url, _)| url),
            &change.url.map(|(_, lane)| lane),
            &change.auth_header.is_some(),
            &change.auth_header.flatten(),
            &change.event_types,
            &change.filters.is_some(),
            &change.filters.flatten().map(json),
            &change.target_labels.is_some(),
            &change.target_labels.flatten(),
            &change.enabled,
            &change.max_retries,
            &change.timeout_seconds,
        ],
    )
}

/// Removes a subscription with its deliveries. Returns false when there was none.
pub fn delete(db: &mut impl Sql, id: Uuid) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM webhook_subscriptions WHERE id = $1";
    Ok(db.execute(SQL, &[&id])? > 0)
}

fn json(filters: Filters) -> serde_json::Value {
    serde_json::json!(filters)
}
