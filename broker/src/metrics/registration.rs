//! Creates metrics and registers them, each by one name.
//!
//! Every function fails when the registry has a metric of that name already.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub(super) fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone())).map(|()| gauge)
}

pub(super) fn counter(
    registry: &Registry,
    name: &str,
    help: &str,
) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(name, help)?;
    registry
        .register(Box::new(counter.clone()))
        .map(|()| counter)
}

pub(super) fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry
        .register(Box::new(counters.clone()))
        .map(|()| counters)
}
