//! A stop lasts as long as what is in flight, and systemd hears that it goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use brokkr_tests::{Connection, Ear, Host, procs, until};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_stop_asks_systemd_for_more_time_until_the_last_request_is_answered() {
    let host = Host::builder().set("stop.grace", "\"50s\"").build();
    let ear = Ear::to(&host, None);
    let acme = host.tenant("acme").up();
    // A request whose body is not all there yet is in flight for as long as the client likes.
    let body = br#"{"name":"slow","cluster_name":"berlin"}"#;
    let mut connection = Connection::open(&acme.addr()).unwrap();
    let head = format!(
        "POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        acme.pak(),
        body.len()
    );
    connection.raw(head.as_bytes()).unwrap();
    connection.raw(&body[..10]).unwrap();
    // On its way into the broker before that is told to stop: it is accepted in order.
    assert_eq!(acme.get("/healthz").status, 200);
    assert_eq!(ear.heard("EXTEND_TIMEOUT_USEC="), []);

    procs::signal(host.pid(), Signal::SIGTERM);
    let extended = until(
        Duration::from_secs(30),
        "more time, asked for three times",
        || {
            let heard = ear.heard("EXTEND_TIMEOUT_USEC=");
            (heard.len() >= 3).then_some(heard)
        },
    );
    assert!(host.running(), "it waits for the request");
    assert_eq!(ear.heard("STOPPING=1").len(), 1);
    for pair in extended.windows(2) {
        // Each is asked for before the one before it has run out.
        let asked = Duration::from_micros(pair[0].1.parse().unwrap());
        assert!(pair[1].0 - pair[0].0 < asked, "{extended:?}");
    }
    connection.raw(&body[10..]).unwrap();
    let answer = connection.receive(false).unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(host.wait_ended().success());
    ear.end();
    // Only the test's own end of the socket.
    let own = host.root().join("systemd").display().to_string();
    assert_eq!(host.leftovers(), [own]);
}
