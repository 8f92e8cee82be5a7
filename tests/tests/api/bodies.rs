//! Bodies that cost more memory than their size, or that never end.

use brokkr_tests::Connection;
use brokkr_tests::api_fixture::World;

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
    let agent = serde_json::json!({ "name": 7, "cluster_name": "c" });
    let webhook =
        serde_json::json!({ "name": "n", "url": "https://example.com/", "event_types": "*" });
    for (answer, words) in [
        (post("/agents", serde_json::json!({})), "`name` is missing"),
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
        let answer = brokkr_tests::http::request(
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
