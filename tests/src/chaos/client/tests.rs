//! Tests that a client notices each violation, against a fake server.

use super::*;
use crate::chaos::account::Kind;
use crate::chaos::allowed_failures::Reason;
use std::io::{Read, Write};
use std::net::TcpListener;

/// Answers each connection in turn with the next of these texts; for an empty text it hangs up.
fn answers(texts: &'static [&'static str]) -> Addr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = Addr::port(listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for text in texts {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = connection.read(&mut request).unwrap();
            connection.write_all(text.as_bytes()).unwrap();
        }
    });
    addr
}

fn client(addr: Addr) -> Client {
    let address = Address {
        tenant: "a".into(),
        addr,
        pak: "pak".into(),
    };
    let mut client = Client::new(
        Arc::default(),
        address,
        "fresh",
        false,
        fastrand::Rng::with_seed(1),
    );
    let agent = Agent {
        id: "1".into(),
        pak: "own".into(),
    };
    client.ledger.home = Some(Home::new("a-home".into(), agent, "s0".into()));
    client
}

fn counts(client: &Client) -> [usize; 4] {
    [Kind::Refused, Kind::Failed, Kind::WrongTenant, Kind::Lost]
        .map(|kind| client.shared.diary.count(kind))
}

fn seen(texts: &'static [&'static str], does: impl Fn(&mut Client)) -> [usize; 4] {
    let mut client = client(answers(texts));
    for _ in texts {
        does(&mut client);
    }
    counts(&client)
}

const HOME: &str = "HTTP/1.1 200 OK\r\nContent-Length: 55\r\n\r\n{\"name\":\"a-home\",\"cluster_name\":\"a\",\"status\":\"s0\"}     ";

#[test]
fn what_is_as_it_should_be_is_no_violation() {
    assert_eq!(seen(&[HOME], Client::read_home), [0; 4]);
}

#[test]
fn a_refused_connection_is_counted() {
    let port = crate::ports::free();
    let mut client = client(Addr::port(port));
    client.read_home();
    assert_eq!(counts(&client), [1, 0, 0, 0]);
}

#[test]
fn a_request_without_an_answer_is_counted_and_so_is_an_answer_it_should_not_have() {
    let texts = &["", "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "HTTP"];
    assert_eq!(seen(texts, Client::read_home), [0, 3, 0, 0]);
}

#[test]
fn another_tenants_data_is_counted_wherever_it_comes() {
    let read = &[
        "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n{\"name\":\"b-1\",\"cluster_name\":\"b\",\"status\":\"s0\"}    ",
    ];
    assert_eq!(seen(read, Client::read_home), [0, 0, 1, 0]);
    let list = &[
        "HTTP/1.1 200 OK\r\nContent-Length: 36\r\n\r\n[{\"name\":\"a-home\"}, {\"name\":\"b-1\"}]  ",
    ];
    assert_eq!(seen(list, Client::list), [0, 0, 1, 0]);
    let stranger = &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"];
    let ask = |client: &mut Client| {
        client.knows("another's");
        client.be_a_stranger();
    };
    assert_eq!(seen(stranger, ask), [0, 0, 1, 0]);
}

#[test]
fn an_acknowledged_write_that_is_not_there_is_counted() {
    let gone = &["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"];
    assert_eq!(seen(gone, Client::read_home), [0, 0, 0, 1]);
    let other = &[
        "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n{\"name\":\"a-home\",\"cluster_name\":\"a\",\"status\":\"s9\"} ",
    ];
    assert_eq!(seen(other, Client::read_home), [0, 0, 0, 1]);
    let empty = &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"];
    assert_eq!(seen(empty, Client::list), [0, 0, 0, 1]);
}

#[test]
fn a_503_is_excused_only_while_something_excuses_it_and_never_without_retry_after_or_from_healthz()
{
    const LATER: &str = "HTTP/1.1 503 x\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    let away = |client: &mut Client| client.shared.allowed_failures.open(Reason::ServerAway);
    assert_eq!(seen(&[LATER], Client::read_home), [0, 1, 0, 0]);
    let excused = |client: &mut Client| {
        away(client);
        client.read_home();
        assert_eq!(client.tally.unavailable, 1);
    };
    assert_eq!(seen(&[LATER], excused), [0; 4]);
    let bare = &["HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"];
    let read = |client: &mut Client| {
        away(client);
        client.read_home();
    };
    assert_eq!(seen(bare, read), [0, 1, 0, 0]);
    let healthz = |client: &mut Client| {
        away(client);
        client.healthz();
    };
    assert_eq!(seen(&[LATER], healthz), [0, 1, 0, 0]);
}
