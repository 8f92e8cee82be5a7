//! The middleware around every request: its id, its log line, its metrics, and its CORS headers.
//!
//! Each request logs one line: `debug`, or `warn` when the answer is 5xx. So at the default level a healthy broker logs
//! nothing per request; metrics and, for writes, the audit log show its work. A line has the route's template and the
//! principal, but never the path as sent, the query or a PAK.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::cors::{self, Area};
use super::request_id;
use crate::app::App;
use crate::auth::Principal;
use crate::error::Error;
use crate::metrics::UNMATCHED;

/// The longest path and query, well above the 8,000 bytes that RFC 9110 recommends to support.
const MAX_URI: usize = 16 * 1024;

/// Observes every request of the public router.
pub(super) async fn observe(
    State(app): State<App>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let id = request_id::of(request.headers());
    let path = matched.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let mut line = Line {
        began: Instant::now(),
        method: request.method().clone(),
        path,
        id: &id,
        answered: false,
    };
    let area = Area::of(request.uri().path());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let runtime_config = app.runtime_config.get();
    let preflight = matched.is_some() && cors::is_preflight(request.method(), request.headers());
    let mut response = if preflight {
        cors::preflight(area, &runtime_config.cors, request.headers())
    } else if is_too_long(&request) {
        Error::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            "the path and query are too long",
        )
        .into_response()
    } else if has_no_host(&request) {
        Error::unreadable("an HTTP/1.1 request must have exactly one Host header").into_response()
    } else if area == Area::Api && !app.health.has_started() {
        Error::starting().into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(request_id::HEADER, id.clone());
    if !preflight {
        cors::allow(area, &runtime_config.cors, origin.as_ref(), headers);
    }
    line.answered(&response);
    if path != "/metrics" {
        app.metrics
            .request(path, &line.method, response.status().as_u16(), line.took());
    }
    response
}

fn is_too_long(request: &Request) -> bool {
    request
        .uri()
        .path_and_query()
        .is_some_and(|whole| whole.as_str().len() > MAX_URI)
}

/// Returns true when an HTTP/1.1 request lacks its Host header or has several; RFC 9112 demands to refuse such a
/// request.
fn has_no_host(request: &Request) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    request.version() == Version::HTTP_11 && hosts != 1
}

/// The log line of a request. Dropping an unanswered line logs that the client went away first.
struct Line<'a> {
    began: Instant,
    method: Method,
    path: &'a str,
    id: &'a HeaderValue,
    answered: bool,
}

impl Line<'_> {
    fn took(&self) -> Duration {
        self.began.elapsed()
    }

    fn answered(&mut self, response: &Response) {
        self.answered = true;
        let Line { method, path, .. } = &*self;
        let status = response.status();
        let (ms, request_id) = (self.took().as_micros() as f64 / 1000.0, text(self.id));
        let principal = Who(response.extensions().get());
        // A 503 to a probe is its answer, not a failure.
        if status.is_server_error() && *path != "/readyz" {
            tracing::warn!(
                target: "access", %method, path, status = status.as_u16(), ms, request_id, %principal, "request"
            );
        } else {
            tracing::debug!(
                target: "access", %method, path, status = status.as_u16(), ms, request_id, %principal, "request"
            );
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let Line { method, path, .. } = &*self;
            let (ms, request_id) = (self.took().as_micros() as f64 / 1000.0, text(self.id));
            tracing::debug!(target: "access", %method, path, ms, request_id, "the client did not wait for its answer");
        }
    }
}

/// Returns the id as text; both accepted and generated ids are text.
fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

/// The authenticated caller, if there is one.
struct Who<'a>(Option<&'a Principal>);

impl std::fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(principal) => principal.fmt(f),
            None => f.write_str("none"),
        }
    }
}
