//! Measures the fleet: one record for each live agent, for any number of agents in one statement.
//!
//! Everything is counted on request, and the cost depends only on the requested agents and the objects that they serve.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row::{self, Columns, FromColumns};
use crate::db::{DbError, Sql};

/// An agent's record as the API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = FleetAgentRecord)]
pub struct FleetRecord {
    /// The agent's id.
    pub agent_id: Uuid,
    /// The agent's name.
    pub name: String,
    /// The agent's cluster.
    pub cluster_name: String,
    /// The agent's stored status.
    pub status: String,
    /// True while the agent holds a WebSocket to this process.
    pub ws_connected: bool,
    /// Start of that connection.
    pub connected_since: Option<DateTime<Utc>>,
    /// Time of the last heartbeat.
    pub last_heartbeat: Option<DateTime<Utc>>,
    /// Age of the last heartbeat.
    pub heartbeat_age_seconds: Option<i64>,
    /// Objects that the agent should have applied and has not reported as a success.
    pub pending_object_count: i64,
    /// Pending work orders that the agent may claim.
    pub pending_work_orders: i64,
    /// Work orders that the agent has claimed.
    pub claimed_work_orders: i64,
    /// Time of the agent's last report on an object.
    pub last_event_at: Option<DateTime<Utc>>,
    /// Age of that report.
    pub seconds_since_last_event: Option<i64>,
    /// Objects that the agent reports as failing.
    pub health_failing: i64,
    /// Objects that the agent reports as degraded.
    pub health_degraded: i64,
    /// True when the cluster's API server answered, by the agent's last report.
    pub k8s_reachable: Option<bool>,
    /// The API server's time to answer, in milliseconds.
    pub k8s_api_latency_ms: Option<i64>,
}

/// The counts of a record that change without a report of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetCounters([i64; 5]);

impl FleetRecord {
    /// Adds the start of the agent's WebSocket, which only this process knows.
    pub fn connected(&mut self, since: Option<DateTime<Utc>>) {
        self.ws_connected = since.is_some();
        self.connected_since = since;
    }

    /// Returns the record's counts.
    pub fn counters(&self) -> FleetCounters {
        FleetCounters([
            self.pending_object_count,
            self.pending_work_orders,
            self.claimed_work_orders,
            self.health_failing,
            self.health_degraded,
        ])
    }
}

impl FromColumns for FleetRecord {
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbError> {
        Ok(Self {
            agent_id: columns.take()?,
            name: columns.take()?,
            cluster_name: columns.take()?,
            status: columns.take()?,
            ws_connected: false,
            connected_since: None,
            last_heartbeat: columns.take()?,
            heartbeat_age_seconds: age(columns)?,
            k8s_reachable: columns.take()?,
            k8s_api_latency_ms: columns.take()?,
            last_event_at: columns.take()?,
            seconds_since_last_event: age(columns)?,
            pending_object_count: columns.take()?,
            pending_work_orders: columns.take()?,
            claimed_work_orders: columns.take()?,
            health_failing: columns.take()?,
            health_degraded: columns.take()?,
        })
    }
}

/// Reads an age in seconds, at least 0 even after the server's clock was set back.
fn age(columns: &mut Columns<'_>) -> Result<Option<i64>, DbError> {
    let seconds: Option<i64> = columns.take()?;
    Ok(seconds.map(|seconds| seconds.max(0)))
}

/// Selects the records of the live agents that meet a condition on `a`.
///
/// Each count groups a set of pairs (agent, thing) made once for all requested agents. A sub-query per agent would
/// begin anew with every table for each of them; so the server joins whole sets for the whole fleet, and uses indexes
/// for one agent.
macro_rules! records {
    ($condition:literal) => {
        concat!(
            "WITH asked AS MATERIALIZED (
                 SELECT a.id FROM agents a WHERE a.deleted_at IS NULL AND ",
            $condition,
            "),
             served AS MATERIALIZED (
                 SELECT t.agent_id, t.stack_id FROM asked JOIN agent_targets t ON t.agent_id = asked.id
                 UNION
                 SELECT al.agent_id, sl.stack_id
                   FROM asked
                   JOIN agent_labels al ON al.agent_id = asked.id
                   JOIN agent_generator_registrations r ON r.agent_id = al.agent_id
                   JOIN stack_labels sl ON sl.generator_id = r.generator_id AND sl.label = al.label
                 UNION
                 SELECT aa.agent_id, sa.stack_id
                   FROM asked
                   JOIN agent_annotations aa ON aa.agent_id = asked.id
                   JOIN agent_generator_registrations r ON r.agent_id = aa.agent_id
                   JOIN stack_annotations sa
                     ON sa.generator_id = r.generator_id AND sa.key = aa.key AND sa.value = aa.value),
             newest AS MATERIALIZED (
                 SELECT s.id AS stack_id,
                        (SELECT o.id FROM deployment_objects o
                          WHERE o.stack_id = s.id AND o.deleted_at IS NULL
                          ORDER BY o.sequence_id DESC LIMIT 1) AS object_id
                   FROM stacks s
                  WHERE s.deleted_at IS NULL AND s.id IN (SELECT served.stack_id FROM served)),
             objects AS (
                 SELECT served.agent_id, count(*) AS pending
                   FROM served JOIN newest ON newest.stack_id = served.stack_id AND newest.object_id IS NOT NULL
                  WHERE NOT EXISTS (
                        SELECT 1 FROM agent_events e
                         WHERE e.agent_id = served.agent_id AND e.deployment_object_id = newest.object_id
                           AND e.success_digest IS NOT NULL AND e.deleted_at IS NULL)
                  GROUP BY served.agent_id),
             markers AS (
                 SELECT d.agent_id, count(*) AS pending
                   FROM asked
                   JOIN stack_departures d ON d.agent_id = asked.id AND d.answered_at IS NULL
                   JOIN deployment_objects o ON o.id = d.deployment_object_id AND o.deleted_at IS NULL
                  GROUP BY d.agent_id),
             orders AS (
                 SELECT matching.agent_id, count(*) AS pending
                   FROM (SELECT t.agent_id, t.work_order_id
                           FROM asked JOIN work_order_targets t ON t.agent_id = asked.id
                         UNION
                         SELECT al.agent_id, wl.work_order_id
                           FROM asked
                           JOIN agent_labels al ON al.agent_id = asked.id
                           JOIN work_order_labels wl ON wl.label = al.label
                         UNION
                         SELECT aa.agent_id, wa.work_order_id
                           FROM asked
                           JOIN agent_annotations aa ON aa.agent_id = asked.id
                           JOIN work_order_annotations wa ON wa.key = aa.key AND wa.value = aa.value) AS matching
                   JOIN work_orders w ON w.id = matching.work_order_id AND w.status = 'PENDING'
                  GROUP BY matching.agent_id),
             claims AS (
                 SELECT w.claimed_by AS agent_id, count(*) AS claimed
                   FROM asked JOIN work_orders w ON w.claimed_by = asked.id AND w.status = 'CLAIMED'
                  GROUP BY w.claimed_by),
             health AS (
                 SELECT h.agent_id, count(*) FILTER (WHERE h.status = 'failing') AS failing,
                        count(*) FILTER (WHERE h.status = 'degraded') AS degraded
                   FROM asked JOIN deployment_health h ON h.agent_id = asked.id AND h.status IN ('degraded', 'failing')
                  GROUP BY h.agent_id)
             SELECT a.id, a.name, a.cluster_name, a.status, a.last_heartbeat,
                    floor(extract(epoch FROM now() - a.last_heartbeat))::bigint,
                    a.k8s_reachable, a.k8s_api_latency_ms::bigint,
                    latest.created_at, floor(extract(epoch FROM now() - latest.created_at))::bigint,
                    coalesce(objects.pending, 0) + coalesce(markers.pending, 0), coalesce(orders.pending, 0),
                    coalesce(claims.claimed, 0), coalesce(health.failing, 0), coalesce(health.degraded, 0)
               FROM asked
               JOIN agents a ON a.id = asked.id
               LEFT JOIN LATERAL (
                    SELECT e.created_at FROM agent_events e
                     WHERE e.agent_id = a.id AND e.deleted_at IS NULL
                     ORDER BY e.created_at DESC, e.id DESC LIMIT 1) AS latest ON true
               LEFT JOIN objects ON objects.agent_id = a.id
               LEFT JOIN markers ON markers.agent_id = a.id
               LEFT JOIN orders ON orders.agent_id = a.id
               LEFT JOIN claims ON claims.agent_id = a.id
               LEFT JOIN health ON health.agent_id = a.id
              ORDER BY a.created_at, a.id"
        )
    };
}

/// Returns the record of every live agent.
pub fn list(db: &mut impl Sql) -> Result<Vec<FleetRecord>, DbError> {
    const SQL: &str = records!("true");
    row::all(db, SQL, &[])
}

/// Returns the records of the live agents registered with a generator; none when it is unknown.
pub fn of_registered(db: &mut impl Sql, generator: Uuid) -> Result<Vec<FleetRecord>, DbError> {
    const SQL: &str = records!(
        "a.id IN (SELECT r.agent_id FROM agent_generator_registrations r WHERE r.generator_id = $1)"
    );
    row::all(db, SQL, &[&generator])
}

/// Returns the records of those of the given agents that are live.
pub fn of_agents(db: &mut impl Sql, agents: &[Uuid]) -> Result<Vec<FleetRecord>, DbError> {
    const SQL: &str = records!("a.id = ANY ($1)");
    row::all(db, SQL, &[&agents])
}
