//! The server is away, comes back, or restarts under load: brokers keep running and no restart is counted.

use crate::outage::scene::{Fails, Fault};
use brokkr_tests::{Host, Load, Tenant, holds_for, until};
use std::time::{Duration, Instant};

#[test]
fn a_server_that_is_down_at_start_makes_tenants_wait_and_not_crash() {
    let host = Host::builder().server_down().build();
    let acme = host.tenant("acme").write();
    let globex = host.tenant("globex").write();
    host.up();
    for tenant in [&acme, &globex] {
        let status = tenant.becomes("waiting");
        assert!(status.reason.is_some(), "{status:?}");
    }
    holds_for(
        Duration::from_secs(3),
        "both wait, without a process",
        || {
            let status = host.status();
            let idle = status
                .tenants
                .iter()
                .all(|t| t.state == "waiting" && t.restarts == 0 && t.pid.is_none());
            if idle && host.broker_pids().is_empty() {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        },
    );
    host.server().resume_service();
    for tenant in [&acme, &globex] {
        let status = tenant.wait_within(Duration::from_secs(10), "ready", |t| t.state == "ready");
        assert_eq!(status.restarts, 0);
    }
}

#[test]
fn a_server_restarted_under_load_costs_answers_and_no_broker() {
    let host = Host::new();
    let tenants: Vec<Tenant<'_>> = ["a", "b", "c"]
        .into_iter()
        .map(|name| host.tenant(name).up())
        .collect();
    let pids: Vec<i32> = tenants.iter().map(Tenant::pid).collect();
    let loads: Vec<Load> = tenants
        .iter()
        .map(|t| Load::start(&t.addr(), "/api/v1/agents", &t.pak(), 2, true))
        .collect();
    let probes: Vec<Load> = tenants
        .iter()
        .map(|t| Load::start(&t.addr(), "/healthz", "", 1, true))
        .collect();

    for _ in 0..3 {
        host.server().restart();
        let back = Instant::now();
        host.wait(Duration::from_secs(20), "all to be ready again", |s| {
            s.all("ready")
        });
        for tenant in &tenants {
            until(
                Duration::from_secs(10),
                "an answer from the database",
                || (tenant.api().get("/agents").status == 200).then_some(()),
            );
        }
        println!("ready {:?} after the server's return", back.elapsed());
    }

    for load in loads {
        let seen = load.stop();
        println!("requests: {:?}, slowest {:?}", seen.answers, seen.slowest);
        assert!(
            seen.count(200) > 0 && seen.answers.keys().all(|s| [200, 503].contains(s)),
            "{seen:?}"
        );
        assert!(seen.lost.is_empty() && seen.refused == 0, "{seen:?}");
        assert!(seen.slowest < Duration::from_secs(8), "{seen:?}");
    }
    for probe in probes {
        let seen = probe.stop();
        assert!(
            seen.answers.keys().all(|s| *s == 200) && seen.lost.is_empty(),
            "{seen:?}"
        );
        assert!(seen.slowest < Duration::from_secs(2), "{seen:?}");
    }
    assert_eq!(tenants.iter().map(Tenant::pid).collect::<Vec<_>>(), pids);
    assert!(host.status().tenants.iter().all(|t| t.restarts == 0));
}

#[test]
fn while_the_server_is_away_tenants_are_degraded_requests_fail_fast_and_healthz_answers() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let (pid, pak) = (acme.pid(), acme.pak());
    let api = brokkr_tests::Api::new(acme.addr(), pak);
    assert_eq!(api.get("/agents").status, 200);
    host.server().stop();

    let status = acme.becomes("degraded");
    assert!(status.reason.is_some());
    let answer = api.get("/agents");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    assert!(answer.took < Duration::from_secs(6), "{:?}", answer.took);
    assert_eq!(acme.get("/readyz").status, 503);
    assert_eq!(acme.get("/healthz").status, 200);

    host.server().resume_service();
    acme.wait_within(Duration::from_secs(5), "ready", |t| t.state == "ready");
    until(
        Duration::from_secs(5),
        "an answer from the database",
        || (api.get("/agents").status == 200).then_some(()),
    );
    let status = acme.status();
    assert_eq!((status.pid, status.restarts), (Some(pid), 0));
}

#[test]
fn a_server_that_hangs_fails_requests_within_the_acquire_timeout_and_healthz_never_waits() {
    let host = Host::new();
    let acme = host
        .tenant("acme")
        .set("database.acquire_timeout", "\"2s\"")
        .up();
    let (pid, pak) = (acme.pid(), acme.pak());
    let api = brokkr_tests::Api::new(acme.addr(), pak);
    assert_eq!(api.get("/agents").status, 200);
    host.server().freeze();
    let probe = Load::start(&acme.addr(), "/healthz", "", 1, true);
    // More requests than pooled connections: those that get no connection fail by the timeout.
    let asking: Vec<_> = (0..12)
        .map(|_| {
            let api = api.clone();
            std::thread::spawn(move || api.get("/agents"))
        })
        .collect();
    for asked in asking {
        let answer = asked.join().unwrap();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.took < Duration::from_secs(9), "{:?}", answer.took);
    }
    let seen = probe.stop();
    assert!(seen.slowest < Duration::from_secs(1), "{seen:?}");
    host.server().thaw();
    until(
        Duration::from_secs(15),
        "an answer from the database",
        || (api.get("/agents").status == 200).then_some(()),
    );
    acme.becomes("ready");
    let status = acme.status();
    assert_eq!((status.pid, status.restarts), (Some(pid), 0));
}

#[test]
fn an_embedded_server_that_is_killed_comes_back_and_brokers_stay() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let (pid, api) = (acme.pid(), acme.api());
    let postmaster = brokkr_tests::procs::children(host.pid())
        .into_iter()
        .find(|child| {
            brokkr_tests::procs::arguments(*child)
                .first()
                .is_some_and(|a| a.contains("postgres"))
        })
        .expect("the embedded server is a child of the supervisor");
    brokkr_tests::procs::signal(postmaster, nix::sys::signal::Signal::SIGKILL);
    until(
        Duration::from_secs(20),
        "an answer from the database",
        || {
            api.try_call("GET", "/agents", None)
                .ok()
                .filter(|a| a.status == 200)
                .map(drop)
        },
    );
    acme.becomes("ready");
    let status = acme.status();
    assert_eq!((status.pid, status.restarts), (Some(pid), 0));
}

#[test]
fn a_server_that_is_stopped_costs_503_and_nothing_else() {
    let host = Host::new();
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    Fault {
        name: "PostgreSQL stopped",
        fails: Fails::All,
        lasts: Duration::from_secs(2),
        begin: &|| host.server().stop(),
        end: &|| host.server().resume_service(),
    }
    .over(&host, &tenants);
}

#[test]
fn a_server_that_is_paused_fails_what_is_in_flight_within_the_acquire_timeout() {
    let host = Host::new();
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    Fault {
        name: "PostgreSQL paused (SIGSTOP)",
        fails: Fails::All,
        lasts: Duration::from_secs(5),
        begin: &|| host.server().freeze(),
        end: &|| host.server().thaw(),
    }
    .over(&host, &tenants);
}
