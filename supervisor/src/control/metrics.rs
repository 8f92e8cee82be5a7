//! The supervisor's own metrics in Prometheus's text format.

use crate::logs::Hub;
use crate::status::{Snapshot, State};
use std::fmt::Write;

pub(super) fn render(snapshot: &Snapshot, logs: &Hub) -> String {
    let mut text = Text::default();
    text.head("tenants", "gauge", "Tenants by state.");
    for state in [
        State::Refused,
        State::Waiting,
        State::Starting,
        State::Ready,
        State::Degraded,
        State::Backoff,
        State::Stopping,
        State::Stopped,
    ] {
        let count = snapshot
            .tenants
            .iter()
            .filter(|tenant| tenant.state == state)
            .count();
        text.value("tenants", "state", state.as_str(), count as f64);
    }
    text.head(
        "tenant_restarts_total",
        "counter",
        "Unplanned exits of a tenant's instances.",
    );
    for tenant in &snapshot.tenants {
        text.value(
            "tenant_restarts_total",
            "tenant",
            &tenant.name,
            tenant.restarts as f64,
        );
    }
    text.head(
        "server_up",
        "gauge",
        "1 while the PostgreSQL server answers.",
    );
    for server in &snapshot.servers {
        text.value(
            "server_up",
            "server",
            &server.id,
            f64::from(u8::from(server.up)),
        );
    }
    let servers = snapshot.servers.iter();
    let figures = servers
        .map(|s| (&s.id, [s.capacity, Some(s.committed), s.in_use]))
        .collect::<Vec<_>>();
    for (at, (name, help)) in [
        (
            "server_connections_capacity",
            "Connections tenants may take altogether.",
        ),
        (
            "server_connections_committed",
            "Connections promised to admitted tenants.",
        ),
        (
            "server_connections_in_use",
            "Connections of ours the server has.",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        text.head(name, "gauge", help);
        for (id, values) in &figures {
            if let Some(value) = values[at] {
                text.value(name, "server", id, f64::from(value));
            }
        }
    }
    let help = "Log lines lost because they came faster than the log is read; the supervisor's own without a tenant.";
    text.head("log_lines_dropped_total", "counter", help);
    for (tenant, count) in logs.dropped() {
        let tenant = tenant.as_ref().map_or("", |tenant| tenant.as_str());
        text.value("log_lines_dropped_total", "tenant", tenant, count as f64);
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail, here and below.
        let _ = write!(
            self.0,
            "# HELP brokkr_supervisor_{name} {help}\n# TYPE brokkr_supervisor_{name} {kind}\n"
        );
    }

    fn value(&mut self, name: &str, label: &str, of: &str, value: f64) {
        let of = of
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = writeln!(
            self.0,
            "brokkr_supervisor_{name}{{{label}=\"{of}\"}} {value}"
        );
    }
}
