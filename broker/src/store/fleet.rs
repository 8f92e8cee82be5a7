//! The fleet, as measured: one record for each live agent, any number of them in one statement.
//!
//! Everything is counted when it is asked for. For each agent the counts begin at its own few rows (targets, labels,
//! annotations, claims, what is unwell) and go on by index, so the cost is that of the agents asked for and what they serve,
//! not of the history.

use chrono::{DateTime, Utc};
use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::association::served;
use crate::db::{DbError, Sql};

/// An agent's record as the API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = FleetAgentRecord)]
pub struct Record {
    /// Whose.
    pub agent_id: Uuid,
    /// The agent's name.
    pub name: String,
    /// The cluster it runs in.
    pub cluster_name: String,
    /// Its stored status.
    pub status: String,
    /// Whether it holds a socket to this process.
    pub ws_connected: bool,
    /// Since when it does.
    pub connected_since: Option<DateTime<Utc>>,
    /// When it was last heard of.
    pub last_heartbeat: Option<DateTime<Utc>>,
    /// How long ago that was.
    pub heartbeat_age_seconds: Option<i64>,
    /// Objects it should have applied and has not reported as a success.
    pub pending_object_count: i64,
    /// Work orders it could claim.
    pub pending_work_orders: i64,
    /// Work orders it has claimed.
    pub claimed_work_orders: i64,
    /// When it last reported on an object.
    pub last_event_at: Option<DateTime<Utc>>,
    /// How long ago that was.
    pub seconds_since_last_event: Option<i64>,
    /// Objects that it says are failing.
    pub health_failing: i64,
    /// Objects that it says are degraded.
    pub health_degraded: i64,
    /// Whether its cluster's API server answered, as it last said.
    pub k8s_reachable: Option<bool>,
    /// In how many milliseconds.
    pub k8s_api_latency_ms: Option<i64>,
}

/// The counts of a record that change without the agent saying so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters([i64; 5]);

impl Record {
    /// Adds what only the process with the agent's socket knows.
    pub fn connected(&mut self, since: Option<DateTime<Utc>>) {
        self.ws_connected = since.is_some();
        self.connected_since = since;
    }

    /// Its counters.
    pub fn counters(&self) -> Counters {
        Counters([
            self.pending_object_count,
            self.pending_work_orders,
            self.claimed_work_orders,
            self.health_failing,
            self.health_degraded,
        ])
    }

    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            agent_id: row.try_get(0)?,
            name: row.try_get(1)?,
            cluster_name: row.try_get(2)?,
            status: row.try_get(3)?,
            ws_connected: false,
            connected_since: None,
            last_heartbeat: row.try_get(4)?,
            heartbeat_age_seconds: row.try_get(5)?,
            k8s_reachable: row.try_get(6)?,
            k8s_api_latency_ms: row.try_get(7)?,
            last_event_at: row.try_get(8)?,
            seconds_since_last_event: row.try_get(9)?,
            pending_object_count: row.try_get(10)?,
            pending_work_orders: row.try_get(11)?,
            claimed_work_orders: row.try_get(12)?,
            health_failing: row.try_get(13)?,
            health_degraded: row.try_get(14)?,
        })
    }
}

/// The records of the live agents that a condition on `a` selects.
macro_rules! records {
    ($condition:literal) => {
        concat!(
            "SELECT a.id, a.name, a.cluster_name, a.status, a.last_heartbeat,
                    greatest(0, floor(extract(epoch FROM now() - a.last_heartbeat)))::bigint,
                    a.k8s_reachable, a.k8s_api_latency_ms::bigint,
                    newest.created_at, greatest(0, floor(extract(epoch FROM now() - newest.created_at)))::bigint,
                    objects.pending, orders.pending, claims.claimed, health.failing, health.degraded
               FROM agents a
               LEFT JOIN LATERAL (
                    SELECT e.created_at FROM agent_events e
                     WHERE e.agent_id = a.id AND e.deleted_at IS NULL
                     ORDER BY e.created_at DESC, e.id DESC LIMIT 1) AS newest ON true
              CROSS JOIN LATERAL (
                    SELECT (SELECT count(*)
                              FROM ",
            served!("a.id"),
            "                      AS served
                              JOIN stacks s ON s.id = served.stack_id AND s.deleted_at IS NULL
                              CROSS JOIN LATERAL (
                                   SELECT o.id FROM deployment_objects o
                                    WHERE o.stack_id = s.id AND o.deleted_at IS NULL
                                    ORDER BY o.sequence_id DESC LIMIT 1) AS o
                             WHERE NOT EXISTS (
                                   SELECT 1 FROM agent_events e
                                    WHERE e.agent_id = a.id AND e.deployment_object_id = o.id
                                      AND e.success_digest IS NOT NULL AND e.deleted_at IS NULL OFFSET 0))
                         + (SELECT count(*)
                              FROM stack_departures d
                              JOIN deployment_objects o ON o.id = d.deployment_object_id AND o.deleted_at IS NULL
                             WHERE d.agent_id = a.id AND d.answered_at IS NULL) AS pending) AS objects
              CROSS JOIN LATERAL (
                    SELECT count(*) AS pending
                      FROM (SELECT t.work_order_id FROM work_order_targets t WHERE t.agent_id = a.id
                            UNION
                            SELECT wl.work_order_id
                              FROM agent_labels al JOIN work_order_labels wl ON wl.label = al.label
                             WHERE al.agent_id = a.id
                            UNION
                            SELECT wa.work_order_id
                              FROM agent_annotations aa
                              JOIN work_order_annotations wa ON wa.key = aa.key AND wa.value = aa.value
                             WHERE aa.agent_id = a.id) AS matching
                      JOIN work_orders w ON w.id = matching.work_order_id AND w.status = 'PENDING') AS orders
              CROSS JOIN LATERAL (
                    SELECT count(*) AS claimed FROM work_orders w
                     WHERE w.claimed_by = a.id AND w.status = 'CLAIMED') AS claims
              CROSS JOIN LATERAL (
                    SELECT count(*) FILTER (WHERE h.status = 'failing') AS failing,
                           count(*) FILTER (WHERE h.status = 'degraded') AS degraded
                      FROM deployment_health h
                     WHERE h.agent_id = a.id AND h.status IN ('degraded', 'failing')) AS health
              WHERE a.deleted_at IS NULL AND ",
            $condition,
            " ORDER BY a.created_at, a.id"
        )
    };
}

/// Every live agent's record.
///
/// # Errors
/// When the statement fails.
pub fn list(db: &mut impl Sql) -> Result<Vec<Record>, DbError> {
    const SQL: &str = records!("true");
    super::all(db.query(SQL, &[])?, Record::read)
}

/// The records of the live agents registered with a generator; none when it is unknown.
///
/// # Errors
/// When the statement fails.
pub fn of_registered(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Record>, DbError> {
    const SQL: &str = records!(
        "a.id IN (SELECT r.agent_id FROM agent_generator_registrations r WHERE r.generator_id = $1)"
    );
    super::all(db.query(SQL, &[&generator])?, Record::read)
}

/// The records of those of these agents that are live.
///
/// # Errors
/// When the statement fails.
pub fn of_agents(db: &mut impl Sql, agents: &[Uuid]) -> Result<Vec<Record>, DbError> {
    const SQL: &str = records!("a.id = ANY ($1)");
    super::all(db.query(SQL, &[&agents])?, Record::read)
}
