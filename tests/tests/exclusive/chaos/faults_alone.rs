//! Faults that the random faults have found, each alone.

use brokkr_tests::chaos::allowed_failures::{connections_of, stand_still};
use brokkr_tests::http::Connection;
use brokkr_tests::wait::until;
use brokkr_tests::{Host, alone, http, procs};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Enough on a busy machine.
const SOON: Duration = Duration::from_secs(90);

#[test]
fn a_broker_that_hangs_when_the_next_supervisor_comes_is_found_by_its_probes() {
    let _alone = alone();
    let host = Host::builder()
        .set("health.interval", "\"1s\"")
        // A broker that is taken for a starting broker would have this time.
        .set("start.timeout", "\"10m\"")
        .build();
    let acme = host.tenant("acme").up();
    let hung = acme.pid();
    host.kill();
    stand_still(hung);
    host.up();
    until(SOON, "the hung broker to be ended", || {
        (!procs::alive(hung)).then_some(())
    });
    acme.wait_within(SOON, "ready again", |t| {
        t.state == "ready" && t.pid.is_some_and(|pid| pid != hung)
    });
}

#[test]
fn a_connection_the_supervisor_accepted_for_a_broker_is_answered_before_another_program_takes_over()
{
    let _alone = alone();
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    wrapper.first("acme", "exit 1");
    procs::signal(acme.pid(), Signal::SIGKILL);
    until(SOON, "the supervisor to answer", || {
        let answer = http::get(&acme.addr(), "/").ok()?;
        (answer.status == 503).then_some(())
    });
    let mut client = Connection::open_within(&acme.addr(), SOON).unwrap();
    let port = client.own_port().unwrap();
    client.raw(b"GET / HTTP/1.1\r\nHost:").unwrap();
    until(SOON, "the supervisor to take the connection", || {
        connections_of(host.pid())?.contains(&port).then_some(())
    });
    host.succeed();
    let answer = client.receive(false).unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
}
