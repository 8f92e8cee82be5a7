//! Webhooks on their way: from an event to an endpoint or an agent, and what becomes of those that do not arrive.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "support/receiver.rs"]
mod receiver;
#[path = "support/shapes.rs"]
mod shapes;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use brokkr_tests::pg::Options;
use brokkr_tests::{Api, Broker, PgServer, holds_for, until};
use nix::sys::signal::Signal;
use receiver::{Receiver, Reply, Seen};
use serde_json::{Value, json};
use world::{Party, World, id, ids, refused, server};

const BOUND: Duration = Duration::from_secs(30);

/// Loopback is allowed, and rounds follow one another quickly.
const OPEN: &[(&str, &str)] = &[
    ("webhooks.allowed_networks", "[\"127.0.0.1\"]"),
    ("broker.webhook_delivery_interval_seconds", "1"),
];

fn open() -> World {
    World::with(OPEN)
}

/// [`OPEN`] and a key that a second broker can have too.
fn shared() -> Vec<(&'static str, &'static str)> {
    const KEY: &str = "\"abababababababababababababababababababababababababababababababab\"";
    let mut settings = OPEN.to_vec();
    settings.push(("broker.webhook_encryption_key", KEY));
    settings
}

/// Another broker of the same tenant.
fn second(world: &World) -> Broker {
    let mut draft = Broker::on(server()).schema(&world.schema);
    for (key, toml) in shared() {
        draft = draft.set(key, toml);
    }
    draft.start()
}

fn subscribe(api: &Api, url: &str, more: &Value) -> String {
    let mut body = json!({ "name": "ops", "url": url, "event_types": ["*"] });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    id(&api.post("/webhooks", &body).expect(201).json())
}

fn deliveries(api: &Api, webhook: &str, query: &str) -> Vec<Value> {
    let path = format!("/webhooks/{webhook}/deliveries{query}");
    let list = api.get(&path).expect(200).json();
    list.as_array().unwrap().clone()
}

/// Waits until there is a delivery in that state; the newest.
#[track_caller]
fn becomes(api: &Api, webhook: &str, status: &str) -> Value {
    until(BOUND, format!("a delivery that is {status}"), || {
        deliveries(api, webhook, &format!("?status={status}"))
            .first()
            .cloned()
    })
}

/// Waits until every event has been turned into deliveries.
fn fanned_out(world: &World) {
    let mut sql = world.sql();
    until(BOUND, "an empty outbox", || {
        let row = sql.query_one("SELECT count(*) FROM event_outbox", &[]);
        (row.unwrap().get::<_, i64>(0) == 0).then_some(())
    });
}

/// The details of the deliveries given up.
fn given_up(world: &World) -> Vec<Value> {
    let rows = world.sql().query(
        "SELECT details FROM audit_log WHERE action = 'webhook.delivery_failed' AND actor_type = 'system' ORDER BY timestamp",
        &[],
    );
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Makes a retry that is due some day due now.
fn hurry(world: &World) {
    world
        .sql()
        .execute(
            "UPDATE webhook_deliveries SET next_retry_at = now() WHERE status = 'failed'",
            &[],
        )
        .unwrap();
}

fn event_id(seen: &Seen) -> String {
    id(&seen.json())
}

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
    let _ = world.admin.delete(&format!("/stacks/{stack}")).expect(204);
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
    let _ = world.admin.delete(&format!("/stacks/{stack}")).expect(204);
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
fn fault_16_nothing_private_is_reached_unless_the_operator_says_so() {
    let world = World::with(&[("broker.webhook_delivery_interval_seconds", "1")]);
    let endpoint = Receiver::new();
    let port = endpoint.port();
    let urls = [
        endpoint.url("/"),
        format!("http://localhost:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0x7f000001:{port}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ];
    for url in &urls {
        let webhook = subscribe(&world.admin, url, &json!({ "max_retries": 1 }));
        let answer = world
            .admin
            .call("POST", &format!("/webhooks/{webhook}/test"), None);
        let details = refused(&answer, 400, "webhook_test_failed");
        assert_eq!(details, Value::Null, "it has not answered");
        assert!(answer.text().contains("not allowed"), "{}", answer.text());
    }
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    for webhook in ids(&world.admin.get("/webhooks").expect(200).json()) {
        let dead = becomes(&world.admin, &webhook, "dead");
        let error = dead["last_error"].as_str().unwrap();
        assert!(error.contains("not allowed"), "{error}");
    }
    assert_eq!(endpoint.seen().len(), 0);
    assert_eq!(given_up(&world).len(), urls.len());
}

#[test]
fn fault_16_a_redirect_is_followed_only_to_where_a_webhook_may_go() {
    let world = open();
    let private = Receiver::at(Ipv4Addr::new(127, 0, 0, 2), |_, _| {
        Reply::Status(200, "internal secret".to_owned())
    });
    let inside = private.url("/admin");
    let landing = Receiver::new();
    let away = landing.url("/landed");
    let endpoint = Receiver::answering(move |_, seen| match seen.path.as_str() {
        "/in" => Reply::Redirect(302, inside.clone()),
        "/out" => Reply::Redirect(307, away.clone()),
        _ => Reply::Redirect(307, "/circle".to_owned()),
    });
    let test = |path: &str| {
        let more = json!({ "auth_header": "Bearer sesame" });
        let webhook = subscribe(&world.admin, &endpoint.url(path), &more);
        world
            .admin
            .call("POST", &format!("/webhooks/{webhook}/test"), None)
    };
    let answer = test("/in");
    let _ = refused(&answer, 400, "webhook_test_failed");
    assert!(!answer.text().contains("secret"), "{}", answer.text());
    assert_eq!(private.seen().len(), 0);
    let _ = test("/out").expect(200);
    let landed = landing.wait(1).remove(0);
    assert_eq!(
        (landed.method.as_str(), landed.header("authorization")),
        ("POST", None)
    );
    assert_eq!(landed.json()["event_type"], "webhook.test");
    let _ = refused(&test("/circle"), 400, "webhook_test_failed");
    assert_eq!(endpoint.count(|seen| seen.path == "/circle"), 6);
    assert!(
        endpoint
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_some())
    );
}

#[test]
fn ports_can_be_named_too() {
    let endpoint = Receiver::new();
    let world = World::with(&[
        ("webhooks.allowed_networks", "[\"127.0.0.0/8\"]"),
        ("webhooks.allowed_ports", "[443]"),
    ]);
    let webhook = subscribe(&world.admin, &endpoint.url("/"), &json!({}));
    let answer = world
        .admin
        .call("POST", &format!("/webhooks/{webhook}/test"), None);
    let _ = refused(&answer, 400, "webhook_test_failed");
    assert_eq!(endpoint.seen().len(), 0);
}

#[test]
fn a_test_is_sent_at_once_and_says_how_it_went() {
    let world = open();
    let endpoint = Receiver::answering(|_, seen| match seen.path.as_str() {
        "/good" => Reply::Status(202, "thanks".to_owned()),
        _ => Reply::Status(418, "é".repeat(900)),
    });
    let test = |url: &str| {
        let more = json!({ "auth_header": "Bearer sesame", "enabled": false });
        let webhook = subscribe(&world.admin, url, &more);
        (
            webhook.clone(),
            world
                .admin
                .call("POST", &format!("/webhooks/{webhook}/test"), None),
        )
    };
    let (webhook, answer) = test(&endpoint.url("/good"));
    let said = answer.expect(200).json();
    assert_eq!(
        (&said["success"], &said["status_code"]),
        (&json!(true), &json!(202))
    );
    assert!(said["message"].is_string());
    let seen = endpoint.wait(1).remove(0);
    assert_eq!(seen.header("authorization"), Some("Bearer sesame"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    let payload = seen.json();
    assert_eq!(payload["event_type"], "webhook.test");
    assert_eq!(payload["data"]["subscription_id"], webhook.as_str());
    assert!(payload["data"]["message"].is_string() && payload["timestamp"].is_string());
    assert_eq!(deliveries(&world.admin, &webhook, "").len(), 0);
    let (_, answer) = test(&endpoint.url("/bad"));
    let details = refused(&answer, 400, "webhook_test_failed");
    assert_eq!(
        details,
        json!({ "status_code": 418, "body": "é".repeat(500) })
    );
    let nobody = brokkr_tests::ports::free();
    let (_, answer) = test(&format!("http://127.0.0.1:{nobody}/"));
    assert_eq!(refused(&answer, 400, "webhook_test_failed"), Value::Null);
}

#[test]
fn a_slow_test_holds_no_database_connection() {
    let mut settings = OPEN.to_vec();
    settings.push(("database.pool_size", "2"));
    let (world, endpoint) = (
        World::with(&settings),
        Receiver::answering(|_, _| Reply::Hang),
    );
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "timeout_seconds": 20 }),
    );
    let path = format!("/webhooks/{webhook}/test");
    thread::scope(|scope| {
        let tests: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| world.admin.call("POST", &path, None)))
            .collect();
        endpoint.wait(6);
        for _ in 0..5 {
            let answer = world.admin.get("/webhooks").expect(200);
            assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
        }
        endpoint.release();
        for test in tests {
            let _ = test.join().unwrap().expect(200);
        }
    });
}

#[test]
fn fault_28_two_brokers_deliver_each_event_once() {
    let world = World::with(&shared());
    let other = second(&world);
    let endpoint = Receiver::new();
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    let apis = [
        generator.api.clone(),
        Api::new(other.addr(), generator.pak.clone()),
    ];
    const EACH: usize = 40;
    thread::scope(|scope| {
        for api in &apis {
            let generator = &generator;
            scope.spawn(move || {
                for _ in 0..EACH {
                    let name = format!("s-{}", world::unique());
                    let body = json!({ "name": name, "generator_id": generator.id });
                    let _ = api.post("/stacks", &body).expect(201);
                }
            });
        }
    });
    until(BOUND, "every delivery to be a success", || {
        let done = deliveries(&world.admin, &webhook, "?status=success&limit=1000");
        (done.len() == 2 * EACH).then_some(())
    });
    let mut events: Vec<String> = endpoint.seen().iter().map(event_id).collect();
    assert_eq!(events.len(), 2 * EACH);
    events.sort();
    events.dedup();
    assert_eq!(events.len(), 2 * EACH);
    assert_eq!(
        deliveries(&world.admin, &webhook, "?limit=1000").len(),
        2 * EACH
    );
}

#[test]
fn fault_29_an_endpoint_that_hangs_delays_nobody_else_and_is_not_told_twice() {
    let world = open();
    let (hanging, quick) = (Receiver::answering(|_, _| Reply::Hang), Receiver::new());
    // Two subscriptions of one host share its few places.
    for path in ["/a", "/b"] {
        subscribe(
            &world.admin,
            &hanging.url(path),
            &json!({ "event_types": ["stack.created"], "timeout_seconds": 300 }),
        );
    }
    let webhook = subscribe(
        &world.admin,
        &quick.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    const STACKS: usize = 40;
    let began = Instant::now();
    for _ in 0..STACKS {
        let _ = world.stack(&generator);
    }
    quick.wait(STACKS);
    println!(
        "{STACKS} events past a hanging endpoint in {:?}",
        began.elapsed()
    );
    assert_eq!(
        deliveries(&world.admin, &webhook, "?limit=1000").len(),
        STACKS
    );
    assert_eq!(hanging.seen().len(), 4, "so many at once to one host");
    let claims: Vec<f64> = world
        .sql()
        .query(
            "SELECT extract(epoch FROM acquired_until - now())::float8 FROM webhook_deliveries WHERE status = 'acquired'",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(claims.len(), 4);
    assert!(
        claims.iter().all(|left| *left > 280.0),
        "a claim covers what the endpoint is allowed: {claims:?}"
    );
    hanging.release();
    hanging.wait(2 * STACKS);
    let all: Vec<String> = hanging
        .seen()
        .iter()
        .map(|seen| format!("{}{}", seen.path, event_id(seen)))
        .collect();
    let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (2 * STACKS, 2 * STACKS));
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
        let _ = world
            .admin
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

/// An agent with labels, and a subscription for agents with some.
fn with_agent(world: &World, name: &str, labels: &[&str]) -> Party {
    let agent = world.agent(name);
    for label in labels {
        world.label_agent(&agent, label);
    }
    agent
}

fn pull(agent: &Party) -> Vec<Value> {
    let answer = agent
        .api
        .get(&format!("/agents/{}/webhooks/pending", agent.id))
        .expect(200)
        .json();
    shapes::check("[PendingWebhookDelivery]", &answer);
    answer.as_array().unwrap().clone()
}

fn report(agent: &Party, delivery: &Value, body: &Value) -> brokkr_tests::Response {
    let path = format!("/webhook-deliveries/{}/result", id(delivery));
    agent.api.post(&path, body)
}

#[test]
fn an_agent_with_all_labels_fetches_deliveries_and_reports_each_once() {
    let (world, endpoint) = (open(), Receiver::new());
    let agent = with_agent(&world, "both", &["eu", "edge", "more"]);
    let (half, none) = (
        with_agent(&world, "half", &["eu"]),
        with_agent(&world, "none", &[]),
    );
    let more = json!({ "target_labels": ["edge", "eu"], "auth_header": "Bearer sesame", "event_types": ["stack.created"] });
    let url = endpoint.url("/inside");
    let webhook = subscribe(&world.admin, &url, &more);
    let generator = world.generator("g");
    for _ in 0..12 {
        let _ = world.stack(&generator);
    }
    until(BOUND, "twelve deliveries", || {
        (deliveries(&world.admin, &webhook, "").len() == 12).then_some(())
    });
    assert_eq!((pull(&half), pull(&none)), (Vec::new(), Vec::new()));
    let taken = pull(&agent);
    assert_eq!(taken.len(), 10);
    let mut oldest: Vec<String> = deliveries(&world.admin, &webhook, "")
        .iter()
        .map(id)
        .collect();
    oldest.reverse();
    assert_eq!(
        taken.iter().map(id).collect::<Vec<_>>(),
        oldest[..10],
        "the oldest, in order"
    );
    let first = &taken[0];
    assert_eq!(
        (
            &first["url"],
            &first["auth_header"],
            &first["timeout_seconds"],
            &first["max_retries"],
            &first["attempts"]
        ),
        (
            &json!(url),
            &json!("Bearer sesame"),
            &json!(30),
            &json!(5),
            &json!(0)
        )
    );
    let held = deliveries(&world.admin, &webhook, "?status=acquired");
    assert_eq!(held.len(), 10);
    assert_eq!(held[0]["acquired_by"], agent.id.as_str());
    let left: f64 = world
        .sql()
        .query_one("SELECT extract(epoch FROM max(acquired_until) - now())::float8 FROM webhook_deliveries", &[])
        .unwrap()
        .get(0);
    assert!((50.0..=60.0).contains(&left), "{left}");
    assert_eq!(pull(&agent).len(), 2, "the rest, and nothing twice");
    assert_eq!(pull(&agent).len(), 0);

    let success = json!({ "success": true, "status_code": 200, "duration_ms": 12 });
    let _ = refused(
        &report(&half, first, &success),
        403,
        "delivery_not_acquired_by_agent",
    );
    let said = report(&agent, first, &success).expect(200).json();
    assert_eq!(
        said,
        json!({ "status": "success", "delivery_id": first["id"] })
    );
    for body in [&success, &json!({ "success": false })] {
        let _ = refused(
            &report(&agent, first, body),
            403,
            "delivery_not_acquired_by_agent",
        );
    }
    let done = &deliveries(&world.admin, &webhook, "?status=success")[0];
    assert_eq!(
        (&done["acquired_by"], &done["attempts"]),
        (&json!(agent.id), &json!(1))
    );

    let failure = json!({ "success": false, "status_code": 503, "error": "busy" });
    let said = report(&agent, &taken[1], &failure).expect(200).json();
    assert_eq!(
        (&said["status"], &said["attempts"]),
        (&json!("failed"), &json!(1))
    );
    assert!(said["next_retry_at"].is_string(), "{said}");
    let _ = refused(
        &report(&agent, &taken[1], &success),
        403,
        "delivery_not_acquired_by_agent",
    );
    let failed = &deliveries(&world.admin, &webhook, "?status=failed")[0];
    assert_eq!(
        (&failed["last_error"], &failed["acquired_by"]),
        (&json!("HTTP 503: busy"), &Value::Null)
    );

    let refusal =
        json!({ "success": false, "status_code": 404, "error": "HTTP 404: no such hook" });
    let said = report(&agent, &taken[2], &refusal).expect(200).json();
    assert_eq!(
        (&said["status"], &said["next_retry_at"]),
        (&json!("dead"), &Value::Null)
    );
    let audits = given_up(&world);
    assert_eq!(audits.len(), 1);
    assert_eq!(
        (
            &audits[0]["delivered_by_agent"],
            &audits[0]["error"],
            &audits[0]["delivery_id"]
        ),
        (
            &json!(agent.id),
            &json!("HTTP 404: no such hook"),
            &taken[2]["id"]
        )
    );
    // The retry comes back to it by itself.
    let again = until(BOUND, "the failed one again", || pull(&agent).pop());
    assert_eq!(
        (&again["id"], &again["attempts"]),
        (&taken[1]["id"], &json!(1))
    );
    assert_eq!(endpoint.seen().len(), 0, "the broker delivers none of them");
}

#[test]
fn what_an_agent_does_not_report_is_there_again_when_its_claim_has_ended() {
    let world = open();
    let (one, two) = (
        with_agent(&world, "one", &["x"]),
        with_agent(&world, "two", &["x"]),
    );
    let webhook = subscribe(
        &world.admin,
        "http://hooks.example/",
        &json!({ "target_labels": ["x"], "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    becomes(&world.admin, &webhook, "pending");
    let taken = pull(&one).pop().unwrap();
    assert_eq!(pull(&two).len(), 0);
    let end = "UPDATE webhook_deliveries SET acquired_until = now() - interval '1 second' WHERE status = 'acquired'";
    world.sql().execute(end, &[]).unwrap();
    // Any event makes the broker look; it would look by itself within a minute.
    let _ = world.agent("waker");
    let again = until(BOUND, "it to be free again", || pull(&two).pop());
    assert_eq!(
        (&again["id"], &again["attempts"]),
        (&taken["id"], &json!(0)),
        "no attempt was counted"
    );
    let late = json!({ "success": true });
    let _ = refused(
        &report(&one, &taken, &late),
        403,
        "delivery_not_acquired_by_agent",
    );
    let _ = report(&two, &again, &late).expect(200);
}

#[test]
fn fault_33_of_two_reports_at_the_same_moment_one_counts() {
    let world = open();
    let agent = with_agent(&world, "a", &["x"]);
    let webhook = subscribe(
        &world.admin,
        "http://hooks.example/",
        &json!({ "target_labels": ["x"], "event_types": ["nothing"] }),
    );
    for _ in 0..5 {
        let fill = "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, target_labels) \
                    VALUES ($1::text::uuid, 'stack.created', gen_random_uuid(), '{}', '{x}')";
        world.sql().execute(fill, &[&webhook]).unwrap();
        let taken = pull(&agent).pop().unwrap();
        let failure = json!({ "success": false });
        let mut said: Vec<u16> = thread::scope(|scope| {
            let reports: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| report(&agent, &taken, &failure).status))
                .collect();
            reports.into_iter().map(|r| r.join().unwrap()).collect()
        });
        said.sort_unstable();
        assert_eq!(said, [200, 403, 403, 403]);
        let all = deliveries(&world.admin, &webhook, "");
        let it = all.iter().find(|d| d["id"] == taken["id"]).unwrap();
        assert_eq!(it["attempts"], 1, "{it}");
        world
            .sql()
            .execute("DELETE FROM webhook_deliveries", &[])
            .unwrap();
    }
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

#[test]
fn agents_that_fetch_at_the_same_moment_get_different_deliveries() {
    let world = open();
    let agents: Vec<Party> = (0..4).map(|_| with_agent(&world, "a", &["x"])).collect();
    let webhook = subscribe(
        &world.admin,
        "http://hooks.example/",
        &json!({ "target_labels": ["x"], "event_types": ["nothing"] }),
    );
    let fill = "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, target_labels) \
                SELECT $1::text::uuid, 'stack.created', gen_random_uuid(), '{}', '{x}' FROM generate_series(1, 60)";
    world.sql().execute(fill, &[&webhook]).unwrap();
    let taken: Vec<String> = thread::scope(|scope| {
        let pulls: Vec<_> = agents
            .iter()
            .map(|agent| scope.spawn(move || [pull(agent), pull(agent)].concat()))
            .collect();
        pulls
            .into_iter()
            .flat_map(|pull| pull.join().unwrap())
            .map(|delivery| id(&delivery))
            .collect()
    });
    let distinct: std::collections::BTreeSet<&String> = taken.iter().collect();
    assert_eq!(distinct.len(), taken.len());
    assert_eq!(taken.len(), 60);
}

#[test]
fn fault_11_the_admin_looks_at_pending_deliveries_without_taking_them() {
    let world = open();
    let agent = with_agent(&world, "a", &["x"]);
    let more = json!({ "target_labels": ["x"], "event_types": ["stack.created"] });
    let webhook = subscribe(&world.admin, "http://hooks.example/", &more);
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    becomes(&world.admin, &webhook, "pending");
    let path = format!("/agents/{}/webhooks/pending", agent.id);
    for _ in 0..2 {
        let seen = world.admin.get(&path).expect(200).json();
        shapes::check("[PendingWebhookDelivery]", &seen);
        assert_eq!(seen.as_array().unwrap().len(), 1);
    }
    assert_eq!(
        deliveries(&world.admin, &webhook, "?status=pending").len(),
        1
    );
    assert_eq!(pull(&agent).len(), 1);
    assert_eq!(world.admin.get(&path).expect(200).json(), json!([]));
}

#[test]
fn a_delivery_keeps_the_labels_it_was_made_with_and_a_disabled_subscription_gives_agents_nothing() {
    let (world, endpoint) = (open(), Receiver::new());
    let (old, new) = (
        with_agent(&world, "old", &["old"]),
        with_agent(&world, "new", &["new"]),
    );
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "target_labels": ["old"], "event_types": ["stack.created"] }),
    );
    let change = |body: Value| {
        let _ = world
            .admin
            .put(&format!("/webhooks/{webhook}"), &body)
            .expect(200);
    };
    let generator = world.generator("g");
    let count = |n| {
        until(BOUND, format!("{n} deliveries"), || {
            (deliveries(&world.admin, &webhook, "").len() == n).then_some(())
        });
    };
    let _ = world.stack(&generator);
    count(1);
    change(json!({ "target_labels": ["new"] }));
    let _ = world.stack(&generator);
    count(2);
    change(json!({ "target_labels": null }));
    let _ = world.stack(&generator);
    endpoint.wait(1);
    change(json!({ "enabled": false }));
    assert_eq!((pull(&old).len(), pull(&new).len()), (0, 0));
    change(json!({ "enabled": true }));
    assert_eq!((pull(&old).len(), pull(&new).len()), (1, 1));
    assert_eq!(endpoint.seen().len(), 1);
    let labels: Vec<Value> = world
        .admin
        .get("/webhook-deliveries")
        .expect(200)
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["target_labels"].clone())
        .collect();
    assert_eq!(labels, [json!([]), json!(["new"]), json!(["old"])]);
}

#[test]
fn an_agent_is_not_given_what_cannot_be_decrypted() {
    let world = open();
    let agent = with_agent(&world, "a", &["x"]);
    let more = json!({ "target_labels": ["x"], "event_types": ["stack.created"], "auth_header": "Bearer x" });
    let webhook = subscribe(&world.admin, "http://hooks.example/", &more);
    let damage = "UPDATE webhook_subscriptions SET auth_header = set_byte(auth_header, 20, get_byte(auth_header, 20) # 1)";
    world.sql().execute(damage, &[]).unwrap();
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    becomes(&world.admin, &webhook, "pending");
    assert_eq!(pull(&agent), Vec::<Value>::new());
    let dead = becomes(&world.admin, &webhook, "dead");
    assert!(
        dead["last_error"]
            .as_str()
            .unwrap()
            .contains("Authorization"),
        "{dead}"
    );
    assert_eq!(given_up(&world).len(), 1);
    let metrics = brokkr_tests::http::get(&world.broker.addr(), "/metrics")
        .unwrap()
        .text();
    let line = "brokkr_webhook_decrypt_failures_total{field=\"auth_header\",path=\"agent\"} 1";
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}

#[test]
fn a_broker_killed_in_the_middle_costs_one_more_delivery_when_its_claim_has_ended() {
    let world = World::with(&shared());
    let endpoint = Receiver::answering(|nth, _| match nth {
        0 => Reply::Hang,
        _ => Reply::Status(200, String::new()),
    });
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    endpoint.wait(1);
    world.broker.signal(Signal::SIGKILL);
    until(BOUND, "the broker to be gone", || world.broker.ended());
    let other = second(&world);
    let admin = Api::new(other.addr(), world.admin.pak.clone());
    let held = &deliveries(&admin, &webhook, "?status=acquired")[0];
    assert_eq!(held["attempts"], 0);
    let end = "UPDATE webhook_deliveries SET acquired_until = now() - interval '1 second'";
    world.sql().execute(end, &[]).unwrap();
    let generator = admin.with_pak(generator.pak.clone());
    let _ = generator.post("/agents", &json!({}));
    let _ = admin
        .post("/agents", &json!({ "name": "waker", "cluster_name": "c" }))
        .expect(201);
    let seen = endpoint.wait(2);
    assert_eq!(
        event_id(&seen[0]),
        event_id(&seen[1]),
        "the same event, so that the endpoint can tell"
    );
    let done = becomes(&admin, &webhook, "success");
    assert_eq!(done["attempts"], 1);
    holds_for(Duration::from_secs(3), "and no third time", || {
        let n = endpoint.seen().len();
        if n == 2 { Ok(()) } else { Err(n) }
    });
}

#[test]
fn a_broker_that_is_told_to_stop_takes_no_more_and_ends_what_is_under_way() {
    let world = World::with(&shared());
    let endpoint = Receiver::answering(|_, _| Reply::Hang);
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    for _ in 0..6 {
        let _ = world.stack(&generator);
    }
    endpoint.wait(4);
    world.broker.signal(Signal::SIGTERM);
    until(BOUND, "it to drain", || {
        world.broker.log().contains("draining").then_some(())
    });
    assert!(
        world.broker.ended().is_none(),
        "it waits for what is under way"
    );
    endpoint.release();
    let status = until(BOUND, "its end", || world.broker.ended());
    assert!(status.success());
    let states = |state: &str| -> i64 {
        let count = "SELECT count(*) FROM webhook_deliveries WHERE status = $1";
        world.sql().query_one(count, &[&state]).unwrap().get(0)
    };
    assert_eq!((states("success"), states("acquired")), (4, 0));
    assert_eq!(endpoint.seen().len(), 4);
    // Whoever comes next does the rest.
    let other = second(&world);
    let admin = Api::new(other.addr(), world.admin.pak.clone());
    endpoint.wait(6);
    until(BOUND, "all to be delivered", || {
        (deliveries(&admin, &webhook, "?status=success").len() == 6).then_some(())
    });
}

#[test]
fn what_is_past_its_retention_is_removed_and_what_waits_for_the_broker_is_not() {
    let world = World::with(&shared());
    let webhook = subscribe(
        &world.admin,
        "http://hooks.example/",
        &json!({ "event_types": ["nothing"] }),
    );
    let _ = world
        .admin
        .put(
            &format!("/webhooks/{webhook}"),
            &json!({ "enabled": false }),
        )
        .expect(200);
    for (state, labels, days) in [
        ("success", "NULL", 8),
        ("dead", "NULL", 8),
        ("pending", "'{x}'", 8),
        ("success", "NULL", 6),
        ("pending", "'{x}'", 6),
        ("pending", "NULL", 8),
    ] {
        let insert = format!(
            "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, status, target_labels, created_at) \
             VALUES ('{webhook}', 'x', gen_random_uuid(), '{{}}', '{state}', {labels}, now() - interval '{days} days')"
        );
        world.sql().execute(&insert, &[]).unwrap();
    }
    let _other = second(&world);
    let rows = until(BOUND, "three rows", || {
        let rows = world.sql().query(
            "SELECT status, target_labels IS NULL, created_at > now() - interval '7 days' FROM webhook_deliveries ORDER BY 1, 2, 3",
            &[],
        );
        let rows = rows.unwrap();
        (rows.len() == 3).then_some(rows)
    });
    let kept: Vec<(String, bool, bool)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(
        kept,
        [
            ("pending".to_owned(), false, true),
            ("pending".to_owned(), true, false),
            ("success".to_owned(), true, true),
        ]
    );
}

#[test]
fn fault_54_an_event_costs_its_request_the_same_however_many_are_subscribed() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    // The job must not be in the middle of the count.
    let world = World::on(
        &server,
        &[("broker.webhook_delivery_interval_seconds", "3600")],
    );
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let mut n = 0;
    let mut statements = || {
        n += 1;
        world.object(&stack, "a: 1");
        let before = server.log().len();
        world.object(&stack, &format!("a: {n}"));
        let log = server.log();
        log[before..]
            .lines()
            .filter(|line| line.contains("execute ") || line.contains("statement: "))
            .filter(|line| !line.contains("search_path"))
            .count()
    };
    let alone = statements();
    assert!(alone > 1);
    // For agents that do not come: nothing is delivered meanwhile.
    let for_agents = json!({ "target_labels": ["x"] });
    for _ in 0..30 {
        subscribe(&world.admin, "http://hooks.example/", &for_agents);
    }
    // The first event wakes the job once; from then on it rests.
    world.object(&stack, "b: 1");
    until(BOUND, "the end of the job's one round", || {
        server.log().contains("PARTITION BY lane").then_some(())
    });
    assert_eq!(statements(), alone);
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}", world.schema))
        .unwrap();
    let count = |sql: &mut postgres::Client, table: &str| -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        sql.query_one(&count, &[]).unwrap().get(0)
    };
    assert_eq!(
        count(&mut sql, "webhook_deliveries"),
        30,
        "of the first event"
    );
    assert_eq!(
        count(&mut sql, "event_outbox"),
        2,
        "the others wait for the next round"
    );
}

/// The plan of a statement of the broker, as the server chose it.
fn plans(log: &str) -> Vec<String> {
    log.split("LOG:  ")
        .filter(|entry| entry.contains("plan:"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn fault_55_every_claim_goes_by_an_index_with_a_hundred_thousand_deliveries() {
    const BROKERS: usize = 100;
    let server = PgServer::with(
        Options::new()
            .set("session_preload_libraries", "auto_explain")
            .set("auto_explain.log_min_duration", "0")
            .set("auto_explain.log_analyze", "on")
            .set("auto_explain.log_timing", "off"),
    );
    let (world, endpoint) = (World::on(&server, OPEN), Receiver::new());
    let agent = world.agent("a");
    world.label_agent(&agent, "mine");
    let idle = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["nothing"] }),
    );
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}", world.schema))
        .unwrap();
    // Labelled ones that this agent may not have, ones that it may, finished ones, and last some for the broker.
    for (count, status, labels) in [
        (50_000, "pending", "'{theirs}'"),
        (1_000, "pending", "'{mine}'"),
        (50_000, "success", "NULL"),
        (BROKERS, "pending", "NULL"),
    ] {
        let fill = format!(
            "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, status, target_labels)
             SELECT '{idle}', 'x', gen_random_uuid(), repeat('x', 200), '{status}', {labels} FROM generate_series(1, {count})"
        );
        sql.batch_execute(&fill).unwrap();
    }
    sql.batch_execute("ANALYZE webhook_deliveries").unwrap();
    let before = server.log().len();
    let path = format!("/agents/{}/webhooks/pending", agent.id);
    // A statement's plan for any parameters is made when it has been run five times with plans of its own.
    for _ in 0..8 {
        let taken = pull(&agent);
        assert_eq!(taken.len(), 10);
        for (at, delivery) in taken.iter().enumerate() {
            let said = json!({ "success": at % 2 == 0 });
            let _ = report(&agent, delivery, &said).expect(200);
        }
        let _ = world.admin.get(&path).expect(200);
        for query in ["", "?status=dead", "?status=success", "?offset=10"] {
            for list in [
                "/webhook-deliveries",
                &format!("/webhooks/{idle}/deliveries"),
            ] {
                let _ = world.admin.get(&format!("{list}{query}")).expect(200);
            }
        }
    }
    // The job's rounds: from here on each delivery that has arrived calls for one.
    let _ = world.agent("waker");
    endpoint.wait(BROKERS);
    until(BOUND, "the end of the last", || {
        let done =
            "SELECT count(*) FROM webhook_deliveries WHERE for_broker AND status <> 'success'";
        (sql.query_one(done, &[]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
    let log = server.log();
    let mut looked_at = 0;
    for plan in plans(&log[before..]) {
        // Not what the test itself asks.
        if !plan.contains("webhook_deliveries") || plan.contains("<> 'success'") {
            continue;
        }
        looked_at += 1;
        assert!(!plan.contains("Seq Scan on webhook_deliveries"), "{plan}");
        for line in plan.lines() {
            if let Some(rows) = line
                .split("Rows Removed by Filter: ")
                .nth(1)
                .and_then(|rows| rows.trim().parse::<u64>().ok())
            {
                assert!(rows < 1_000, "{plan}");
            }
        }
    }
    assert!(looked_at > 200, "{looked_at}");
}
