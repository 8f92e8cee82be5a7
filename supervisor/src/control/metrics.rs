//! The supervisor's own metrics in Prometheus's text format.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::logs::Hub;
use crate::status::{Snapshot, State};

pub(super) fn render(snapshot: &Snapshot, logs: &Hub) -> prometheus::Result<String> {
    let registry = Registry::new_custom(Some("brokkr_supervisor".to_owned()), None)?;
    let gauges = |name, label, help| {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        registry.register(Box::new(gauges.clone())).map(|()| gauges)
    };
    let counters = |name, label, help| {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        registry
            .register(Box::new(counters.clone()))
            .map(|()| counters)
    };

    let tenants = gauges("tenants", "state", "Tenants by state.")?;
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
        tenants.with_label_values(&[state.as_str()]).set(0);
    }
    let restarts = counters(
        "tenant_restarts_total",
        "tenant",
        "Unplanned exits of a tenant's instances.",
    )?;
    let isolated = gauges(
        "tenants_isolated",
        "layer",
        "Tenants whose broker runs in this layer of the sandbox.",
    )?;
    for layer in ["user", "capabilities", "landlock", "seccomp"] {
        isolated.with_label_values(&[layer]).set(0);
    }
    for layer in snapshot
        .tenants
        .iter()
        .flat_map(|t| t.isolation.iter().flatten())
    {
        if layer.on {
            isolated.with_label_values(&[&layer.name]).inc();
        }
    }
    for tenant in &snapshot.tenants {
        tenants.with_label_values(&[tenant.state.as_str()]).inc();
        restarts
            .with_label_values(&[&tenant.name])
            .inc_by(tenant.restarts);
    }

    let up = gauges(
        "server_up",
        "server",
        "1 while the PostgreSQL server answers.",
    )?;
    let capacity = gauges(
        "server_connections_capacity",
        "server",
        "Connections tenants may take altogether.",
    )?;
    let committed = gauges(
        "server_connections_committed",
        "server",
        "Connections promised to admitted tenants.",
    )?;
    let in_use = gauges(
        "server_connections_in_use",
        "server",
        "Connections of ours the server has.",
    )?;
    for server in &snapshot.servers {
        for (gauge, value) in [
            (&up, Some(server.up.into())),
            (&capacity, server.capacity),
            (&committed, Some(server.committed)),
            (&in_use, server.in_use),
        ] {
            if let Some(value) = value {
                gauge.with_label_values(&[&server.id]).set(value.into());
            }
        }
    }

    let dropped = counters(
        "log_lines_dropped_total",
        "tenant",
        "Log lines lost because they came faster than the log is read; the supervisor's own without a tenant.",
    )?;
    // The supervisor's own count is always there, so that the metric exists before the first loss.
    dropped.with_label_values(&[""]);
    for (tenant, count) in logs.dropped() {
        let tenant = tenant.as_ref().map_or("", |tenant| tenant.as_str());
        dropped.with_label_values(&[tenant]).inc_by(count);
    }
    TextEncoder::new().encode_to_string(&registry.gather())
}
