//! What a stack's agents saw in their clusters, for as long as it is kept. Live, it comes over a socket
//! ([`super::sockets`]).

use axum::Router;
use axum::routing::get;
use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::access;
use super::call::{Call, Reply, plain};
use super::openapi::answers::{Always, BadRequest, Forbidden, NotFound};
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::telemetry::{self, RETENTION_SECONDS};

/// Rows in an answer, unless asked otherwise.
const USUAL: i64 = 500;
/// Most rows in an answer.
const MOST: i64 = 5000;

/// Where to keep what is to be kept.
const HINT: &str = "Kept for hours only. Ship logs and events to a log store of your own (Loki, OpenSearch, Datadog, a \
                    cloud's logging service) to keep them.";

/// This resource in the OpenAPI document.
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

    /// The retention hides what is older anyway, and not every year fits the column.
    fn since(&self) -> Option<DateTime<Utc>> {
        let since = self.since.filter(|since| since.year() >= 1970)?;
        Some(since.min(DateTime::<Utc>::MAX_UTC.with_year(9999).unwrap_or(since)))
    }
}

/// How long telemetry is kept, and what there is of it.
#[derive(Serialize, ToSchema)]
struct RetentionInfo {
    /// Longest that anything is kept.
    retention_ceiling_seconds: u64,
    /// How long it is kept for this stack.
    effective_retention_seconds: u64,
    /// When the oldest row of this answer came in.
    oldest_available_ts: Option<DateTime<Utc>>,
    /// Where to keep what is to be kept.
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

/// The kept events of a stack.
#[derive(Serialize, ToSchema)]
struct K8sEventHistoryResponse {
    retention: RetentionInfo,
    events: Vec<telemetry::Event>,
}

/// The kept log lines of a stack.
#[derive(Serialize, ToSchema)]
struct PodLogHistoryResponse {
    retention: RetentionInfo,
    lines: Vec<telemetry::Line>,
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
fn events(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let window: Window = call.query()?;
    access::owned_stack(db, call.principal, id)?;
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
fn logs(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let window: Window = call.query()?;
    access::owned_stack(db, call.principal, id)?;
    let lines = telemetry::lines(db, id, window.since(), window.limit())?;
    Reply::ok(&PodLogHistoryResponse {
        retention: RetentionInfo::since(lines.last().map(|line| line.created_at)),
        lines,
    })
}
