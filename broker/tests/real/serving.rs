//! Tests of `brokkr-broker serve` as a process of its own: probes, drains, outages.

use std::time::{Duration, Instant};

use brokkr_tests::{Broker, Connection, PgServer, until};
use nix::sys::signal::Signal;

fn get(broker: &Broker, path: &str) -> brokkr_tests::Response {
    Connection::open(&broker.addr())
        .unwrap()
        .request("GET", path, &[], None)
        .unwrap()
}

#[test]
fn probes_and_metrics_answer_as_promised() {
    let server = PgServer::start();
    let broker = Broker::on(&server).start();
    assert_eq!(get(&broker, "/healthz").expect(200).text(), "OK");
    assert_eq!(get(&broker, "/readyz").expect(200).text(), "Ready");
    let unknown = get(&broker, "/no/such/path").expect(404);
    assert_eq!(unknown.json()["code"], "not_found");
    let metrics = get(&broker, "/metrics").expect(200);
    assert_eq!(
        metrics.header("content-type").unwrap(),
        "text/plain; version=0.0.4"
    );
    let text = metrics.text();
    assert!(
        text.contains("endpoint=\"unmatched\",method=\"GET\",status=\"404\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("endpoint=\"/healthz\",method=\"GET\",status=\"200\"} 1"),
        "{text}"
    );
    broker.run(&["healthcheck"]).ok();
    assert!(broker.stop().success());
}

#[test]
fn a_keep_alive_connection_gets_one_more_answer_while_draining() {
    let server = PgServer::start();
    let broker = Broker::on(&server).start();
    let mut kept = Connection::open(&broker.addr()).unwrap();
    assert!(!kept.request("GET", "/healthz", &[], None).unwrap().closes());
    broker.signal(Signal::SIGTERM);
    until(Duration::from_secs(5), "the listener to be closed", || {
        Connection::open(&broker.addr()).err()
    });
    assert!(broker.ended().is_none(), "it waits for the idle connection");
    let last = kept.request("GET", "/healthz", &[], None).unwrap();
    assert_eq!((last.status, last.closes()), (200, true));
    assert!(kept.is_closed().unwrap());
    let status = until(Duration::from_secs(5), "the end", || broker.ended());
    assert!(status.success());
}

#[test]
fn a_request_in_flight_is_answered_after_sigterm() {
    let server = PgServer::start();
    let broker = Broker::on(&server).start();
    let pak = broker.admin_pak();
    let mut client = server.client_as("brokkr", "postgres");
    let mut locked = client.transaction().unwrap();
    locked
        .batch_execute("LOCK TABLE tenant_alone.agents IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let mut slow = Connection::open(&broker.addr()).unwrap();
    slow.send("GET", "/api/v1/agents", &[("Authorization", &pak)], None)
        .unwrap();
    let mut watcher = server.client();
    until(
        Duration::from_secs(5),
        "the request to wait for the lock",
        || {
            let waiting: i64 = watcher
                .query_one(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
                    &[],
                )
                .unwrap()
                .get(0);
            (waiting > 0).then_some(())
        },
    );
    broker.signal(Signal::SIGTERM);
    until(Duration::from_secs(5), "the listener to be closed", || {
        Connection::open(&broker.addr()).err()
    });
    locked.rollback().unwrap();
    let answer = slow.receive(false).unwrap();
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert!(until(Duration::from_secs(5), "the end", || broker.ended()).success());
}

/// Returns the number of bytes that wait in the kernel to be read at the end of a connection with this port.
fn unread(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let own = format!(":{port:04X}");
    let queues = table.lines().skip(1).filter_map(|line| {
        // sl, local, remote, state, transmit queue:receive queue
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, received) = fields.get(4)?.split_once(':')?;
        fields
            .get(1)?
            .ends_with(&own)
            .then(|| u64::from_str_radix(received, 16).ok())?
    });
    queues.sum()
}

#[test]
fn a_client_that_does_not_read_its_answers_is_cut_at_the_end_of_the_grace() {
    let server = PgServer::start();
    let broker = Broker::on(&server).start();
    let mut kept = Connection::open(&broker.addr()).unwrap();
    kept.raw(&b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2000))
        .unwrap();
    // The answers exceed the kernel's buffers; full buffers receive nothing more.
    let port = kept.own_port().unwrap();
    let mut seen = (0, Instant::now());
    until(Duration::from_secs(30), "full buffers", || {
        let now = unread(port);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        (now > 0 && seen.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
    broker.signal(Signal::SIGTERM);
    let told = Instant::now();
    let status = until(Duration::from_secs(22), "the end", || broker.ended());
    assert!(status.success());
    let log = broker.log();
    assert!(told.elapsed() > Duration::from_secs(15), "{log}");
    for line in [
        "closing what is idle",
        "the grace is over: cutting connections",
    ] {
        let line = log.lines().find(|text| text.contains(line));
        assert!(
            line.is_some_and(|line| line.contains("connections=1")),
            "{log}"
        );
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = PgServer::start();
    let broker = Broker::on(&server).start();
    let _kept = Connection::open(&broker.addr())
        .unwrap()
        .request("GET", "/healthz", &[], None)
        .unwrap();
    let mut idle = Connection::open(&broker.addr()).unwrap();
    idle.request("GET", "/healthz", &[], None).unwrap();
    broker.signal(Signal::SIGTERM);
    until(Duration::from_secs(5), "the listener to be closed", || {
        Connection::open(&broker.addr()).err()
    });
    // A second signal of either kind works, even while the event loop is blocked.
    broker.signal(Signal::SIGINT);
    let status = until(Duration::from_secs(2), "the end", || broker.ended());
    assert_eq!(status.code(), Some(1), "what was in flight is cut");
}

#[test]
fn fault_49_while_the_server_is_away_requests_fail_fast_and_health_does_not_and_it_comes_back_by_itself()
 {
    let server = PgServer::start();
    let broker = Broker::on(&server).start();
    let pak = broker.admin_pak();
    let agents = || {
        let mut connection = Connection::open(&broker.addr()).unwrap();
        connection
            .request("GET", "/api/v1/agents", &[("Authorization", &pak)], None)
            .unwrap()
    };
    agents().expect(200);
    for frozen in [false, true] {
        if frozen {
            server.freeze();
        } else {
            server.stop();
        }
        let answer = agents().expect(503);
        assert!(
            answer.took < Duration::from_millis(5500),
            "{:?}",
            answer.took
        );
        assert_eq!(answer.json()["code"], "database_unavailable");
        assert!(answer.header("retry-after").is_some());
        until(Duration::from_secs(5), "not ready", || {
            (get(&broker, "/readyz").status == 503).then_some(())
        });
        let unready = get(&broker, "/readyz");
        assert_eq!(unready.text(), "database unavailable");
        assert_eq!(unready.header("retry-after"), Some("1"));
        let health = get(&broker, "/healthz").expect(200);
        assert!(
            health.took < Duration::from_millis(200),
            "{:?}",
            health.took
        );
        if frozen {
            server.thaw();
        } else {
            server.resume_service();
        }
        let back = Instant::now();
        until(Duration::from_secs(3), "ready again", || {
            (get(&broker, "/readyz").status == 200).then_some(())
        });
        assert!(
            back.elapsed() < Duration::from_millis(2500),
            "{:?}",
            back.elapsed()
        );
        agents().expect(200);
    }
    assert!(broker.ended().is_none());
}

#[test]
fn a_broker_alone_answers_probes_while_its_server_has_not_come_yet() {
    let server = PgServer::start();
    server.stop();
    let broker = Broker::on(&server).spawn();
    until(Duration::from_secs(10), "it to listen", || {
        Connection::open(&broker.addr()).ok()
    });
    get(&broker, "/healthz").expect(200);
    get(&broker, "/readyz").expect(503);
    assert_eq!(
        get(&broker, "/api/v1/agents").expect(503).json()["code"],
        "database_unavailable"
    );
    server.resume_service();
    broker.wait_ready();
    get(&broker, "/readyz").expect(200);
}

#[test]
fn a_wrong_database_ends_it_with_78_and_a_reason() {
    let server = PgServer::start();
    let broker = Broker::on(&server)
        .set(
            "database.url",
            &format!("{:?}", server.url("nowhere", "brokkr")),
        )
        .spawn();
    let status = until(Duration::from_secs(10), "the end", || broker.ended());
    assert_eq!(status.code(), Some(78), "{}", broker.log());
    assert!(
        broker.log().contains("Error: ") && broker.log().contains("nowhere"),
        "{}",
        broker.log()
    );
}
