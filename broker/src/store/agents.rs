//! Agents: create, read, change and delete them, and store their heartbeats.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "a.";
    /// An agent as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Agent {
        pub id: Uuid,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub deleted_at: Option<DateTime<Utc>>,
        pub name: String,
        pub cluster_name: String,
        pub status: String,
        pub last_heartbeat: Option<DateTime<Utc>>,
        pub k8s_reachable: Option<bool>,
        pub k8s_api_latency_ms: Option<i32>,
        pub k8s_reported_at: Option<DateTime<Utc>>,
    }
}

/// Returns every live agent.
pub fn list(db: &mut impl Sql) -> Result<Vec<Agent>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agents a WHERE a.deleted_at IS NULL ORDER BY a.created_at, a.id"
    );
    row::all(db, SQL, &[])
}

/// The agents that a generator sees, depending on its kind.
#[derive(Debug)]
pub enum ListedBy {
    /// The generator is unknown or deleted.
    NoGenerator,
    /// The generator is a system generator.
    System,
    /// The live agents registered with an ordinary generator.
    Tenant(Vec<Agent>),
}

/// Returns the live agents registered with a generator, and the generator's kind, in one statement.
pub fn list_registered(db: &mut impl Sql, generator: Uuid) -> Result<ListedBy, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        ", g.is_system
           FROM generators g
           LEFT JOIN (agent_generator_registrations r
                      JOIN agents a ON a.id = r.agent_id AND a.deleted_at IS NULL)
             ON r.generator_id = g.id
          WHERE g.id = $1 AND g.deleted_at IS NULL
          ORDER BY a.created_at, a.id"
    );
    let rows = db.query(SQL, &[&generator])?;
    let Some(first) = rows.first() else {
        return Ok(ListedBy::NoGenerator);
    };
    if first.try_get(11)? {
        return Ok(ListedBy::System);
    }
    let nobody = first.try_get::<_, Option<Uuid>>(0)?.is_none();
    Ok(ListedBy::Tenant(if nobody {
        Vec::new()
    } else {
        rows.into_iter().map(row::read).collect::<Result<_, _>>()?
    }))
}

/// Returns the live agent with this id.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Agent>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agents a WHERE a.id = $1 AND a.deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&id])
}

/// Returns the live agent with exactly this name in exactly this cluster.
pub fn find(db: &mut impl Sql, name: &str, cluster: &str) -> Result<Option<Agent>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agents a WHERE a.name = $1 AND a.cluster_name = $2 AND a.deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&name, &cluster])
}

/// Adds an `INACTIVE` agent with the hash of its PAK (lower-case hex).
///
/// # Errors
/// When the name is taken.
pub fn insert(
    db: &mut impl Sql,
    name: &str,
    cluster: &str,
    pak_hash: &str,
) -> Result<Agent, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO agents AS a (name, cluster_name, pak_hash) VALUES ($1, $2, $3) RETURNING ",
        columns!()
    );
    row::one(db, SQL, &[&name, &cluster, &pak_hash])
}

/// Changes only the given columns of a live agent, so that it cannot undo a concurrent change of the others.
///
/// # Errors
/// When the name is taken.
pub fn update(
    db: &mut impl Sql,
    id: Uuid,
    name: Option<&str>,
    cluster: Option<&str>,
    status: Option<&str>,
) -> Result<Option<Agent>, DbError> {
    const SQL: &str = concat!(
        "UPDATE agents a SET name = coalesce($2, a.name), cluster_name = coalesce($3, a.cluster_name),
                status = coalesce($4, a.status)
          WHERE a.id = $1 AND a.deleted_at IS NULL RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id, &name, &cluster, &status])
}

/// Replaces the hash of a live agent's PAK.
pub fn set_pak_hash(db: &mut impl Sql, id: Uuid, pak_hash: &str) -> Result<Option<Agent>, DbError> {
    const SQL: &str = concat!(
        "UPDATE agents a SET pak_hash = $2 WHERE a.id = $1 AND a.deleted_at IS NULL RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id, &pak_hash])
}

/// Marks a live agent and its events as deleted. Returns the time of deletion, or `None` when there was no such live
/// agent.
pub fn delete(db: &mut impl Sql, id: Uuid) -> Result<Option<DateTime<Utc>>, DbError> {
    const SQL: &str = "\
        WITH gone AS (UPDATE agents SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL
                      RETURNING id, deleted_at),
             its_events AS (UPDATE agent_events e SET deleted_at = gone.deleted_at FROM gone
                             WHERE e.agent_id = gone.id AND e.deleted_at IS NULL)
        SELECT deleted_at FROM gone";
    row::optional(db, SQL, &[&id])
}

/// The state of its cluster that an agent may report with a heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct ClusterReport {
    /// True when the cluster's API server answered.
    pub reachable: bool,
    /// The time of the answer in milliseconds.
    pub latency_ms: Option<i32>,
}

/// Stores a heartbeat of a live agent. Returns false when there is no such live agent, or when its PAK no longer has
/// this hash.
///
/// One statement and one round trip, with `synchronous_commit` off for it alone: waiting for the disk would be most of
/// a heartbeat's cost, and a heartbeat lost in a crash of the server is repeated at the next poll.
pub fn heartbeat(
    db: &mut impl Sql,
    id: Uuid,
    report: Option<ClusterReport>,
    pak_hash: Option<&str>,
) -> Result<bool, DbError> {
    const ALIVE: &str = "\
        UPDATE agents SET last_heartbeat = now()
         WHERE id = $1 AND deleted_at IS NULL AND pak_hash = coalesce($2, pak_hash)
           AND set_config('synchronous_commit', 'off', true) = 'off'";
    const REPORT: &str = "\
        UPDATE agents SET last_heartbeat = now(), k8s_reachable = $3, k8s_api_latency_ms = $4, k8s_reported_at = now()
         WHERE id = $1 AND deleted_at IS NULL AND pak_hash = coalesce($2, pak_hash)
           AND set_config('synchronous_commit', 'off', true) = 'off'";
    let changed = match report {
        None => db.execute(ALIVE, &[&id, &pak_hash])?,
        Some(report) => db.execute(
            REPORT,
            &[&id, &pak_hash, &report.reachable, &report.latency_ms],
        )?,
    };
    Ok(changed > 0)
}
