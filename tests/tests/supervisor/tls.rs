//! TLS under a supervisor, which reads the files and passes them on: a broker may read none of them.

use brokkr_tests::host::Draft;
use brokkr_tests::tls::Certificate;
use brokkr_tests::{Addr, Connection, Host, Socket, Tenant, http, until};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;
use tungstenite::Message;

const SOON: Duration = Duration::from_secs(20);

/// Puts a pair in the place of the tenant's pair, each file by a rename.
fn install(host: &Host, made: &Certificate) {
    let folder = host.root();
    for (from, to) in [(&made.key, "served.key"), (&made.cert, "served.pem")] {
        fs::copy(from, folder.join("new")).unwrap();
        fs::rename(folder.join("new"), folder.join(to)).unwrap();
    }
}

/// Closes the socket, and checks that the server answers with its own close frame.
fn answers(socket: &mut Socket) {
    socket.message(Message::Close(None)).unwrap();
    assert_eq!(socket.end(), 1005);
}

fn addr(tenant: &Tenant, trusted: &Certificate) -> Addr {
    Addr::Tls(tenant.addr().to_string(), trusted.cert.clone())
}

/// A draft of a tenant with the installed pair.
fn tenant<'h>(host: &'h Host, name: &str) -> Draft<'h> {
    let quoted = |name: &str| format!("\"{}\"", host.root().join(name).display());
    host.tenant(name)
        .set("http.tls_cert", &quoted("served.pem"))
        .set("http.tls_key", &quoted("served.key"))
}

#[test]
fn connections_wait_for_a_missing_broker_and_are_closed_when_that_lasts() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let made = Certificate::make(host.root(), "made");
    install(&host, &made);
    let acme = tenant(&host, "acme").up();
    wrapper.first("acme", "exit 1");
    acme.signal(Signal::SIGKILL);
    let mut waiting = Connection::open(&acme.addr()).unwrap();
    assert!(waiting.is_closed().unwrap());
    assert!(http::get(&addr(&acme, &made), "/healthz").is_err());
    wrapper.heal("acme");
    acme.becomes("ready");
    http::get(&addr(&acme, &made), "/healthz")
        .unwrap()
        .expect(200);
}

#[test]
fn a_running_broker_gets_each_new_pair_and_keeps_its_connections() {
    let host = Host::new();
    let make = |name: &str| Certificate::make(host.root(), name);
    let first = make("first");
    install(&host, &first);
    let acme = tenant(&host, "acme").up();
    let pid = acme.pid();
    let mut open = Connection::open(&addr(&acme, &first)).unwrap();
    open.request("GET", "/healthz", &[], None)
        .unwrap()
        .expect(200);
    let mut socket = Socket::open(&addr(&acme, &first), "/api/v1/fleet/live", &acme.pak());

    let served = |made: &Certificate| {
        until(SOON, "the new certificate", || {
            http::get(&addr(&acme, made), "/healthz").ok()
        });
    };
    let second = make("second");
    install(&host, &second);
    served(&second);

    // A pair that does not match is refused by the supervisor, and the broker serves on with the old pair.
    let third = make("third");
    fs::copy(&third.key, host.root().join("served.key")).unwrap();
    let status = acme.wait("told of the pair", |t| t.words().contains("private key"));
    assert_eq!(status.state, "ready");
    let check = host.command(&["check", "--offline"]);
    assert_eq!(check.code, Some(1));
    let place = format!("{}:", acme.file().display());
    let told = format!("{}{}", check.stdout, check.stderr);
    assert!(
        told.contains(&place) && told.contains("served.key: its private key is not the key"),
        "{told}"
    );
    http::get(&addr(&acme, &second), "/healthz")
        .unwrap()
        .expect(200);

    // The next supervisor finds the broker with the second pair and a third on disk.
    host.kill();
    fs::copy(&third.cert, host.root().join("served.pem")).unwrap();
    host.up();
    served(&third);
    assert_eq!((acme.pid(), acme.status().restarts), (pid, 0));
    open.request("GET", "/healthz", &[], None)
        .unwrap()
        .expect(200);
    answers(&mut socket);
    let key = fs::read_to_string(host.root().join("served.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!host.log().contains(secret));
    for entry in fs::read_dir(host.runtime_dir().join("instances")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains(secret));
    }
}
