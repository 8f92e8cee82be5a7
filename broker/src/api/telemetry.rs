//! Stored telemetry of a stack: events and log lines that its agents saw. The live form is a socket
//! ([`super::websockets`]).

use axum::Router;
use axum::routing::get;
use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::authorization;
use super::openapi::responses::{Always, BadRequest, Forbidden, NotFound};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::telemetry::{self, RETENTION_SECONDS};

/// Default number of rows in an answer.
const USUAL: i64 = 500;
/// Largest number of rows in an answer.
const MOST: i64 = 5000;

/// Advice on long-term storage.
const HINT: &str = "Kept for hours only. Ship logs and events to a log store of your own (Loki, OpenSearch, Datadog, a \
                    cloud's logging service) to keep them.";

#[derive(OpenApi)]
#[openapi(paths(events, logs))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/stacks/{id}/events", get(plain(events)))
        .route("/stacks/{id}/logs", get(plain(logs)))
}

#[derive(Deserialize)]
struct Window {
    since: Option<DateTime<Utc>>,
    limit: Option<i64>,
}

impl Window {
    fn limit(&self) -> i64 {
        self.limit.unwrap_or(USUAL).clamp(1, MOST)
    }

    /// Bounds the start to the years 1970 to 9999, because not every year fits the column.
    fn since(&self) -> Option<DateTime<Utc>> {
        let since = self.since.filter(|since| since.year() >= 1970)?;
        Some(since.min(DateTime::<Utc>::MAX_UTC.with_year(9999).unwrap_or(since)))
    }
}

/// Retention of telemetry.
#[derive(Serialize, ToSchema)]
struct RetentionInfo {
    /// Longest retention.
    retention_ceiling_seconds: u64,
    /// Retention for this stack.
    effective_retention_seconds: u64,
    /// Time at which the oldest row of this answer was stored.
    oldest_available_ts: Option<DateTime<Utc>>,
    /// Advice on long-term storage.
    long_term_sink_hint: &'static str,
}

impl RetentionInfo {
    fn since(oldest: Option<DateTime<Utc>>) -> Self {
        Self {
            retention_ceiling_seconds: RETENTION_SECONDS.into(),
            effective_retention_seconds: RETENTION_SECONDS.into(),
            oldest_available_ts: oldest,
            long_term_sink_hint: HINT,
        }
    }
}

/// Stored events of a stack.
#[derive(Serialize, ToSchema)]
struct K8sEventHistoryResponse {
    retention: RetentionInfo,
    events: Vec<telemetry::KubeEvent>,
}

/// Stored log lines of a stack.
#[derive(Serialize, ToSchema)]
struct PodLogHistoryResponse {
    retention: RetentionInfo,
    lines: Vec<telemetry::LogLine>,
}

#[utoipa::path(
    get, path = "/stacks/{id}/events", operation_id = "list_telemetry_events", tag = "stack-telemetry",
    params(
        ("id" = Uuid, Path),
        ("since" = Option<DateTime<Utc>>, Query, nullable, description = "Not what came in before; six hours at the most"),
        ("limit" = Option<i64>, Query, nullable, description = "Most rows: 500 unless given, never more than 5000"),
    ),
    responses(
        (status = 200, description = "Kept events, newest first", body = K8sEventHistoryResponse),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn events(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let window: Window = call.query()?;
    authorization::owned_stack(db, call.principal, id)?;
    let events = telemetry::events(db, id, window.since(), window.limit())?;
    Reply::ok(&K8sEventHistoryResponse {
        retention: RetentionInfo::since(events.last().map(|event| event.created_at)),
        events,
    })
}

#[utoipa::path(
    get, path = "/stacks/{id}/logs", operation_id = "list_telemetry_logs", tag = "stack-telemetry",
    params(
        ("id" = Uuid, Path),
        ("since" = Option<DateTime<Utc>>, Query, nullable, description = "Not what came in before; six hours at the most"),
        ("limit" = Option<i64>, Query, nullable, description = "Most rows: 500 unless given, never more than 5000"),
    ),
    responses(
        (status = 200, description = "Kept log lines, newest first", body = PodLogHistoryResponse),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn logs(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let window: Window = call.query()?;
    authorization::owned_stack(db, call.principal, id)?;
    let lines = telemetry::lines(db, id, window.since(), window.limit())?;
    Reply::ok(&PodLogHistoryResponse {
        retention: RetentionInfo::since(lines.last().map(|line| line.created_at)),
        lines,
    })
}
