//! Events: the agents' reports about deployment objects.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// An event as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[schema(as = AgentEvent)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct AgentEvent {
        pub id: Uuid,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub deleted_at: Option<DateTime<Utc>>,
        pub agent_id: Uuid,
        pub deployment_object_id: Uuid,
        pub event_type: String,
        pub status: String,
        pub message: Option<String>,
    }
}

/// A report to store.
#[derive(Debug)]
pub struct AgentEventReport<'a> {
    /// The reporting agent.
    pub agent: Uuid,
    /// The object that the report is about.
    pub object: Uuid,
    /// The action that the agent took, at most 50 characters.
    pub event_type: &'a str,
    /// The result, at most 10 characters; `SUCCESS` in any case means success.
    pub status: &'a str,
    /// A free text of the agent.
    pub message: Option<&'a str>,
}

impl AgentEventReport<'_> {
    /// Returns true when the agent reports a success.
    pub fn is_success(&self) -> bool {
        self.status.eq_ignore_ascii_case("SUCCESS")
    }

    /// Returns a digest that equal reports of success share; `None` for any other report, which is always stored.
    fn success_digest(&self) -> Option<Vec<u8>> {
        self.is_success().then(|| {
            let mut digest = Sha256::new();
            // Hashes each length first, so that different triples never yield the same bytes.
            for part in [Some(self.event_type), Some(self.status), self.message] {
                digest.update(
                    part.map_or(u64::MAX, |text| text.len() as u64)
                        .to_be_bytes(),
                );
                digest.update(part.unwrap_or_default());
            }
            digest.finalize().to_vec()
        })
    }
}

/// Selects the newest live events that meet a condition, in the given order, as many as a list may hold (`most_rows`,
/// `most_bytes`).
macro_rules! newest {
    ($condition:literal, $order:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM (SELECT ",
            columns!(),
            ", sum(coalesce(octet_length(message), 0)) OVER (ORDER BY created_at DESC, id DESC ROWS UNBOUNDED PRECEDING)
               - coalesce(octet_length(message), 0) AS bytes_before
               FROM (SELECT ",
            columns!(),
            " FROM agent_events WHERE ",
            $condition,
            " AND deleted_at IS NULL ORDER BY created_at DESC, id DESC LIMIT ",
            super::most_rows!(),
            ") AS newest) AS newest
              WHERE bytes_before < ",
            super::most_bytes!(),
            " ORDER BY ",
            $order
        )
    };
}

/// Returns the newest live events of an agent, newest first, as many as a list may hold.
pub fn of_agent(db: &mut impl Sql, agent: Uuid) -> Result<Vec<AgentEvent>, DbError> {
    const SQL: &str = newest!("agent_id = $1", "created_at DESC, id DESC");
    row::all(db, SQL, &[&agent])
}

/// Returns the newest live events of an agent, newest first, at most `most`.
pub fn newest_of_agent(
    db: &mut impl Sql,
    agent: Uuid,
    most: i64,
) -> Result<Vec<AgentEvent>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_events WHERE agent_id = $1 AND deleted_at IS NULL ORDER BY created_at DESC, id DESC LIMIT $2"
    );
    row::all(db, SQL, &[&agent, &most])
}

/// Returns the newest live events of all agents, oldest first.
pub fn list(db: &mut impl Sql) -> Result<Vec<AgentEvent>, DbError> {
    const SQL: &str = newest!("true", "created_at, id");
    row::all(db, SQL, &[])
}

/// Returns the newest live events of the agents registered with a generator, oldest first; none when it is unknown.
pub fn of_registered(db: &mut impl Sql, generator: Uuid) -> Result<Vec<AgentEvent>, DbError> {
    const SQL: &str = newest!(
        "agent_id IN (SELECT r.agent_id FROM agent_generator_registrations r WHERE r.generator_id = $1)",
        "created_at, id"
    );
    row::all(db, SQL, &[&generator])
}

/// Returns the live event with this id.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<AgentEvent>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_events WHERE id = $1 AND deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&id])
}

row! {
    /// The object of a report, as far as reporting needs it.
    #[derive(Clone, Copy, Debug)]
    pub struct Subject {
        /// The object's stack.
        pub stack: Uuid,
        /// True when the object is not deleted.
        pub live: bool,
    }
}

/// Returns the object with this id, deleted or not.
pub fn subject(db: &mut impl Sql, object: Uuid) -> Result<Option<Subject>, DbError> {
    const SQL: &str = "SELECT stack_id, deleted_at IS NULL FROM deployment_objects WHERE id = $1";
    row::optional(db, SQL, &[&object])
}

/// Stores a report. Returns the event, and true when the event is new.
///
/// A report on the deletion marker of a stack is also stored as the agent's answer to it.
///
/// A success that equals an earlier success only raises the earlier event's count, and that event is returned. Any
/// report that is no success ends this, so the next success is a new event. The ended event keeps its digest, which
/// says that the object was applied once, with the event's id appended, so that no later digest equals it.
///
/// # Errors
/// When the agent or object is unknown.
pub fn insert(
    db: &mut impl Sql,
    report: &AgentEventReport<'_>,
) -> Result<(AgentEvent, bool), DbError> {
    const SQL: &str = concat!(
        "WITH answered AS (
             UPDATE stack_departures SET answered_at = now()
              WHERE agent_id = $1 AND deployment_object_id = $2 AND answered_at IS NULL),
              ended AS (
             UPDATE agent_events SET success_digest = success_digest || uuid_send(id)
              WHERE $6::bytea IS NULL AND agent_id = $1 AND deployment_object_id = $2 AND deleted_at IS NULL
                AND success_digest IS NOT NULL AND octet_length(success_digest) = 32)
         INSERT INTO agent_events AS e
                (agent_id, deployment_object_id, event_type, status, message, success_digest)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (agent_id, deployment_object_id, success_digest)
               WHERE deleted_at IS NULL AND success_digest IS NOT NULL
         DO UPDATE SET repeats = e.repeats + 1, last_reported_at = now()
         RETURNING ",
        columns!(),
        ", repeats"
    );
    let (event, repeats): (AgentEvent, i64) = row::one(
        db,
        SQL,
        &[
            &report.agent,
            &report.object,
            &report.event_type,
            &report.status,
            &report.message,
            &report.success_digest(),
        ],
    )?;
    Ok((event, repeats == 1))
}
