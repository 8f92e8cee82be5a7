//! Events on their way to an endpoint, and the endpoint's answers.

use crate::webhook_delivery::receiver::{Receiver, Reply};
use crate::webhook_delivery::{
    BOUND, becomes, deliveries, fanned_out, given_up, hurry, open, subscribe,
};
use brokkr_tests::api_fixture::server;
use brokkr_tests::{holds_for, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn an_event_arrives_once_as_the_contract_writes_it() {
    let (world, endpoint) = (open(), Receiver::new());
    let more = json!({ "auth_header": "Bearer sesame", "event_types": ["stack.*"] });
    let webhook = subscribe(&world.admin, &endpoint.url("/hook?x=1"), &more);
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let seen = endpoint.wait(1).remove(0);
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str()),
        ("POST", "/hook?x=1")
    );
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("authorization"), Some("Bearer sesame"));
    assert!(seen.headers.iter().all(|(name, _)| !name.starts_with("x-")));
    let payload = seen.json();
    let keys: Vec<&String> = payload.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["data", "event_type", "id", "timestamp"]);
    assert!(seen.body.starts_with("{\"id\":"), "{}", seen.body);
    assert_eq!(payload["event_type"], "stack.created");
    assert_eq!(payload["data"]["stack_id"], stack.as_str());
    let timestamp = payload["timestamp"].as_str().unwrap();
    assert!(
        timestamp.len() == 27 && timestamp.ends_with('Z'),
        "{timestamp}"
    );
    let delivery = becomes(&world.admin, &webhook, "success");
    assert_eq!(delivery["event_id"], payload["id"]);
    assert_eq!(delivery["payload"], seen.body.as_str());
    assert_eq!(
        (
            &delivery["attempts"],
            &delivery["last_error"],
            &delivery["acquired_by"]
        ),
        (&json!(1), &Value::Null, &Value::Null)
    );
    assert!(delivery["completed_at"].is_string() && delivery["last_attempt_at"].is_string());
    world.remove(&format!("/stacks/{stack}"));
    let seen = endpoint.wait(2).remove(1).json();
    assert_eq!(seen["event_type"], "stack.deleted");
    holds_for(Duration::from_secs(2), "each arrives once", || {
        let n = endpoint.seen().len();
        if n == 2 { Ok(()) } else { Err(n) }
    });
}

#[test]
fn subscriptions_hear_what_their_patterns_and_filters_say() {
    let (world, endpoint) = (open(), Receiver::new());
    let generator = world.generator("g");
    let (stack, other) = (world.stack(&generator), world.stack(&generator));
    let hear = |path: &str, types: Value, filters: Value| {
        let more = json!({ "event_types": types, "filters": filters });
        subscribe(&world.admin, &endpoint.url(path), &more)
    };
    hear("/all", json!(["*"]), Value::Null);
    hear("/family", json!(["deployment.*"]), json!({}));
    hear(
        "/exact",
        json!(["nothing", "agent.registered"]),
        Value::Null,
    );
    hear("/this-stack", json!(["*"]), json!({ "stack_id": stack }));
    hear("/other-stack", json!(["*"]), json!({ "stack_id": other }));
    hear(
        "/both",
        json!(["*"]),
        json!({ "stack_id": stack, "agent_id": other }),
    );
    let odd = hear(
        "/odd",
        json!(["deploy*", "deployment", ".*", "deployment.created.*", "%"]),
        Value::Null,
    );
    let legacy = hear("/legacy", json!(["*"]), Value::Null);
    let mut sql = world.sql();
    let store = "UPDATE webhook_subscriptions SET filters = $1 WHERE id = $2::text::uuid";
    let unknown_key = json!({ "labels": ["x"], "stack_id": stack });
    sql.execute(store, &[&unknown_key, &legacy]).unwrap();
    let unreadable = hear("/unreadable", json!(["*"]), Value::Null);
    sql.execute(store, &[&json!("text"), &unreadable]).unwrap();

    world.object(&stack, "a: 1");
    let _ = world.agent("a");
    let last = world.generator("last");
    let _ = world.stack(&last);
    // all: object, agent, stack; family, this-stack, legacy: the object; exact: the agent.
    let seen = endpoint.wait(7);
    let mut heard: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for seen in seen {
        let kind = seen.json()["event_type"].as_str().unwrap().to_owned();
        heard.entry(seen.path).or_default().push(kind);
    }
    heard.values_mut().for_each(|kinds| kinds.sort());
    let wanted = [
        (
            "/all",
            vec!["agent.registered", "deployment.created", "stack.created"],
        ),
        ("/exact", vec!["agent.registered"]),
        ("/family", vec!["deployment.created"]),
        ("/legacy", vec!["deployment.created"]),
        ("/this-stack", vec!["deployment.created"]),
    ];
    let wanted: BTreeMap<String, Vec<String>> = wanted
        .into_iter()
        .map(|(path, kinds)| {
            (
                path.to_owned(),
                kinds.into_iter().map(str::to_owned).collect(),
            )
        })
        .collect();
    assert_eq!(heard, wanted);
    fanned_out(&world);
    assert_eq!(deliveries(&world.admin, &odd, "").len(), 0);
    assert_eq!(deliveries(&world.admin, &unreadable, "").len(), 0);
}

#[test]
fn a_failure_is_tried_again_a_refusal_is_not_and_the_last_attempt_is_written_down() {
    let world = open();
    let endpoint = Receiver::answering(|nth, seen| match (seen.path.as_str(), nth) {
        ("/gone", _) => Reply::Status(410, "gone for good".to_owned()),
        ("/broken", _) => Reply::Status(500, "x".repeat(900)),
        (_, 0) => Reply::Status(503, "busy".to_owned()),
        _ => Reply::Status(204, String::new()),
    });
    let flaky = subscribe(
        &world.admin,
        &endpoint.url("/flaky"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    let failed = becomes(&world.admin, &flaky, "failed");
    assert_eq!(
        (
            &failed["attempts"],
            &failed["completed_at"],
            &failed["acquired_until"]
        ),
        (&json!(1), &Value::Null, &Value::Null)
    );
    assert_eq!(failed["last_error"], "HTTP 503 Service Unavailable: busy");
    let time = |key: &str| {
        let text = failed[key].as_str().unwrap();
        let row = world.sql().query_one(
            "SELECT extract(epoch FROM $1::text::timestamptz)::float8",
            &[&text],
        );
        row.unwrap().get::<_, f64>(0)
    };
    let pause = time("next_retry_at") - time("last_attempt_at");
    assert!((1.9..2.1).contains(&pause), "{pause}");
    let done = becomes(&world.admin, &flaky, "success");
    assert_eq!(
        (&done["attempts"], &done["last_error"]),
        (&json!(2), &Value::Null)
    );

    let gone = subscribe(
        &world.admin,
        &endpoint.url("/gone"),
        &json!({ "event_types": ["stack.deleted"] }),
    );
    let more = json!({ "event_types": ["stack.deleted"], "max_retries": 2 });
    let broken = subscribe(&world.admin, &endpoint.url("/broken"), &more);
    let stack = world.stack(&generator);
    world.remove(&format!("/stacks/{stack}"));
    let dead = becomes(&world.admin, &gone, "dead");
    assert_eq!(dead["attempts"], 1, "a refusal is not repeated");
    assert_eq!(dead["last_error"], "HTTP 410 Gone: gone for good");
    assert!(dead["completed_at"].is_string() && dead["next_retry_at"].is_null());
    becomes(&world.admin, &broken, "failed");
    hurry(&world);
    let dead = becomes(&world.admin, &broken, "dead");
    assert_eq!(dead["attempts"], 2, "two attempts altogether");
    assert_eq!(
        dead["last_error"],
        format!("HTTP 500 Internal Server Error: {}", "x".repeat(200))
    );
    assert_eq!(endpoint.count(|seen| seen.path == "/broken"), 2);
    let audits = given_up(&world);
    assert_eq!(audits.len(), 2, "{audits:?}");
    assert_eq!(
        (
            &audits[0]["status_code"],
            &audits[0]["retryable"],
            &audits[0]["attempts"]
        ),
        (&json!(410), &json!(false), &json!(1))
    );
    assert_eq!(
        (
            &audits[1]["delivery_id"],
            &audits[1]["event_type"],
            &audits[1]["retryable"]
        ),
        (&dead["id"], &json!("stack.deleted"), &json!(true))
    );
}

#[test]
fn fault_41_a_disabled_subscription_is_silent_and_goes_on_when_enabled() {
    let (world, endpoint) = (
        open(),
        Receiver::answering(|nth, _| {
            Reply::Status(if nth == 0 { 503 } else { 200 }, String::new())
        }),
    );
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let other = subscribe(
        &world.admin,
        &endpoint.url("/other"),
        &json!({ "event_types": ["nothing"] }),
    );
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    becomes(&world.admin, &webhook, "failed");
    let enable = |on: bool| {
        world
            .put(&format!("/webhooks/{webhook}"), &json!({ "enabled": on }))
            .expect(200);
    };
    enable(false);
    hurry(&world);
    let _ = world.stack(&generator);
    becomes(&world.admin, &webhook, "pending");
    fanned_out(&world);
    holds_for(Duration::from_secs(4), "nothing is sent", || {
        let n = endpoint.seen().len();
        if n == 1 { Ok(()) } else { Err(n) }
    });
    assert_eq!(
        deliveries(&world.admin, &webhook, "").len(),
        1,
        "what happens meanwhile is not for it"
    );
    enable(true);
    endpoint.wait(2);
    becomes(&world.admin, &webhook, "success");
    assert_eq!(deliveries(&world.admin, &other, "").len(), 0);
}

#[test]
fn a_subscription_disabled_or_deleted_at_the_moment_of_an_event_hears_nothing_of_it() {
    let (world, endpoint) = (open(), Receiver::new());
    let generator = world.generator("g");
    let other = subscribe(
        &world.admin,
        &endpoint.url("/other"),
        &json!({ "event_types": ["stack.created"] }),
    );
    for change in [
        "UPDATE webhook_subscriptions SET enabled = false",
        "DELETE FROM webhook_subscriptions",
    ] {
        let webhook = subscribe(
            &world.admin,
            &endpoint.url("/"),
            &json!({ "event_types": ["stack.created"] }),
        );
        let before = endpoint.seen().len();
        let mut changing = world.sql();
        let mut tx = changing.transaction().unwrap();
        tx.execute(&format!("{change} WHERE id = '{webhook}'"), &[])
            .unwrap();
        let _ = world.stack(&generator);
        let mut sql = server().client();
        until(BOUND, "the broker to wait for the change", || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%event_outbox%'";
            (sql.query_one(waiting, &[]).unwrap().get::<_, i64>(0) == 1).then_some(())
        });
        tx.commit().unwrap();
        let seen = endpoint.wait(before + 1);
        assert_eq!(seen[before].path, "/other");
        fanned_out(&world);
        let told = "SELECT count(*) FROM webhook_deliveries WHERE subscription_id::text <> $1";
        let told: i64 = world.sql().query_one(told, &[&other]).unwrap().get(0);
        assert_eq!(told, 0, "{change}");
    }
}
