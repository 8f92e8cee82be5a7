//! Reads the database's part of `/metrics`: totals, and the longest silent agents.

use std::time::Duration;

use crate::db::{DbError, Sql};
use crate::metrics::gauges::{AgentHeartbeat, GaugeReading, MOST_AGENTS};
use crate::pak::PUBLIC_HASH;

/// Returns the reading, and true when the administrator's PAK is the public development one.
pub fn read(db: &mut impl Sql) -> Result<(GaugeReading, bool), DbError> {
    const TOTALS: &str = "\
        SELECT (SELECT count(*) FROM agents WHERE deleted_at IS NULL AND status = 'ACTIVE'),
               (SELECT count(*) FROM stacks WHERE deleted_at IS NULL),
               (SELECT count(*) FROM deployment_objects WHERE deleted_at IS NULL),
               EXISTS (SELECT FROM admin_role WHERE pak_hash = $1)";
    const HEARTBEATS: &str = "\
        SELECT id, name, extract(epoch FROM now() - last_heartbeat)::float8 FROM agents
         WHERE deleted_at IS NULL AND last_heartbeat IS NOT NULL ORDER BY last_heartbeat LIMIT $1";
    let totals = db.query_one(TOTALS, &[&PUBLIC_HASH])?;
    let heartbeats = super::all(db.query(HEARTBEATS, &[&MOST_AGENTS])?, |row| {
        let age: f64 = row.try_get(2)?;
        Ok(AgentHeartbeat {
            agent: row.try_get(0)?,
            name: row.try_get(1)?,
            age: Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX),
        })
    })?;
    let reading = GaugeReading {
        active_agents: totals.try_get(0)?,
        stacks: totals.try_get(1)?,
        deployment_objects: totals.try_get(2)?,
        heartbeats,
    };
    Ok((reading, totals.try_get(3)?))
}
