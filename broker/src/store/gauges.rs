//! Reads the database's part of `/metrics`: totals, and the longest silent agents.

use std::time::Duration;

use super::row;
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
    let (active_agents, stacks, deployment_objects, public_pak) =
        row::one(db, TOTALS, &[&PUBLIC_HASH])?;
    let heartbeats = row::all(db, HEARTBEATS, &[&MOST_AGENTS])?
        .into_iter()
        .map(|(agent, name, age): (_, _, f64)| AgentHeartbeat {
            agent,
            name,
            age: Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX),
        })
        .collect();
    let reading = GaugeReading {
        active_agents,
        stacks,
        deployment_objects,
        heartbeats,
    };
    Ok((reading, public_pak))
}
