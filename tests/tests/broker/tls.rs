//! TLS on the tenant's listener: versions, protocols, WebSockets, and certificates that are replaced while it serves.

use brokkr_tests::api_fixture::{server, unique};
use brokkr_tests::tls::{Certificate, handshake};
use brokkr_tests::{Addr, Broker, Connection, Socket, TestDir, http, until};
use nix::sys::signal::Signal;
use rustls::version::{TLS12, TLS13};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tungstenite::Message;

const FLEET: &str = "/api/v1/fleet/live";

/// A broker with the certificate `served.pem`, a copy of one in the same folder.
struct Served {
    folder: TestDir,
    broker: Broker,
}

impl Served {
    fn with(certificate: &str) -> (Self, Certificate) {
        let folder = TestDir::new();
        let made = Certificate::make(folder.path(), certificate);
        install(folder.path(), &made);
        let broker = Broker::on(server())
            .schema(&format!("tls_{}", unique()))
            .set("http.tls_cert", &quoted(&folder.join("served.pem")))
            .set("http.tls_key", &quoted(&folder.join("served.key")))
            .env("BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS", "0")
            .start();
        (Self { folder, broker }, made)
    }

    fn addr(&self, trusted: &Certificate) -> Addr {
        Addr::Tls(self.broker.addr().to_string(), trusted.cert.clone())
    }

    fn log_has(&self, text: &str) -> bool {
        self.broker.log().contains(text)
    }
}

/// Closes the socket, and checks that the server answers with its own close frame.
fn answers(socket: &mut Socket) {
    socket.message(Message::Close(None)).unwrap();
    assert_eq!(socket.end(), 1005);
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// Puts a pair in the place of the served pair, each file by a rename.
fn install(folder: &Path, made: &Certificate) {
    for (from, to) in [(&made.key, "served.key"), (&made.cert, "served.pem")] {
        fs::copy(from, folder.join("new")).unwrap();
        fs::rename(folder.join("new"), folder.join(to)).unwrap();
    }
}

#[test]
fn requests_and_websockets_work_over_tls_1_2_and_1_3_and_nothing_works_without() {
    let (served, made) = Served::with("first");
    let addr = served.addr(&made);
    http::get(&addr, "/healthz").unwrap().expect(200);
    let mut socket = Socket::open(&addr, FLEET, &served.broker.admin_pak());

    let text = served.broker.addr().to_string();
    for versions in [&[&TLS12], &[&TLS13]] {
        let chosen = handshake(&text, &made.cert, versions, &["h2", "http/1.1"]).unwrap();
        assert_eq!(chosen.as_deref(), Some("http/1.1"));
    }
    let none = handshake(&text, &made.cert, &[&TLS13], &[]).unwrap();
    assert_eq!(none, None, "a client without ALPN is served too");
    let http2 = handshake(&text, &made.cert, &[&TLS13], &["h2"]).unwrap_err();
    assert!(
        http2.to_string().contains("NoApplicationProtocol"),
        "{http2}"
    );
    assert!(http::get(&served.broker.addr(), "/healthz").is_err());

    // A person who may not read the key may ask after the broker's health, and a broken pair is no failure of it.
    fs::remove_file(served.folder.join("served.key")).unwrap();
    served.broker.run(&["healthcheck"]).ok();
    answers(&mut socket);
    assert!(served.broker.stop().success());
}

#[test]
fn new_handshakes_get_a_replaced_certificate_and_open_connections_go_on() {
    let (served, first) = Served::with("first");
    let mut open = Connection::open(&served.addr(&first)).unwrap();
    open.request("GET", "/healthz", &[], None)
        .unwrap()
        .expect(200);
    let mut socket = Socket::open(&served.addr(&first), FLEET, &served.broker.admin_pak());

    let second = Certificate::make(served.folder.path(), "second");
    install(served.folder.path(), &second);
    let bound = Duration::from_secs(20);
    until(bound, "the second certificate", || {
        http::get(&served.addr(&second), "/healthz").ok()
    });
    assert!(http::get(&served.addr(&first), "/healthz").is_err());

    let third = Certificate::make(served.folder.path(), "third");
    fs::copy(&third.key, served.folder.join("served.key")).unwrap();
    until(
        bound,
        "the log to name the file that does not match",
        || {
            let text = "the changed configuration is not used: ";
            (served.log_has(text)
                && served.log_has("its private key is not the key of the certificate"))
            .then_some(())
        },
    );
    assert!(!served.log_has("PRIVATE KEY"), "{}", served.broker.log());
    http::get(&served.addr(&second), "/healthz")
        .unwrap()
        .expect(200);

    fs::copy(&third.cert, served.folder.join("served.pem")).unwrap();
    until(bound, "the third certificate", || {
        http::get(&served.addr(&third), "/healthz").ok()
    });
    open.request("GET", "/healthz", &[], None)
        .unwrap()
        .expect(200);
    answers(&mut socket);
    assert!(!served.log_has("panicked"), "{}", served.broker.log());
}

#[test]
fn a_hangup_reloads_at_once_where_the_files_are_not_watched() {
    let folder = TestDir::new();
    let first = Certificate::make(folder.path(), "first");
    install(folder.path(), &first);
    let broker = Broker::on(server())
        .schema(&format!("tls_{}", unique()))
        .set("http.tls_cert", &quoted(&folder.join("served.pem")))
        .set("http.tls_key", &quoted(&folder.join("served.key")))
        .env("BROKKR_CONFIG_WATCHER_ENABLED", "false")
        .start();
    let second = Certificate::make(folder.path(), "second");
    install(folder.path(), &second);
    broker.signal(Signal::SIGHUP);
    let addr = Addr::Tls(broker.addr().to_string(), second.cert);
    until(Duration::from_secs(20), "the second certificate", || {
        http::get(&addr, "/healthz").ok()
    });
}

#[test]
fn a_pair_that_cannot_be_used_ends_the_start_with_the_name_of_its_file() {
    let folder = TestDir::new();
    let (first, second) = (
        Certificate::make(folder.path(), "first"),
        Certificate::make(folder.path(), "second"),
    );
    let absent = folder.join("absent.pem");
    let start = |cert: &Path, key: Option<&Path>| {
        let mut draft = Broker::on(server()).set("http.tls_cert", &quoted(cert));
        if let Some(key) = key {
            draft = draft.set("http.tls_key", &quoted(key));
        }
        draft.run(&["serve"])
    };
    for (cert, key, named, why) in [
        (&first.cert, Some(&second.key), &second.key, "not the key"),
        (&absent, Some(&first.key), &absent, "No such file"),
        (&first.key, Some(&first.key), &first.key, "no certificate"),
    ] {
        let ran = start(cert, key.map(|key| &**key));
        assert_eq!(ran.code, Some(78), "{}", ran.stderr);
        let told = format!("{}: ", named.display());
        assert!(
            ran.stderr.contains(&told) && ran.stderr.contains(why),
            "{}",
            ran.stderr
        );
    }
    let ran = start(&first.cert, None);
    assert_eq!(ran.code, Some(78), "{}", ran.stderr);
    assert!(ran.stderr.contains("write tls_key = "), "{}", ran.stderr);
}
