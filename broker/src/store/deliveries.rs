//! Webhook deliveries: one event for one subscription, from being due to being over.
//!
//! [`fan_out`] makes them, [`claims`] takes them, [`settle`] ends an attempt; the rest is for the API to show.

pub mod claims;
pub mod fan_out;

use std::time::Duration;

use chrono::{DateTime, Utc};
use postgres::Row;
use serde::Serialize;
use uuid::Uuid;

use crate::db::{DbError, Sql};
use crate::webhook::outcome::Next;

/// The states there are, as the API names them.
pub const STATES: [&str; 5] = ["pending", "acquired", "success", "failed", "dead"];

/// A delivery as its subscription's list shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = WebhookDelivery)]
pub struct Delivery {
    /// Which one.
    pub id: Uuid,
    /// Whose.
    pub subscription_id: Uuid,
    /// What happened.
    pub event_type: String,
    /// The event, the same for every subscription that hears of it.
    pub event_id: Uuid,
    /// What is sent, JSON.
    pub payload: String,
    /// Labels of the agents that may deliver it, as the subscription had them; none: the broker.
    #[schema(value_type = Option<Vec<Option<String>>>)]
    pub target_labels: Option<Vec<String>>,
    /// pending, acquired, success, failed or dead.
    pub status: String,
    /// The agent that holds or has delivered it; null: the broker, or nobody.
    pub acquired_by: Option<Uuid>,
    /// Until then it is somebody's.
    pub acquired_until: Option<DateTime<Utc>>,
    /// Attempts so far.
    pub attempts: i32,
    /// When the last one ended.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// When it is due again after a failure.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was over.
    pub completed_at: Option<DateTime<Utc>>,
}

/// A delivery as the list across subscriptions shows it: without what is sent.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = WebhookDeliveryFeedItem)]
#[allow(missing_docs, reason = "as in Delivery")]
pub struct FeedItem {
    pub id: Uuid,
    pub subscription_id: Uuid,
    /// Its subscription's name; null when that is gone.
    pub subscription_name: Option<String>,
    pub event_type: String,
    pub event_id: Uuid,
    /// pending, acquired, success, failed or dead.
    pub status: String,
    /// The agent that holds or has delivered it; null: the broker, or nobody.
    pub acquired_by: Option<Uuid>,
    pub attempts: i32,
    pub last_attempt_at: Option<DateTime<Utc>>,
    pub next_retry_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
    /// Labels of the agents that may deliver it; empty: the broker.
    pub target_labels: Vec<String>,
    pub created_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
}

/// Which part of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Only those in this state.
    pub status: Option<&'a str>,
    /// At most so many.
    pub limit: i64,
    /// Without the first so many.
    pub offset: i64,
}

/// A delivery that somebody holds, as far as ending the attempt goes.
#[derive(Clone, Debug)]
pub struct Held {
    /// Which one.
    pub id: Uuid,
    /// The claim it is held by.
    pub claim: Uuid,
    /// Whose.
    pub subscription_id: Uuid,
    /// What happened.
    pub event_type: String,
    /// Attempts before this one.
    pub attempts: i32,
    /// Most attempts, of the subscription.
    pub max_retries: i32,
}

/// What an attempt's end has made of a delivery.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Attempts so far.
    pub attempts: i32,
    /// When it is due again.
    pub next_retry_at: Option<DateTime<Utc>>,
}

macro_rules! columns {
    () => {
        "id, subscription_id, event_type, event_id, payload, target_labels, status, acquired_by, acquired_until, attempts,
         last_attempt_at, next_retry_at, last_error, created_at, completed_at"
    };
}

impl Delivery {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            subscription_id: row.try_get(1)?,
            event_type: row.try_get(2)?,
            event_id: row.try_get(3)?,
            payload: row.try_get(4)?,
            target_labels: row.try_get(5)?,
            status: row.try_get(6)?,
            acquired_by: row.try_get(7)?,
            acquired_until: row.try_get(8)?,
            attempts: row.try_get(9)?,
            last_attempt_at: row.try_get(10)?,
            next_retry_at: row.try_get(11)?,
            last_error: row.try_get(12)?,
            created_at: row.try_get(13)?,
            completed_at: row.try_get(14)?,
        })
    }
}

impl FeedItem {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            subscription_id: row.try_get(1)?,
            subscription_name: row.try_get(2)?,
            event_type: row.try_get(3)?,
            event_id: row.try_get(4)?,
            status: row.try_get(5)?,
            acquired_by: row.try_get(6)?,
            attempts: row.try_get(7)?,
            last_attempt_at: row.try_get(8)?,
            next_retry_at: row.try_get(9)?,
            last_error: row.try_get(10)?,
            target_labels: row.try_get(11)?,
            created_at: row.try_get(12)?,
            completed_at: row.try_get(13)?,
        })
    }
}

/// A subscription's deliveries, newest first.
///
/// # Errors
/// When the statement fails.
pub fn of_subscription(
    db: &mut impl Sql,
    subscription: Uuid,
    page: Page<'_>,
) -> Result<Vec<Delivery>, DbError> {
    const ANY: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM webhook_deliveries WHERE subscription_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3"
    );
    const IN_STATE: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM webhook_deliveries WHERE subscription_id = $1 AND status = $4
          ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3"
    );
    let rows = match page.status {
        None => db.query(ANY, &[&subscription, &page.limit, &page.offset])?,
        Some(status) => db.query(
            IN_STATE,
            &[&subscription, &page.limit, &page.offset, &status],
        )?,
    };
    super::all(rows, Delivery::read)
}

macro_rules! feed {
    ($filter:literal) => {
        // The page first, by its index; names only for what is on it.
        concat!(
            "SELECT d.id, d.subscription_id, s.name, d.event_type, d.event_id, d.status, d.acquired_by, d.attempts,
                    d.last_attempt_at, d.next_retry_at, d.last_error, coalesce(d.target_labels, '{}'), d.created_at,
                    d.completed_at
               FROM (SELECT id, subscription_id, event_type, event_id, status, acquired_by, attempts, last_attempt_at,
                            next_retry_at, last_error, target_labels, created_at, completed_at
                       FROM webhook_deliveries ",
            $filter,
            " ORDER BY created_at DESC, id DESC LIMIT $1 OFFSET $2) AS d
               LEFT JOIN webhook_subscriptions s ON s.id = d.subscription_id
              ORDER BY d.created_at DESC, d.id DESC"
        )
    };
}

/// The deliveries of all subscriptions, newest first.
///
/// # Errors
/// When the statement fails.
pub fn feed(db: &mut impl Sql, page: Page<'_>) -> Result<Vec<FeedItem>, DbError> {
    const ANY: &str = feed!("");
    const IN_STATE: &str = feed!("WHERE status = $3");
    let rows = match page.status {
        None => db.query(ANY, &[&page.limit, &page.offset])?,
        Some(status) => db.query(IN_STATE, &[&page.limit, &page.offset, &status])?,
    };
    super::all(rows, FeedItem::read)
}

/// The delivery with this id, and the claim by which that agent holds it, if it does.
///
/// # Errors
/// When the statement fails.
pub fn held_by(db: &mut impl Sql, id: Uuid, agent: Uuid) -> Result<Option<Option<Held>>, DbError> {
    const SQL: &str = "\
        SELECT d.id, CASE WHEN d.status = 'acquired' AND d.acquired_by = $2 THEN d.claim END, d.subscription_id,
               d.event_type, d.attempts, s.max_retries
          FROM webhook_deliveries d JOIN webhook_subscriptions s ON s.id = d.subscription_id WHERE d.id = $1";
    db.query_opt(SQL, &[&id, &agent])?
        .map(|row| {
            let Some(claim) = row.try_get(1)? else {
                return Ok(None);
            };
            Ok(Some(Held {
                id: row.try_get(0)?,
                claim,
                subscription_id: row.try_get(2)?,
                event_type: row.try_get(3)?,
                attempts: row.try_get(4)?,
                max_retries: row.try_get(5)?,
            }))
        })
        .transpose()
}

/// Ends an attempt, if the claim still stands; `None` if it does not. Who delivered stays written down.
///
/// # Errors
/// When the statement fails.
pub fn settle(
    db: &mut impl Sql,
    held: &Held,
    next: Next,
    error: Option<&str>,
) -> Result<Option<Settled>, DbError> {
    const SQL: &str = "\
        UPDATE webhook_deliveries SET
               status = $3::text,
               attempts = attempts + 1,
               last_attempt_at = now(),
               last_error = $4,
               next_retry_at = now() + make_interval(secs => $5),
               completed_at = CASE WHEN $3::text <> 'failed' THEN now() END,
               acquired_by = CASE WHEN $3::text = 'success' THEN acquired_by END,
               acquired_until = NULL,
               claim = NULL
         WHERE id = $1 AND claim = $2 AND status = 'acquired'
         RETURNING attempts, next_retry_at";
    let pause = match next {
        Next::Failed(pause) => Some(pause),
        Next::Success | Next::Dead => None,
    };
    let row = db.query_opt(
        SQL,
        &[
            &held.id,
            &held.claim,
            &next.status(),
            &error,
            &pause.map(|pause: Duration| pause.as_secs_f64()),
        ],
    )?;
    row.map(|row| {
        Ok(Settled {
            attempts: row.try_get(0)?,
            next_retry_at: row.try_get(1)?,
        })
    })
    .transpose()
}
