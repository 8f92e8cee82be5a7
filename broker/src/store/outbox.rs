//! The statement that records audit entries and events.

use serde_json::Value;

use crate::db::{DbError, Sql};

/// Inserts audit entries and, while a subscription wants events, events; both are JSON arrays of rows. Returns the
/// number of inserted events.
pub fn insert(db: &mut impl Sql, audits: &Value, events: &Value) -> Result<u64, DbError> {
    const SQL: &str = "\
WITH audited AS (
    INSERT INTO audit_log (actor_type, actor_id, action, resource_type, resource_id, details, ip_address, user_agent)
    SELECT actor_type, actor_id, action, resource_type, resource_id, details, ip_address, user_agent
    FROM jsonb_to_recordset($1) AS entry (actor_type text, actor_id uuid, action text, resource_type text,
         resource_id uuid, details jsonb, ip_address text, user_agent text))
INSERT INTO event_outbox (event_type, data)
SELECT event_type, data FROM jsonb_to_recordset($2) AS event (event_type text, data jsonb)
WHERE (SELECT wants_events FROM brokkr_meta)";
    db.execute(SQL, &[audits, events])
}
