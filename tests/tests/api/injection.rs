//! Hostile text from a caller or an operator is an error or is stored as it is, and is never executed.

use brokkr_tests::api_fixture::{World, event, id, server};
use brokkr_tests::http::request;
use brokkr_tests::{Broker, until};
use serde_json::{Value, json};
use std::time::Duration;

/// Texts that have broken other programs. None has more than 64 characters or a NUL.
const HOSTILE: &[&str] = &[
    "'; DROP TABLE agents; --",
    "\"; DROP SCHEMA public CASCADE; --",
    "' OR '1'='1",
    "$1",
    "$$;SELECT pg_sleep(9);$$",
    "\\'; DELETE FROM stacks; --",
    "{{ 7 * 7 }}",
    "%s%n%x",
    "../../../etc/passwd",
    "a\nb\r\nX-Injected: 1",
    "\u{202e}\u{0}x",
    "名前 'with' \"everything\"; \\",
    "null",
    "💣';--",
];

/// Percent-encodes every byte, so that the text stays one path segment.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Returns the number of rows of each table, and so checks that the tables exist.
fn tables(world: &World) -> Vec<(String, i64)> {
    let mut sql = world.sql();
    let names: Vec<String> = sql
        .query(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1",
            &[&world.schema],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    names
        .into_iter()
        .map(|name| {
            let count = sql
                .query_one(&format!("SELECT count(*) FROM \"{name}\""), &[])
                .unwrap()
                .get(0);
            (name, count)
        })
        .collect()
}

#[test]
fn hostile_names_are_stored_as_they_are() {
    let world = World::new();
    let before: Vec<String> = tables(&world).into_iter().map(|(name, _)| name).collect();
    let generator = world.generator("g");
    for text in HOSTILE {
        let agent = world.post("/agents", &json!({ "name": text, "cluster_name": text }));
        if text.contains('\0') {
            agent.refused(422, "invalid_value");
            world
                .post("/generators", &json!({ "name": text }))
                .refused(422, "invalid_value");
            let search = format!("/agents/?name={}&cluster_name=x", encoded(text));
            world.get(&search).refused(422, "invalid_value");
            continue;
        }
        let agent = agent.expect(201).json()["agent"].clone();
        assert_eq!(
            (&agent["name"], &agent["cluster_name"]),
            (&json!(text), &json!(text))
        );
        let query = encoded(text);
        let found = world.get_json(&format!("/agents/?name={query}&cluster_name={query}"));
        assert_eq!(found["id"], agent["id"]);
        let made = world.create("/generators", &json!({ "name": text, "description": text }));
        assert_eq!(
            (
                &made["generator"]["name"],
                &made["generator"]["description"]
            ),
            (&json!(text), &json!(text))
        );
        let stack = json!({ "name": text, "generator_id": generator.id, "description": text });
        let stack = generator.create("/stacks", &stack);
        assert_eq!(
            (&stack["name"], &stack["description"]),
            (&json!(text), &json!(text))
        );
    }
    let after: Vec<String> = tables(&world).into_iter().map(|(name, _)| name).collect();
    assert_eq!(after, before);
}

#[test]
fn hostile_labels_and_annotations_are_refused_or_stored_and_found_again() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let stack = world.stack(&generator);
    let mut stored = 0;
    for text in HOSTILE {
        let annotation = |owner: &str, id: &str| json!({ owner: id, "key": text, "value": text });
        let cases = [
            (
                format!("/agents/{}/labels", agent.id),
                json!({ "agent_id": agent.id, "label": text }),
            ),
            (format!("/stacks/{stack}/labels"), json!(text)),
            (
                format!("/agents/{}/annotations", agent.id),
                annotation("agent_id", &agent.id),
            ),
            (
                format!("/stacks/{stack}/annotations"),
                annotation("stack_id", &stack),
            ),
        ];
        for (path, body) in cases {
            let answer = world.post(&path, &body);
            match answer.status {
                201 => {
                    let listed = world.get_json(&path);
                    let same = |item: &Value| {
                        item["label"] == *text || item["key"] == *text && item["value"] == *text
                    };
                    assert!(
                        listed.as_array().unwrap().iter().any(same),
                        "{text:?} in {listed}"
                    );
                    world.remove(&format!("{path}/{}", encoded(text)));
                    stored += 1;
                }
                400 => drop(answer.refused(400, "invalid_label")),
                _ => drop(answer.refused(422, "invalid_value")),
            }
        }
    }
    assert!(stored > HOSTILE.len(), "most of them are legal: {stored}");
    assert!(
        tables(&world)
            .iter()
            .any(|(name, rows)| name == "agents" && *rows == 1)
    );
}

#[test]
fn a_mebibyte_where_a_name_belongs_is_refused_and_where_text_belongs_is_stored() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let stack = world.stack(&generator);
    world.target(&agent, &stack);
    let long = "x'\"".repeat(350_000);
    let label = json!({ "agent_id": agent.id, "label": long });
    for (path, body) in [
        (
            "/agents".to_owned(),
            json!({ "name": long, "cluster_name": "c" }),
        ),
        ("/generators".to_owned(), json!({ "name": long })),
        (
            "/stacks".to_owned(),
            json!({ "name": long, "generator_id": generator.id }),
        ),
        (format!("/agents/{}/labels", agent.id), label),
        (
            format!("/agents/{}/annotations", agent.id),
            json!({ "agent_id": agent.id, "key": "k", "value": long }),
        ),
    ] {
        world.post(&path, &body).refused(422, "invalid_value");
    }
    world
        .post(&format!("/stacks/{stack}/labels"), &json!(long))
        .refused(400, "invalid_label");
    let status = json!({ "status": long });
    agent
        .put(&format!("/agents/{}", agent.id), &status)
        .refused(422, "invalid_value");

    let described = json!({ "name": "long", "generator_id": generator.id, "description": long });
    let described = generator.create("/stacks", &described);
    assert_eq!(described["description"], long.as_str());
    let yaml = format!("text: '{}'\n", long.replace('\'', "''"));
    let object = world.object(&stack, &yaml);
    assert_eq!(object["yaml_content"], yaml.as_str());
    let mut report = event(&agent, &id(&object), "SUCCESS");
    report["message"] = json!(long);
    let event = agent.create(&format!("/agents/{}/events", agent.id), &report);
    assert_eq!(event["message"], long.as_str());
}

#[test]
fn a_hostile_pak_is_no_pak_and_is_not_executed_either() {
    let world = World::new();
    for text in [
        "a_b_'; DROP TABLE agents; --",
        "a_b_' OR '1'='1",
        "a_b_\u{e9}",
        "a_b_$1",
    ] {
        let headers = [
            ("Authorization", text),
            ("X-Forwarded-For", "'; DROP TABLE audit_log; --"),
            ("User-Agent", text),
        ];
        let answer = request(&world.admin.addr, "GET", "/api/v1/agents", &headers, None).unwrap();
        answer.refused(401, "unauthorized");
    }
    let ip: String =
        world.sql_value("SELECT ip_address FROM audit_log WHERE action = 'auth.failed' LIMIT 1");
    assert_eq!(ip, "'; DROP TABLE audit_log; --");
    world.get("/agents").expect(200);
}

#[test]
fn a_hostile_schema_name_stops_the_broker_before_it_connects() {
    for name in [
        "x; DROP SCHEMA public",
        "x\\\" CASCADE; --",
        "tenant-acme",
        "my schema",
        "public; --",
        "pg_x",
        "select",
        "1x",
        "",
    ] {
        let broker = Broker::on(server()).schema(name).spawn();
        let status = until(
            Duration::from_secs(20),
            "the broker to refuse its schema name",
            || broker.ended(),
        );
        assert_eq!(status.code(), Some(78), "{name:?}: {}", broker.log());
    }
    let schemas: i64 = server()
        .client()
        .query_one(
            "SELECT count(*) FROM pg_namespace WHERE nspname IN ('public', 'pg_catalog')",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(schemas, 2);
}
