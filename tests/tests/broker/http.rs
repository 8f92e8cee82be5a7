//! Behaviour that all requests share: id, log line, methods, protocol, bodies, CORS.

mod bodies;
mod cors;

use brokkr_tests::api_fixture::World;
use brokkr_tests::http::request;
use brokkr_tests::{Connection, Response, until};
use serde_json::{Value, json};
use std::time::Duration;

fn call(world: &World, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    request(&world.admin.addr, method, path, headers, None).unwrap()
}

fn as_admin(world: &World) -> String {
    format!("Bearer {}", world.admin.pak)
}

/// Returns the header's words in order and in lower case.
fn words(answer: &Response, name: &str) -> Vec<String> {
    let mut words: Vec<String> = answer
        .headers
        .iter()
        .filter(|(header, _)| header == name)
        .flat_map(|(_, value)| value.split(','))
        .map(|word| word.trim().to_ascii_lowercase())
        .collect();
    words.sort();
    words
}

#[test]
fn every_answer_says_what_its_request_was_called() {
    let world = World::new();
    let pak = as_admin(&world);
    for (path, status) in [
        ("/healthz", 200),
        ("/metrics", 200),
        ("/nothing", 404),
        ("/api/v1/nothing", 404),
        ("/api/v1/agents", 401),
    ] {
        let answer = call(&world, "GET", path, &[("X-Request-Id", "given-1")]).expect(status);
        assert_eq!(answer.header("x-request-id"), Some("given-1"), "{path}");
        let answer =
            call(&world, "GET", path, &[("X-Request-Id", "no good; really")]).expect(status);
        let made = answer.header("x-request-id").unwrap().to_owned();
        assert!(uuid::Uuid::parse_str(&made).is_ok(), "{path}: {made}");
        let answer = call(&world, "GET", path, &[]).expect(status);
        assert_ne!(answer.header("x-request-id"), Some(made.as_str()));
    }
    let answer = call(
        &world,
        "PATCH",
        "/api/v1/agents",
        &[("Authorization", &pak), ("X-Request-Id", "x")],
    );
    answer.refused(405, "method_not_allowed");
    assert_eq!(answer.header("x-request-id"), Some("x"));
}

fn access_log(world: &World) -> Vec<Value> {
    world
        .broker
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["target"] == "access")
        .collect()
}

#[test]
fn a_request_is_one_line_with_who_asked_and_no_secret() {
    let world = World::with(&[("log.level", "\"debug\""), ("log.format", "\"json\"")]);
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let path = format!("/api/v1/agents/{}", agent.id);
    for (pak, name) in [
        (&agent.pak, "one"),
        (&generator.pak, "two"),
        (&world.admin.pak, "three"),
        (&"brokkr_BRnobody_1111111111111111".to_owned(), "four"),
    ] {
        let headers = [("Authorization", pak.as_str()), ("X-Request-Id", name)];
        let _ = call(&world, "GET", &format!("{path}?hidden=query"), &headers);
    }
    let _ = call(&world, "GET", &path, &[("X-Request-Id", "five")]);
    let _ = call(&world, "BREW", "/pots/coffee", &[("X-Request-Id", "six")]);
    let lines = until(Duration::from_secs(5), "six lines", || {
        let lines = access_log(&world);
        lines
            .iter()
            .any(|line| line["request_id"] == "six")
            .then_some(lines)
    });
    let template = "/api/v1/agents/{id}";
    for (id, method, path, status, principal) in [
        ("one", "GET", template, 200, format!("agent:{}", agent.id)),
        (
            "two",
            "GET",
            template,
            403,
            format!("generator:{}", generator.id),
        ),
        ("three", "GET", template, 200, "admin".to_owned()),
        ("four", "GET", template, 401, "none".to_owned()),
        ("five", "GET", template, 401, "none".to_owned()),
        ("six", "BREW", "unmatched", 404, "none".to_owned()),
    ] {
        let of_it: Vec<&Value> = lines
            .iter()
            .filter(|line| line["request_id"] == id)
            .collect();
        let [line] = of_it[..] else {
            panic!("{id}: {of_it:?}")
        };
        assert_eq!(line["level"], "DEBUG");
        assert_eq!(line["tenant"], "broker", "the name of its file");
        assert_eq!(
            (
                &line["method"],
                &line["path"],
                &line["status"],
                &line["principal"]
            ),
            (
                &json!(method),
                &json!(path),
                &json!(status),
                &json!(principal)
            ),
        );
        assert!(line["ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{line}");
    }
    let log = world.broker.log();
    for secret in [
        agent.pak.as_str(),
        generator.pak.as_str(),
        world.admin.pak.as_str(),
        "BRnobody_1111111111111111",
        "hidden",
        "coffee",
    ] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[test]
fn at_the_usual_level_a_request_leaves_no_line() {
    let world = World::new();
    let before = world.broker.log();
    for _ in 0..5 {
        world.get("/agents").expect(200);
        world.get("/nothing").expect(404);
    }
    let _ = world.broker.stop();
    let log = world.broker.log();
    let new = log.strip_prefix(&before).unwrap();
    assert!(!new.contains("request"), "{new}");
}

#[test]
fn head_is_get_without_its_body() {
    let world = World::new();
    let agent = world.agent("a");
    let pak = as_admin(&world);
    let own = format!("/api/v1/agents/{}", agent.id);
    for path in [
        "/healthz",
        "/api/v1/agents",
        &own,
        "/api/v1/agents/x",
        "/api/v1/nothing",
    ] {
        let headers = [("Authorization", pak.as_str())];
        let get = call(&world, "GET", path, &headers);
        let head = call(&world, "HEAD", path, &headers);
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(
            head.header("content-type"),
            get.header("content-type"),
            "{path}"
        );
        assert_eq!(
            head.header("content-length"),
            Some(get.body.len().to_string().as_str()),
            "{path}"
        );
    }
    assert_eq!(call(&world, "HEAD", &own, &[]).status, 401);
}

#[test]
fn a_path_tells_which_methods_it_takes() {
    let world = World::new();
    let pak = as_admin(&world);
    for (path, allowed) in [
        ("/api/v1/agents", "get,head,post"),
        (
            "/api/v1/agents/00000000-0000-0000-0000-000000000001",
            "delete,get,head,put",
        ),
        ("/healthz", "get,head"),
        ("/metrics", "get,head"),
    ] {
        for method in ["OPTIONS", "TRACE", "BREW"] {
            let answer = call(&world, method, path, &[("Authorization", &pak)]);
            answer.refused(405, "method_not_allowed");
            assert_eq!(
                words(&answer, "allow").join(","),
                allowed,
                "{method} {path}"
            );
        }
    }
}

#[test]
fn fault_48_a_mistyped_path_is_not_found() {
    let world = World::new();
    for path in [
        "/",
        "/health",
        "/foo",
        "/api",
        "/api/",
        "/api/v1",
        "/api/v2/agents",
        "/internal/x",
    ] {
        call(&world, "GET", path, &[]).refused(404, "not_found");
    }
}

#[test]
fn fault_20_no_caller_can_add_a_series() {
    let world = World::new();
    let scrape = || call(&world, "GET", "/metrics", &[]).expect(200).text();
    // Gauges from the database appear with its first reading, which no request causes.
    until(Duration::from_secs(30), "the first reading", || {
        scrape().contains("\nbrokkr_stacks_total ").then_some(())
    });
    let series = || {
        let text = scrape();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    let paths = |from: u32| {
        for n in from..from + 20 {
            let _ = call(&world, "GET", &format!("/x{n}"), &[]);
            let _ = call(&world, &format!("M{n}"), "/healthz", &[]);
            let _ = call(&world, "GET", &format!("/api/v1/agents/a{n}/labels"), &[]);
            let _ = call(
                &world,
                "DELETE",
                &format!("/api/v1/agents/a/labels/l{n}"),
                &[],
            );
        }
    };
    paths(0);
    let before = series();
    paths(20);
    assert_eq!(series(), before);
}

#[test]
fn what_is_too_long_or_no_http_is_told_so_in_json() {
    let world = World::new();
    let pak = as_admin(&world);
    let long = "x".repeat(20_000);
    let answer = call(
        &world,
        "GET",
        &format!("/api/v1/agents/?name={long}"),
        &[("Authorization", &pak)],
    );
    answer.refused(414, "uri_too_long");
    let larger = "x".repeat(40_000);
    for (bytes, status, code) in [
        (
            format!("GET /{larger} HTTP/1.1\r\n\r\n"),
            431,
            "request_header_fields_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\nCookie: {larger}\r\n\r\n"),
            431,
            "request_header_fields_too_large",
        ),
        (
            "\x16\x03\x01\x02 this is TLS\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
        (
            "GET / HTTP/1.1\r\nno colon here\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
    ] {
        let mut connection = Connection::open(&world.admin.addr).unwrap();
        connection.raw(bytes.as_bytes()).unwrap();
        let answer = connection.receive(false).unwrap();
        answer.refused(status, code);
        assert!(answer.closes() && answer.header("x-request-id").is_some());
        assert!(connection.is_closed().unwrap());
    }
}

#[test]
fn a_client_that_takes_http_2_for_granted_is_told_in_http_1() {
    let world = World::new();
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // Send the preface in one piece, and in two.
    for first in [preface.len(), 7] {
        let mut connection = Connection::open(&world.admin.addr).unwrap();
        connection.raw(&preface[..first]).unwrap();
        connection.raw(&preface[first..]).unwrap();
        let answer = connection.receive(false).unwrap();
        answer.refused(505, "http_version_not_supported");
        assert!(answer.closes() && answer.text().contains("HTTP/1.1"));
        assert!(connection.is_closed().unwrap());
    }
}

#[test]
fn an_http_1_1_request_has_exactly_one_host() {
    let world = World::new();
    let pak = as_admin(&world);
    let ask = |head: &str| {
        let mut connection = Connection::open(&world.admin.addr).unwrap();
        let request =
            format!("GET /api/v1/agents {head}Authorization: {pak}\r\nConnection: close\r\n\r\n");
        connection.raw(request.as_bytes()).unwrap();
        connection.receive(false).unwrap()
    };
    for head in ["HTTP/1.1\r\n", "HTTP/1.1\r\nHost: a\r\nHost: b\r\n"] {
        let answer = ask(head);
        answer.refused(400, "bad_request");
        assert!(answer.text().contains("Host"), "{}", answer.text());
    }
    for head in [
        "HTTP/1.1\r\nHost: a\r\n",
        "HTTP/1.1\r\nHost:\r\n",
        "HTTP/1.0\r\n",
    ] {
        ask(head).expect(200);
    }
}

#[test]
fn the_scheme_before_a_pak_may_be_in_any_case() {
    let world = World::new();
    for scheme in ["Bearer", "bearer", "BEARER", "bEARER"] {
        let pak = format!("{scheme} {}", world.admin.pak);
        let headers = [("Authorization", pak.as_str())];
        call(&world, "GET", "/api/v1/agents", &headers).expect(200);
    }
    let basic = format!("Basic {}", world.admin.pak);
    let answer = call(
        &world,
        "GET",
        "/api/v1/agents",
        &[("Authorization", &basic)],
    );
    assert_eq!(answer.status, 401);
}
