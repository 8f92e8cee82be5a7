//! Claims deliveries for a limited time. Concurrent callers claim different deliveries.

use postgres::types::ToSql;
use uuid::Uuid;

use super::LeasedDelivery;
use crate::db::{DbError, Sql};
use crate::store::row;
use crate::webhook::endpoint::Sealed;
use crate::webhook::in_flight::LANE;

row! {
    /// A claimed delivery, with the values needed to deliver it.
    #[derive(Clone, Debug)]
    pub struct ClaimedDelivery {
        /// The values needed to end the attempt.
        pub held: LeasedDelivery,
        /// The body to send, JSON.
        pub payload: String,
        /// The sealed URL and `Authorization` value.
        pub sealed: Sealed,
        /// The id of the endpoint's host.
        pub lane: Uuid,
        /// The timeout of one attempt.
        pub timeout_seconds: i32,
        /// The position in the order of creation.
        pub position: i64,
    }
}

// A claim lasts for 60 s, or for the subscription's timeout plus 30 s to store the result, whichever is longer.
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

/// Claims or reads deliveries, and sorts them by creation, because `RETURNING` promises no order.
fn oldest_first(
    db: &mut impl Sql,
    sql: &'static str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<ClaimedDelivery>, DbError> {
    let mut taken: Vec<ClaimedDelivery> = row::all(db, sql, params)?;
    taken.sort_by_key(|taken| taken.position);
    Ok(taken)
}

/// Makes deliveries pending again whose claim has expired or whose retry is due.
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

/// Claims up to `most` deliveries of enabled subscriptions for the broker, oldest first.
///
/// `lanes` and `counts` name the lanes in use and their running deliveries. Claims fill each lane up to `LANE`.
pub fn for_broker(
    db: &mut impl Sql,
    most: i64,
    lanes: &[Uuid],
    counts: &[i32],
) -> Result<Vec<ClaimedDelivery>, DbError> {
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
    oldest_first(db, SQL, &[&most, &lanes, &counts, &i64::from(LANE)])
}

// Steps through the index to find the label sets of a subscription's pending deliveries (nearly always one), and takes
// the oldest deliveries of each set that the agent covers. Compares each delivery's own labels only after that, in case
// two sets share a key: inside, the planner would expect few matches and read all deliveries by another index.
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

/// Claims up to `most` deliveries for an agent: the oldest whose labels the agent has in full.
pub fn for_agent(
    db: &mut impl Sql,
    agent: Uuid,
    most: i64,
) -> Result<Vec<ClaimedDelivery>, DbError> {
    const SQL: &str = concat!(
        for_agent!("FOR UPDATE SKIP LOCKED"),
        take!("$1"),
        columns!()
    );
    oldest_first(db, SQL, &[&agent, &most])
}

/// Returns the deliveries that [`for_agent`] would claim, without a claim.
pub fn seen_by_agent(
    db: &mut impl Sql,
    agent: Uuid,
    most: i64,
) -> Result<Vec<ClaimedDelivery>, DbError> {
    const SQL: &str = concat!(
        for_agent!(""),
        "SELECT ",
        columns!(),
        " FROM webhook_deliveries d
           JOIN webhook_subscriptions s ON s.id = d.subscription_id
          WHERE d.id = ANY (ARRAY (SELECT id FROM chosen))"
    );
    oldest_first(db, SQL, &[&agent, &most])
}

/// Returns the seconds until work is due: an event to turn into deliveries, the end of a claim, or a retry.
pub fn due(db: &mut impl Sql) -> Result<Option<f64>, DbError> {
    const SQL: &str = "\
        SELECT extract(epoch FROM least(
                   (SELECT min(created_at) FROM event_outbox),
                   (SELECT min(acquired_until) FROM webhook_deliveries WHERE status = 'acquired'),
                   (SELECT min(next_retry_at) FROM webhook_deliveries WHERE status = 'failed')) - now())::float8";
    row::one(db, SQL, &[])
}
