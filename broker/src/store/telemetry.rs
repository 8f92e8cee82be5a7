//! Telemetry of clusters, kept for a few hours: Kubernetes events and log lines by stack.
//!
//! Rows arrive in batches and are read newest first by arrival. A number (`n`) keeps the order within a batch.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

/// The time for which telemetry is kept, in seconds. The sweep of old rows uses it too.
pub const RETENTION_SECONDS: u32 = 6 * 60 * 60;

/// The largest number of bytes of text in one answer, because five thousand of the longest lines would exceed a
/// broker's memory.
const ANSWER: i64 = 16 * 1024 * 1024;

row! {
    event_columns = "";
    /// A Kubernetes event as the API shows it.
    #[derive(Debug, Serialize, ToSchema)]
    #[schema(as = AgentK8sEvent)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct KubeEvent {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub stack_id: Uuid,
        pub observed_at: DateTime<Utc>,
        pub reason: String,
        pub message: String,
        pub event_type: String,
        pub source: Option<String>,
        pub involved_object: Value,
        pub created_at: DateTime<Utc>,
    }
}

row! {
    line_columns = "";
    /// A log line as the API shows it.
    #[derive(Debug, Serialize, ToSchema)]
    #[schema(as = AgentPodLog)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct LogLine {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub stack_id: Uuid,
        pub namespace: String,
        pub pod: String,
        pub container: String,
        pub ts: DateTime<Utc>,
        pub line: String,
        pub created_at: DateTime<Utc>,
    }
}

/// A Kubernetes event to store. Its texts hold no NUL, and its time fits the column.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct NewKubeEvent {
    pub agent_id: Uuid,
    pub stack_id: Uuid,
    pub observed_at: DateTime<Utc>,
    pub reason: String,
    pub message: String,
    pub event_type: String,
    pub source: Option<String>,
    pub involved_object: Value,
}

/// A log line to store. Its texts hold no NUL, and its time fits the column.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct NewLogLine {
    pub agent_id: Uuid,
    pub stack_id: Uuid,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub ts: DateTime<Utc>,
    pub line: String,
}

/// Selects the newest rows of stack `$1`, as many as one answer may hold, by the name of the table, its columns and its
/// longest text.
macro_rules! newest {
    ($table:literal, $columns:ident, $text:literal) => {
        concat!(
            "SELECT ",
            $columns!(),
            " FROM (SELECT *, sum(octet_length(",
            $text,
            ")) OVER (ORDER BY created_at DESC, n DESC) AS bytes
                      FROM (SELECT ",
            $columns!(),
            ", n FROM ",
            $table,
            "
                             WHERE stack_id = $1
                               AND created_at >= greatest($2, now() - make_interval(secs => $3))
                             ORDER BY created_at DESC, n DESC LIMIT $4) AS limited) AS newest
              WHERE bytes <= $5
              ORDER BY created_at DESC, n DESC"
        )
    };
}

/// Returns the newest events of a stack, newest first, received at or after `since` and within the retention.
pub fn events(
    db: &mut impl Sql,
    stack: Uuid,
    since: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<KubeEvent>, DbError> {
    const SQL: &str = newest!("agent_k8s_events", event_columns, "message");
    let keep = f64::from(RETENTION_SECONDS);
    row::all(db, SQL, &[&stack, &since, &keep, &limit, &ANSWER])
}

/// Returns the newest log lines of a stack, newest first, received at or after `since` and within the retention.
pub fn lines(
    db: &mut impl Sql,
    stack: Uuid,
    since: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<LogLine>, DbError> {
    const SQL: &str = newest!("agent_pod_logs", line_columns, "line");
    let keep = f64::from(RETENTION_SECONDS);
    row::all(db, SQL, &[&stack, &since, &keep, &limit, &ANSWER])
}

/// Turns `synchronous_commit` off for one statement, because a crash of the server would lose only a moment of
/// telemetry.
macro_rules! without_waiting {
    () => {
        "WITH commits AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS synchronous) "
    };
}

/// Stores events in this order, in one statement.
pub fn insert_events(db: &mut impl Sql, events: &[NewKubeEvent]) -> Result<(), DbError> {
    const SQL: &str = concat!(
        without_waiting!(),
        "INSERT INTO agent_k8s_events
                (agent_id, stack_id, observed_at, reason, message, event_type, source, involved_object)
         SELECT e.agent_id, e.stack_id, e.observed_at, e.reason, e.message, e.event_type, e.source, e.involved_object
           FROM commits, unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::text[],
                                $7::text[], $8::jsonb[]) WITH ORDINALITY
                AS e (agent_id, stack_id, observed_at, reason, message, event_type, source, involved_object, n)
          WHERE commits.synchronous = 'off'
          ORDER BY e.n"
    );
    let agents: Vec<Uuid> = column(events, |e| e.agent_id);
    let stacks: Vec<Uuid> = column(events, |e| e.stack_id);
    let times: Vec<DateTime<Utc>> = column(events, |e| e.observed_at);
    let reasons: Vec<&str> = column(events, |e| e.reason.as_str());
    let messages: Vec<&str> = column(events, |e| e.message.as_str());
    let types: Vec<&str> = column(events, |e| e.event_type.as_str());
    let sources: Vec<Option<&str>> = column(events, |e| e.source.as_deref());
    let objects: Vec<&Value> = column(events, |e| &e.involved_object);
    db.execute(
        SQL,
        &[
            &agents, &stacks, &times, &reasons, &messages, &types, &sources, &objects,
        ],
    )?;
    Ok(())
}

/// Stores log lines in this order, in one statement.
pub fn insert_lines(db: &mut impl Sql, lines: &[NewLogLine]) -> Result<(), DbError> {
    const SQL: &str = concat!(
        without_waiting!(),
        "INSERT INTO agent_pod_logs (agent_id, stack_id, namespace, pod, container, ts, line)
         SELECT l.agent_id, l.stack_id, l.namespace, l.pod, l.container, l.ts, l.line
           FROM commits, unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                                $7::text[]) WITH ORDINALITY
                AS l (agent_id, stack_id, namespace, pod, container, ts, line, n)
          WHERE commits.synchronous = 'off'
          ORDER BY l.n"
    );
    let agents: Vec<Uuid> = column(lines, |l| l.agent_id);
    let stacks: Vec<Uuid> = column(lines, |l| l.stack_id);
    let namespaces: Vec<&str> = column(lines, |l| l.namespace.as_str());
    let pods: Vec<&str> = column(lines, |l| l.pod.as_str());
    let containers: Vec<&str> = column(lines, |l| l.container.as_str());
    let times: Vec<DateTime<Utc>> = column(lines, |l| l.ts);
    let texts: Vec<&str> = column(lines, |l| l.line.as_str());
    db.execute(
        SQL,
        &[
            &agents,
            &stacks,
            &namespaces,
            &pods,
            &containers,
            &times,
            &texts,
        ],
    )?;
    Ok(())
}

fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}
