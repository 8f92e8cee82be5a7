//! Deployment objects, target state, and what agents report, as a client sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "support/world.rs"]
mod world;

use std::thread;

use brokkr_tests::http::request;
use serde_json::{Value, json};
use world::{Party, World, event, id, ids, refused};

/// An agent registered with a generator and targeted at one of its stacks.
struct Served {
    world: World,
    agent: Party,
    generator: Party,
    stack: String,
}

impl Served {
    fn new() -> Self {
        Self::of(World::new())
    }

    fn of(world: World) -> Self {
        let (agent, generator) = (world.agent("a"), world.generator("g"));
        world.register(&agent, &generator);
        let stack = world.stack(&generator);
        world.target(&agent, &stack);
        Self { world, agent, generator, stack }
    }

    fn object(&self, yaml: &str) -> String {
        id(&self.world.object(&self.stack, yaml))
    }

    fn state(&self, query: &str) -> Vec<String> {
        self.world.target_state(&self.agent, query)
    }

    fn report(&self, object: &str, status: &str) {
        let _ = self.world.report(&self.agent, object, status).expect(201);
    }
}

#[test]
fn yaml_and_json_bodies_store_the_same_bytes_under_the_same_checksum() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    // SHA-256 of exactly these bytes, carriage return and missing last line end included.
    let yaml = "a: 1\r\n---\nb: \"é\"";
    let checksum = "e41f7a1f7cbf5cd0572045106498bb56c94b0d7e377f158b3f1e74e57a3a6f3a";
    let json = served.generator.api.post(&path, &json!({ "yaml_content": yaml })).expect(201).json();
    let mut made = vec![json];
    for kind in ["application/yaml", "text/yaml; charset=utf-8", "application/x-yaml"] {
        let answer = served.generator.api.try_bytes("POST", &path, kind, Some(yaml.as_bytes())).unwrap();
        made.push(answer.expect(201).json());
    }
    for object in &made {
        assert_eq!(object["yaml_content"], yaml);
        assert_eq!(object["yaml_checksum"], checksum);
        assert_eq!(object["is_deletion_marker"], false);
    }
    let listed = served.generator.api.get(&path).expect(200).json();
    let mut newest_first: Vec<String> = made.iter().map(id).collect();
    newest_first.reverse();
    assert_eq!(ids(&listed), newest_first);
    let sequence: Vec<i64> = made.iter().map(|object| object["sequence_id"].as_i64().unwrap()).collect();
    assert!(sequence.is_sorted_by(|a, b| a < b), "{sequence:?}");
}

#[test]
fn whatever_is_wrong_with_an_object_is_one_code() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let post = |kind: &str, body: &[u8]| served.generator.api.try_bytes("POST", &path, kind, Some(body)).unwrap();
    for (kind, body) in [
        ("application/json", &b"{"[..]),
        ("application/json", b"{}"),
        ("application/json", br#"{"yaml_content":""}"#),
        ("application/json", br#"{"yaml_content":"a: ["}"#),
        ("application/json", br#"{"yaml_content":"a: \u0000"}"#),
        ("text/plain", b"a: 1"),
        ("APPLICATION/YAML", b"a: 1"),
        ("application/yaml", b"# nothing but words"),
        ("application/yaml", b"---\n---\n"),
        ("application/yaml", b"\xff\xfe"),
        ("application/yaml", b""),
    ] {
        let _ = refused(&post(kind, body), 400, "invalid_deployment_object");
    }
    let _ = post("text/plain", br#"{"yaml_content":"just a scalar"}"#).expect(201);
    let strange = format!("{path}?deletion_marker=perhaps");
    let answer = served.generator.api.try_bytes("POST", &strange, "application/yaml", Some(b"a: 1")).unwrap();
    let _ = refused(&answer, 400, "bad_request");
    let nowhere = format!("/stacks/{}/deployment-objects", served.agent.id);
    let _ = refused(&served.generator.api.post(&nowhere, &json!({ "yaml_content": "a: 1" })), 404, "stack_not_found");
}

#[test]
fn a_marker_may_be_empty_and_is_told_by_query_or_body() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let body = json!({ "yaml_content": "", "is_deletion_marker": true });
    let by_body = served.generator.api.post(&path, &body).expect(201).json();
    let query = format!("{path}?deletion_marker=true");
    let by_query =
        served.generator.api.try_bytes("POST", &query, "application/yaml", Some(b"")).unwrap().expect(201).json();
    for marker in [&by_body, &by_query] {
        assert_eq!((&marker["is_deletion_marker"], &marker["yaml_checksum"]), (&json!(true), &json!(empty)));
    }
    let ignored = served.generator.api.post(&query, &json!({ "yaml_content": "a: 1" })).expect(201).json();
    assert_eq!(ignored["is_deletion_marker"], false, "the query counts for raw YAML only");
}

#[test]
fn an_object_is_read_as_json_or_as_the_very_bytes() {
    let served = Served::new();
    let object = served.object("a: 1\n# end");
    let read = |accept: &str| {
        let bearer = format!("Bearer {}", served.agent.pak);
        let headers = [("Authorization", bearer.as_str()), ("Accept", accept)];
        let path = format!("/api/v1/deployment-objects/{object}");
        request(&served.agent.api.addr, "GET", &path, &headers, None).unwrap().expect(200)
    };
    for accept in ["application/yaml", "text/html, text/yaml;q=0.1", "application/x-yaml"] {
        let answer = read(accept);
        assert_eq!(answer.header("content-type"), Some("application/yaml"));
        assert_eq!(answer.text(), "a: 1\n# end");
    }
    assert_eq!(read("*/*").json()["id"], object.as_str());
}

#[test]
fn objects_are_immutable_in_the_schema_itself() {
    let served = Served::new();
    let _ = served.object("a: 1");
    let mut sql = served.world.sql();
    let error = sql.execute("UPDATE deployment_objects SET yaml_content = 'b: 2'", &[]).unwrap_err();
    assert_eq!(error.code().map(|c| c.code().to_owned()).as_deref(), Some("23000"), "{error}");
}

#[test]
fn sixteen_writers_on_one_stack_never_make_its_highest_number_go_back() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (seen, made) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut sql = served.world.sql();
            let mut seen = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let row = sql.query_one("SELECT coalesce(max(sequence_id), 0) FROM deployment_objects", &[]).unwrap();
                seen.push(row.get::<_, i64>(0));
                // The newest is all there is to see: nothing with a lower number may appear after it.
                let below: i64 = sql
                    .query_one("SELECT count(*) FROM deployment_objects WHERE sequence_id <= $1", &[seen.last().unwrap()])
                    .unwrap()
                    .get(0);
                let again: i64 = sql
                    .query_one("SELECT count(*) FROM deployment_objects WHERE sequence_id <= $1", &[seen.last().unwrap()])
                    .unwrap()
                    .get(0);
                assert_eq!(below, again, "a lower number became visible after a higher one");
            }
            seen
        });
        let writers: Vec<_> = (0..16)
            .map(|n| {
                let (path, api) = (&path, &served.generator.api);
                scope.spawn(move || {
                    (0..10)
                        .map(|k| {
                            let body = json!({ "yaml_content": format!("n: {n}\nk: {k}") });
                            api.post(path, &body).expect(201).json()["sequence_id"].as_i64().unwrap()
                        })
                        .collect::<Vec<i64>>()
                })
            })
            .collect();
        let made: Vec<i64> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (reader.join().unwrap(), made)
    });
    assert!(seen.is_sorted(), "{seen:?}");
    let distinct: std::collections::BTreeSet<i64> = made.iter().copied().collect();
    assert_eq!((made.len(), distinct.len()), (160, 160), "no number twice");
    let newest = served.world.admin.get(&path).expect(200).json();
    assert_eq!(newest[0]["sequence_id"].as_i64(), distinct.last().copied());
    let state = served.agent.api.get(&format!("/agents/{}/target-state", served.agent.id)).expect(200).json();
    assert_eq!(state[0]["sequence_id"].as_i64(), distinct.last().copied());
}

#[test]
fn the_target_state_is_the_newest_object_of_every_stack_served_by_target_label_or_annotation() {
    let served = Served::new();
    let (world, agent, generator) = (&served.world, &served.agent, &served.generator);
    let (labelled, annotated, unmatched) = (world.stack(generator), world.stack(generator), world.stack(generator));
    let _ = served.object("old: 1");
    let mut wanted = vec![served.object("new: 1")];
    let _ = world.object(&unmatched, "a: 1");
    world.label_stack(&labelled, "env:prod");
    world.label_agent(agent, "env:prod");
    wanted.push(id(&world.object(&labelled, "a: 1")));
    for (kind, owner, path) in [("stack_id", &annotated, "stacks"), ("agent_id", &agent.id, "agents")] {
        let body = json!({ kind: owner, "key": "team", "value": "x" });
        let _ = world.admin.post(&format!("/{path}/{owner}/annotations"), &body).expect(201);
    }
    wanted.push(id(&world.object(&annotated, "a: 1")));
    wanted.reverse();
    assert_eq!(served.state(""), wanted, "newest first");
    let mut stacks = vec![served.stack.clone(), labelled, annotated];
    stacks.sort();
    let listed = agent.api.get(&format!("/agents/{}/stacks", agent.id)).expect(200).json();
    assert_eq!(ids(&listed), stacks, "by id");

    let stranger = world.agent("b");
    world.label_agent(&stranger, "env:prod");
    assert_eq!(world.target_state(&stranger, ""), Vec::<String>::new(), "no consent, no match");
    world.register(&stranger, generator);
    assert_eq!(world.target_state(&stranger, ""), [wanted[1].clone()]);
}

#[test]
fn full_repeats_everything_and_incremental_stops_at_success_not_at_failure() {
    let served = Served::new();
    let object = served.object("a: 1");
    for mode in ["", "?mode=full", "?mode=incremental"] {
        assert_eq!(served.state(mode), [object.as_str()], "{mode}");
    }
    served.report(&object, "FAILURE");
    assert_eq!(served.state("?mode=incremental"), [object.as_str()], "a failure is offered again");
    served.report(&object, "success");
    assert_eq!(served.state("?mode=incremental"), Vec::<String>::new());
    for mode in ["", "?mode=full"] {
        assert_eq!(served.state(mode), [object.as_str()], "{mode:?}: the whole, whatever was reported");
    }
    let newer = served.object("a: 2");
    assert_eq!(served.state("?mode=incremental"), [newer.as_str()]);
}

#[test]
fn the_configured_default_mode_counts_only_without_a_mode() {
    let served = Served::of(World::with(&[("broker.target_state_default", "\"incremental\"")]));
    let object = served.object("a: 1");
    served.report(&object, "SUCCESS");
    assert_eq!(served.state(""), Vec::<String>::new());
    assert_eq!(served.state("?mode=full"), [object]);
}

#[test]
fn a_deleted_stacks_marker_reaches_every_agent_that_served_it_until_it_answers() {
    let served = Served::new();
    let (world, generator) = (&served.world, &served.generator);
    let by_label = world.agent("b");
    let stranger = world.agent("c");
    for agent in [&by_label, &stranger] {
        world.label_agent(agent, "env:prod");
    }
    world.register(&by_label, generator);
    world.label_stack(&served.stack, "env:prod");
    let object = served.object("a: 1");
    served.report(&object, "SUCCESS");
    let _ = generator.api.delete(&format!("/stacks/{}", served.stack)).expect(204);

    for mode in ["", "?mode=full", "?mode=incremental"] {
        let markers = served.state(mode);
        assert_eq!(markers.len(), 1, "{mode}");
        assert_eq!(world.target_state(&by_label, mode), markers, "{mode}");
        assert_eq!(world.target_state(&stranger, mode), Vec::<String>::new(), "{mode}");
    }
    let marker = served.state("").remove(0);
    let shown = by_label.api.get(&format!("/deployment-objects/{marker}")).expect(200).json();
    assert_eq!((&shown["is_deletion_marker"], &shown["yaml_content"]), (&json!(true), &json!("")));
    served.report(&marker, "FAILURE");
    assert_eq!(served.state(""), Vec::<String>::new(), "any answer is an answer");
    assert_eq!(world.target_state(&by_label, ""), [marker.clone()], "each agent answers for itself");
    let _ = world.report(&by_label, &marker, "SUCCESS").expect(201);
    assert_eq!(world.target_state(&by_label, ""), Vec::<String>::new());
    let late = world.report(&by_label, &object, "SUCCESS");
    let _ = late.expect(201);
    let _ = refused(&world.report(&stranger, &marker, "SUCCESS"), 403, "agent_not_associated");
}

#[test]
fn a_live_stacks_posted_marker_is_its_newest_object_like_any_other() {
    let served = Served::new();
    let _ = served.object("a: 1");
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let body = json!({ "yaml_content": "", "is_deletion_marker": true });
    let marker = id(&served.generator.api.post(&path, &body).expect(201).json());
    assert_eq!(served.state(""), [marker.as_str()]);
    served.report(&marker, "SUCCESS");
    assert_eq!(served.state(""), [marker]);
    let again = served.object("a: 2");
    assert_eq!(served.state(""), [again]);
}

#[test]
fn the_same_success_said_again_is_counted_and_everything_else_is_stored() {
    let served = Served::new();
    let object = served.object("a: 1");
    served.world.sql().execute("UPDATE brokkr_meta SET wants_events = true", &[]).unwrap();
    let events = format!("/agents/{}/events", served.agent.id);
    let first = served.world.report(&served.agent, &object, "SUCCESS").expect(201).json();
    for _ in 0..4 {
        let again = served.world.report(&served.agent, &object, "SUCCESS").expect(201).json();
        assert_eq!(again["id"], first["id"]);
        assert_eq!(again["created_at"], first["created_at"]);
    }
    for _ in 0..2 {
        served.report(&object, "FAILURE");
    }
    let mut other = event(&served.agent, &object, "SUCCESS");
    other["message"] = Value::Null;
    let _ = served.agent.api.post(&events, &other).expect(201);
    let listed = served.agent.api.get(&events).expect(200).json();
    assert_eq!(listed.as_array().unwrap().len(), 4, "one success, two failures, one with other words");
    assert_eq!(listed[3]["id"], first["id"], "newest first");
    let mut sql = served.world.sql();
    let row = sql
        .query_one("SELECT repeats, last_reported_at > created_at FROM agent_events WHERE id = $1::text::uuid", &[&first["id"].as_str()])
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (5, true));
    let announced: Vec<(String, i64)> = sql
        .query("SELECT event_type, count(*) FROM event_outbox GROUP BY 1 ORDER BY 1", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(announced, [("deployment.applied".to_owned(), 2), ("deployment.failed".to_owned(), 2)]);
}

#[test]
fn the_same_success_said_by_many_at_once_is_one_event() {
    let served = Served::new();
    let object = served.object("a: 1");
    let answered: Vec<String> = thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| id(&served.world.report(&served.agent, &object, "SUCCESS").expect(201).json())))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(answered.iter().all(|id| *id == answered[0]), "{answered:?}");
}

#[test]
fn events_about_unknown_or_foreign_objects_are_refused() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let foreign = id(&world.object(&world.stack(&served.generator), "a: 1"));
    let _ = refused(&world.report(agent, &foreign, "SUCCESS"), 403, "agent_not_associated");
    let unknown = "00000000-0000-0000-0000-000000000001";
    let details = refused(&world.report(agent, unknown, "SUCCESS"), 422, "foreign_key_violation");
    assert_eq!(details["constraint"], "fk_deployment_object");
    let object = served.object("a: 1");
    let events = format!("/agents/{}/events", agent.id);
    let mut body = event(agent, &object, "SUCCESS");
    body["agent_id"] = json!(served.generator.id);
    let _ = refused(&agent.api.post(&events, &body), 400, "agent_id_mismatch");
    let _ = refused(&world.report(agent, &object, "ELEVEN CHAR"), 422, "invalid_value");
    let mut long = event(agent, &object, "SUCCESS");
    long["event_type"] = json!("x".repeat(51));
    let _ = refused(&agent.api.post(&events, &long), 422, "invalid_value");
    long["event_type"] = json!("DEPLOY");
    long["message"] = json!("a\u{0}b");
    let _ = refused(&agent.api.post(&events, &long), 422, "invalid_value");
}

#[test]
fn the_admin_reads_events_of_all_or_of_those_registered_with_one_generator() {
    let served = Served::new();
    let world = &served.world;
    let object = served.object("a: 1");
    served.report(&object, "SUCCESS");
    let nobody = world.generator("nobody");
    let list = |query: &str| ids(&world.admin.get(&format!("/agent-events{query}")).expect(200).json());
    let all = list("");
    assert_eq!(all.len(), 1);
    assert_eq!(list(&format!("?pak_id={}", served.generator.id)), all);
    assert_eq!(list(&format!("?pak_id={}", nobody.id)), Vec::<String>::new());
    assert_eq!(id(&world.admin.get(&format!("/agent-events/{}", all[0])).expect(200).json()), all[0]);
    let _ = refused(&world.admin.get(&format!("/agent-events/{object}")), 404, "agent_event_not_found");
    let _ = world.admin.delete(&format!("/agents/{}", served.agent.id)).expect(204);
    assert_eq!(list(""), Vec::<String>::new(), "a deleted agent's events go with it");
}
