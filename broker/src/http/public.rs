//! The public router: probes, metrics, the OpenAPI document, and the API under `/api/v1` and `/internal`. The `access`
//! middleware surrounds every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::access_log::observe;
use crate::app::App;
use crate::error::Error;
use crate::jobs::schedule::Job;

/// The count of dropped log lines.
pub(super) type DroppedLines = Arc<AtomicU64>;

/// Returns the routes of the tenant's own address.
pub(super) fn router(app: App, dropped: DroppedLines) -> Router {
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
        .method_not_allowed_fallback(|| async { Error::no_method() })
        .fallback(|| async { Error::no_path() })
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// Answers 200 as long as the event loop turns.
pub(super) async fn healthz() -> &'static str {
    "OK"
}

async fn readyz(State(app): State<App>) -> Response {
    match app.health.ready(&app.db).await {
        Ok(()) => "Ready".into_response(),
        // The reason names servers, so only the log and the private socket show it.
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::RETRY_AFTER, HeaderValue::from_static("1"))],
            "database unavailable",
        )
            .into_response(),
    }
}

pub(super) fn render(app: &App, dropped: &DroppedLines) -> Response {
    app.metrics.gauges.scraped();
    app.jobs.wake(Job::Gauges);
    let lost = dropped.load(Ordering::Relaxed);
    match app.metrics.render(app.db.figures(), lost) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            Error::internal().into_response()
        }
    }
}
