//! Counters and histograms, and the text of `/metrics` (Prometheus exposition format 0.0.4).
//!
//! Each kind of figure is a field of [`Metrics`] that keeps its own state and appends its own lines in
//! [`Metrics::render`].
//!
//! The router bounds the labels: route templates, standard methods, status codes. So an anonymous caller cannot add a
//! series.

pub mod gauges;
pub mod sockets;
mod webhooks;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::db::Figures;
use gauges::Gauges;
pub use webhooks::{Carrier, DecryptFailures};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The endpoint label of a request that no route matched.
pub const UNMATCHED: &str = "unmatched";

/// The method label of every non-standard method, because a caller may send any word.
const OTHER_METHOD: &str = "other";

/// Upper bounds of the request duration histogram, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// All of the broker's own figures.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Figures of WebSockets.
    pub sockets: Arc<sockets::Sockets>,
    http: Mutex<BTreeMap<Endpoint, Series>>,
    /// Figures that come from the database.
    pub gauges: Gauges,
    /// The count of webhook secrets that could not be decrypted.
    pub webhooks: DecryptFailures,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    endpoint: String,
    method: &'static str,
}

#[derive(Debug, Default)]
struct Series {
    by_status: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    sum: Duration,
    count: u64,
}

impl Metrics {
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

    fn count(&self, endpoint: &str, method: &'static str, status: u16, took: Duration) {
        let key = Endpoint {
            endpoint: endpoint.to_owned(),
            method,
        };
        let mut http = self.http();
        let series = http.entry(key).or_default();
        *series.by_status.entry(status).or_default() += 1;
        if let Some(bucket) = BUCKETS
            .iter()
            .position(|bound| took.as_secs_f64() <= *bound)
        {
            series.buckets[bucket] += 1;
        }
        series.sum += took;
        series.count += 1;
    }

    /// Returns the exposition text, with the pool's current state.
    pub fn render(&self, pool: Figures, log_lines_dropped: u64) -> String {
        let mut out = String::with_capacity(4096);
        self.render_http(&mut out);
        self.sockets.render(&mut out);
        self.webhooks.render(&mut out);
        self.gauges.render(&mut out);
        render_pool(&mut out, pool);
        let name = "brokkr_log_lines_dropped_total";
        header(
            &mut out,
            name,
            "Log lines dropped because nobody read them.",
            "counter",
        );
        let _ = writeln!(out, "{name} {log_lines_dropped}");
        out
    }

    fn render_http(&self, out: &mut String) {
        let http = self.http();
        let total = "brokkr_http_requests_total";
        header(out, total, "Requests answered.", "counter");
        for (key, series) in http.iter() {
            for (status, count) in &series.by_status {
                let (endpoint, method) = (escape(&key.endpoint), key.method);
                let _ = writeln!(
                    out,
                    "{total}{{endpoint=\"{endpoint}\",method=\"{method}\",status=\"{status}\"}} {count}"
                );
            }
        }
        let seconds = "brokkr_http_request_duration_seconds";
        header(out, seconds, "Time to answer a request.", "histogram");
        for (key, series) in http.iter() {
            let labels = format!(
                "endpoint=\"{}\",method=\"{}\"",
                escape(&key.endpoint),
                key.method
            );
            let mut below = 0;
            for (bound, count) in BUCKETS.iter().zip(series.buckets) {
                below += count;
                let _ = writeln!(out, "{seconds}_bucket{{{labels},le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(
                out,
                "{seconds}_bucket{{{labels},le=\"+Inf\"}} {}",
                series.count
            );
            let _ = writeln!(
                out,
                "{seconds}_sum{{{labels}}} {}",
                series.sum.as_secs_f64()
            );
            let _ = writeln!(out, "{seconds}_count{{{labels}}} {}", series.count);
        }
    }

    fn http(&self) -> MutexGuard<'_, BTreeMap<Endpoint, Series>> {
        self.http.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Writing into a String cannot fail, so results of `writeln!` are ignored.

/// Writes the lines before a metric's samples.
fn header(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn render_pool(out: &mut String, pool: Figures) {
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
        header(out, name, help, "gauge");
        let _ = writeln!(out, "{name} {value}");
    }
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

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
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
        let metrics = Metrics::default();
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
        let text = metrics.render(POOL, 7);
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
