//! Tests with peers that are slow, silent, or speak another protocol, on a paused clock.

use axum::body::Bytes;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;

const PLAIN: &str = "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n";

struct Server {
    connections: Connections,
    phase: watch::Sender<Phase>,
    metrics: Arc<Metrics>,
}

impl Server {
    fn new(most: u32) -> Self {
        let router = Router::new()
            .route("/ok", get(async || "fine"))
            .route("/read", post(async |body: Bytes| format!("{}", body.len())))
            .route("/unread", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .route("/large", get(async || vec![b'x'; 1 << 20]))
            .route("/echo", get(echo));
        let (phase, phases) = watch::channel(Phase::Serving);
        let metrics = Arc::new(Metrics::new().unwrap());
        Server {
            connections: Connections::new(router, metrics.clone(), phases, most),
            phase,
            metrics,
        }
    }

    /// Opens a connection with a small buffer; returns its client side and the task that serves it.
    async fn connect(&self) -> (DuplexStream, JoinHandle<()>) {
        let (ours, theirs) = duplex(4096);
        let permit = self.connections.make_room().await.unwrap();
        (
            ours,
            tokio::spawn(
                self.connections
                    .clone()
                    .serve(theirs, ClientAddress::Local, permit),
            ),
        )
    }
}

/// Upgrades the connection, and echoes its bytes.
async fn echo(mut request: Request<Body>) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut reading, mut writing) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
        tokio::io::copy(&mut reading, &mut writing).await.unwrap();
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in [("connection", "upgrade"), ("upgrade", "echo")] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

/// Reads until the other side closes.
async fn rest(stream: &mut DuplexStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Reads one answer with a short body.
async fn answer(stream: &mut DuplexStream) -> String {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

/// Returns the whole seconds since `began`.
fn after(began: Instant) -> u64 {
    began.elapsed().as_secs()
}

#[track_caller]
fn is_error(text: &str, status: &str, code: &str) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
    for line in ["content-type: application/json", "connection: close"] {
        assert!(head.lines().any(|l| l == line), "no `{line}` in {text}");
    }
    assert!(head.contains("\r\nx-request-id: "), "{text}");
    assert!(
        head.contains(&format!("content-length: {}\r\n", body.len())),
        "{text}"
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["code"], code);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed_and_not_answered() {
    let server = Server::new(10);
    let began = Instant::now();
    let (mut silent, end) = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    end.await.unwrap();
    assert_eq!(after(began), 10);
}

#[tokio::test(start_paused = true)]
async fn a_peer_has_ten_seconds_for_its_handshake_and_takes_a_connections_place_meanwhile() {
    let pair = brokkr_tenant::TlsPair::parse(
        include_bytes!("../../../../tenant/src/tls/test-cert.pem"),
        include_bytes!("../../../../tenant/src/tls/test-key.pem"),
    );
    let mut server = Server::new(1);
    server.connections = server
        .connections
        .with_tls(Some(Tls::new(&pair.unwrap()).unwrap()));
    for sent in [b"".as_slice(), b"\x16\x03\x01\x02\x00\x01"] {
        let began = Instant::now();
        let (mut slow, end) = server.connect().await;
        slow.write_all(sent).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(server.connections.open(), 1);
        assert_eq!(rest(&mut slow).await, "");
        end.await.unwrap();
        assert_eq!((after(began), server.connections.open()), (10, 0));
    }
    // A client that speaks no TLS is not left waiting.
    let began = Instant::now();
    let (mut plain, end) = server.connect().await;
    plain.write_all(PLAIN.as_bytes()).await.unwrap();
    end.await.unwrap();
    assert_eq!(after(began), 0);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_has_ten_seconds_whatever_it_sends() {
    let server = Server::new(10);
    let began = Instant::now();
    let (stream, _) = server.connect().await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let trickle = tokio::spawn(async move {
        for byte in PLAIN.bytes().cycle() {
            if writing.write_all(&[byte, b'\r']).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(900)).await;
        }
    });
    let mut text = String::new();
    // Read to the end; an error is fine because the peer may still be sending.
    let _ = reading.read_to_string(&mut text).await;
    is_error(&text, "400", "bad_request");
    trickle.abort();

    let (mut stream, end) = server.connect().await;
    let began_again = Instant::now();
    stream.write_all(b"GET /ok HTTP/1.1\r\n").await.unwrap();
    for header in 0..20 {
        sleep(Duration::from_millis(900)).await;
        if stream
            .write_all(format!("x-{header}: y\r\n").as_bytes())
            .await
            .is_err()
        {
            break;
        }
    }
    is_error(&rest(&mut stream).await, "408", "request_timeout");
    end.await.unwrap();
    assert!(after(began_again) <= 18 && after(began) < 40);
    let pool = crate::db::Figures {
        connections: 0,
        held: 0,
        working: 0,
    };
    let counted = server.metrics.render(pool, 0).unwrap();
    for line in [
        "brokkr_http_requests_total{endpoint=\"unmatched\",method=\"other\",status=\"400\"} 1",
        "brokkr_http_requests_total{endpoint=\"unmatched\",method=\"other\",status=\"408\"} 1",
    ] {
        assert!(counted.lines().any(|l| l == line), "{counted}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_may_wait_longer_than_a_head_but_not_for_ever() {
    let server = Server::new(10);
    let (mut stream, end) = server.connect().await;
    for _ in 0..3 {
        stream.write_all(PLAIN.as_bytes()).await.unwrap();
        assert!(answer(&mut stream).await.ends_with("fine"));
        sleep(Duration::from_secs(80)).await;
    }
    // A later request has the same time limit as the first request.
    stream.write_all(&PLAIN.as_bytes()[..9]).await.unwrap();
    let began = Instant::now();
    is_error(&rest(&mut stream).await, "408", "request_timeout");
    assert!((9..=10).contains(&after(began)), "{}", after(began));
    end.await.unwrap();

    let (mut stream, end) = server.connect().await;
    stream.write_all(PLAIN.as_bytes()).await.unwrap();
    let _ = answer(&mut stream).await;
    let began = Instant::now();
    assert_eq!(
        rest(&mut stream).await,
        "",
        "an idle connection is closed without a word"
    );
    end.await.unwrap();
    assert!((89..=90).contains(&after(began)));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_an_answer_is_cut_off_and_who_reads_slowly_is_not() {
    let server = Server::new(10);
    let ask = "GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
    let (mut deaf, end) = server.connect().await;
    let began = Instant::now();
    deaf.write_all(ask.as_bytes()).await.unwrap();
    end.await.unwrap();
    assert!((29..=31).contains(&after(began)), "{}", after(began));

    let (mut slow, end) = server.connect().await;
    slow.write_all(ask.as_bytes()).await.unwrap();
    let mut got = 0;
    let mut buffer = vec![0; 4096];
    while got < 1 << 20 {
        sleep(Duration::from_secs(20)).await;
        let count = slow.read(&mut buffer).await.unwrap();
        assert!(count > 0, "cut off after {got}");
        got += count;
    }
    assert!(!end.is_finished(), "it goes on");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_is_answered_with_a_body_like_every_other_error() {
    let server = Server::new(10);
    let many: String = (0..200).map(|n| format!("h{n}: v\r\n")).collect();
    let long = "x".repeat(40_000);
    for (sent, status, code) in [
        ("NOT HTTP AT ALL\r\n\r\n".to_owned(), "400", "bad_request"),
        ("GET /ok HTTP/3.0\r\n\r\n".to_owned(), "400", "bad_request"),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
            "505",
            "http_version_not_supported",
        ),
        (
            format!("GET /ok HTTP/1.1\r\n{many}\r\n"),
            "431",
            "request_header_fields_too_large",
        ),
        (
            format!("GET /ok HTTP/1.1\r\nh: {long}\r\n\r\n"),
            "431",
            "request_header_fields_too_large",
        ),
    ] {
        let (stream, _) = server.connect().await;
        let (mut reading, mut writing) = tokio::io::split(stream);
        tokio::spawn(async move {
            let _ = writing.write_all(sent.as_bytes()).await;
            // Hold the connection open, so that the server ends it.
            sleep(Duration::from_secs(3600)).await;
        });
        let mut text = String::new();
        reading.read_to_string(&mut text).await.unwrap();
        is_error(&text, status, code);
    }
    // The same holds on a connection that has served a request.
    let (mut stream, _) = server.connect().await;
    stream.write_all(PLAIN.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.ends_with("fine"));
    stream
        .write_all(b"\x16\x03\x01 TLS?\r\n\r\n")
        .await
        .unwrap();
    is_error(&rest(&mut stream).await, "400", "bad_request");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_no_handler_reads_is_read_until_its_sender_has_the_answer() {
    let server = Server::new(10);
    let (stream, end) = server.connect().await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        writing
            .write_all(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n")
            .await
            .unwrap();
        // Send the whole body without reading the answer, as many clients do.
        writing.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
    });
    sending.await.unwrap();
    let mut text = String::new();
    reading.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    assert!(text.contains("connection: close\r\n"), "{text}");
    drop(reading);
    end.await.unwrap();

    // The server stops reading an unwanted body after a limited time.
    let (mut stream, end) = server.connect().await;
    stream
        .write_all(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n")
        .await
        .unwrap();
    let began = Instant::now();
    end.await.unwrap();
    assert!(after(began) <= 2);

    // A body that the handler has read does not end the connection.
    let (mut stream, _) = server.connect().await;
    for _ in 0..2 {
        stream
            .write_all(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
            .await
            .unwrap();
        let text = answer(&mut stream).await;
        assert!(
            text.ends_with('3') && !text.contains("connection: close"),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_nothing_gives_way_to_one_that_waits() {
    let server = Server::new(2);
    let (mut idle, idle_end) = server.connect().await;
    idle.write_all(PLAIN.as_bytes()).await.unwrap();
    let _ = answer(&mut idle).await;
    sleep(Duration::from_secs(3)).await;
    let (mut busy, busy_end) = server.connect().await;
    let began = Instant::now();
    let (_waiting, _) = server.connect().await;
    assert!(after(began) <= 5, "{}", after(began));
    assert_eq!(rest(&mut idle).await, "");
    idle_end.await.unwrap();
    assert!(
        !busy_end.is_finished(),
        "it has not been idle for long enough"
    );
    busy.write_all(PLAIN.as_bytes()).await.unwrap();
    assert!(answer(&mut busy).await.ends_with("fine"));
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_grace_no_client_is_waited_for() {
    let server = Server::new(10);
    let (mut stream, end) = server.connect().await;
    stream
        .write_all(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n")
        .await
        .unwrap();
    let (mut idle, idle_end) = server.connect().await;
    idle.write_all(PLAIN.as_bytes()).await.unwrap();
    let _ = answer(&mut idle).await;
    let began = Instant::now();
    server.phase.send_replace(Phase::Closing);
    end.await.unwrap();
    idle_end.await.unwrap();
    assert_eq!(after(began), 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_left_http_behind_has_its_bounds_behind_too() {
    let server = Server::new(10);
    let (mut stream, end) = server.connect().await;
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await
        .unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 101"));
    end.await.unwrap();
    for _ in 0..3 {
        sleep(Duration::from_secs(200)).await;
        stream.write_all(b"still here").await.unwrap();
        assert_eq!(answer(&mut stream).await, "still here");
    }
}
