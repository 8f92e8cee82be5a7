//! What agents report about deployment objects.

use chrono::{DateTime, Utc};
use postgres::Row;
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// An event as the API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = AgentEvent)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct Event {
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

/// A report to be stored.
#[derive(Debug)]
pub struct Report<'a> {
    /// Who reports.
    pub agent: Uuid,
    /// On which object.
    pub object: Uuid,
    /// What it did, at most 50 characters.
    pub event_type: &'a str,
    /// How it went, at most 10 characters; `SUCCESS` in any case means success.
    pub status: &'a str,
    /// Anything it wants to say.
    pub message: Option<&'a str>,
}

macro_rules! columns {
    () => {
        "id, created_at, updated_at, deleted_at, agent_id, deployment_object_id, event_type, status, message"
    };
}

impl Event {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            created_at: row.try_get(1)?,
            updated_at: row.try_get(2)?,
            deleted_at: row.try_get(3)?,
            agent_id: row.try_get(4)?,
            deployment_object_id: row.try_get(5)?,
            event_type: row.try_get(6)?,
            status: row.try_get(7)?,
            message: row.try_get(8)?,
        })
    }
}

impl Report<'_> {
    /// Whether it reports a success.
    pub fn is_success(&self) -> bool {
        self.status.eq_ignore_ascii_case("SUCCESS")
    }

    /// What makes two reports of success the same; `None` for any other report, which is always stored.
    fn success_digest(&self) -> Option<Vec<u8>> {
        self.is_success().then(|| {
            let mut digest = Sha256::new();
            // Lengths first, so that no two triples run together into the same bytes.
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

/// The newest live events that fulfil a condition, as many as a list may hold (`most_rows`,
/// `most_bytes`), in this order.
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

/// The newest live events of an agent, newest first.
///
/// # Errors
/// When the statement fails.
pub fn of_agent(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Event>, DbError> {
    const SQL: &str = newest!("agent_id = $1", "created_at DESC, id DESC");
    super::all(db.query(SQL, &[&agent])?, Event::read)
}

/// The newest live events of an agent, newest first.
///
/// # Errors
/// When the statement fails.
pub fn newest_of_agent(db: &mut impl Sql, agent: Uuid, most: i64) -> Result<Vec<Event>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_events WHERE agent_id = $1 AND deleted_at IS NULL ORDER BY created_at DESC, id DESC LIMIT $2"
    );
    super::all(db.query(SQL, &[&agent, &most])?, Event::read)
}

/// The newest live events of all agents.
///
/// # Errors
/// When the statement fails.
pub fn list(db: &mut impl Sql) -> Result<Vec<Event>, DbError> {
    const SQL: &str = newest!("true", "created_at, id");
    super::all(db.query(SQL, &[])?, Event::read)
}

/// The newest live events of the agents registered with a generator; none when it is unknown.
///
/// # Errors
/// When the statement fails.
pub fn of_registered(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Event>, DbError> {
    const SQL: &str = newest!(
        "agent_id IN (SELECT r.agent_id FROM agent_generator_registrations r WHERE r.generator_id = $1)",
        "created_at, id"
    );
    super::all(db.query(SQL, &[&generator])?, Event::read)
}

/// The live event with this id.
///
/// # Errors
/// When the statement fails.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Event>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_events WHERE id = $1 AND deleted_at IS NULL"
    );
    db.query_opt(SQL, &[&id])?
        .as_ref()
        .map(Event::read)
        .transpose()
}

/// The object an agent wants to report on, as far as reporting goes.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Its stack.
    pub stack: Uuid,
    /// It is not deleted.
    pub live: bool,
}

/// The object with this id, deleted or not.
///
/// # Errors
/// When the statement fails.
pub fn subject(db: &mut impl Sql, object: Uuid) -> Result<Option<Subject>, DbError> {
    const SQL: &str = "SELECT stack_id, deleted_at IS NULL FROM deployment_objects WHERE id = $1";
    db.query_opt(SQL, &[&object])?
        .map(|row| {
            Ok(Subject {
                stack: row.try_get(0)?,
                live: row.try_get(1)?,
            })
        })
        .transpose()
}

/// Stores a report, and takes it as the agent's answer if the object is the marker of a deleted stack. The event, and
/// whether it is new: a success that says what an earlier success said is counted there, and that event is returned. Any
/// report that is no success ends this: what succeeds after it is news. An ended event keeps a digest, which says that the
/// object was applied once, with the event's id behind it, so that no later digest equals it.
///
/// # Errors
/// An unknown agent or object, or a failed statement.
pub fn insert(db: &mut impl Sql, report: &Report<'_>) -> Result<(Event, bool), DbError> {
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
    let row = db.query_one(
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
    Ok((Event::read(&row)?, row.try_get::<_, i64>(9)? == 1))
}
