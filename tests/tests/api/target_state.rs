//! Target state and agents' reports, as an agent sees them.

use brokkr_tests::api_fixture::{Served, World, event, id, ids};
use serde_json::{Value, json};
use std::thread;

#[test]
fn the_target_state_is_the_newest_object_of_every_stack_served_by_target_label_or_annotation() {
    let served = Served::new();
    let (world, agent, generator) = (&served.world, &served.agent, &served.generator);
    let (labelled, annotated, unmatched) = (
        world.stack(generator),
        world.stack(generator),
        world.stack(generator),
    );
    let _ = served.object("old: 1");
    let mut wanted = vec![served.object("new: 1")];
    let _ = world.object(&unmatched, "a: 1");
    world.label_stack(&labelled, "env:prod");
    world.label_agent(agent, "env:prod");
    wanted.push(id(&world.object(&labelled, "a: 1")));
    for (kind, owner, path) in [
        ("stack_id", &annotated, "stacks"),
        ("agent_id", &agent.id, "agents"),
    ] {
        let body = json!({ kind: owner, "key": "team", "value": "x" });
        world.create(&format!("/{path}/{owner}/annotations"), &body);
    }
    wanted.push(id(&world.object(&annotated, "a: 1")));
    wanted.reverse();
    assert_eq!(served.state(""), wanted, "newest first");
    let mut stacks = vec![served.stack.clone(), labelled, annotated];
    stacks.sort();
    let listed = agent.get_json(&format!("/agents/{}/stacks", agent.id));
    assert_eq!(ids(&listed), stacks, "by id");

    let stranger = world.agent("b");
    world.label_agent(&stranger, "env:prod");
    assert_eq!(
        world.target_state(&stranger, ""),
        [""; 0],
        "no consent, no match"
    );
    world.register(&stranger, generator);
    assert_eq!(world.target_state(&stranger, ""), [wanted[1].clone()]);
}

#[test]
fn fault_37_full_repeats_everything_and_incremental_stops_at_success_not_at_failure() {
    let served = Served::new();
    let object = served.object("a: 1");
    for mode in ["", "?mode=full", "?mode=incremental"] {
        assert_eq!(served.state(mode), [object.as_str()], "{mode}");
    }
    served.report(&object, "FAILURE");
    assert_eq!(
        served.state("?mode=incremental"),
        [object.as_str()],
        "a failure is offered again"
    );
    served.report(&object, "success");
    assert_eq!(served.state("?mode=incremental"), [""; 0]);
    for mode in ["", "?mode=full"] {
        assert_eq!(
            served.state(mode),
            [object.as_str()],
            "{mode:?}: the whole, whatever was reported"
        );
    }
    let newer = served.object("a: 2");
    assert_eq!(served.state("?mode=incremental"), [newer.as_str()]);
}

#[test]
fn the_configured_default_mode_counts_only_without_a_mode() {
    let served = Served::of(World::with(&[(
        "broker.target_state_default",
        "\"incremental\"",
    )]));
    let object = served.object("a: 1");
    served.report(&object, "SUCCESS");
    assert_eq!(served.state(""), [""; 0]);
    assert_eq!(served.state("?mode=full"), [object]);
}

#[test]
fn fault_35_a_deleted_stacks_marker_reaches_every_agent_that_served_it_until_it_answers() {
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
    generator.remove(&format!("/stacks/{}", served.stack));

    for mode in ["", "?mode=full", "?mode=incremental"] {
        let markers = served.state(mode);
        assert_eq!(markers.len(), 1, "{mode}");
        assert_eq!(world.target_state(&by_label, mode), markers, "{mode}");
        assert_eq!(world.target_state(&stranger, mode), [""; 0], "{mode}");
    }
    let marker = served.state("").remove(0);
    let shown = by_label.get_json(&format!("/deployment-objects/{marker}"));
    assert_eq!(
        (&shown["is_deletion_marker"], &shown["yaml_content"]),
        (&json!(true), &json!(""))
    );
    served.report(&marker, "FAILURE");
    assert_eq!(served.state(""), [""; 0], "any answer is an answer");
    assert_eq!(
        world.target_state(&by_label, ""),
        std::slice::from_ref(&marker),
        "each agent answers for itself"
    );
    world.report(&by_label, &marker, "SUCCESS").expect(201);
    assert_eq!(world.target_state(&by_label, ""), [""; 0]);
    let late = world.report(&by_label, &object, "SUCCESS");
    late.expect(201);
    world
        .report(&stranger, &marker, "SUCCESS")
        .refused(403, "agent_not_associated");
}

#[test]
fn a_live_stacks_posted_marker_is_its_newest_object_like_any_other() {
    let served = Served::new();
    let _ = served.object("a: 1");
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let body = json!({ "yaml_content": "", "is_deletion_marker": true });
    let marker = id(&served.generator.create(&path, &body));
    assert_eq!(served.state(""), [marker.as_str()]);
    served.report(&marker, "SUCCESS");
    assert_eq!(served.state(""), [marker]);
    let again = served.object("a: 2");
    assert_eq!(served.state(""), [again]);
}

#[test]
fn a_success_after_a_failure_is_news_and_is_announced() {
    let served = Served::new();
    let object = served.object("a: 1");
    served.world.note_events();
    let said = [
        "SUCCESS", "FAILURE", "SUCCESS", "SUCCESS", "FAILURE", "FAILURE", "success", "success",
    ];
    for status in said {
        served.report(&object, status);
        assert_eq!(
            served.state("?mode=incremental"),
            [""; 0],
            "it was applied once"
        );
    }
    let path = format!("/agents/{}/events", served.agent.id);
    let listed = served.agent.get_json(&path);
    let statuses: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        statuses,
        [
            "success", "FAILURE", "FAILURE", "SUCCESS", "FAILURE", "SUCCESS"
        ],
        "newest first"
    );
    let told: Vec<String> = served
        .world
        .sql_column("SELECT event_type FROM noted_events ORDER BY event_type");
    let (applied, failed) = ("deployment.applied", "deployment.failed");
    assert_eq!(told, [applied, applied, applied, failed, failed, failed]);
}

#[test]
fn the_same_success_said_again_is_counted_and_everything_else_is_stored() {
    let served = Served::new();
    let object = served.object("a: 1");
    served.world.note_events();
    let events = format!("/agents/{}/events", served.agent.id);
    let first = served
        .world
        .report(&served.agent, &object, "SUCCESS")
        .expect(201)
        .json();
    for _ in 0..4 {
        let again = served
            .world
            .report(&served.agent, &object, "SUCCESS")
            .expect(201)
            .json();
        assert_eq!(again["id"], first["id"]);
        assert_eq!(again["created_at"], first["created_at"]);
    }
    for _ in 0..2 {
        served.report(&object, "FAILURE");
    }
    let mut other = event(&served.agent, &object, "SUCCESS");
    other["message"] = Value::Null;
    served.agent.create(&events, &other);
    let listed = served.agent.get_json(&events);
    assert_eq!(
        listed.as_array().unwrap().len(),
        4,
        "one success, two failures, one with other words"
    );
    assert_eq!(listed[3]["id"], first["id"], "newest first");
    let mut sql = served.world.sql();
    let row = sql
        .query_one("SELECT repeats, last_reported_at > created_at FROM agent_events WHERE id = $1::text::uuid", &[&first["id"].as_str()])
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (5, true));
    let announced: Vec<(String, i64)> = sql
        .query(
            "SELECT event_type, count(*) FROM noted_events GROUP BY 1 ORDER BY 1",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(
        announced,
        [
            ("deployment.applied".to_owned(), 2),
            ("deployment.failed".to_owned(), 2)
        ]
    );
}

#[test]
fn the_same_success_said_by_many_at_once_is_one_event() {
    let served = Served::new();
    let object = served.object("a: 1");
    let answered: Vec<String> = thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    id(&served
                        .world
                        .report(&served.agent, &object, "SUCCESS")
                        .expect(201)
                        .json())
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(answered.iter().all(|id| *id == answered[0]), "{answered:?}");
}

#[test]
fn fault_15_events_about_unknown_or_foreign_objects_are_refused() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let foreign = id(&world.object(&world.stack(&served.generator), "a: 1"));
    world
        .report(agent, &foreign, "SUCCESS")
        .refused(403, "agent_not_associated");
    let unknown = "00000000-0000-0000-0000-000000000001";
    let details = world
        .report(agent, unknown, "SUCCESS")
        .refused(422, "foreign_key_violation");
    assert_eq!(details["constraint"], "fk_deployment_object");
    let object = served.object("a: 1");
    let events = format!("/agents/{}/events", agent.id);
    let mut body = event(agent, &object, "SUCCESS");
    body["agent_id"] = json!(served.generator.id);
    agent.post(&events, &body).refused(400, "agent_id_mismatch");
    world
        .report(agent, &object, "ELEVEN CHAR")
        .refused(422, "invalid_value");
    let mut long = event(agent, &object, "SUCCESS");
    long["event_type"] = json!("x".repeat(51));
    agent.post(&events, &long).refused(422, "invalid_value");
    long["event_type"] = json!("DEPLOY");
    long["message"] = json!("a\u{0}b");
    agent.post(&events, &long).refused(422, "invalid_value");
}

#[test]
fn the_admin_reads_events_of_all_or_of_those_registered_with_one_generator() {
    let served = Served::new();
    let world = &served.world;
    let object = served.object("a: 1");
    served.report(&object, "SUCCESS");
    let nobody = world.generator("nobody");
    let list = |query: &str| ids(&world.get_json(&format!("/agent-events{query}")));
    let all = list("");
    assert_eq!(all.len(), 1);
    assert_eq!(list(&format!("?pak_id={}", served.generator.id)), all);
    assert_eq!(list(&format!("?pak_id={}", nobody.id)), [""; 0]);
    assert_eq!(
        id(&world.get_json(&format!("/agent-events/{}", all[0]))),
        all[0]
    );
    world
        .get(&format!("/agent-events/{object}"))
        .refused(404, "agent_event_not_found");
    world.remove(&format!("/agents/{}", served.agent.id));
    assert_eq!(list(""), [""; 0], "a deleted agent's events go with it");
}
