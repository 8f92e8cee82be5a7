//! Work orders: the agents that may claim them, their claims and their retries.
//!
//! An order is for the agents that it names, and for the agents that share a label with it or an annotation (key and
//! value). `due_at` is the time at which an order becomes pending again by itself: `next_retry_after` of a retry, or
//! the end of a claim.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

/// The longest pause before a retry: ten years, because doubling without end would exceed the calendar.
const LONGEST_PAUSE: f64 = 10.0 * 365.25 * 24.0 * 60.0 * 60.0;

/// The largest number of orders in one list.
const MOST: i64 = 10_000;

/// The largest number of orders that one statement releases.
const CHUNK: i64 = 1_000;

row! {
    columns = "";
    /// A work order as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct WorkOrder {
        pub id: Uuid,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub work_type: String,
        pub yaml_content: String,
        /// `PENDING`, `CLAIMED` or `RETRY_PENDING`; `COMPLETED` or `FAILED` for an order in the log.
        pub status: String,
        pub claimed_by: Option<Uuid>,
        pub claimed_at: Option<DateTime<Utc>>,
        pub claim_timeout_seconds: i32,
        pub max_retries: i32,
        pub retry_count: i32,
        pub backoff_seconds: i32,
        pub next_retry_after: Option<DateTime<Utc>>,
        pub last_error: Option<String>,
        pub last_error_at: Option<DateTime<Utc>>,
    }
}

/// Selects creation time and id of the oldest pending orders for agent `$1`, at most 1,000, limited to a type by
/// `$filter`.
///
/// Three arms instead of one condition with OR, because each arm begins at the agent's own few rows and goes on by
/// index, oldest first. Each arm has the limit too, because a label may be on every order.
macro_rules! pending_for {
    ($filter:literal) => {
        concat!(
            "((SELECT w.created_at, w.id
                 FROM work_order_targets t
                 JOIN work_orders w ON w.id = t.work_order_id AND w.status = 'PENDING'",
            $filter,
            "   WHERE t.agent_id = $1
                ORDER BY t.created_at, t.work_order_id LIMIT 1000)
              UNION
              SELECT oldest.created_at, oldest.id
                FROM agent_labels al
                CROSS JOIN LATERAL (
                     SELECT w.created_at, w.id
                       FROM work_order_labels ol
                       JOIN work_orders w ON w.id = ol.work_order_id AND w.status = 'PENDING'",
            $filter,
            "         WHERE ol.label = al.label
                      ORDER BY ol.created_at, ol.work_order_id LIMIT 1000) AS oldest
               WHERE al.agent_id = $1
              UNION
              SELECT oldest.created_at, oldest.id
                FROM agent_annotations aa
                CROSS JOIN LATERAL (
                     SELECT w.created_at, w.id
                       FROM work_order_annotations oa
                       JOIN work_orders w ON w.id = oa.work_order_id AND w.status = 'PENDING'",
            $filter,
            "         WHERE oa.key = aa.key AND oa.value = aa.value
                      ORDER BY oa.created_at, oa.work_order_id LIMIT 1000) AS oldest
               WHERE aa.agent_id = $1
              ORDER BY 1, 2 LIMIT 1000)"
        )
    };
}

impl WorkOrder {
    /// Returns true when a retry may follow one more failure.
    pub fn may_retry(&self) -> bool {
        self.retry_count < self.max_retries
    }

    /// Returns the pause after one more failure: the backoff, doubled with each failure, at most ten years.
    pub fn pause(&self) -> Duration {
        let failures = self.retry_count.saturating_add(1);
        // An overflow yields infinity, which `clamp` turns into the longest pause.
        let seconds = f64::from(self.backoff_seconds) * 2_f64.powi(failures);
        Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_PAUSE))
    }

    /// Returns the time after which a claim ends and the order is pending again.
    pub fn claim_timeout(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.claim_timeout_seconds).unwrap_or(0))
    }
}

/// The values of a new order.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct NewWorkOrder<'a> {
    pub work_type: &'a str,
    pub yaml_content: &'a str,
    pub max_retries: i32,
    pub backoff_seconds: i32,
    pub claim_timeout_seconds: i32,
    /// The agents that the order names.
    pub agents: &'a [Uuid],
    pub labels: &'a [&'a str],
    /// Keys and values of the annotations, in the same order.
    pub annotations: (&'a [&'a str], &'a [&'a str]),
}

/// Adds an order with its targets, labels and annotations.
///
/// # Errors
/// When an agent is unknown, or an agent or label is named twice.
pub fn insert(db: &mut impl Sql, new: &NewWorkOrder<'_>) -> Result<WorkOrder, DbError> {
    const SQL: &str = concat!(
        "WITH made AS (
             INSERT INTO work_orders (work_type, yaml_content, max_retries, backoff_seconds, claim_timeout_seconds)
             VALUES ($1, $2, $3, $4, $5) RETURNING ",
        columns!(),
        "),
         targets AS (
             INSERT INTO work_order_targets (work_order_id, agent_id)
             SELECT made.id, agent FROM made, unnest($6::uuid[]) AS agent),
         labels AS (
             INSERT INTO work_order_labels (work_order_id, label)
             SELECT made.id, label FROM made, unnest($7::text[]) AS label),
         annotations AS (
             INSERT INTO work_order_annotations (work_order_id, key, value)
             SELECT made.id, pair.key, pair.value FROM made, unnest($8::text[], $9::text[]) AS pair (key, value))
         SELECT ",
        columns!(),
        " FROM made"
    );
    row::one(
        db,
        SQL,
        &[
            &new.work_type,
            &new.yaml_content,
            &new.max_retries,
            &new.backoff_seconds,
            &new.claim_timeout_seconds,
            &new.agents,
            &new.labels,
            &new.annotations.0,
            &new.annotations.1,
        ],
    )
}

/// Returns the newest orders, newest first, at most ten thousand, limited to a status and a type if given.
pub fn list(
    db: &mut impl Sql,
    status: Option<&str>,
    work_type: Option<&str>,
) -> Result<Vec<WorkOrder>, DbError> {
    // One text per set of filters, so that each is planned for its own index.
    macro_rules! sql {
        ($filter:literal) => {
            concat!(
                "SELECT ",
                columns!(),
                " FROM work_orders ",
                $filter,
                " ORDER BY created_at DESC, id DESC LIMIT $1"
            )
        };
    }
    match (status, work_type) {
        (None, None) => row::all(db, sql!(""), &[&MOST]),
        (Some(status), None) => row::all(db, sql!("WHERE status = $2"), &[&MOST, &status]),
        (None, Some(kind)) => row::all(db, sql!("WHERE work_type = $2"), &[&MOST, &kind]),
        (Some(status), Some(kind)) => row::all(
            db,
            sql!("WHERE status = $2 AND work_type = $3"),
            &[&MOST, &status, &kind],
        ),
    }
}

/// Returns the oldest pending orders that an agent may claim, at most 1,000, limited to a type if given. That is
/// enough, because an agent claims the first and asks again.
pub fn pending(
    db: &mut impl Sql,
    agent: Uuid,
    work_type: Option<&str>,
) -> Result<Vec<WorkOrder>, DbError> {
    macro_rules! sql {
        ($filter:literal) => {
            concat!(
                "SELECT ",
                columns!(),
                " FROM work_orders JOIN ",
                pending_for!($filter),
                " AS oldest USING (created_at, id) ORDER BY created_at, id"
            )
        };
    }
    match work_type {
        None => row::all(db, sql!(""), &[&agent]),
        Some(kind) => row::all(db, sql!(" AND w.work_type = $2"), &[&agent, &kind]),
    }
}

/// Returns the order with this id. For an ended order, returns the values that the log holds.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<WorkOrder>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM work_orders WHERE id = $1
         UNION ALL
         SELECT id, created_at, completed_at, work_type, yaml_content,
                CASE WHEN success THEN 'COMPLETED' ELSE 'FAILED' END, claimed_by, claimed_at,
                0, 0, retries_attempted, 0, NULL,
                CASE WHEN NOT success THEN result_message END, CASE WHEN NOT success THEN completed_at END
           FROM work_order_log WHERE id = $1"
    );
    row::optional(db, SQL, &[&id])
}

/// Returns the order with this id, and locks it until the end of the transaction against claim, completion, release and
/// deletion.
pub fn get_locked(db: &mut impl Sql, id: Uuid) -> Result<Option<WorkOrder>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM work_orders WHERE id = $1 FOR UPDATE"
    );
    row::optional(db, SQL, &[&id])
}

/// Claims a pending order for a live agent. Returns `None` when the order is not pending or not for that agent, or when
/// the order or agent does not exist. Of concurrent agents one succeeds: the others wait for the row and then see it
/// claimed.
pub fn claim(db: &mut impl Sql, id: Uuid, agent: Uuid) -> Result<Option<WorkOrder>, DbError> {
    // OFFSET 0 keeps the planner from turning a look-up of one order's few rows into a hash of whole tables.
    const SQL: &str = concat!(
        "UPDATE work_orders w
            SET status = 'CLAIMED', claimed_by = $2, claimed_at = now(),
                due_at = now() + make_interval(secs => w.claim_timeout_seconds)
          WHERE w.id = $1 AND w.status = 'PENDING'
            AND EXISTS (SELECT 1 FROM agents a WHERE a.id = $2 AND a.deleted_at IS NULL)
            AND (EXISTS (SELECT 1 FROM work_order_targets t WHERE t.work_order_id = w.id AND t.agent_id = $2 OFFSET 0)
              OR EXISTS (SELECT 1 FROM work_order_labels ol
                           JOIN agent_labels al ON al.agent_id = $2 AND al.label = ol.label
                          WHERE ol.work_order_id = w.id OFFSET 0)
              OR EXISTS (SELECT 1 FROM work_order_annotations oa
                           JOIN agent_annotations aa
                             ON aa.agent_id = $2 AND aa.key = oa.key AND aa.value = oa.value
                          WHERE oa.work_order_id = w.id OFFSET 0))
         RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id, &agent])
}

/// Stores a failure of an order that the caller has locked, and schedules its retry after [`WorkOrder::pause`].
pub fn put_aside(
    db: &mut impl Sql,
    order: &WorkOrder,
    message: &str,
) -> Result<WorkOrder, DbError> {
    const SQL: &str = concat!(
        "UPDATE work_orders
            SET status = 'RETRY_PENDING', retry_count = retry_count + 1, claimed_by = NULL, claimed_at = NULL,
                last_error = $2, last_error_at = now(),
                next_retry_after = now() + make_interval(secs => $3),
                due_at = now() + make_interval(secs => $3)
          WHERE id = $1 RETURNING ",
        columns!()
    );
    row::one(
        db,
        SQL,
        &[&order.id, &message, &order.pause().as_secs_f64()],
    )
}

/// Removes an order in any state. Returns false when there was none.
pub fn delete(db: &mut impl Sql, id: Uuid) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM work_orders WHERE id = $1";
    Ok(db.execute(SQL, &[&id])? > 0)
}

/// The result of one [`release`].
#[derive(Clone, Copy, Debug)]
pub struct Released {
    /// The number of orders that became pending.
    pub orders: i64,
    /// Seconds until the next order is due.
    pub next: Option<f64>,
    /// True when more orders may be due already.
    pub more: bool,
}

/// Makes orders pending whose retry is due or whose claim has expired. Skips orders that another transaction has
/// locked.
pub fn release(db: &mut impl Sql) -> Result<Released, DbError> {
    const SQL: &str = "\
        WITH due AS (
            SELECT id FROM work_orders WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED),
        released AS (
            UPDATE work_orders w
               SET status = 'PENDING', claimed_by = NULL, claimed_at = NULL, next_retry_after = NULL, due_at = NULL
              FROM due WHERE w.id = due.id RETURNING w.id)
        SELECT (SELECT count(*) FROM released),
               (SELECT extract(epoch FROM min(due_at) - now())::float8 FROM work_orders WHERE due_at > now())";
    let (orders, next) = row::one(db, SQL, &[&CHUNK])?;
    Ok(Released {
        orders,
        next,
        more: orders == CHUNK,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn order(backoff_seconds: i32, retry_count: i32) -> WorkOrder {
        WorkOrder {
            id: Uuid::nil(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            work_type: String::new(),
            yaml_content: String::new(),
            status: String::new(),
            claimed_by: None,
            claimed_at: None,
            claim_timeout_seconds: i32::MAX,
            max_retries: i32::MAX,
            retry_count,
            backoff_seconds,
            next_retry_after: None,
            last_error: None,
            last_error_at: None,
        }
    }

    #[test]
    fn the_pause_doubles_with_each_failure_and_ends_at_ten_years() {
        let pause = |backoff, failures| order(backoff, failures).pause().as_secs();
        assert_eq!([pause(60, 0), pause(60, 1), pause(60, 2)], [120, 240, 480]);
        let longest = LONGEST_PAUSE as u64;
        assert_eq!(pause(1, 27), 1 << 28);
        for (backoff, failures) in [(1, 28), (i32::MAX, 0), (1, 5_000), (i32::MAX, i32::MAX)] {
            assert_eq!(pause(backoff, failures), longest);
        }
        assert!(!order(1, i32::MAX).may_retry());
    }
}
