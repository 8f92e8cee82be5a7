//! The public router: probes, metrics, the OpenAPI document, and the API under `/api/v1` and `/internal`; every request
//! counted and logged.
//!
//! One line per request: `debug`, or `warn` when the answer is 5xx. At the default level a healthy broker writes nothing
//! per request; what it does is in the metrics and, for writes, in the audit log.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;
use crate::metrics::{self, UNMATCHED};

/// Everything the tenant's own address answers.
pub(super) fn router(app: App, dropped: super::Dropped) -> Router {
    Router::new()
        .nest("/api/v1", crate::api::router())
        .nest("/internal", crate::api::internal_router())
        .route("/docs/openapi.json", get(crate::api::openapi::serve))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(move |State(app): State<App>| async move { render(&app, &dropped) }),
        )
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// 200 as long as the event loop turns.
pub(super) async fn healthz() -> &'static str {
    "OK"
}

async fn readyz(State(app): State<App>) -> Response {
    match app.health.ready(&app.db).await {
        Ok(()) => "Ready".into_response(),
        // The reason names servers; it is for the log and the private socket.
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "database unavailable").into_response(),
    }
}

pub(super) fn render(app: &App, dropped: &super::Dropped) -> Response {
    let lost = dropped.load(std::sync::atomic::Ordering::Relaxed);
    let text = app.metrics.render(app.db.figures(), lost);
    (
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static(metrics::CONTENT_TYPE),
        )],
        text,
    )
        .into_response()
}

async fn not_found() -> Response {
    super::error_answer(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path",
    )
}

async fn observe(
    State(app): State<App>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = matched.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let is_api = path.starts_with("/api/") || path.starts_with("/internal/");
    let response = if is_api && !app.health.has_started() {
        let mut response = super::error_answer(
            StatusCode::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "the broker is starting",
        );
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    } else {
        next.run(request).await
    };
    if path == "/metrics" {
        return response;
    }
    let (status, took) = (response.status(), began.elapsed());
    app.metrics.request(path, &method, status.as_u16(), took);
    let ms = took.as_secs_f64() * 1000.0;
    // A probe's 503 is its answer, not a failure.
    if status.is_server_error() && path != "/readyz" {
        tracing::warn!(target: "access", %method, path, status = status.as_u16(), ms, "request");
    } else {
        tracing::debug!(target: "access", %method, path, status = status.as_u16(), ms, "request");
    }
    response
}
