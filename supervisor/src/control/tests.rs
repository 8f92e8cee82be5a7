//! Tests of the control API over a real socket, beside a fleet that gives the test's answers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::fleet::handle::{Outcome, ReloadReport, Request, RequestError, Selection};
use crate::logs::Output;
use crate::status::{Snapshot, State, TenantStatus};
use brokkr_tenant::TenantName;
use nix::fcntl::OFlag;
use std::fs::{self, File};
use std::io::Write as _;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tracing_subscriber::prelude::*;

fn acme() -> TenantStatus {
    TenantStatus {
        role: None,
        starts: false,
        role_note: None,
        name: "acme".into(),
        state: State::Ready,
        reason: None,
        pending: None,
        pid: Some(4711),
        spawned: None,
        uptime_s: Some(1.0),
        restarts: 2,
        listen: None,
        schema: None,
        pool_size: None,
        server: None,
        next_try: None,
        next_try_s: None,
        last_words: vec![],
        last_exit: None,
        deleted_maps: None,
        uid: None,
        own_uid: None,
        isolation: None,
        problem: None,
        warnings: vec![],
    }
}

/// A running control API beside a fleet of one tenant.
struct Host {
    dir: TempDir,
    snapshots: watch::Sender<Arc<Snapshot>>,
    hub: Hub,
    control: ControlServer,
}

impl Host {
    async fn up() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("supervisor.toml");
        fs::write(&file, "runtime_dir = \".\"\nstate_dir = \".\"\n").unwrap();
        let config = crate::config::load(&file).unwrap();
        let first = Snapshot {
            tenants: vec![acme().into()],
            ..Snapshot::default()
        };
        let (snapshots, snapshot) = watch::channel(Arc::new(first));
        let (requests, mut asked) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                match request {
                    Request::Order {
                        selection: Selection::Names(names),
                        order,
                        reply,
                        ..
                    } => {
                        let tenant = names[0].clone();
                        let answer = if tenant.as_str() == "acme" {
                            Ok(vec![Outcome {
                                tenant,
                                done: true,
                                message: format!("{order:?}"),
                            }])
                        } else {
                            Err(RequestError::UnknownTenant(tenant))
                        };
                        reply.send(answer).unwrap();
                    }
                    Request::Order { reply, .. } => reply.send(Ok(vec![])).unwrap(),
                    Request::RotateCredentials { tenant, reply } => {
                        let role = format!("brokkr_t_{tenant}");
                        reply.send(Ok(role)).unwrap();
                    }
                    Request::Turn { reply } => reply.send(()).unwrap(),
                    Request::Reload {
                        confirm_removals,
                        reply,
                    } => {
                        let removed = if confirm_removals {
                            vec!["old".into()]
                        } else {
                            vec![]
                        };
                        reply
                            .send(ReloadReport {
                                removed,
                                ..ReloadReport::default()
                            })
                            .unwrap();
                    }
                }
            }
        });
        let sink = File::create(dir.path().join("log")).unwrap();
        let hub = Hub::start(Output::Json(sink.into())).unwrap();
        let access = ControlAccess {
            fleet: Handle::new(snapshot, requests),
            groups: CgroupTree::default(),
        };
        let control = ControlServer::start(&config, access, hub.clone())
            .await
            .unwrap();
        Self {
            dir,
            snapshots,
            hub,
            control,
        }
    }

    async fn send(&self, request: &str) -> BufReader<UnixStream> {
        let mut stream = UnixStream::connect(self.dir.path().join(SOCKET))
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    /// Sends a GET and returns the stream of its answer.
    async fn ask(&self, path: &str) -> BufReader<UnixStream> {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await
    }

    /// Returns the status code and the body.
    async fn get(&self, path: &str) -> (u16, String) {
        whole(self.ask(path).await).await
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
        whole(self.send(&request).await).await
    }
}

async fn whole(mut stream: BufReader<UnixStream>) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

/// Reads the stream's next line that contains `has`; other lines, such as chunk sizes, are skipped.
async fn line(stream: &mut BufReader<UnixStream>, has: &str) -> String {
    let reading = async {
        loop {
            let mut line = String::new();
            assert!(
                stream.read_line(&mut line).await.unwrap() > 0,
                "the stream has ended before {has}"
            );
            if line.contains(has) {
                return line;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .unwrap()
}

#[tokio::test]
async fn status_is_the_snapshot_and_an_unknown_tenant_is_named() {
    let host = Host::up().await;
    let (code, body) = host.get("/v1/status").await;
    assert_eq!(code, 200);
    let snapshot: Snapshot = serde_json::from_str(&body).unwrap();
    assert_eq!(&snapshot, host.snapshots.borrow().as_ref());
    assert_eq!(host.get("/v1/status?tenant=acme").await.0, 200);
    let (code, body) = host.get("/v1/status?tenant=nobody").await;
    assert_eq!(
        (code, body.as_str()),
        (
            404,
            r#"{"error":"there is no tenant nobody: no such file in tenants_dir"}"#
        )
    );
    assert_eq!(host.get("/v1/status?tenant=N").await.0, 400);
    assert_eq!(host.get("/v1/else").await.0, 404);
    assert_eq!(host.post("/v1/status", "").await.0, 405);
}

#[tokio::test]
async fn a_watched_status_is_a_line_for_each_change() {
    let host = Host::up().await;
    let mut stream = host.ask("/v1/status?watch=1").await;
    line(&mut stream, "\"state\":\"ready\"").await;
    let changed = TenantStatus {
        state: State::Degraded,
        ..acme()
    };
    host.snapshots.send_replace(Arc::new(Snapshot {
        tenants: vec![changed.into()],
        ..Snapshot::default()
    }));
    line(&mut stream, "\"state\":\"degraded\"").await;
}

#[tokio::test]
async fn orders_and_reloads_are_answered_when_settled() {
    let host = Host::up().await;
    // The subscriber applies to this thread only, which is the runtime's only thread.
    let subscriber = tracing_subscriber::registry().with(host.hub.layer());
    let _logging = tracing::subscriber::set_default(subscriber);
    let (code, body) = host
        .post(
            "/v1/orders",
            r#"{"selection":{"names":["acme"]},"order":"restart"}"#,
        )
        .await;
    assert_eq!(
        (code, body.as_str()),
        (
            200,
            r#"[{"tenant":"acme","done":true,"message":"Restart"}]"#
        )
    );
    assert_eq!(
        host.post("/v1/orders", r#"{"selection":"all","order":"stop"}"#)
            .await,
        (200, "[]".into())
    );
    for (order, code) in [
        (r#"{"selection":{"names":["zed"]},"order":"stop"}"#, 404),
        (r#"{"selection":{"names":["../x"]},"order":"stop"}"#, 400),
        ("nonsense", 400),
    ] {
        assert_eq!(host.post("/v1/orders", order).await.0, code, "{order}");
    }
    let (_, body) = host
        .post("/v1/reload", r#"{"confirm_removals":true}"#)
        .await;
    assert!(body.contains(r#""removed":["old"]"#), "{body}");
    // The tenant's log names the requester.
    let filter = crate::logs::Filter {
        tenants: vec![TenantName::parse("acme").unwrap()],
        ..Default::default()
    };
    let lines = host.hub.tail(&filter, 9);
    let text = String::from_utf8_lossy(&lines[0]);
    let expected = format!(
        "{}, user {}, process {} asks to",
        std::env::current_exe().unwrap().display(),
        nix::unistd::getuid(),
        std::process::id()
    );
    assert!(
        lines.len() == 1 && text.contains(&expected) && text.contains("restart"),
        "{text}"
    );
}

#[tokio::test]
async fn logs_are_the_last_lines_then_those_that_come() {
    let host = Host::up().await;
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let mut broker = File::from(write);
    let name = TenantName::parse("acme").unwrap();
    host.hub
        .attach(name.clone(), 4711, read, Default::default())
        .unwrap();
    writeln!(broker, "one\ntwo").unwrap();
    host.hub.last_words(&name, 4711).await;
    let (code, body) = host.get("/v1/logs?tenant=acme&n=1").await;
    assert_eq!(code, 200);
    assert!(
        body.ends_with(" acme     WARN  stderr: two\n") && !body.contains("one"),
        "{body}"
    );
    assert_eq!(host.get("/v1/logs?tenant=nobody").await.0, 404);
    assert_eq!(host.get("/v1/logs?level=loud").await.0, 400);

    let mut stream = host.ask("/v1/logs?follow=1&n=1&format=json").await;
    line(&mut stream, "\"message\":\"two\"").await;
    writeln!(broker, "three").unwrap();
    line(&mut stream, "\"message\":\"three\"").await;
}

#[tokio::test]
async fn the_pak_is_given_only_where_there_is_one() {
    let host = Host::up().await;
    let (code, body) = host.get("/v1/pak/acme").await;
    assert_eq!(code, 404);
    // The tenant is ready, so its schema had a PAK before.
    assert!(body.contains("before acme first started"), "{body}");
    assert_eq!(host.get("/v1/pak/..%2Fx").await.0, 400);
    let own = host.dir.path().join("tenants/acme");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("admin.pak"), "brokkr_BRx\n").unwrap();
    assert_eq!(host.get("/v1/pak/acme").await, (200, "brokkr_BRx\n".into()));
    host.snapshots.send_replace(Arc::default());
    let (code, body) = host.get("/v1/pak/acme").await;
    assert_eq!(code, 404);
    assert!(body.contains("no tenant acme any more"), "{body}");
    assert!(!body.contains("brokkr_BRx"), "{body}");
}

#[tokio::test]
async fn figures_name_states_restarts_and_lost_lines() {
    let host = Host::up().await;
    let (code, body) = host.get("/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "brokkr_supervisor_tenants{state=\"ready\"} 1\n",
        "brokkr_supervisor_tenants{state=\"backoff\"} 0\n",
        "brokkr_supervisor_tenant_restarts_total{tenant=\"acme\"} 2\n",
        "# TYPE brokkr_supervisor_log_lines_dropped_total counter\n",
    ] {
        assert!(body.contains(line), "{line} is not in\n{body}");
    }
}

#[tokio::test]
async fn silent_clients_keep_no_other_client_out_and_streams_are_bounded() {
    let host = Host::up().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = host.ask("/v1/status?watch=1").await;
        line(&mut stream, "\"state\":\"ready\"").await;
        streams.push(stream);
    }
    assert_eq!(host.get("/v1/status?watch=1").await.0, 503);
    assert_eq!(host.get("/v1/status").await.0, 200);
    streams.pop();
    // The slot is free as soon as the supervisor sees the end of the connection.
    let start = std::time::Instant::now();
    loop {
        let mut stream = host.ask("/v1/status?watch=1").await;
        let mut first = String::new();
        stream.read_line(&mut first).await.unwrap();
        if first.contains("200") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn the_socket_goes_when_the_control_api_ends() {
    let host = Host::up().await;
    let path = host.dir.path().join(SOCKET);
    assert!(path.exists());
    drop(host.control);
    let start = std::time::Instant::now();
    while path.exists() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::task::yield_now().await;
    }
}
