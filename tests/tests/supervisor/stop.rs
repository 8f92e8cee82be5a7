//! A stop lasts until the requests in flight are answered, and systemd is told that it continues.

use brokkr_tests::{Connection, Host, NotifyListener, procs, until};
use nix::sys::signal::Signal;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

#[test]
fn a_stop_asks_systemd_for_more_time_until_the_last_request_is_answered() {
    let host = Host::builder().set("stop.grace", "\"50s\"").build();
    let listener = NotifyListener::to(&host, None);
    let acme = host.tenant("acme").up();
    // A request with an incomplete body is in flight for as long as the client likes.
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
    // The broker accepts connections in order, so it has accepted the request before it is told to stop.
    assert_eq!(acme.get("/healthz").status, 200);
    assert_eq!(listener.heard("EXTEND_TIMEOUT_USEC="), []);

    procs::signal(host.pid(), Signal::SIGTERM);
    let extended = until(
        Duration::from_secs(30),
        "more time, asked for three times",
        || {
            let heard = listener.heard("EXTEND_TIMEOUT_USEC=");
            (heard.len() >= 3).then_some(heard)
        },
    );
    assert!(host.running(), "it waits for the request");
    assert_eq!(listener.heard("STOPPING=1").len(), 1);
    for pair in extended.windows(2) {
        // Each extension is requested before the previous has run out.
        let asked = Duration::from_micros(pair[0].1.parse().unwrap());
        assert!(pair[1].0 - pair[0].0 < asked, "{extended:?}");
    }
    connection.raw(&body[10..]).unwrap();
    let answer = connection.receive(false).unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(host.wait_ended().success());
    listener.end();
    // The test's own end of the notification socket is all that is left.
    let own = host.root().join("systemd").display().to_string();
    assert_eq!(host.leftovers(), [own]);
}

/// Starts `stop acme`, which waits for a request in flight, and returns when the supervisor has the order.
fn stopping(host: &Host, orders: usize) -> Child {
    let stop = Command::new(brokkr_tests::bin::supervisor())
        .args(["stop", "acme", "--config"])
        .arg(host.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until(Duration::from_secs(30), "the order to be taken", || {
        (host.said("asks to stop it") >= orders).then_some(())
    });
    stop
}

fn ended(mut child: Child) -> Output {
    until(Duration::from_secs(30), "the command to end", || {
        child.try_wait().unwrap()
    });
    child.wait_with_output().unwrap()
}

#[test]
fn an_interrupted_command_says_that_its_order_stands() {
    let host = Host::builder().set("stop.grace", "\"50s\"").build();
    let acme = host.tenant("acme").up();
    let mut connection = acme.connect();
    let head = "POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n";
    connection.raw(head.as_bytes()).unwrap();
    assert_eq!(acme.get("/healthz").status, 200);

    for (orders, signal) in [(1, Signal::SIGINT), (2, Signal::SIGTERM)] {
        let stop = stopping(&host, orders);
        procs::signal(stop.id() as i32, signal);
        let ended = ended(stop);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(130), "{said}");
        assert!(said.contains("the supervisor goes on with"), "{said}");
    }
    assert_eq!(acme.status().state, "stopping");
    connection.raw(b"0123456789").unwrap();
    connection.receive(false).unwrap();
    acme.becomes("stopped");
}
