//! The health of applied objects, as agents report it and the admin sees it.

use brokkr_tests::api_fixture::{Party, Served, World, id, ids};
use brokkr_tests::{Api, Response, response_schema};
use serde_json::{Value, json};
use std::thread;

const UNKNOWN_ID: &str = "00000000-0000-0000-0000-000000000001";
const NOON: &str = "2024-05-01T12:00:00Z";

fn says(object: &str, status: &str, checked_at: &str) -> Value {
    json!({ "id": object, "status": status, "checked_at": checked_at })
}

fn report(api: &Api, agent: &Party, batch: &[Value]) -> Response {
    api.call(
        "PATCH",
        &format!("/agents/{}/health-status", agent.id),
        Some(&json!({ "deployment_objects": batch })),
    )
}

fn say(served: &Served, batch: &[Value]) -> Response {
    report(&served.agent.api, &served.agent, batch)
}

fn of_object(served: &Served, object: &str) -> Value {
    let shown = served
        .world
        .get_json(&format!("/deployment-objects/{object}/health"));
    response_schema::check("DeploymentHealthResponse", &shown);
    shown
}

/// Returns the last known status of an object by this agent.
fn said(served: &Served, object: &str) -> Option<String> {
    let shown = of_object(served, object);
    let records = shown["health_records"].as_array().unwrap();
    let own = records.iter().find(|r| r["agent_id"] == served.agent.id)?;
    Some(own["status"].as_str().unwrap().to_owned())
}

fn of_stack(served: &Served, stack: &str) -> Value {
    let shown = served.world.get_json(&format!("/stacks/{stack}/health"));
    response_schema::check("StackHealthResponse", &shown);
    shown
}

/// Makes another agent that serves the stack.
fn second(served: &Served) -> Party {
    let agent = served.world.agent("second");
    served.world.register(&agent, &served.generator);
    served.world.target(&agent, &served.stack);
    agent
}

#[test]
fn what_agents_say_is_shown_by_object_and_by_stack_and_the_worst_of_it_counts() {
    let served = Served::new();
    let second = second(&served);
    let (old, new) = (served.object("a: 1"), served.object("a: 2"));
    let summary = json!({
        "pods_ready": 1, "pods_total": 2, "conditions": ["ImagePullBackOff"], "more": "is not kept",
        "resources": [{ "kind": "Deployment", "name": "x", "namespace": "y", "ready": false }],
    });
    let mut first = says(&new, "degraded", "2024-05-01T14:00:00.5+02:00");
    first["summary"] = summary;
    let answer = say(&served, &[first, says(&old, "unknown", NOON)]).expect(200);
    assert!(answer.body.is_empty(), "{}", answer.text());
    report(
        &second.api,
        &second,
        &[says(&new, "healthy", "2024-05-01T13:00:00Z")],
    )
    .expect(200);

    let shown = of_object(&served, &new);
    assert_eq!(
        (&shown["deployment_object_id"], &shown["overall_status"]),
        (&json!(new), &json!("degraded"))
    );
    let records = shown["health_records"].as_array().unwrap();
    let agents: Vec<_> = records.iter().map(|r| r["agent_id"].clone()).collect();
    assert_eq!(
        agents,
        [json!(second.id), json!(served.agent.id)],
        "newest first"
    );
    assert_eq!(records[0]["summary"], Value::Null);
    assert_eq!(records[1]["checked_at"], "2024-05-01T12:00:00.500Z");
    let text = records[1]["summary"].as_str().expect("JSON as a text");
    let summary: Value = serde_json::from_str(text).unwrap();
    assert_eq!(
        summary,
        json!({
            "pods_ready": 1, "pods_total": 2, "conditions": ["ImagePullBackOff"],
            "resources": [{ "kind": "Deployment", "name": "x", "namespace": "y", "ready": false }],
        })
    );

    report(
        &second.api,
        &second,
        &[says(&new, "failing", "2024-05-01T14:00:00Z")],
    )
    .expect(200);
    assert_eq!(
        of_stack(&served, &served.stack),
        json!({
            "stack_id": served.stack, "overall_status": "failing",
            "deployment_objects": [
                { "id": new, "status": "failing", "healthy_agents": 0, "degraded_agents": 1, "failing_agents": 1 },
                { "id": old, "status": "unknown", "healthy_agents": 0, "degraded_agents": 0, "failing_agents": 0 },
            ],
        })
    );
}

#[test]
fn health_without_reports_is_unknown() {
    let served = Served::new();
    let object = served.object("a: 1");
    for unknown in [&object, UNKNOWN_ID] {
        let shown = of_object(&served, unknown);
        assert_eq!(
            (&shown["overall_status"], &shown["health_records"]),
            (&json!("unknown"), &json!([]))
        );
    }
    for unknown in [&served.stack, UNKNOWN_ID] {
        let shown = of_stack(&served, unknown);
        assert_eq!(
            (&shown["overall_status"], &shown["deployment_objects"]),
            (&json!("unknown"), &json!([]))
        );
    }
    say(&served, &[says(&object, "healthy", NOON)]).expect(200);
    served.world.remove(&format!("/stacks/{}", served.stack));
    assert_eq!(
        of_stack(&served, &served.stack)["deployment_objects"],
        json!([]),
        "only live objects"
    );
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let served = Served::new();
    let object = served.object("a: 1");
    let good = says(&object, "healthy", NOON);
    say(&served, &[]).expect(200);
    let with = |bad: Value| say(&served, &[good.clone(), bad]);
    for bad in ["Healthy", "", "ok", "healthy "] {
        let answer = with(says(&object, bad, NOON));
        answer.refused(422, "invalid_health_record");
    }
    with(says(&object, "healthy", "-0001-01-01T00:00:00Z")).refused(422, "invalid_health_record");
    let details = with(says(UNKNOWN_ID, "healthy", NOON)).refused(422, "foreign_key_violation");
    assert_eq!(
        details["constraint"],
        "deployment_health_deployment_object_id_fkey"
    );
    for bad in [
        json!({ "id": object, "status": "healthy" }),
        json!({ "id": object, "status": "healthy", "checked_at": "noon" }),
        json!({ "id": object, "status": "healthy", "checked_at": NOON, "summary": { "pods_ready": 1 } }),
    ] {
        with(bad).refused(422, "unprocessable");
    }
    assert_eq!(said(&served, &object), None);
    let mut odd = good.clone();
    odd["summary"] = json!({ "pods_ready": 0, "pods_total": 0, "conditions": ["nul\0"] });
    say(&served, &[odd]).expect(200);
    assert_eq!(said(&served, &object).as_deref(), Some("healthy"));
}

#[test]
fn fault_15_health_is_believed_only_from_an_agent_that_serves_the_stack_or_did_when_it_was_deleted()
{
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let own = served.object("a: 1");
    let elsewhere = world.stack(&served.generator);
    let foreign = id(&world.object(&elsewhere, "a: 1"));
    let batch = [says(&own, "healthy", NOON), says(&foreign, "failing", NOON)];
    for api in [&agent.api, &world.admin] {
        report(api, agent, &batch).refused(403, "agent_not_associated");
    }
    assert_eq!((said(&served, &own), said(&served, &foreign)), (None, None));
    // A missing object is reported before an object of another agent.
    let unknown = [
        says(&foreign, "failing", NOON),
        says(UNKNOWN_ID, "failing", NOON),
    ];
    say(&served, &unknown).refused(422, "foreign_key_violation");

    world.label_stack(&elsewhere, "env:prod");
    world.label_agent(agent, "env:prod");
    say(&served, &batch).expect(200);
    assert_eq!(said(&served, &foreign).as_deref(), Some("failing"));
    report(&world.admin, agent, &[says(&foreign, "healthy", NOON)]).expect(200);

    for stack in [&elsewhere, &served.stack] {
        world.remove(&format!("/stacks/{stack}"));
    }
    world.remove(&format!("/agents/{}/labels/env%3Aprod", agent.id));
    say(&served, &batch).expect(200);
    let late = world.agent("late");
    report(&late.api, &late, &batch).refused(403, "agent_not_associated");
    report(
        &world.admin,
        &Party {
            id: UNKNOWN_ID.to_owned(),
            ..late
        },
        &batch,
    )
    .refused(403, "agent_not_associated");
}

#[test]
fn who_no_longer_serves_a_stack_is_no_longer_believed() {
    let served = Served::new();
    let object = served.object("a: 1");
    say(&served, &[says(&object, "healthy", NOON)]).expect(200);
    served.world.remove(&format!(
        "/agents/{}/targets/{}",
        served.agent.id, served.stack
    ));
    let answer = say(&served, &[says(&object, "failing", "2024-05-01T13:00:00Z")]);
    answer.refused(403, "agent_not_associated");
    assert_eq!(said(&served, &object).as_deref(), Some("healthy"));
}

#[test]
fn an_object_twice_in_one_batch_counts_as_if_said_one_after_the_other() {
    let served = Served::new();
    let object = served.object("a: 1");
    say(
        &served,
        &[
            says(&object, "failing", NOON),
            says(&object, "healthy", NOON),
        ],
    )
    .expect(200);
    assert_eq!(
        said(&served, &object).as_deref(),
        Some("healthy"),
        "the last"
    );
    say(
        &served,
        &[
            says(&object, "degraded", "2024-05-01T14:00:00Z"),
            says(&object, "unknown", "2024-05-01T13:00:00Z"),
        ],
    )
    .expect(200);
    assert_eq!(
        said(&served, &object).as_deref(),
        Some("degraded"),
        "but nothing older"
    );
    let records = of_object(&served, &object)["health_records"].clone();
    assert_eq!(ids(&records).len(), 1);
}

#[test]
fn a_report_that_was_overtaken_changes_nothing_unless_what_is_known_claims_to_be_from_the_future() {
    let served = Served::new();
    let object = served.object("a: 1");
    let say = |status: &str, checked_at: &str| {
        say(&served, &[says(&object, status, checked_at)]).expect(200);
        said(&served, &object).unwrap()
    };
    assert_eq!(say("healthy", NOON), "healthy");
    assert_eq!(say("failing", "2024-05-01T11:59:59.999999Z"), "healthy");
    assert_eq!(say("degraded", NOON), "degraded", "as new as the other");
    let from_now = |hours: i32| -> String {
        let ask = "SELECT to_char(now() AT TIME ZONE 'UTC' + make_interval(hours => $1), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        served.world.sql().query_one(ask, &[&hours]).unwrap().get(0)
    };
    assert_eq!(say("failing", &from_now(24)), "failing");
    assert_eq!(
        say("healthy", &from_now(0)),
        "healthy",
        "a clock that was wrong once"
    );
}

#[test]
fn reports_of_one_agent_that_come_together_do_not_stop_each_other() {
    let served = Served::new();
    let objects: Vec<String> = (0..20).map(|n| served.object(&format!("a: {n}"))).collect();
    say(
        &served,
        &objects
            .iter()
            .map(|o| says(o, "healthy", NOON))
            .collect::<Vec<_>>(),
    )
    .expect(200);
    thread::scope(|scope| {
        for turned in [false, true, false, true] {
            let (served, mut batch) = (&served, objects.clone());
            if turned {
                batch.reverse();
            }
            scope.spawn(move || {
                for _ in 0..25 {
                    let batch: Vec<_> = batch.iter().map(|o| says(o, "healthy", NOON)).collect();
                    say(served, &batch).expect(200);
                }
            });
        }
    });
}

#[test]
fn a_report_that_says_what_was_known_updates_its_row_in_place() {
    let server = brokkr_tests::PgServer::start();
    let served = Served::of(World::on(&server, &[]));
    let object = served.object("a: 1");
    for second in 0..50 {
        let at = format!("2024-05-01T12:00:{second:02}Z");
        say(&served, &[says(&object, "failing", &at)]).expect(200);
    }
    let _ = served.world.broker.stop();
    let (updates, in_place) = brokkr_tests::until(
        std::time::Duration::from_secs(20),
        "the server's counters",
        || {
            let counters = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables
                             WHERE schemaname = $1 AND relname = 'deployment_health'";
            let row = server
                .client()
                .query_one(counters, &[&served.world.schema])
                .unwrap();
            let counted: (i64, i64) = (row.get(0), row.get(1));
            (counted.0 >= 49).then_some(counted)
        },
    );
    assert_eq!(
        updates, in_place,
        "an index on a column that every report writes would show here"
    );
}
