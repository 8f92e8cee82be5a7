//! No statement hangs for ever, neither at a lock nor in a lost network.

use brokkr_tests::{Addr, Host, Proxy, Tenant, http, until};
use std::time::{Duration, Instant};

/// Returns the number of pooled connections that the tenant's broker is using, as it reports to the supervisor.
fn working(host: &Host, tenant: &Tenant<'_>) -> u64 {
    let name = format!("{}.1.sock", tenant.name());
    let private = Addr::Unix(host.runtime_dir().join("instances").join(name));
    http::get(&private, "/pool").unwrap().json()["working"]
        .as_u64()
        .unwrap()
}

#[test]
fn a_statement_that_waits_for_a_lock_is_ended_by_the_statement_timeout() {
    let host = Host::new();
    let acme = host
        .tenant("acme")
        .set("database.statement_timeout", "\"1s\"")
        .up();
    let api = acme.api();
    let mut stranger = host.server().client();
    let mut locked = stranger.transaction().unwrap();
    locked
        .batch_execute("LOCK TABLE tenant_acme.agents IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let answer = api.get("/agents");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert!(answer.took < Duration::from_secs(4), "{:?}", answer.took);
    drop(locked);
    assert_eq!(api.get("/agents").status, 200);
    let status = acme.status();
    assert_eq!((status.state.as_str(), status.restarts), ("ready", 0));
}

#[test]
fn a_statement_whose_network_has_gone_gives_its_connection_back() {
    let host = Host::new();
    let proxy = Proxy::to(host.server().port());
    let url = format!(
        "{}?tcp_user_timeout=2000&keepalives_idle=1&keepalives_interval=1&keepalives_count=2",
        proxy.url("brokkr", "brokkr")
    );
    host.set("defaults.database.url", &format!("{url:?}"));
    let acme = host.tenant("acme").up();
    let api = acme.api();
    // The server holds the statement and sends nothing when the network is lost, so only keepalives can detect it.
    let mut stranger = host.server().client();
    let mut locked = stranger.transaction().unwrap();
    locked
        .batch_execute("LOCK TABLE tenant_acme.agents IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let asking = std::thread::spawn(move || api.get("/agents"));
    // Matched by its statement, because a background job of the broker may also be waiting.
    let mut looking = host.server().client();
    until(Duration::from_secs(10), "the request to be at work", || {
        let waiting: i64 = looking
            .query_one(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%credentials_epoch%'",
                &[],
            )
            .unwrap()
            .get(0);
        (waiting == 1).then_some(())
    });
    assert!(working(&host, &acme) >= 1);
    proxy.black_hole();
    let gone = Instant::now();
    until(
        Duration::from_secs(15),
        "the connection to be given up",
        || (working(&host, &acme) == 0).then_some(()),
    );
    println!(
        "measured: a dead connection is given up after {:?} (of 2 s by its URL)",
        gone.elapsed()
    );
    let answer = asking.join().unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}
