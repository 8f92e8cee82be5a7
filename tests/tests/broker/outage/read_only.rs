//! The server answers but is read-only.

use crate::outage::scene::{Fails, Fault};
use brokkr_tests::{Host, Proxy, until};
use std::time::Duration;

#[test]
fn a_server_switched_to_read_only_is_read_from_and_not_ready() {
    let host = Host::new();
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let switch = |how: &str| {
        host.server().sql(&format!("ALTER SYSTEM {how}"));
        host.server().sql("SELECT pg_reload_conf()");
    };
    Fault {
        name: "PostgreSQL switched to read-only",
        fails: Fails::Writes,
        lasts: Duration::from_secs(6),
        begin: &|| switch("SET default_transaction_read_only = on"),
        end: &|| switch("RESET default_transaction_read_only"),
    }
    .over(&host, &tenants);
}

#[test]
fn a_failover_to_a_standby_waits_for_its_promotion() {
    let host = Host::new();
    let proxy = Proxy::to(host.server().port());
    host.set(
        "defaults.database.url",
        &format!("{:?}", proxy.url("brokkr", "brokkr")),
    );
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let standby = host.server().standby();
    until(Duration::from_secs(20), "the standby to have all", || {
        let mut primary = host.server().client();
        let caught_up: Option<bool> = primary
            .query_one(
                "SELECT bool_and(replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication",
                &[],
            )
            .unwrap()
            .get(0);
        caught_up.filter(|all| *all)
    });
    Fault {
        name: "failover to a standby, promoted later",
        fails: Fails::All,
        lasts: Duration::from_secs(2),
        begin: &|| {
            proxy.lead_to(standby.port());
            proxy.cut();
        },
        end: &|| standby.sql("SELECT pg_promote()"),
    }
    .over(&host, &tenants);
}
