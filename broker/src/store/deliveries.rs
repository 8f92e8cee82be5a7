//! Webhook deliveries: each sends one event to one subscription.
//!
//! [`fan_out`] creates them, [`claims`] claims them for an attempt, and [`settle`] ends an attempt; the other functions
//! read them for the API.

pub mod claims;
pub mod fan_out;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::row::{self, Columns, FromColumns};
use crate::db::{DbError, Sql};
use crate::webhook::retry_policy::Next;

/// All states of a delivery, as the API names them.
pub const STATES: [&str; 5] = ["pending", "acquired", "success", "failed", "dead"];

row! {
    columns = "";
    /// A delivery as its subscription's list shows it.
    #[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
    #[schema(as = WebhookDelivery)]
    pub struct Delivery {
        /// The delivery's id.
        pub id: Uuid,
        /// The subscription's id.
        pub subscription_id: Uuid,
        /// The type of the event.
        pub event_type: String,
        /// The event's id, which all deliveries of the event share.
        pub event_id: Uuid,
        /// The body to send, JSON.
        pub payload: String,
        /// Labels of the agents that may deliver, copied from the subscription; null: the broker delivers.
        #[schema(value_type = Option<Vec<Option<String>>>)]
        pub target_labels: Option<Vec<String>>,
        /// `pending`, `acquired`, `success`, `failed` or `dead`.
        pub status: String,
        /// The agent that holds or has sent the delivery; otherwise null.
        pub acquired_by: Option<Uuid>,
        /// End of the current claim.
        pub acquired_until: Option<DateTime<Utc>>,
        /// The number of attempts so far.
        pub attempts: i32,
        /// End of the last attempt.
        pub last_attempt_at: Option<DateTime<Utc>>,
        /// Time of the next attempt after a failure.
        pub next_retry_at: Option<DateTime<Utc>>,
        /// Reason why the last attempt failed.
        pub last_error: Option<String>,
        /// Time of creation.
        pub created_at: DateTime<Utc>,
        /// Time at which the status became `success` or `dead`.
        pub completed_at: Option<DateTime<Utc>>,
    }
}

row! {
    /// A delivery as the list across subscriptions shows it, without the payload.
    #[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
    #[schema(as = WebhookDeliveryFeedItem)]
    #[allow(missing_docs, reason = "as in Delivery")]
    pub struct FeedItem {
        pub id: Uuid,
        pub subscription_id: Uuid,
        /// The subscription's name; null when it has been deleted.
        pub subscription_name: Option<String>,
        pub event_type: String,
        pub event_id: Uuid,
        /// `pending`, `acquired`, `success`, `failed` or `dead`.
        pub status: String,
        /// The agent that holds or has sent the delivery; otherwise null.
        pub acquired_by: Option<Uuid>,
        pub attempts: i32,
        pub last_attempt_at: Option<DateTime<Utc>>,
        pub next_retry_at: Option<DateTime<Utc>>,
        pub last_error: Option<String>,
        /// Labels of the agents that may deliver; empty: the broker delivers.
        pub target_labels: Vec<String>,
        pub created_at: DateTime<Utc>,
        pub completed_at: Option<DateTime<Utc>>,
    }
}

/// The requested part of a list.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryPage<'a> {
    /// The state to which the list is limited.
    pub status: Option<&'a str>,
    /// The largest number of entries.
    pub limit: i64,
    /// The number of entries to skip.
    pub offset: i64,
}

/// A claimed delivery, with the values needed to end its attempt.
#[derive(Clone, Debug)]
pub struct LeasedDelivery {
    /// The delivery's id.
    pub id: Uuid,
    /// The id of its claim.
    pub claim: Uuid,
    /// The subscription's id.
    pub subscription_id: Uuid,
    /// The type of the event.
    pub event_type: String,
    /// The number of attempts before this attempt.
    pub attempts: i32,
    /// The subscription's largest number of attempts.
    pub max_retries: i32,
}

impl FromColumns for LeasedDelivery {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        Ok(Self {
            id: columns.take()?,
            // Null where no claim is held.
            claim: columns.take::<Option<Uuid>>()?.unwrap_or_default(),
            subscription_id: columns.take()?,
            event_type: columns.take()?,
            attempts: columns.take()?,
            max_retries: columns.take()?,
        })
    }
}

row! {
    /// The state of a delivery after an attempt.
    #[derive(Clone, Copy, Debug)]
    pub struct DeliveryResult {
        /// The number of attempts so far.
        pub attempts: i32,
        /// Time of the next attempt.
        pub next_retry_at: Option<DateTime<Utc>>,
    }
}

/// Returns a subscription's deliveries, newest first.
pub fn of_subscription(
    db: &mut impl Sql,
    subscription: Uuid,
    page: DeliveryPage<'_>,
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
    match page.status {
        None => row::all(db, ANY, &[&subscription, &page.limit, &page.offset]),
        Some(status) => row::all(
            db,
            IN_STATE,
            &[&subscription, &page.limit, &page.offset, &status],
        ),
    }
}

macro_rules! feed {
    ($filter:literal) => {
        // Selects the page by its index first, and joins names only for its rows.
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

/// Returns the deliveries of all subscriptions, newest first.
pub fn feed(db: &mut impl Sql, page: DeliveryPage<'_>) -> Result<Vec<FeedItem>, DbError> {
    const ANY: &str = feed!("");
    const IN_STATE: &str = feed!("WHERE status = $3");
    match page.status {
        None => row::all(db, ANY, &[&page.limit, &page.offset]),
        Some(status) => row::all(db, IN_STATE, &[&page.limit, &page.offset, &status]),
    }
}

/// Returns the delivery with this id if it exists, and inside that the agent's claim if the agent holds it.
pub fn held_by(
    db: &mut impl Sql,
    id: Uuid,
    agent: Uuid,
) -> Result<Option<Option<LeasedDelivery>>, DbError> {
    const SQL: &str = "\
        SELECT d.id, d.claim, d.subscription_id, d.event_type, d.attempts, s.max_retries,
               (d.status = 'acquired' AND d.acquired_by = $2) IS TRUE
          FROM webhook_deliveries d JOIN webhook_subscriptions s ON s.id = d.subscription_id WHERE d.id = $1";
    let found: Option<(LeasedDelivery, bool)> = row::optional(db, SQL, &[&id, &agent])?;
    Ok(found.map(|(delivery, held)| held.then_some(delivery)))
}

/// Ends an attempt. Returns `None` when the claim is no longer valid. After a success `acquired_by` keeps the agent
/// that delivered.
pub fn settle(
    db: &mut impl Sql,
    held: &LeasedDelivery,
    next: Next,
    error: Option<&str>,
) -> Result<Option<DeliveryResult>, DbError> {
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
    row::optional(
        db,
        SQL,
        &[
            &held.id,
            &held.claim,
            &next.status(),
            &error,
            &pause.map(|pause: Duration| pause.as_secs_f64()),
        ],
    )
}
