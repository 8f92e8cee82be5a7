//! Authentication, and the answers to requests that cannot be read.

use brokkr_tests::api_fixture::World;
use brokkr_tests::http::request;
use brokkr_tests::{Connection, PgServer, SetAtEnd, Socket, http, until};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_pak_is_accepted_bare_and_with_bearer_and_says_who_it_is() {
    let world = World::new();
    let agent = world.agent("a");
    let generator = world.generator("g");
    for scheme in ["", "Bearer ", "bearer "] {
        let value = format!("{scheme}{}", agent.pak);
        let answer = request(
            &world.admin.addr,
            "POST",
            "/api/v1/auth/pak",
            &[("Authorization", &value)],
            None,
        );
        let body = answer.unwrap().expect(200).json();
        assert_eq!(
            body,
            json!({ "admin": false, "agent": agent.id, "generator": null, "readonly": false })
        );
    }
    let admin = world.call("POST", "/auth/pak", None).expect(200).json();
    assert_eq!(
        admin,
        json!({ "admin": true, "agent": null, "generator": null, "readonly": false })
    );
    let own = generator.call("POST", "/auth/pak", None).expect(200).json();
    assert_eq!(own["generator"], generator.id.as_str());
}

#[test]
fn an_invalid_pak_is_401_with_a_json_body_and_no_challenge() {
    let world = World::new();
    for value in [
        "",
        "Bearer",
        "Bearer a_b",
        "a_b_c_d",
        "a_b_c",
        "Basic dXNlcjpwYXNz",
    ] {
        let headers = [("Authorization", value)];
        let answer = request(
            &world.admin.addr,
            "POST",
            "/api/v1/auth/pak",
            &headers,
            None,
        )
        .unwrap();
        answer.refused(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), None);
    }
    let count: i64 = world
        .sql_value("SELECT count(*) FROM audit_log WHERE action = 'auth.failed' AND details->>'reason' = 'invalid_pak' AND details->>'path' = '/auth/pak'");
    assert!(count >= 4, "refused PAKs are written down: {count}");
}

#[test]
fn bodies_are_judged_by_type_then_syntax_then_shape_before_the_caller_is() {
    let world = World::new();
    let agent = world.agent("a");
    let post = |kind: &str, body: &[u8]| {
        agent
            .try_bytes("POST", "/agents", kind, Some(body))
            .unwrap()
    };
    post("text/plain", b"{}").refused(415, "unsupported_media_type");
    post("application/json", b"{").refused(400, "bad_request");
    post("application/json", b"").refused(400, "bad_request");
    post("application/json; charset=utf-8", b"{}").refused(422, "unprocessable");
    let good = br#"{"name":"n","cluster_name":"c","more":1}"#;
    post("application/problem+json", good).refused(403, "admin_required");
    agent.get("/agents/not-a-uuid").refused(400, "bad_request");
    world
        .anonymous()
        .get("/agents/not-a-uuid")
        .refused(401, "unauthorized");
    world.get("/stacks?pak_id=x").refused(400, "bad_request");
    world.get("/agents/%ff").refused(400, "bad_request");
}

#[test]
fn a_body_over_the_limit_is_413_and_one_of_two_mebibytes_is_not() {
    let world = World::new();
    let agent = world.agent("a");
    let put = |size: usize| {
        let body = json!({ "status": "ACTIVE", "padding": "x".repeat(size) });
        agent.put(&format!("/agents/{}", agent.id), &body)
    };
    put(2 * 1024 * 1024).expect(200);
    let head = [
        ("Authorization", agent.pak.as_str()),
        ("Content-Type", "application/json"),
        ("Content-Length", "99999999"),
    ];
    let answer = request(
        &agent.api.addr,
        "PUT",
        &format!("/api/v1/agents/{}", agent.id),
        &head,
        None,
    )
    .unwrap();
    answer.refused(413, "payload_too_large");
}

#[test]
fn an_old_pak_is_dead_the_moment_it_is_rotated_also_when_it_was_just_used() {
    let world = World::new();
    let agent = world.agent("a");
    let path = format!("/agents/{}", agent.id);
    agent.get(&path).expect(200);
    let rotated = agent
        .call("POST", &format!("{path}/rotate-pak"), None)
        .expect(200)
        .json();
    agent.get(&path).refused(401, "unauthorized");
    agent
        .with_pak(rotated["pak"].as_str().unwrap())
        .get(&path)
        .expect(200);
}

#[test]
fn a_flood_of_wrong_paks_is_429_and_shuts_no_valid_pak_out() {
    let world = World::new();
    let seen = world.agent("seen");
    let path = format!("/agents/{}", seen.id);
    seen.get(&path).expect(200);
    let addr = &world.admin.addr;
    let wrong = |connection: &mut Connection, n: usize| {
        let value = format!("Bearer brokkr_BRwrong_{n}");
        let headers = [("Authorization", value.as_str())];
        let answer = connection.request("POST", "/api/v1/auth/pak", &headers, None);
        answer.unwrap()
    };
    // A forwarded address is not believed, otherwise an attacker would have as many as there are.
    let mut connection = Connection::open(addr).unwrap();
    let mut answers = (0..700).map(|n| {
        let value = format!("Bearer brokkr_BRwrong_{n}");
        let from = format!("192.0.2.{}", n % 250);
        let headers = [("Authorization", &*value), ("X-Forwarded-For", &from)];
        let answer = connection.request("POST", "/api/v1/auth/pak", &headers, None);
        answer.unwrap()
    });
    let limited = answers.find(|answer| answer.status != 401).unwrap();
    limited.refused(429, "too_many_failures");
    let rest: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&rest), "{rest}");
    drop(answers);

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 1..=6 {
            let (over, wrong) = (&over, &wrong);
            scope.spawn(move || {
                let mut connection = Connection::open(addr).unwrap();
                let mut n = thread * 1_000_000;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    // 401 again only when the minute is over.
                    let status = wrong(&mut connection, n).status;
                    assert!([401, 429].contains(&status), "{status}");
                }
            });
        }
        let _over = SetAtEnd::of(&over);
        let socket = |pak: &str| {
            let bearer = format!("Bearer {pak}");
            Socket::ask(addr, "/internal/ws/agent", &[("Authorization", &bearer)])
        };
        let refused = socket("brokkr_BRwrong_socket").unwrap_err();
        refused.refused(429, "too_many_failures");
        socket(&seen.pak).unwrap();
        for n in 0..20 {
            seen.get(&path).expect(200);
            let fresh = world.agent(&format!("fresh-{n}"));
            fresh.get(&format!("/agents/{}", fresh.id)).expect(200);
        }
    });
    // A request without a PAK costs nothing and is not counted.
    let bare = request(addr, "POST", "/api/v1/auth/pak", &[], None).unwrap();
    bare.refused(401, "unauthorized");
    let metrics = http::get(addr, "/metrics").unwrap().text();
    let count = |status: u16| {
        let name = format!("brokkr_authentications_refused_total{{status=\"{status}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert!(count(401) >= 600, "{}", count(401));
    assert!(count(429) > 6, "{}", count(429));
    let told = world
        .broker
        .log()
        .matches("too many failed authentications")
        .count();
    assert_eq!(told, 1);
}

#[test]
fn a_head_is_a_get_without_its_body() {
    let world = World::new();
    let bearer = format!("Bearer {}", world.admin.pak);
    let headers = [("Authorization", bearer.as_str()), ("Connection", "close")];
    let mut connection = Connection::open(&world.admin.addr).unwrap();
    let answer = connection
        .request("HEAD", "/api/v1/agents", &headers, None)
        .unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.header("content-length"), Some("2"));
}

#[test]
fn a_lost_database_is_503_with_retry_after_also_for_who_is_known_already() {
    let server = PgServer::start();
    let world = World::on(&server, &[]);
    world.get("/agents").expect(200);
    server.stop();
    for api in [&world.admin, &world.with_pak("a_b_c")] {
        let answer = api.get("/agents");
        answer.refused(503, "database_unavailable");
        let seconds = answer
            .header("retry-after")
            .and_then(|value| value.parse::<u64>().ok());
        assert!(seconds.is_some_and(|s| s > 0), "{seconds:?}");
    }
    server.resume_service();
    let back = || (world.get("/agents").status == 200).then_some(());
    until(Duration::from_secs(20), "the API to serve again", back);
}

#[test]
fn a_large_body_is_read_from_a_known_caller_only() {
    let world = World::new();
    let body = vec![b'x'; 8 << 20];
    for pak in [None, Some("brokkr_BRnobody_nobodynobodynobodynobody")] {
        let mut connection = Connection::open(&world.admin.addr).unwrap();
        let authorization = pak
            .map(|pak| format!("Authorization: Bearer {pak}\r\n"))
            .unwrap_or_default();
        let head = format!(
            "POST /api/v1/stacks HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{authorization}Content-Length: {}\r\n\r\n",
            body.len()
        );
        // The answer comes before any byte of the body is sent.
        connection.raw(head.as_bytes()).unwrap();
        assert_eq!(connection.receive(false).unwrap().status, 401);
    }
}
