//! Counters, gauges and histograms, and the text of `/metrics` (Prometheus exposition format 0.0.4).
//!
//! The router bounds the labels: route templates, standard methods, status codes. So an anonymous caller cannot add a
//! series.

pub mod frame_kind;
pub mod gauges;
mod registration;
pub mod sockets;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Registry, TextEncoder};

use crate::db::Figures;
use gauges::Gauges;
use registration::{counter, counters, gauge};
pub use webhooks::{Carrier, DecryptFailures};

/// The endpoint label of a request that no route matched.
pub const UNMATCHED: &str = "unmatched";

/// The method label of every non-standard method, because a caller may send any word.
const OTHER_METHOD: &str = "other";

/// The status labels of requests with an invalid PAK: of an address below the limit, and of one above.
const REFUSED_STATUS: [&str; 2] = ["401", "429"];

/// Upper bounds of the request duration histogram, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// All of the broker's own figures.
#[derive(Debug)]
pub struct Metrics {
    /// Figures that are counted as events occur; all other figures are read at each scrape.
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    authentications_refused: IntCounterVec,
    /// Figures of WebSockets.
    pub sockets: Arc<sockets::Sockets>,
    /// Figures that come from the database.
    pub gauges: Gauges,
    /// The count of webhook secrets that could not be decrypted.
    pub webhooks: DecryptFailures,
}

impl Metrics {
    /// Creates the figures, all zero.
    ///
    /// # Errors
    ///
    /// When two metrics have the same name, which would be a bug.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let seconds = HistogramOpts::new(
            "brokkr_http_request_duration_seconds",
            "Time to answer a request.",
        );
        let seconds = HistogramVec::new(seconds.buckets(BUCKETS.into()), &["endpoint", "method"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self {
            requests: counters(
                &registry,
                "brokkr_http_requests_total",
                "Requests answered.",
                &["endpoint", "method", "status"],
            )?,
            seconds,
            authentications_refused: refused_authentications(&registry)?,
            sockets: Arc::new(sockets::Sockets::new(&registry)?),
            gauges: Gauges::default(),
            webhooks: DecryptFailures::new(&registry)?,
            registry,
        })
    }

    /// Counts one answered request. `endpoint` is a route template or [`UNMATCHED`].
    pub fn request(
        &self,
        endpoint: &str,
        method: &axum::http::Method,
        status: u16,
        took: Duration,
    ) {
        self.count(endpoint, method_label(method), status, took);
    }

    /// Counts an answer given before a request was complete.
    pub fn refused(&self, status: u16) {
        self.count(UNMATCHED, OTHER_METHOD, status, Duration::ZERO);
    }

    /// Counts a request with an invalid PAK, answered 401 or, for a limited address, 429.
    pub fn authentication_refused(&self, limited: bool) {
        let labels = [REFUSED_STATUS[usize::from(limited)]];
        self.authentications_refused
            .with_label_values(&labels)
            .inc();
    }

    fn count(&self, endpoint: &str, method: &str, status: u16, took: Duration) {
        self.requests
            .with_label_values(&[endpoint, method, &status.to_string()])
            .inc();
        self.seconds
            .with_label_values(&[endpoint, method])
            .observe(took.as_secs_f64());
    }

    /// Returns the exposition text, with the pool's current state.
    ///
    /// # Errors
    ///
    /// When two metrics have the same name, which would be a bug.
    pub fn render(&self, pool: Figures, log_lines_dropped: u64) -> prometheus::Result<String> {
        let scrape = Registry::new();
        self.gauges.read(&scrape)?;
        for (name, help, value) in [
            (
                "brokkr_db_connections_max",
                "Most database connections this broker may hold.",
                pool.connections,
            ),
            (
                "brokkr_db_connections",
                "Database connections held.",
                pool.held,
            ),
            (
                "brokkr_db_connections_working",
                "Database connections in use.",
                pool.working,
            ),
        ] {
            gauge(&scrape, name, help)?.set(value.into());
        }
        let dropped = counter(
            &scrape,
            "brokkr_log_lines_dropped_total",
            "Log lines dropped because their reader is too slow.",
        )?;
        dropped.inc_by(log_lines_dropped);
        let mut families = self.registry.gather();
        families.extend(scrape.gather());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Registers the counter of requests with an invalid PAK, with all its series at zero.
fn refused_authentications(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let refused = counters(
        registry,
        "brokkr_authentications_refused_total",
        "Requests with an invalid PAK.",
        &["status"],
    )?;
    for status in REFUSED_STATUS {
        refused.with_label_values(&[status]);
    }
    Ok(refused)
}

fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => OTHER_METHOD,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use axum::http::Method;

    use super::*;

    const POOL: Figures = Figures {
        connections: 10,
        held: 2,
        working: 1,
    };

    #[test]
    fn requests_are_counted_by_template_method_and_status() {
        let metrics = Metrics::new().unwrap();
        metrics.request(
            "/api/v1/agents/{id}",
            &Method::GET,
            200,
            Duration::from_millis(3),
        );
        metrics.request(
            "/api/v1/agents/{id}",
            &Method::GET,
            404,
            Duration::from_secs(20),
        );
        metrics.request(
            UNMATCHED,
            &Method::from_bytes(b"BREW").unwrap(),
            404,
            Duration::ZERO,
        );
        let text = metrics.render(POOL, 7).unwrap();
        for line in [
            "brokkr_http_requests_total{endpoint=\"/api/v1/agents/{id}\",method=\"GET\",status=\"200\"} 1",
            "brokkr_http_requests_total{endpoint=\"unmatched\",method=\"other\",status=\"404\"} 1",
            "brokkr_http_request_duration_seconds_bucket{endpoint=\"/api/v1/agents/{id}\",method=\"GET\",le=\"0.001\"} 0",
            "brokkr_http_request_duration_seconds_bucket{endpoint=\"/api/v1/agents/{id}\",method=\"GET\",le=\"0.005\"} 1",
            "brokkr_http_request_duration_seconds_bucket{endpoint=\"/api/v1/agents/{id}\",method=\"GET\",le=\"10\"} 1",
            "brokkr_http_request_duration_seconds_bucket{endpoint=\"/api/v1/agents/{id}\",method=\"GET\",le=\"+Inf\"} 2",
            "brokkr_http_request_duration_seconds_count{endpoint=\"/api/v1/agents/{id}\",method=\"GET\"} 2",
            "brokkr_db_connections_max 10",
            "brokkr_db_connections 2",
            "brokkr_db_connections_working 1",
            "brokkr_log_lines_dropped_total 7",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
        }
        assert!(text.ends_with('\n'));
    }
}
