//! Diagnostics: the admin's requests to agents about objects, and the agents' results.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// A request for diagnostics.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[schema(as = DiagnosticRequest)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Request {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub deployment_object_id: Uuid,
        /// `pending`, `claimed`, `completed`, `failed` or `expired`.
        pub status: String,
        pub requested_by: Option<String>,
        pub created_at: DateTime<Utc>,
        pub claimed_at: Option<DateTime<Utc>>,
        pub completed_at: Option<DateTime<Utc>>,
        pub expires_at: DateTime<Utc>,
    }
}

row! {
    findings_columns = "";
    /// The result of an agent. The texts are stored as sent; agents send JSON.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[schema(as = DiagnosticResult)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Findings {
        pub id: Uuid,
        pub request_id: Uuid,
        pub pod_statuses: String,
        pub events: String,
        pub log_tails: Option<String>,
        pub collected_at: DateTime<Utc>,
        pub created_at: DateTime<Utc>,
    }
}

row! {
    /// The existence of a request's object and agent.
    #[derive(Clone, Copy, Debug)]
    pub struct Subjects {
        /// True when the object exists and is not deleted.
        pub object: bool,
        /// True when the agent exists and is not deleted.
        pub agent: bool,
    }
}

/// Returns which of an object and an agent are live.
pub fn subjects(db: &mut impl Sql, object: Uuid, agent: Uuid) -> Result<Subjects, DbError> {
    const SQL: &str = "\
        SELECT EXISTS (SELECT 1 FROM deployment_objects WHERE id = $1 AND deleted_at IS NULL),
               EXISTS (SELECT 1 FROM agents WHERE id = $2 AND deleted_at IS NULL)";
    row::one(db, SQL, &[&object, &agent])
}

/// Adds a request to an agent about an object. It expires after `minutes`.
///
/// # Errors
/// When the object or agent is unknown.
pub fn insert(
    db: &mut impl Sql,
    object: Uuid,
    agent: Uuid,
    requested_by: Option<&str>,
    minutes: i32,
) -> Result<Request, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO diagnostic_requests (deployment_object_id, agent_id, requested_by, expires_at)
         VALUES ($1, $2, $3, now() + make_interval(mins => $4)) RETURNING ",
        columns!()
    );
    row::one(db, SQL, &[&object, &agent, &requested_by, &minutes])
}

/// Returns the requests that an agent may still claim, oldest first.
pub fn pending(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Request>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM diagnostic_requests WHERE agent_id = $1 AND status = 'pending' AND expires_at > now()
          ORDER BY created_at, id"
    );
    row::all(db, SQL, &[&agent])
}

/// Returns the request with this id.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Request>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM diagnostic_requests WHERE id = $1"
    );
    row::optional(db, SQL, &[&id])
}

/// Returns the result of a request, once its agent has sent it.
pub fn findings(db: &mut impl Sql, request: Uuid) -> Result<Option<Findings>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        findings_columns!(),
        " FROM diagnostic_results WHERE request_id = $1"
    );
    row::optional(db, SQL, &[&request])
}

/// Claims a request, for one caller only. Returns `None` when the request is not pending or has expired.
pub fn claim(db: &mut impl Sql, id: Uuid) -> Result<Option<Request>, DbError> {
    const SQL: &str = concat!(
        "UPDATE diagnostic_requests SET status = 'claimed', claimed_at = now()
          WHERE id = $1 AND status = 'pending' AND expires_at > now() RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id])
}

/// The result that an agent sends.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct DiagnosticAnswer<'a> {
    pub pod_statuses: &'a str,
    pub events: &'a str,
    pub log_tails: Option<&'a str>,
    pub collected_at: DateTime<Utc>,
}

/// Completes a claimed request and stores its result, both or neither. Returns `None` when the request is not claimed.
pub fn complete(
    db: &mut impl Sql,
    id: Uuid,
    answer: &DiagnosticAnswer<'_>,
) -> Result<Option<Findings>, DbError> {
    const SQL: &str = concat!(
        "WITH completed AS (
            UPDATE diagnostic_requests SET status = 'completed', completed_at = now()
             WHERE id = $1 AND status = 'claimed' RETURNING id)
        INSERT INTO diagnostic_results (request_id, pod_statuses, events, log_tails, collected_at)
        SELECT id, $2, $3, $4, $5 FROM completed
        RETURNING ",
        findings_columns!()
    );
    row::optional(
        db,
        SQL,
        &[
            &id,
            &answer.pod_statuses,
            &answer.events,
            &answer.log_tails,
            &answer.collected_at,
        ],
    )
}
