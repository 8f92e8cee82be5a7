//! The audit log as the admin reads it, and the list of PAK holders.

use brokkr_tests::api_fixture::{Party, World, id, ids};
use brokkr_tests::response_schema;
use serde_json::{Value, json};

const UNKNOWN_ID: &str = "00000000-0000-0000-0000-000000000001";

fn audit(world: &World, query: &str) -> Value {
    world.get_json(&format!("/admin/audit-logs{query}"))
}

/// Returns action and actor's kind, id and name of every entry about a resource, oldest first. Entries of one
/// transaction have the same time and are sorted by their names.
fn who_did(world: &World, resource: &str) -> Vec<(String, String, Value, Value)> {
    let page = audit(world, &format!("?resource_id={resource}&limit=1000"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut entries: Vec<_> = page["logs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let said = (
                text(&entry["action"]),
                text(&entry["actor_type"]),
                entry["actor_id"].clone(),
                entry["actor_name"].clone(),
            );
            ((text(&entry["timestamp"]), said.0.clone()), said)
        })
        .collect();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries.into_iter().map(|(_, entry)| entry).collect()
}

/// Inserts entries a second apart, the first at noon.
fn entries(world: &World, actions: &[&str]) {
    for (second, action) in actions.iter().enumerate() {
        let at = format!("2020-05-01T12:00:{second:02}.000001Z");
        world
            .sql()
            .execute(
                "INSERT INTO audit_log (actor_type, action, resource_type, timestamp)
                 VALUES ('system', $1, 'test', $2::text::timestamptz)",
                &[action, &at],
            )
            .unwrap();
    }
}

/// Returns the actions of the inserted entries that a query finds, oldest first, and their total number.
fn found(world: &World, query: &str) -> (Vec<String>, i64) {
    let page = audit(world, &format!("?resource_type=test&{query}"));
    let mut actions: Vec<String> = page["logs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(page["count"], json!(actions.len()));
    actions.reverse();
    (actions, page["total"].as_i64().unwrap())
}

#[test]
fn fault_21_the_log_names_who_really_did_it() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let admin = |action: &str| {
        (
            action.to_owned(),
            "admin".to_owned(),
            Value::Null,
            json!("admin"),
        )
    };
    let by = |kind: &str, party: &Party, action: &str| {
        (
            action.to_owned(),
            kind.to_owned(),
            json!(party.id),
            json!(party.name),
        )
    };

    let stack = world.stack(&generator);
    let path = format!("/stacks/{stack}");
    let whole = generator.get_json(&path);
    generator.put(&path, &whole).expect(200);
    world.put(&path, &whole).expect(200);
    generator.remove(&path);
    assert_eq!(
        who_did(&world, &stack),
        [
            by("generator", &generator, "stack.created"),
            by("generator", &generator, "stack.updated"),
            admin("stack.updated"),
            by("generator", &generator, "stack.deleted"),
        ]
    );

    let path = format!("/agents/{}", agent.id);
    agent.put(&path, &json!({ "status": "ACTIVE" })).expect(200);
    world.register(&agent, &generator);
    agent
        .post(&format!("{path}/rotate-pak"), &json!({}))
        .expect(200);
    world.remove(&path);
    assert_eq!(
        who_did(&world, &agent.id),
        [
            admin("agent.created"),
            admin("pak.created"),
            by("agent", &agent, "agent.updated"),
            by("agent", &agent, "agent.registered"),
            by("agent", &agent, "pak.rotated"),
            admin("agent.deleted"),
        ],
        "by their names, though the agent is gone"
    );

    let path = format!("/generators/{}", generator.id);
    generator.create(&format!("{path}/rotate-pak"), &json!({}));
    world.remove(&path);
    let done = who_did(&world, &generator.id);
    assert_eq!(
        done[done.len() - 2..],
        [
            by("generator", &generator, "pak.rotated"),
            admin("generator.deleted"),
        ]
    );
}

#[test]
fn an_entry_says_everything_and_where_a_refused_caller_came_from() {
    let world = World::new();
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let page = audit(&world, &format!("?resource_id={stack}"));
    response_schema::check("AuditLogListResponse", &page);
    let entry = &page["logs"][0];
    assert_eq!(
        (&entry["resource_type"], &entry["resource_id"]),
        (&json!("stack"), &json!(stack))
    );
    assert_eq!(entry["details"]["generator_id"], generator.id);
    generator.remove(&format!("/stacks/{stack}"));
    let deleted = &audit(&world, &format!("?resource_id={stack}"))["logs"][0];
    assert_eq!(
        (&deleted["action"], deleted.get("details")),
        (&json!("stack.deleted"), Some(&Value::Null))
    );

    let headers = [
        ("Authorization", "brokkr_BRnobody_1111"),
        ("X-Forwarded-For", "192.0.2.7, 10.0.0.1"),
        ("User-Agent", "curl/8"),
        ("Connection", "close"),
    ];
    let refused = brokkr_tests::Connection::open(&world.broker.addr())
        .unwrap()
        .request("GET", "/api/v1/stacks", &headers, None)
        .unwrap();
    assert_eq!(refused.status, 401);
    let entry = audit(&world, "?action=auth.failed")["logs"][0].clone();
    assert_eq!(
        (
            &entry["actor_type"],
            &entry["actor_id"],
            &entry["actor_name"],
            &entry["resource_id"]
        ),
        (
            &json!("system"),
            &Value::Null,
            &json!("system"),
            &Value::Null
        )
    );
    assert_eq!(
        (&entry["ip_address"], &entry["user_agent"]),
        (&json!("192.0.2.7"), &json!("curl/8"))
    );
    world.sql_execute(
        "INSERT INTO audit_log (actor_type, actor_id, action, resource_type) \
             VALUES ('agent', gen_random_uuid(), 'x', 'y')",
    );
    let entry = audit(&world, "?action=x")["logs"][0].clone();
    assert_eq!(entry["actor_name"], Value::Null, "nobody has that id");
}

#[test]
fn filters_narrow_each_other_down() {
    let world = World::new();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let (a, b) = (world.stack(&one), world.stack(&one));
    let _ = world.stack(&two);
    one.remove(&format!("/stacks/{a}"));
    let count = |query: &str| audit(&world, query)["total"].as_i64().unwrap();
    let one = &one.id;
    assert_eq!(count("?action=stack.created"), 3);
    assert_eq!(count(&format!("?actor_id={one}")), 3);
    assert_eq!(count(&format!("?actor_id={one}&action=stack.created")), 2);
    assert_eq!(
        count(&format!(
            "?actor_type=generator&actor_id={one}&action=stack.*&resource_type=stack&resource_id={a}"
        )),
        2
    );
    for nothing in [
        format!("?actor_type=agent&actor_id={one}"),
        format!("?actor_id={one}&resource_id={UNKNOWN_ID}"),
        format!("?resource_id={b}&action=stack.deleted"),
        format!("?resource_id={b}&resource_type=agent"),
        "?actor_type=admin&action=stack.created".to_owned(),
        "?resource_type=agent&action=stack.*".to_owned(),
        format!("?resource_id={b}&from=2999-01-01T00:00:00Z"),
        format!("?resource_id={b}&to=2001-01-01T00:00:00Z"),
        "?actor_type=nobody".to_owned(),
    ] {
        assert_eq!(count(&nothing), 0, "{nothing}");
    }
    for bad in [
        "?actor_id=x",
        "?resource_id=1",
        "?from=yesterday",
        "?to=2024-13-01T00:00:00Z",
        "?limit=many",
        "?offset=1.5",
    ] {
        let answer = world.get(&format!("/admin/audit-logs{bad}"));
        answer.refused(400, "bad_request");
    }
    for bad in [
        "?action=a%00b",
        "?actor_type=%00",
        "?from=-0044-03-15T12:00:00Z",
    ] {
        let answer = world.get(&format!("/admin/audit-logs{bad}"));
        answer.refused(422, "invalid_value");
    }
}

#[test]
fn fault_23_a_prefix_is_taken_letter_by_letter() {
    let world = World::new();
    entries(&world, &["a.b", "a.c", "aXb", "a%b", "a_b", "ab", "b.a"]);
    let found = |action: &str| found(&world, &format!("action={action}")).0;
    assert_eq!(found("a.*"), ["a.b", "a.c"]);
    assert_eq!(found("a%25*"), ["a%b"]);
    assert_eq!(found("a_*"), ["a_b"]);
    assert_eq!(found("a_b"), ["a_b"]);
    assert_eq!(found("%25*"), [""; 0]);
    assert_eq!(found("a*").len(), 6);
    assert_eq!(found("*").len(), 7, "everything begins with nothing");
    assert_eq!(found("a"), [""; 0], "without the star it is the whole");
    assert_eq!(found("*b"), [""; 0], "the star counts at the end");
    assert_eq!(found("%F4%8F%BF%BF*"), [""; 0]);
}

#[test]
fn from_is_inclusive_to_is_exclusive_and_a_page_says_of_how_many_it_is() {
    let world = World::new();
    entries(&world, &["a", "b", "c", "d", "e"]);
    let at = |second: u32| format!("2020-05-01T12:00:0{second}.000001Z");
    let found = |query: String| found(&world, &query);
    let all = |actions: &[&str]| actions.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        found(format!("from={}&to={}", at(1), at(3))),
        (all(&["b", "c"]), 2)
    );
    assert_eq!(found(format!("from={}", at(3))), (all(&["d", "e"]), 2));
    assert_eq!(
        found("to=2020-05-01T14:00:01.000001%2B02:00".to_owned()),
        (all(&["a"]), 1)
    );
    assert_eq!(
        found("limit=2".to_owned()),
        (all(&["d", "e"]), 5),
        "newest first"
    );
    assert_eq!(found("limit=2&offset=3".to_owned()), (all(&["a", "b"]), 5));
    assert_eq!(found("offset=5".to_owned()), (all(&[]), 5));

    let effective = |query: &str| {
        let page = audit(&world, query);
        (
            page["limit"].as_i64().unwrap(),
            page["offset"].as_i64().unwrap(),
        )
    };
    assert_eq!(effective(""), (100, 0));
    assert_eq!(effective("?limit=0&offset=-5"), (1, 0));
    assert_eq!(effective("?limit=-1"), (1, 0));
    assert_eq!(effective("?limit=1001&offset=7"), (1000, 7));
    assert_eq!(
        effective(&format!("?limit={}&offset={}", i64::MAX, i64::MAX)),
        (1000, i64::MAX)
    );
}

#[test]
fn who_holds_a_pak_is_every_live_generator_but_the_system() {
    let world = World::new();
    let before = world.get_json("/paks");
    response_schema::check("[PakSummary]", &before);
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap();
        list.iter()
            .map(|pak| pak["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&before), ["admin-generator"]);
    let (one, two) = (world.generator("one"), world.generator("two"));
    world.remove(&format!("/generators/{}", one.id));
    let after = world.get_json("/paks");
    assert_eq!(names(&after), ["admin-generator".to_owned(), two.name]);
    assert_eq!(ids(&after), [id(&before[0]), two.id]);
}
