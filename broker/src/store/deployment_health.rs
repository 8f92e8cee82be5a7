//! The health of applied objects as agents report it: one record for each agent and object.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use super::stack_matching::serving;
use crate::db::{DbError, Sql};

/// The health of an object; a greater value is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthStatus {
    /// The health is not known.
    Unknown,
    /// The object works.
    Healthy,
    /// The object works in part.
    Degraded,
    /// The object does not work.
    Failing,
}

impl HealthStatus {
    /// Parses the API's word, case-sensitive.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Unknown, Self::Healthy, Self::Degraded, Self::Failing]
            .into_iter()
            .find(|status| status.as_str() == word)
    }

    /// Returns the API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        }
    }

    /// Returns the worst of several; `Unknown` when there are none.
    pub fn worst(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().max().unwrap_or(Self::Unknown)
    }
}

/// An agent's report about one object, checked so that it can be stored.
#[derive(Clone, Debug)]
pub struct HealthReport {
    object: Uuid,
    status: HealthStatus,
    summary: Option<String>,
    checked_at: DateTime<Utc>,
}

impl HealthReport {
    /// Checks a report. The summary is JSON text, but it is not parsed here.
    ///
    /// # Errors
    /// A message that names the invalid field.
    pub fn new(
        object: Uuid,
        status: &str,
        summary: Option<String>,
        checked_at: DateTime<Utc>,
    ) -> Result<Self, &'static str> {
        let status = HealthStatus::parse(status)
            .ok_or("`status` must be one of healthy, degraded, failing, unknown")?;
        if summary.as_deref().is_some_and(|text| text.contains('\0')) {
            return Err("`summary` contains a NUL byte");
        }
        if !super::storable_time(checked_at) {
            return Err("`checked_at` must be in the years 1 to 9999");
        }
        Ok(Self {
            object,
            status,
            summary,
            checked_at,
        })
    }
}

/// The result of storing an agent's reports, all or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthOutcome {
    /// All reports are stored.
    Stored {
        /// True when the status of at least one object has changed.
        news: bool,
    },
    /// A report names an object that does not exist.
    UnknownObject,
    /// A report names an object of a stack that the agent does not serve, now or when it was deleted.
    NotAssociated,
}

/// Stores an agent's reports in one statement. Of several reports about one object, the latest `checked_at` counts.
///
/// A report older than the stored record changes nothing, because an agent has two ways to report and they may overtake
/// each other. A record from the future is always replaced, so that a clock that was once wrong does not silence its
/// agent.
///
/// # Errors
/// When the agent is unknown.
pub fn report(
    db: &mut impl Sql,
    agent: Uuid,
    reports: &[HealthReport],
) -> Result<HealthOutcome, DbError> {
    // Ordered by object, so that two concurrent batches of one agent cannot deadlock.
    const SQL: &str = concat!(
        "WITH reported AS (
            SELECT DISTINCT ON (r.object) r.object, r.status, r.summary, r.checked_at
              FROM unnest($2::uuid[], $3::text[], $4::text[], $5::timestamptz[]) WITH ORDINALITY
                   AS r (object, status, summary, checked_at, place)
             ORDER BY r.object, r.checked_at DESC, r.place DESC),
         judged AS (
            SELECT r.object, r.status, r.summary, r.checked_at, o.id IS NOT NULL AS known, ",
        serving!("o.stack_id"),
        " AS served, h.status IS DISTINCT FROM r.status AS news
              FROM reported r
              LEFT JOIN deployment_objects o ON o.id = r.object
              LEFT JOIN deployment_health h ON h.deployment_object_id = r.object AND h.agent_id = $1),
         verdict AS (
            SELECT coalesce(bool_and(known), true) AS known, coalesce(bool_and(served), true) AS served,
                   coalesce(bool_or(news), false) AS news
              FROM judged),
         stored AS (
            INSERT INTO deployment_health AS h (agent_id, deployment_object_id, status, summary, checked_at)
            SELECT $1, j.object, j.status, j.summary, j.checked_at
              FROM judged j, verdict v WHERE v.known AND v.served ORDER BY j.object
            ON CONFLICT (deployment_object_id, agent_id) DO UPDATE
               SET status = excluded.status, summary = excluded.summary, checked_at = excluded.checked_at
             WHERE h.checked_at <= excluded.checked_at OR h.checked_at > now())
         SELECT known, served, news FROM verdict"
    );
    if reports.is_empty() {
        return Ok(HealthOutcome::Stored { news: false });
    }
    let objects: Vec<Uuid> = reports.iter().map(|r| r.object).collect();
    let statuses: Vec<&str> = reports.iter().map(|r| r.status.as_str()).collect();
    let summaries: Vec<Option<&str>> = reports.iter().map(|r| r.summary.as_deref()).collect();
    let times: Vec<DateTime<Utc>> = reports.iter().map(|r| r.checked_at).collect();
    let verdict = row::one(db, SQL, &[&agent, &objects, &statuses, &summaries, &times])?;
    Ok(match verdict {
        (false, _, _) => HealthOutcome::UnknownObject,
        (true, false, _) => HealthOutcome::NotAssociated,
        (true, true, news) => HealthOutcome::Stored { news },
    })
}

row! {
    columns = "";
    /// The last report of one agent about one object.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[schema(as = DeploymentHealth)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct HealthRecord {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub deployment_object_id: Uuid,
        /// `healthy`, `degraded`, `failing` or `unknown`.
        pub status: String,
        /// JSON as text.
        pub summary: Option<String>,
        pub checked_at: DateTime<Utc>,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
    }
}

/// Returns every agent's record about an object, newest first; none when it is unknown.
pub fn of_object(db: &mut impl Sql, object: Uuid) -> Result<Vec<HealthRecord>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM deployment_health WHERE deployment_object_id = $1 ORDER BY checked_at DESC, id DESC"
    );
    row::all(db, SQL, &[&object])
}

row! {
    /// The numbers of agents by the health that they report for an object.
    #[derive(Clone, Copy, Debug)]
    pub struct Tally {
        /// The object.
        pub object: Uuid,
        /// Agents that report `healthy`.
        pub healthy: usize,
        /// Agents that report `degraded`.
        pub degraded: usize,
        /// Agents that report `failing`.
        pub failing: usize,
    }
}

impl Tally {
    /// Returns the worst reported status.
    pub fn status(&self) -> HealthStatus {
        let said = [
            (self.healthy, HealthStatus::Healthy),
            (self.degraded, HealthStatus::Degraded),
            (self.failing, HealthStatus::Failing),
        ];
        HealthStatus::worst(
            said.into_iter()
                .filter_map(|(agents, status)| (agents > 0).then_some(status)),
        )
    }
}

/// Returns the live objects of a stack that have a report, newest first; none when the stack is unknown.
pub fn of_stack(db: &mut impl Sql, stack: Uuid) -> Result<Vec<Tally>, DbError> {
    const SQL: &str = "\
        SELECT o.id, count(*) FILTER (WHERE h.status = 'healthy'), count(*) FILTER (WHERE h.status = 'degraded'),
               count(*) FILTER (WHERE h.status = 'failing')
          FROM deployment_objects o JOIN deployment_health h ON h.deployment_object_id = o.id
         WHERE o.stack_id = $1 AND o.deleted_at IS NULL
         GROUP BY o.id, o.sequence_id ORDER BY o.sequence_id DESC";
    row::all(db, SQL, &[&stack])
}
