//! A returning server is not overrun by all clients at once.

use brokkr_tests::wait::until_ok;
use brokkr_tests::{Api, Host, Proxy, SetAtEnd, Tenant, pg, until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TENANTS: usize = 10;
const CLIENTS: usize = 6;
/// Connections with which the prober identifies the server, doubled for an attempt that came too early.
const PROBER: usize = 4;
/// The checked time after the server's return.
const FIRST: Duration = Duration::from_secs(1);

#[test]
fn a_server_that_returns_is_not_met_by_a_stampede() {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(150))
        .set("start.parallelism", "8")
        .build();
    let proxy = Proxy::to(host.server().port());
    host.set(
        "defaults.database.url",
        &format!("{:?}", proxy.url("brokkr", "brokkr")),
    );
    let tenants: Vec<Tenant<'_>> = (0..TENANTS)
        .map(|n| host.tenant(&format!("t{n}")).pool(8).write())
        .collect();
    host.up();
    host.wait(Duration::from_secs(60), "all to be ready", |s| {
        s.tenants.len() == TENANTS && s.all("ready")
    });
    let apis: Vec<Api> = tenants.iter().map(Tenant::api).collect();
    // Every client has used the server and has found it away.
    let ask_all = |status: u16| {
        for api in &apis {
            until_ok(
                Duration::from_secs(10),
                format!("an answer {status}"),
                || {
                    let answer = api.get("/agents");
                    let seen = format!("{answer:?}");
                    (answer.status == status).then_some(()).ok_or(seen)
                },
            );
        }
    };
    let outage = |during: &dyn Fn()| {
        ask_all(200);
        host.server().stop();
        ask_all(503);
        host.wait(Duration::from_secs(10), "all to be degraded", |s| {
            s.all("degraded")
        });
        during();
        let back = Instant::now();
        host.server().resume_service();
        // From here on every connection reaches the server.
        let there = Instant::now();
        host.wait(Duration::from_secs(10), "all to be ready", |s| {
            s.all("ready")
        });
        let ready_after = back.elapsed();
        until(Duration::from_secs(2), "a second to have passed", || {
            (there.elapsed() > FIRST).then_some(())
        });
        (proxy.opened_between(there, there + FIRST), ready_after)
    };

    let (opened, ready_after) = outage(&|| {});
    println!(
        "measured: return of the server to {TENANTS} idle tenants: {opened} connections in the first second, all ready after {:.1} s",
        ready_after.as_secs_f64()
    );
    assert!(
        opened <= PROBER,
        "{opened} connections, and nobody has asked for anything"
    );

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = SetAtEnd::of(&stop);
        let (opened, ready_after) = outage(&|| {
            for api in apis.iter().flat_map(|api| [api; CLIENTS]) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let status = api.get("/agents").status;
                        assert!([200, 503].contains(&status), "{status}");
                        std::thread::sleep(Duration::from_millis(50));
                    }
                });
            }
        });
        drop(end);
        println!(
            "measured: return of the server to {TENANTS} tenants with {CLIENTS} clients each: {opened} connections in the first second, all ready after {:.1} s",
            ready_after.as_secs_f64()
        );
        // Each broker needs one connection, and a second on a slow machine; a stampede would open one for every client.
        assert!(opened <= PROBER + TENANTS * CLIENTS * 3 / 4, "{opened}");
    });
}
