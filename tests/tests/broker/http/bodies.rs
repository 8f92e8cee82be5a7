//! Bodies that cost more memory than their size, never end, are too large, unexpected, compressed or slow.

use super::as_admin;
use brokkr_tests::api_fixture::World;
use brokkr_tests::http::request;
use brokkr_tests::{Connection, says};
use serde_json::json;
use std::time::{Duration, Instant};

/// Returns the peak memory of the process in MiB.
fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

#[test]
fn a_body_of_many_small_values_is_refused_and_costs_little() {
    let world = World::new();
    let agent = world.agent("a");
    let other = world.agent("b");
    let body = format!("[{}0]", r#"{"":0},"#.repeat(500_000));
    let before = peak(world.broker.pid());
    for path in [
        format!("/agents/{}", agent.id),
        format!("/agents/{}", other.id),
    ] {
        let answer = agent
            .try_bytes("PUT", &path, "application/json", Some(body.as_bytes()))
            .unwrap();
        answer.refused(422, "unprocessable");
    }
    let answer = agent
        .try_bytes(
            "POST",
            "/webhooks",
            "application/json",
            Some(body.as_bytes()),
        )
        .unwrap();
    answer.refused(422, "unprocessable");
    let grown = peak(world.broker.pid()) - before;
    assert!(grown < 100, "{grown} MiB for bodies of 3.5 MiB");
}

#[test]
fn bodies_that_stall_take_no_room_from_others() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let stack = world.stack(&generator);
    let begin = |framing: &str, first: &str| {
        let mut connection = Connection::open(&world.admin.addr).unwrap();
        let head = format!(
            "POST /api/v1/agents/{}/heartbeat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n{framing}\r\n\r\n{first}",
            agent.id, agent.pak
        );
        connection.raw(head.as_bytes()).unwrap();
        connection
    };
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(begin("Transfer-Encoding: chunked", "1\r\n{\r\n"));
        held.push(begin("Content-Length: 4194304", ""));
    }
    // The bodies that announced a large size keep their room for some seconds and lose it; this body waits no longer.
    let yaml = format!("a: {}", "x".repeat(100_000));
    let path = format!("/stacks/{stack}/deployment-objects");
    let answer = generator
        .try_bytes("POST", &path, "application/yaml", Some(yaml.as_bytes()))
        .unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    drop(held);
}

#[test]
fn what_is_wrong_with_a_request_is_said_without_names_of_rusts_types() {
    let world = World::new();
    let post = |path: &str, body: serde_json::Value| world.post(path, &body);
    let agent = json!({ "name": 7, "cluster_name": "c" });
    let webhook = json!({ "name": "n", "url": "https://example.com/", "event_types": "*" });
    for (answer, words) in [
        (post("/agents", json!({})), "`name` is missing"),
        (
            post("/agents", agent),
            "the number `7` where a string is expected",
        ),
        (post("/webhooks", webhook), "where a list is expected"),
        (
            world.get("/webhook-deliveries?limit=x"),
            "`limit` in the query: a whole number is expected",
        ),
    ] {
        let text = answer.text();
        assert!([400, 422].contains(&answer.status), "{text}");
        assert!(text.contains(words), "{words} is not in {text}");
        for rust in [
            "missing field",
            "invalid type",
            "struct ",
            "deserialize",
            "i64",
        ] {
            assert!(!text.contains(rust), "{rust}: {text}");
        }
    }
}

#[test]
fn a_body_that_is_no_utf_8_json_for_its_first_bytes_is_told_so() {
    let world = World::new();
    let pak = world.broker.admin_pak();
    let json = r#"{"name":"a","description":null}"#;
    let wide: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (body, said) in [
        (
            [b"\xef\xbb\xbf", json.as_bytes()].concat(),
            "byte order mark (EF BB BF); send UTF-8 without one",
        ),
        ([&[0xff, 0xfe][..], &wide].concat(), "it is UTF-16"),
    ] {
        let headers = [
            ("Authorization", pak.as_str()),
            ("Content-Type", "application/json"),
        ];
        let answer = request(
            &world.broker.addr(),
            "POST",
            "/api/v1/stacks",
            &headers,
            Some(&body),
        );
        let answer = answer.unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.text().contains(said), "{answer:?}");
    }
}

#[test]
fn a_body_beyond_the_limit_is_413_and_the_last_of_its_connection() {
    let world = World::new();
    let pak = as_admin(&world);
    let headers = [
        ("Authorization", pak.as_str()),
        ("Content-Type", "application/json"),
    ];
    let too_much = 17 << 20;
    for announced in [true, false] {
        let mut connection = Connection::open(&world.admin.addr).unwrap();
        if announced {
            // The announced size is refused; the body is sent all the same, as by clients that do not wait.
            let body = vec![b' '; too_much];
            connection
                .send("POST", "/api/v1/agents", &headers, Some(&body))
                .unwrap();
        } else {
            let chunked = [headers[0], headers[1], ("Transfer-Encoding", "chunked")];
            connection
                .send("POST", "/api/v1/agents", &chunked, None)
                .unwrap();
            let chunk = vec![b' '; 1 << 20];
            for _ in 0..17 {
                connection
                    .raw(format!("{:x}\r\n", chunk.len()).as_bytes())
                    .unwrap();
                connection.raw(&chunk).unwrap();
                connection.raw(b"\r\n").unwrap();
            }
            connection.raw(b"0\r\n\r\n").unwrap();
        }
        let answer = connection.receive(false).unwrap();
        answer.refused(413, "payload_too_large");
        assert!(answer.closes(), "announced: {announced}");
        assert!(connection.is_closed().unwrap());
    }
    // A body for an unknown path is not read either, and its sender gets an answer.
    let mut connection = Connection::open(&world.admin.addr).unwrap();
    let body = vec![b' '; 4 << 20];
    connection
        .send("POST", "/api/v1/agents", &[], Some(&body))
        .unwrap();
    let answer = connection.receive(false).unwrap();
    answer.refused(401, "unauthorized");
    assert!(answer.closes());
    world.get("/agents").expect(200);
}

#[test]
fn an_unexpected_body_ends_no_connection() {
    let world = World::new();
    let pak = as_admin(&world);
    let mut connection = Connection::open(&world.admin.addr).unwrap();
    for _ in 0..3 {
        let headers = [
            ("Authorization", pak.as_str()),
            ("Content-Type", "application/json"),
        ];
        let answer = connection
            .request(
                "GET",
                "/api/v1/agents",
                &headers,
                Some(b"{\"not\": \"asked for\"}"),
            )
            .unwrap();
        assert!(answer.status == 200 && !answer.closes());
    }
}

#[test]
fn a_compressed_body_is_415_and_says_why() {
    let world = World::new();
    let pak = as_admin(&world);
    let stack = world.stack(&world.generator("g"));
    let body = br#"{"name":"a","cluster_name":"c"}"#;
    let post = |path: &str, kind: &str, encoding: &str, body: &[u8]| {
        let headers = [
            ("Authorization", pak.as_str()),
            ("Content-Type", kind),
            ("Content-Encoding", encoding),
        ];
        request(&world.admin.addr, "POST", path, &headers, Some(body)).unwrap()
    };
    for encoding in ["gzip", "GZIP", "identity, br", "zstd"] {
        for (path, kind) in [
            ("/api/v1/agents".to_owned(), "application/json"),
            (
                format!("/api/v1/stacks/{stack}/deployment-objects"),
                "application/yaml",
            ),
        ] {
            let answer = post(&path, kind, encoding, body);
            answer.refused(415, "unsupported_content_encoding");
            says(&answer.text(), &["Content-Encoding"]);
        }
    }
    post("/api/v1/agents", "application/json", "Identity", body).expect(201);
    let headers = [("Authorization", "nonsense"), ("Content-Encoding", "gzip")];
    let nobody = request(
        &world.admin.addr,
        "POST",
        "/api/v1/agents",
        &headers,
        Some(body),
    )
    .unwrap();
    assert_eq!(nobody.status, 401, "who is calling comes first");
}

#[test]
fn a_client_that_sends_too_slowly_is_given_up_and_told_so() {
    let world = World::new();
    let bound = Duration::from_secs(60);
    let head = || {
        let mut connection = Connection::open_within(&world.admin.addr, bound).unwrap();
        let began = Instant::now();
        connection.raw(b"GET /healthz HTTP/1.1\r\n").unwrap();
        let answer = connection.receive(false).unwrap();
        answer.refused(408, "request_timeout");
        assert!(answer.closes() && connection.is_closed().unwrap());
        began.elapsed()
    };
    let body = || {
        let mut connection = Connection::open_within(&world.admin.addr, bound).unwrap();
        let began = Instant::now();
        let announced = format!(
            "POST /api/v1/agents HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
             Content-Length: 1000\r\n\r\n{{",
            world.admin.pak
        );
        connection.raw(announced.as_bytes()).unwrap();
        let answer = connection.receive(false).unwrap();
        answer.refused(408, "request_timeout");
        assert!(answer.closes() && connection.is_closed().unwrap());
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let (head, body) = (scope.spawn(head), scope.spawn(body));
        let head = head.join().unwrap();
        assert!((9..15).contains(&head.as_secs()), "{head:?}");
        let body = body.join().unwrap();
        assert!((29..38).contains(&body.as_secs()), "{body:?}");
    });
}
