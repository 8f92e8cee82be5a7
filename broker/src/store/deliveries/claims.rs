//! Taking deliveries, for a time. Whoever comes at the same moment takes others.

use postgres::Row;
use uuid::Uuid;

use super::Held;
use crate::db::{DbError, Sql};
use crate::webhook::endpoint::Sealed;
use crate::webhook::flights::LANE;

/// A delivery that has just been taken, with all that delivering it needs.
#[derive(Clone, Debug)]
pub struct Taken {
    /// What ending the attempt needs.
    pub held: Held,
    /// What is sent, JSON.
    pub payload: String,
    /// Where to, as whom.
    pub sealed: Sealed,
    /// The name of the host.
    pub lane: Uuid,
    /// For one attempt.
    pub timeout_seconds: i32,
    /// Its place in the order of all.
    pub position: i64,
}

// A claim covers its attempt: 60 s, or what a slow endpoint is allowed and half a minute to write down how it went.
macro_rules! take {
    ($by:literal) => {
        concat!(
            "UPDATE webhook_deliveries d SET status = 'acquired', acquired_by = ",
            $by,
            ", acquired_until = now() + make_interval(secs => greatest(60, s.timeout_seconds + 30)),
                    claim = gen_random_uuid(), next_retry_at = NULL
               FROM webhook_subscriptions s
              WHERE d.id = ANY (ARRAY (SELECT id FROM chosen)) AND s.id = d.subscription_id AND d.status = 'pending'
             RETURNING "
        )
    };
}

macro_rules! columns {
    () => {
        "d.id, d.claim, d.subscription_id, d.event_type, d.attempts, s.max_retries, d.payload, s.url, s.auth_header, s.lane,
         s.timeout_seconds, d.position"
    };
}

impl Taken {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            held: Held {
                id: row.try_get(0)?,
                // Null where a delivery is only looked at.
                claim: row.try_get::<_, Option<Uuid>>(1)?.unwrap_or_default(),
                subscription_id: row.try_get(2)?,
                event_type: row.try_get(3)?,
                attempts: row.try_get(4)?,
                max_retries: row.try_get(5)?,
            },
            payload: row.try_get(6)?,
            sealed: Sealed {
                url: row.try_get(7)?,
                auth_header: row.try_get(8)?,
            },
            lane: row.try_get(9)?,
            timeout_seconds: row.try_get(10)?,
            position: row.try_get(11)?,
        })
    }
}

/// In the order they were made, which no `RETURNING` promises.
fn oldest_first(rows: Vec<Row>) -> Result<Vec<Taken>, DbError> {
    let mut taken = crate::store::all(rows, Taken::read)?;
    taken.sort_by_key(|taken| taken.position);
    Ok(taken)
}

/// Makes pending again what was taken and not settled in time, and what is due for another attempt.
///
/// # Errors
/// When the statement fails.
pub fn release(db: &mut impl Sql, most: i64) -> Result<u64, DbError> {
    const SQL: &str = "\
        WITH expired AS (
            SELECT id FROM webhook_deliveries WHERE status = 'acquired' AND acquired_until < now()
             ORDER BY acquired_until LIMIT $1 FOR UPDATE SKIP LOCKED),
        due AS (
            SELECT id FROM webhook_deliveries WHERE status = 'failed' AND next_retry_at <= now()
             ORDER BY next_retry_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        UPDATE webhook_deliveries
           SET status = 'pending', acquired_by = NULL, acquired_until = NULL, claim = NULL, next_retry_at = NULL
         WHERE id = ANY (ARRAY (SELECT id FROM expired UNION ALL SELECT id FROM due))";
    db.execute(SQL, &[&most])
}

/// Takes up to `most` deliveries for the broker, of enabled subscriptions, the oldest of each. Of one lane as many as
/// are free beside those of `lanes` and `counts`, which are under way.
///
/// # Errors
/// When the statement fails.
pub fn for_broker(
    db: &mut impl Sql,
    most: i64,
    lanes: &[Uuid],
    counts: &[i32],
) -> Result<Vec<Taken>, DbError> {
    const SQL: &str = concat!(
        "WITH ready AS (
             SELECT d.id, d.position, s.lane, coalesce(busy.count, 0) AS count
               FROM webhook_subscriptions s
               LEFT JOIN unnest($2::uuid[], $3::integer[]) AS busy (lane, count) ON busy.lane = s.lane
              CROSS JOIN LATERAL (
                    SELECT id, position FROM webhook_deliveries
                     WHERE subscription_id = s.id AND status = 'pending' AND for_broker
                     ORDER BY position LIMIT $4 FOR UPDATE SKIP LOCKED) AS d
              WHERE s.enabled AND coalesce(busy.count, 0) < $4),
         placed AS (
             SELECT id, position, count + row_number() OVER (PARTITION BY lane ORDER BY position) AS place
               FROM ready),
         chosen AS (
             SELECT id FROM placed WHERE place <= $4 ORDER BY place, position LIMIT $1) ",
        take!("NULL"),
        columns!()
    );
    oldest_first(db.query(SQL, &[&most, &lanes, &counts, &i64::from(LANE)])?)
}

// The label sets that pending deliveries of a subscription have (nearly always one), found by stepping through the index;
// of each that the agent covers, the oldest deliveries. Their own labels are compared after that, in case two sets share a key: as
// a condition within, the planner would think few rows meet it, and read all of them by another index.
macro_rules! for_agent {
    ($lock:literal) => {
        concat!(
            "WITH RECURSIVE own AS (
                 SELECT coalesce(array_agg(label::text), '{}') AS labels FROM agent_labels WHERE agent_id = $1),
             routes (subscription_id, labels_key, target_labels) AS (
                 SELECT s.id, d.labels_key, d.target_labels
                   FROM webhook_subscriptions s
                  CROSS JOIN LATERAL (
                        SELECT labels_key, target_labels FROM webhook_deliveries
                         WHERE subscription_id = s.id AND status = 'pending' AND NOT for_broker
                         ORDER BY labels_key LIMIT 1) AS d
                  WHERE s.enabled
                 UNION ALL
                 SELECT r.subscription_id, d.labels_key, d.target_labels
                   FROM routes r
                  CROSS JOIN LATERAL (
                        SELECT labels_key, target_labels FROM webhook_deliveries
                         WHERE subscription_id = r.subscription_id AND status = 'pending' AND NOT for_broker
                           AND labels_key > r.labels_key
                         ORDER BY labels_key LIMIT 1) AS d),
             ready AS (
                 SELECT d.id, d.position
                   FROM routes r
                   JOIN own ON r.target_labels <@ own.labels
                  CROSS JOIN LATERAL (
                        SELECT id, position, target_labels FROM webhook_deliveries
                         WHERE subscription_id = r.subscription_id AND labels_key = r.labels_key AND status = 'pending'
                           AND NOT for_broker
                         ORDER BY position LIMIT $2 ",
            $lock,
            ") AS d
                  WHERE d.target_labels <@ own.labels),
             chosen AS (SELECT id FROM ready ORDER BY position LIMIT $2) "
        )
    };
}

/// Takes up to `most` deliveries for an agent: the oldest whose labels it has, all of them.
///
/// # Errors
/// When the statement fails.
pub fn for_agent(db: &mut impl Sql, agent: Uuid, most: i64) -> Result<Vec<Taken>, DbError> {
    const SQL: &str = concat!(
        for_agent!("FOR UPDATE SKIP LOCKED"),
        take!("$1"),
        columns!()
    );
    oldest_first(db.query(SQL, &[&agent, &most])?)
}

/// What [`for_agent`] would take, left where it is.
///
/// # Errors
/// When the statement fails.
pub fn seen_by_agent(db: &mut impl Sql, agent: Uuid, most: i64) -> Result<Vec<Taken>, DbError> {
    const SQL: &str = concat!(
        for_agent!(""),
        "SELECT ",
        columns!(),
        " FROM webhook_deliveries d
           JOIN webhook_subscriptions s ON s.id = d.subscription_id
          WHERE d.id = ANY (ARRAY (SELECT id FROM chosen))"
    );
    oldest_first(db.query(SQL, &[&agent, &most])?)
}

/// After how many seconds something falls due by itself: an event to be turned into deliveries, a claim that ends, a retry.
///
/// # Errors
/// When the statement fails.
pub fn due(db: &mut impl Sql) -> Result<Option<f64>, DbError> {
    const SQL: &str = "\
        SELECT extract(epoch FROM least(
                   (SELECT min(created_at) FROM event_outbox),
                   (SELECT min(acquired_until) FROM webhook_deliveries WHERE status = 'acquired'),
                   (SELECT min(next_retry_at) FROM webhook_deliveries WHERE status = 'failed')) - now())::float8";
    Ok(db.query_one(SQL, &[])?.try_get(0)?)
}
