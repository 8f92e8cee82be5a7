//! Tests of the test tools: a server that stops, freezes and replicates; unique ports; a client that keeps a
//! connection.

use brokkr_tests::http::{Addr, Connection};
use brokkr_tests::pg::{Options, PgServer};
use brokkr_tests::{ports, until};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::Duration;

#[test]
fn a_server_keeps_its_rows_over_stop_and_crash_and_leaves_nothing_when_dropped() {
    let server = PgServer::with(Options::new().max_connections(23));
    let folder = server.socket_dir();
    server.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)");
    server.restart();
    server.crash();
    assert!(server.try_client("brokkr", "postgres").is_err());
    server.resume_service();
    let mut client = server.client();
    assert_eq!(
        client
            .query_one("SELECT n FROM kept", &[])
            .unwrap()
            .get::<_, i32>(0),
        7
    );
    let shown: String = client
        .query_one("SHOW max_connections", &[])
        .unwrap()
        .get(0);
    assert_eq!(shown, "23");
    drop(server);
    assert!(!folder.exists());
    assert_eq!(
        brokkr_tests::procs::naming(&folder.display().to_string()),
        Vec::<i32>::new()
    );
}

#[test]
fn a_frozen_server_answers_only_after_it_is_thawed() {
    let server = PgServer::start();
    let mut client = server.client();
    server.freeze();
    let waiting = std::thread::spawn(move || client.query_one("SELECT 1", &[]).map(|_| ()));
    until(
        Duration::from_secs(5),
        "the postmaster to be stopped",
        || (brokkr_tests::procs::state(server.pid()) == Some('T')).then_some(()),
    );
    assert!(!waiting.is_finished());
    server.thaw();
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_standby_is_in_recovery_and_has_the_same_identifier() {
    let server = PgServer::start();
    let standby = server.standby();
    let ask = "SELECT system_identifier, pg_is_in_recovery() FROM pg_control_system()";
    let first = server.client().query_one(ask, &[]).unwrap();
    let second = standby.client().query_one(ask, &[]).unwrap();
    assert_eq!(first.get::<_, i64>(0), second.get::<_, i64>(0));
    assert!(!first.get::<_, bool>(1));
    assert!(second.get::<_, bool>(1));
}

#[test]
fn no_port_is_given_twice() {
    let ports: Vec<u16> = (0..50).map(|_| ports::free()).collect();
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 50);
    TcpListener::bind(("127.0.0.1", ports[0])).unwrap();
}

#[test]
fn a_connection_is_kept_and_both_kinds_of_body_are_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = Addr::Tcp(listener.local_addr().unwrap().to_string());
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK",
            "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        ] {
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    let mut connection = Connection::open(&addr).unwrap();
    let mut ask = || connection.request("GET", "/", &[], None).unwrap();
    assert_eq!(ask().text(), "OK");
    assert_eq!((ask().status, ask().closes()), (201, true));
    server.join().unwrap();
    assert!(connection.is_closed().unwrap());
}
