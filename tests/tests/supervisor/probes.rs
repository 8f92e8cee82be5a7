//! The cost of supervision for a tenant.

use brokkr_tests::{Host, pg};

#[test]
fn probes_of_an_idle_broker_ask_its_server_nothing() {
    let options = pg::Options::new()
        .set("log_statement", "all")
        .set("log_line_prefix", "%a ");
    let host = Host::builder()
        .pg(options)
        .set("health.interval", "\"50ms\"")
        .build();
    let acme = host.tenant("acme").up();
    let statements = || {
        let log = host.server().log();
        log.lines()
            .filter(|line| line.contains(":acme ") && line.contains("search_path"))
            .count()
    };
    let at_ready = statements();
    assert!(at_ready > 0, "the start itself is not in the log");
    // After forty probes.
    acme.wait("ready for two seconds", |t| {
        t.uptime_s.is_some_and(|s| s > 2.0)
    });
    let after = statements();
    assert!(
        after <= at_ready + 2,
        "{after} checkouts, {at_ready} when it became ready"
    );
    assert_eq!(acme.status().state, "ready");
}
