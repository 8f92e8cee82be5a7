//! A host of trivial tenants.

use brokkr_tests::{Host, Tenant, pg};
use std::time::Duration;

/// Builds a host for a hundred small tenants with trivial brokers.
pub fn host() -> Host {
    host_for(100)
}

pub fn host_for(tenants: u32) -> Host {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(2 * tenants + 50))
        .build();
    host.trivial_brokers();
    host
}

pub fn tenants(host: &Host, count: usize) -> Vec<Tenant<'_>> {
    (0..count)
        .map(|n| host.tenant(&format!("t{n}")).pool(2).write())
        .collect()
}

pub fn ready(host: &Host, count: usize) {
    host.wait(
        Duration::from_secs(60),
        &format!("{count} to be ready"),
        |s| s.tenants.iter().filter(|t| t.state == "ready").count() == count,
    );
}
