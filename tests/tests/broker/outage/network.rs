//! The server is well but the network to it fails.

use crate::outage::scene::{Fails, Fault};
use brokkr_tests::{Broker, Host, PgServer, Proxy, Tenant, holds_for, until};
use std::time::{Duration, Instant};

/// Makes the host reach its server through a proxy, and starts two tenants.
fn behind_a_proxy(host: &Host) -> (Proxy, [Tenant<'_>; 2]) {
    let proxy = Proxy::to(host.server().port());
    host.set(
        "defaults.database.url",
        &format!("{:?}", proxy.url("brokkr", "brokkr")),
    );
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    (proxy, tenants)
}

#[test]
fn connections_that_are_cut_by_the_server_are_made_again() {
    let host = Host::new();
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let cut = || {
        host.server().sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%'",
        );
    };
    let pids = tenants.each_ref().map(|tenant| tenant.pid());
    let apis = tenants.each_ref().map(|tenant| tenant.api());
    // The prober's connection is cut with the others, which alone does not mean that the server is away.
    for _ in 0..3 {
        cut();
        for (tenant, api) in tenants.iter().zip(&apis) {
            until(Duration::from_secs(10), "an answer", || {
                let answer = api.try_call("GET", "/agents", None).ok()?;
                (answer.status == 200).then_some(())
            });
            tenant.becomes("ready");
        }
    }
    assert_eq!(tenants.each_ref().map(|tenant| tenant.pid()), pids);
    for tenant in &tenants {
        assert_eq!(tenant.status().restarts, 0);
    }
}

#[test]
fn a_network_that_holds_everything_back_fails_requests_in_time() {
    let host = Host::new();
    let (proxy, tenants) = behind_a_proxy(&host);
    Fault {
        name: "network holds everything back",
        fails: Fails::All,
        lasts: Duration::from_secs(5),
        begin: &|| proxy.hold(),
        end: &|| proxy.forward(),
    }
    .over(&host, &tenants);
}

#[test]
fn a_black_hole_fails_requests_in_time_and_dead_connections_are_given_up() {
    let host = Host::new();
    let (proxy, tenants) = behind_a_proxy(&host);
    Fault {
        name: "network black-holed",
        fails: Fails::All,
        lasts: Duration::from_secs(8),
        begin: &|| proxy.black_hole(),
        end: &|| proxy.forward(),
    }
    .over(&host, &tenants);
}

#[test]
fn a_short_black_hole_is_over_when_it_is_over() {
    let host = Host::new();
    let (proxy, tenants) = behind_a_proxy(&host);
    Fault {
        name: "network black-holed for a moment",
        fails: Fails::Perhaps,
        lasts: Duration::ZERO,
        begin: &|| proxy.black_hole(),
        end: &|| proxy.forward(),
    }
    .over(&host, &tenants);
}

#[test]
fn connections_that_the_network_has_forgotten_delay_no_request() {
    let host = Host::new();
    let (proxy, tenants) = behind_a_proxy(&host);
    Fault {
        name: "network forgets its connections",
        fails: Fails::All,
        lasts: Duration::from_secs(6),
        begin: &|| proxy.hold(),
        end: &|| {
            proxy.forget();
            proxy.forward();
        },
    }
    .over(&host, &tenants);
}

#[test]
fn a_connection_that_takes_its_time_is_waited_for_as_long_as_the_acquire_timeout_says() {
    let server = PgServer::start();
    let proxy = Proxy::to(server.port());
    let url = format!("{}?connect_timeout=60", proxy.url("brokkr", "brokkr"));
    let broker = Broker::on(&server)
        .set("database.url", &format!("{url:?}"))
        .set("database.acquire_timeout", "\"60s\"")
        .start();
    let api = broker.api();
    let gone = Instant::now();
    proxy.hold();
    proxy.cut();
    let asking = std::thread::spawn(move || api.get("/agents"));
    until(Duration::from_secs(30), "a new connection", || {
        (proxy.opened_since(gone) > 0).then_some(())
    });
    // Longer than any single wait.
    holds_for(
        Duration::from_secs(3),
        "it is waited for",
        || match asking.is_finished() {
            false => Ok(()),
            true => Err("answered"),
        },
    );
    proxy.forward();
    let answer = asking.join().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}
