//! Turns events into deliveries: one for each enabled subscription that matches.

use crate::db::{DbError, Sql};
use crate::store::row;

/// Takes up to `most` of the oldest events and creates their deliveries, in one statement. Returns the number of
/// events.
///
/// A pattern is `*`, an event type, or a prefix followed by `.*`. Subscriptions are locked meanwhile, so a subscription
/// that is being deleted or disabled gets no delivery after that.
pub fn fan_out(db: &mut impl Sql, most: i64) -> Result<i64, DbError> {
    const SQL: &str = r#"
        WITH taken AS (
            DELETE FROM event_outbox WHERE id = ANY (ARRAY (
                SELECT id FROM event_outbox ORDER BY created_at, id LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING id, event_type, data, created_at),
        listening AS (
            SELECT id, created_at, event_types, filters, target_labels FROM webhook_subscriptions
             WHERE enabled AND EXISTS (SELECT FROM taken) FOR SHARE),
        made AS (
            INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, target_labels)
            SELECT s.id, e.event_type, e.id,
                   format('{"id":"%s","event_type":%s,"timestamp":"%s","data":%s}', e.id, to_json(e.event_type),
                          to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), e.data),
                   s.target_labels
              FROM taken e
              JOIN listening s
                ON s.created_at <= e.created_at
               AND EXISTS (
                       SELECT FROM unnest(s.event_types) AS pattern
                        WHERE pattern IN ('*', e.event_type)
                           OR (pattern LIKE '%.*' AND starts_with(e.event_type, left(pattern, -1))))
               AND (s.filters IS NULL
                    OR (jsonb_typeof(s.filters) = 'object'
                        AND (s.filters->>'agent_id' IS NULL OR s.filters->>'agent_id' = e.data->>'agent_id')
                        AND (s.filters->>'stack_id' IS NULL OR s.filters->>'stack_id' = e.data->>'stack_id')))
             ORDER BY e.created_at, e.id, s.created_at, s.id)
        SELECT count(*) FROM taken"#;
    row::one(db, SQL, &[&most])
}
