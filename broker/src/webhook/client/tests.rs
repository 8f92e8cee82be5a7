#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use brokkr_tenant::{Network, WebhooksConfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::webhook::crypto::Key;
use crate::webhook::endpoint::Sealed;

const SECOND: Duration = Duration::from_secs(1);

fn client(networks: &[&str]) -> Client {
    Client::new(AddressPolicy::new(&WebhooksConfig {
        allowed_networks: networks
            .iter()
            .map(|network| Network::parse(network).unwrap())
            .collect(),
        allowed_ports: Vec::new(),
    }))
}

fn endpoint(url: &str, auth_header: Option<&str>) -> Endpoint {
    let key = Key::parse(&"a".repeat(64)).unwrap();
    let sealed = Sealed {
        url: key.seal(url).unwrap(),
        auth_header: auth_header.map(|text| key.seal(text).unwrap()),
    };
    Endpoint::open(&key, &sealed).unwrap()
}

async fn post(url: &str, timeout: Duration) -> Result<WebhookResponse, SendError> {
    let json = Bytes::from_static(b"{\"a\":1}");
    client(&["127.0.0.0/8"])
        .post(&endpoint(url, Some("Bearer secret")), json, timeout)
        .await
}

/// Answers one connection after another with these texts. Returns the received requests.
async fn server(answers: Vec<String>) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().await.unwrap();
            asked.push(converse(stream, &answer).await);
        }
        asked
    });
    (address, asked)
}

/// Reads a request with its body, and answers it.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await.unwrap();
        asked.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&asked).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            break;
        }
    }
    // Ignore errors, because a client that has read enough closes.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.flush().await;
    String::from_utf8(asked).unwrap()
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_webhook_is_a_post_of_json_with_the_stored_authorization() {
    let (address, asked) = server(vec![answer("201 Created", "", "thanks")]).await;
    let url = format!("http://{address}/hook/x?y=1#part");
    let got = post(&url, SECOND).await.unwrap();
    assert_eq!(
        (got.status.as_u16(), got.beginning(4)),
        (201, "than".to_owned())
    );
    let asked = asked.await.unwrap().remove(0);
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<String> = head.lines().map(str::to_ascii_lowercase).collect();
    assert_eq!(lines.remove(0), "post /hook/x?y=1 http/1.1");
    lines.sort();
    assert_eq!(
        lines,
        [
            "accept: */*".to_owned(),
            "authorization: bearer secret".to_owned(),
            "connection: close".to_owned(),
            "content-length: 7".to_owned(),
            "content-type: application/json".to_owned(),
            format!("host: {address}"),
            format!("user-agent: brokkr-broker/{}", env!("CARGO_PKG_VERSION")),
        ]
    );
    assert_eq!(body, "{\"a\":1}");
}

#[tokio::test]
async fn a_redirect_keeps_the_method_and_gives_the_authorization_to_its_own_origin_only() {
    let (other, seen_there) = server(vec![answer("200 OK", "", "")]).await;
    let away = format!("Location: http://{other}/last\r\n");
    let (first, seen_here) = server(vec![
        answer("307 Temporary Redirect", "Location: /second\r\n", ""),
        answer("301 Moved Permanently", &away, ""),
    ])
    .await;
    let got = post(&format!("http://{first}/first"), SECOND)
        .await
        .unwrap();
    assert_eq!(got.status, StatusCode::OK);
    let here = seen_here.await.unwrap();
    for (asked, path) in here.iter().zip(["/first", "/second"]) {
        assert!(asked.starts_with(&format!("POST {path} ")), "{asked}");
        assert!(asked.contains("Bearer secret") && asked.ends_with("{\"a\":1}"));
    }
    let there = seen_there.await.unwrap().remove(0);
    assert!(there.starts_with("POST /last ") && there.ends_with("{\"a\":1}"));
    assert!(!there.contains("secret"), "{there}");
}

#[tokio::test]
async fn an_authorization_once_dropped_does_not_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = listener.local_addr().unwrap();
    let back = format!("Location: http://{home}/again\r\n");
    let (other, _) = server(vec![answer("302 Found", &back, "")]).await;
    let away = format!("Location: http://{other}/\r\n");
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        converse(stream, &answer("302 Found", &away, "")).await;
        let (stream, _) = listener.accept().await.unwrap();
        converse(stream, &answer("200 OK", "", "")).await
    });
    assert!(post(&format!("http://{home}/"), SECOND).await.is_ok());
    assert!(!asked.await.unwrap().contains("secret"));
}

#[tokio::test]
async fn see_other_asks_without_the_payload_and_a_circle_ends() {
    let see = "Location: /elsewhere\r\n";
    let (address, asked) = server(vec![
        answer("303 See Other", see, ""),
        answer("200 OK", "", ""),
    ])
    .await;
    assert!(post(&format!("http://{address}/"), SECOND).await.is_ok());
    let asked = asked.await.unwrap().remove(1);
    assert!(asked.starts_with("GET /elsewhere ") && !asked.contains("\"a\""));

    let circle = vec![answer("308 Permanent Redirect", "Location: /\r\n", ""); 6];
    let (address, asked) = server(circle).await;
    let error = post(&format!("http://{address}/"), SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Redirects), "{error}");
    assert_eq!(asked.await.unwrap().len(), 6, "the first and five more");
}

#[tokio::test]
async fn what_is_not_allowed_is_not_connected_to_redirects_and_names_included() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let port = address.port();
    let json = Bytes::new();
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        "http://[::1]/".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://10.0.0.1/".to_owned(),
    ] {
        let error = client(&[])
            .post(&endpoint(&url, None), json.clone(), SECOND)
            .await
            .unwrap_err();
        assert!(matches!(error, SendError::Address), "{url}: {error}");
        assert!(!error.to_string().contains("127"), "{error}");
    }
    // Redirect from an allowed address to a forbidden address.
    let inside = format!("Location: http://127.0.0.2:{port}/\r\n");
    let (first, _) = server(vec![answer("302 Found", &inside, "")]).await;
    let error = client(&["127.0.0.1"])
        .post(
            &endpoint(&format!("http://{first}/"), None),
            json.clone(),
            SECOND,
        )
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Address), "{error}");
    let ports = Client::new(AddressPolicy::new(&WebhooksConfig {
        allowed_networks: vec![Network::parse("127.0.0.0/8").unwrap()],
        allowed_ports: vec![443],
    }));
    let error = ports
        .post(&endpoint(&format!("http://{address}/"), None), json, SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Port(p) if p == port), "{error}");
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(nobody.is_err(), "somebody has connected");
}

#[tokio::test]
async fn a_long_answer_is_read_to_a_bound_and_a_broken_off_one_counts() {
    let (address, _) = server(vec![answer("200 OK", "", &"x".repeat(1_000_000))]).await;
    let got = post(&format!("http://{address}/"), SECOND).await.unwrap();
    assert_eq!(got.body.len(), MOST);
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_owned();
    let (address, _) = server(vec![half]).await;
    let got = post(&format!("http://{address}/"), SECOND).await.unwrap();
    assert_eq!(
        (got.status, got.beginning(10)),
        (StatusCode::OK, "half".to_owned())
    );
    let (address, _) = server(vec!["no HTTP at all\r\n\r\n".to_owned()]).await;
    let error = post(&format!("http://{address}/"), SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Http(_)), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_left_in_time_and_one_that_hangs_after_its_status_has_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let began = Instant::now();
    let error = post(&url, SECOND).await.unwrap_err();
    assert!(matches!(error, SendError::Timeout(1)), "{error}");
    assert!(began.elapsed() >= SECOND && began.elapsed() < 10 * SECOND);

    let hanging = tokio::spawn(async move {
        let mut held = Vec::new();
        // The abandoned connection from above is still in the backlog.
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let head = b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nwait";
            let _ = stream.write_all(head).await;
            held.push(stream);
        }
        std::future::pending::<()>().await;
    });
    let got = post(&url, SECOND).await.unwrap();
    assert_eq!(
        (got.status.as_u16(), got.beginning(10)),
        (503, "wait".to_owned())
    );
    hanging.abort();
}

#[tokio::test]
async fn a_refused_connection_is_said_without_saying_where() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = post(&format!("http://{address}/"), SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Connect(_)));
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    let error = post("http://nothing.invalid/", 10 * SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Resolve(_)), "{error}");
}

/// Makes a certificate authority and a certificate for `localhost`. Returns false without openssl.
fn certificates(folder: &std::path::Path) -> bool {
    let run = |line: &str| {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(folder);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !run("version") {
        return false;
    }
    std::fs::write(folder.join("san"), "subjectAltName=DNS:localhost\n").unwrap();
    for line in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -keyout ca.key -out ca.pem",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout key.pem -out csr.pem",
        "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out cert.pem",
    ] {
        assert!(run(line), "openssl {line}");
    }
    true
}

#[tokio::test]
async fn https_is_spoken_with_a_certificate_that_is_trusted_and_with_no_other() {
    let folder = tempfile::tempdir().unwrap();
    if !certificates(folder.path()) {
        // Fail as root, because root's machines have everything installed and must not skip tests.
        assert!(
            !nix::unistd::geteuid().is_root(),
            "openssl is not installed"
        );
        println!("skipped: openssl is not installed");
        return;
    }
    let read = |name: &str| CertificateDer::from_pem_file(folder.path().join(name)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(folder.path().join("key.pem")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![read("cert.pem")], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let http = format!("Location: http://localhost:{port}/\r\n");
        for reply in [answer("200 OK", "", ""), answer("302 Found", &http, "")] {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            converse(stream, &reply).await;
        }
        // Clients without trust in this certificate, or with another host name, end in the handshake.
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err());
        }
    });
    let client = client(&["127.0.0.0/8", "::1"]);
    let mut roots = RootCertStore::empty();
    roots.add(read("ca.pem")).unwrap();
    client.connector.trust(roots).await;
    let to = |host: &str| endpoint(&format!("https://{host}:{port}/"), None);
    let got = client
        .post(&to("localhost"), Bytes::new(), 10 * SECOND)
        .await;
    assert_eq!(got.unwrap().status, StatusCode::OK);
    let got = client
        .post(&to("localhost"), Bytes::new(), 10 * SECOND)
        .await;
    assert!(matches!(got, Err(SendError::Downgrade)), "{got:?}");
    let got = client
        .post(&to("127.0.0.1"), Bytes::new(), 10 * SECOND)
        .await;
    assert!(matches!(got, Err(SendError::Tls(_))), "{got:?}");
    client.connector.trust(RootCertStore::empty()).await;
    let got = client
        .post(&to("localhost"), Bytes::new(), 10 * SECOND)
        .await;
    assert!(matches!(got, Err(SendError::Tls(_))), "{got:?}");
    assert!(!serving.is_finished());
}
