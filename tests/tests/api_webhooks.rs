//! Webhook subscriptions and the lists of their deliveries, as a client sees them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "support/shapes.rs"]
mod shapes;
#[path = "support/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use brokkr_tests::{Broker, until};
use serde_json::{Value, json};
use world::{World, id, ids, refused, server};

const NOWHERE: &str = "/webhooks/00000000-0000-0000-0000-000000000001";

fn body() -> Value {
    json!({ "name": "ops", "url": "https://hooks.example/secret-path", "event_types": ["stack.*"] })
}

/// [`body`] with some keys set.
fn with(changes: &Value) -> Value {
    let mut whole = body();
    for (key, value) in changes.as_object().unwrap() {
        whole[key] = value.clone();
    }
    whole
}

fn create(world: &World, changes: &Value) -> Value {
    world
        .admin
        .post("/webhooks", &with(changes))
        .expect(201)
        .json()
}

fn wants_events(world: &World) -> bool {
    world
        .sql()
        .query_one("SELECT wants_events FROM brokkr_meta", &[])
        .unwrap()
        .get(0)
}

/// The audit entries of an action, oldest first: resource and details.
fn audited(world: &World, action: &str) -> Vec<(String, Value)> {
    let mut sql = world.sql();
    let rows = sql.query(
        "SELECT resource_id::text, coalesce(details, 'null') FROM audit_log WHERE action = $1 AND resource_type = 'webhook_subscription' \
         ORDER BY timestamp",
        &[&action],
    );
    let rows = rows.unwrap();
    rows.iter()
        .map(|row| (row.get(0), row.get::<_, Value>(1)))
        .collect()
}

/// Deliveries in these states, the last the newest; their ids.
fn deliveries(world: &World, webhook: &str, states: &[&str]) -> Vec<String> {
    let mut sql = world.sql();
    states
        .iter()
        .map(|state| {
            sql.query_one(
                "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, status) \
                 VALUES ($1::text::uuid, 'stack.created', gen_random_uuid(), '{}', $2) RETURNING id::text",
                &[&webhook, state],
            )
            .unwrap()
            .get(0)
        })
        .collect()
}

#[test]
fn a_subscription_has_defaults_and_shows_that_it_has_secrets_but_not_which() {
    let world = World::new();
    let made = create(&world, &json!({}));
    shapes::check("WebhookResponse", &made);
    for (key, value) in [
        ("name", json!("ops")),
        ("has_url", json!(true)),
        ("has_auth_header", json!(false)),
        ("event_types", json!(["stack.*"])),
        ("filters", Value::Null),
        ("target_labels", Value::Null),
        ("enabled", json!(true)),
        ("max_retries", json!(5)),
        ("timeout_seconds", json!(30)),
        ("created_by", json!("admin")),
    ] {
        assert_eq!(made[key], value, "{key}");
    }
    let stack = "11111111-2222-3333-4444-555555555555";
    let second = create(
        &world,
        &json!({
            "auth_header": "Bearer hidden-token", "filters": { "stack_id": stack, "more": 1 }, "target_labels": ["a", "b"],
            "max_retries": 0, "timeout_seconds": 300, "event_types": ["*", "made.up"], "something": "else",
        }),
    );
    assert_eq!(second["has_auth_header"], true);
    assert_eq!(second["filters"], json!({ "stack_id": stack }));
    assert_eq!(second["event_types"], json!(["*", "made.up"]));
    for filters in [json!({}), json!({ "agent_id": null, "stack_id": null })] {
        let made = create(&world, &json!({ "filters": filters }));
        assert_eq!(made["filters"], json!({}));
    }
    let list = world.admin.get("/webhooks").expect(200);
    assert_eq!(ids(&list.json()).len(), 4);
    assert_eq!(
        ids(&list.json())[2..],
        [id(&second), id(&made)],
        "newest first"
    );
    let shown = world.admin.get(&format!("/webhooks/{}", id(&second)));
    assert_eq!(shown.expect(200).json(), second);
    assert!(!list.text().contains("hooks.example") && !list.text().contains("hidden"));

    let (url, header): (Vec<u8>, Vec<u8>) = {
        let mut sql = world.sql();
        let row = sql
            .query_one(
                "SELECT url, auth_header FROM webhook_subscriptions WHERE auth_header IS NOT NULL",
                &[],
            )
            .unwrap();
        (row.get(0), row.get(1))
    };
    for (sealed, plain) in [
        (url, "https://hooks.example/secret-path"),
        (header, "Bearer hidden-token"),
    ] {
        assert_eq!(sealed[0], 1);
        assert_eq!(sealed.len(), 1 + 12 + plain.len() + 16);
        assert!(!String::from_utf8_lossy(&sealed).contains(&plain[..8]));
    }
}

#[test]
fn what_there_is_to_subscribe_to_is_told_in_its_order() {
    let world = World::new();
    assert_eq!(
        world.admin.get("/webhooks/event-types").expect(200).json(),
        json!([
            "agent.registered",
            "agent.deregistered",
            "stack.created",
            "stack.deleted",
            "deployment.created",
            "deployment.applied",
            "deployment.failed",
            "deployment.deleted",
            "workorder.created",
            "workorder.claimed",
            "workorder.completed",
            "workorder.failed",
        ])
    );
}

#[test]
fn every_wrong_value_has_its_code_on_create_and_on_put() {
    let world = World::new();
    let path = format!("/webhooks/{}", id(&create(&world, &json!({}))));
    let long = "x".repeat(256);
    let many = vec!["x"; 101];
    for (changes, status, code) in [
        (json!({ "url": "" }), 400, "url_required"),
        (json!({ "url": "  " }), 400, "url_required"),
        (json!({ "url": "ftp://x" }), 400, "invalid_url_scheme"),
        (json!({ "url": "HTTPS://x" }), 400, "invalid_url_scheme"),
        (json!({ "url": "hooks.example" }), 400, "invalid_url_scheme"),
        (json!({ "url": "http://" }), 400, "invalid_webhook"),
        (json!({ "url": "http://a\u{0}b/" }), 422, "invalid_value"),
        (json!({ "name": " " }), 400, "invalid_webhook"),
        (json!({ "name": long }), 400, "invalid_webhook"),
        (json!({ "name": "a\u{0}b" }), 422, "invalid_value"),
        (json!({ "event_types": [] }), 400, "invalid_webhook"),
        (json!({ "event_types": [" "] }), 400, "invalid_webhook"),
        (json!({ "event_types": many }), 400, "invalid_webhook"),
        (json!({ "event_types": [long] }), 422, "invalid_value"),
        (json!({ "target_labels": [""] }), 400, "invalid_webhook"),
        (
            json!({ "target_labels": ["x".repeat(65)] }),
            422,
            "invalid_value",
        ),
        (json!({ "auth_header": "a\nb" }), 400, "invalid_webhook"),
        (
            json!({ "auth_header": "x".repeat(9000) }),
            422,
            "invalid_value",
        ),
        (json!({ "max_retries": -1 }), 422, "invalid_webhook"),
        (json!({ "max_retries": 11 }), 422, "invalid_webhook"),
        (json!({ "timeout_seconds": 0 }), 422, "invalid_webhook"),
        (json!({ "timeout_seconds": 301 }), 422, "invalid_webhook"),
        (json!({ "name": 1 }), 422, "invalid_request_body"),
        (json!({ "event_types": "x" }), 422, "invalid_request_body"),
        (json!({ "event_types": [1] }), 422, "invalid_request_body"),
        (json!({ "filters": "x" }), 422, "invalid_request_body"),
        (
            json!({ "filters": { "stack_id": "x" } }),
            422,
            "invalid_request_body",
        ),
        (json!({ "max_retries": "5" }), 422, "invalid_request_body"),
        (
            json!({ "max_retries": 5_000_000_000_i64 }),
            422,
            "invalid_request_body",
        ),
    ] {
        let _ = refused(
            &world.admin.post("/webhooks", &with(&changes)),
            status,
            code,
        );
        let _ = refused(&world.admin.put(&path, &changes), status, code);
    }
    for body in [
        json!([]),
        json!("x"),
        json!(null),
        json!(["a", "https://x", null, ["*"]]),
    ] {
        for answer in [
            world.admin.post("/webhooks", &body),
            world.admin.put(&path, &body),
        ] {
            let _ = refused(&answer, 422, "invalid_request_body");
        }
    }
    let _ = refused(
        &world.admin.post("/webhooks", &json!({})),
        422,
        "invalid_request_body",
    );
    let wrong_url_first = with(&json!({ "url": "x", "name": "", "max_retries": 99 }));
    let _ = refused(
        &world.admin.post("/webhooks", &wrong_url_first),
        400,
        "invalid_url_scheme",
    );
    for (method, path) in [("POST", "/webhooks"), ("PUT", path.as_str())] {
        let bytes = |kind, text: &[u8]| {
            world
                .admin
                .try_bytes(method, path, kind, Some(text))
                .unwrap()
        };
        let _ = refused(&bytes("application/json", b"{"), 400, "bad_request");
        let _ = refused(&bytes("text/plain", b"{}"), 415, "unsupported_media_type");
    }
    assert_eq!(audited(&world, "webhook.created").len(), 1);
    assert_eq!(audited(&world, "webhook.updated").len(), 0);
}

#[test]
fn keys_that_are_no_more_are_refused_and_say_what_to_use() {
    let world = World::new();
    let path = format!("/webhooks/{}", id(&create(&world, &json!({}))));
    let validate = json!({ "validate": null });
    let details = refused(
        &world.admin.post("/webhooks", &with(&validate)),
        422,
        "unsupported_field",
    );
    assert_eq!(
        details,
        json!({ "field": "validate", "use_instead": "POST /webhooks/{id}/test" })
    );
    let _ = world.admin.put(&path, &validate).expect(200);
    let labels = json!({ "filters": { "labels": ["x"] } });
    for answer in [
        world.admin.post("/webhooks", &with(&labels)),
        world.admin.post("/webhooks", &labels),
        world.admin.put(&path, &labels),
    ] {
        let details = refused(&answer, 422, "unsupported_field");
        assert_eq!(
            details,
            json!({ "field": "filters.labels", "use_instead": "target_labels" })
        );
    }
}

#[test]
fn fault_41_a_put_with_null_clears_and_one_that_says_nothing_is_no_change() {
    let world = World::new();
    let made = create(
        &world,
        &json!({ "auth_header": "Bearer x", "filters": {}, "target_labels": ["a"] }),
    );
    let path = format!("/webhooks/{}", id(&made));
    let put = |body: Value| world.admin.put(&path, &body).expect(200).json();
    for nothing in [
        json!({}),
        json!({ "name": null, "url": null, "event_types": null, "enabled": null, "max_retries": null }),
        json!({ "unknown": 1, "validate": true }),
    ] {
        assert_eq!(put(nothing), made);
    }
    assert_eq!(audited(&world, "webhook.updated").len(), 0);
    let changed =
        put(json!({ "name": "renamed", "enabled": false, "max_retries": 1, "event_types": ["*"] }));
    assert_eq!(
        (
            &changed["name"],
            &changed["enabled"],
            &changed["max_retries"],
            &changed["event_types"]
        ),
        (&json!("renamed"), &json!(false), &json!(1), &json!(["*"]))
    );
    assert_eq!(
        (
            &changed["has_auth_header"],
            &changed["filters"],
            &changed["target_labels"]
        ),
        (&json!(true), &json!({}), &json!(["a"])),
        "what was not said stays"
    );
    assert_ne!(changed["updated_at"], made["updated_at"]);
    assert_eq!(
        put(json!({ "auth_header": null }))["has_auth_header"],
        false
    );
    assert_eq!(put(json!({ "auth_header": "x" }))["has_auth_header"], true);
    assert_eq!(put(json!({ "auth_header": "" }))["has_auth_header"], false);
    assert_eq!(put(json!({ "filters": null }))["filters"], Value::Null);
    assert_eq!(
        put(json!({ "target_labels": null }))["target_labels"],
        Value::Null
    );
    assert_eq!(
        put(json!({ "target_labels": [] }))["target_labels"],
        json!([])
    );
    let entries = audited(&world, "webhook.updated");
    assert_eq!(
        entries[0],
        (id(&made), json!({ "name": "renamed", "enabled": false }))
    );
}

#[test]
fn fault_16_a_url_is_checked_on_put_as_on_create() {
    let world = World::new();
    let path = format!("/webhooks/{}", id(&create(&world, &json!({}))));
    let before: Vec<u8> = sealed_url(&world);
    for bad in ["file:///etc/passwd", "gopher://x", "javascript:1", ""] {
        let answer = world.admin.put(&path, &json!({ "url": bad }));
        assert_eq!(answer.status, 400, "{bad}");
    }
    assert_eq!(sealed_url(&world), before);
    let _ = world
        .admin
        .put(&path, &json!({ "url": "http://other.example/" }))
        .expect(200);
    assert_ne!(sealed_url(&world), before);
}

fn sealed_url(world: &World) -> Vec<u8> {
    world
        .sql()
        .query_one("SELECT url FROM webhook_subscriptions", &[])
        .unwrap()
        .get(0)
}

#[test]
fn what_is_not_there_is_not_found_after_the_question_who_asks() {
    let world = World::new();
    let agent = world.agent("a");
    for (method, path, body) in [
        ("GET", NOWHERE.to_owned(), None),
        ("PUT", NOWHERE.to_owned(), Some(json!({ "url": "no url" }))),
        ("DELETE", NOWHERE.to_owned(), None),
        ("POST", format!("{NOWHERE}/test"), None),
        ("GET", format!("{NOWHERE}/deliveries?status=nonsense"), None),
    ] {
        let answer = world.admin.call(method, &path, body.as_ref());
        let _ = refused(&answer, 404, "webhook_not_found");
        let answer = agent.api.call(method, &path, body.as_ref());
        let _ = refused(&answer, 403, "admin_required");
    }
    let _ = refused(&agent.api.get("/webhooks/x"), 400, "bad_request");
    let malformed = agent
        .api
        .try_bytes("POST", "/webhooks", "application/json", Some(b"{"))
        .unwrap();
    let _ = refused(&malformed, 400, "bad_request");
    let shapeless = agent.api.post("/webhooks", &json!({ "validate": true }));
    let _ = refused(&shapeless, 403, "admin_required");
    let unknown = "/webhook-deliveries/00000000-0000-0000-0000-000000000001/result";
    let said = json!({ "success": true });
    let _ = refused(&agent.api.post(unknown, &said), 404, "delivery_not_found");
    let _ = refused(&world.admin.post(unknown, &said), 403, "agent_pak_required");
    let _ = refused(&agent.api.post(unknown, &json!({})), 422, "unprocessable");
    let no_agent = "/agents/00000000-0000-0000-0000-000000000001/webhooks/pending";
    let _ = refused(&world.admin.get(no_agent), 404, "agent_not_found");
    let _ = refused(&agent.api.get(no_agent), 403, "agent_pak_mismatch");
}

#[test]
fn a_subscription_goes_with_its_deliveries_and_is_written_down() {
    let world = World::new();
    let made = create(&world, &json!({}));
    let path = format!("/webhooks/{}", id(&made));
    deliveries(&world, &id(&made), &["success", "dead"]);
    let _ = world.admin.delete(&path).expect(204);
    let _ = refused(&world.admin.delete(&path), 404, "webhook_not_found");
    assert_eq!(
        world.admin.get("/webhook-deliveries").expect(200).json(),
        json!([])
    );
    assert_eq!(
        audited(&world, "webhook.created"),
        [(
            id(&made),
            json!({ "name": "ops", "event_types": ["stack.*"] })
        )]
    );
    assert_eq!(
        audited(&world, "webhook.deleted"),
        [(id(&made), Value::Null)]
    );
}

#[test]
fn events_are_written_down_exactly_while_somebody_is_subscribed() {
    let world = World::new();
    assert!(!wants_events(&world));
    let (one, two) = (create(&world, &json!({})), create(&world, &json!({})));
    assert!(wants_events(&world));
    let path = |webhook: &Value| format!("/webhooks/{}", id(webhook));
    let enable = |webhook: &Value, on: bool| {
        let _ = world
            .admin
            .put(&path(webhook), &json!({ "enabled": on }))
            .expect(200);
    };
    enable(&one, false);
    assert!(wants_events(&world), "the other is enabled");
    enable(&two, false);
    assert!(!wants_events(&world));
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    let waiting: i64 = world
        .sql()
        .query_one("SELECT count(*) FROM event_outbox", &[])
        .unwrap()
        .get(0);
    assert_eq!(waiting, 0, "nothing piles up");
    enable(&one, true);
    assert!(wants_events(&world));
    let _ = world.admin.delete(&path(&one)).expect(204);
    assert!(!wants_events(&world));
}

#[test]
fn changes_of_subscriptions_at_the_same_moment_leave_the_right_interest() {
    let world = World::new();
    for round in 0..10 {
        let old = create(&world, &json!({}));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = world
                    .admin
                    .delete(&format!("/webhooks/{}", id(&old)))
                    .expect(204);
            });
            scope.spawn(|| drop(create(&world, &json!({}))));
        });
        assert!(wants_events(&world), "round {round}: one is left");
        let all = ids(&world.admin.get("/webhooks").expect(200).json());
        thread::scope(|scope| {
            for webhook in &all {
                let path = format!("/webhooks/{webhook}");
                let admin = &world.admin;
                scope.spawn(move || {
                    let _ = admin.put(&path, &json!({ "enabled": false })).expect(200);
                });
            }
        });
        assert!(!wants_events(&world), "round {round}: none is enabled");
        for webhook in all {
            let _ = world
                .admin
                .delete(&format!("/webhooks/{webhook}"))
                .expect(204);
        }
    }
}

#[test]
fn lists_of_deliveries_are_paged_by_state_newest_first() {
    let world = World::new();
    let (one, two) = (
        create(
            &world,
            &json!({ "name": "one", "event_types": ["nothing"] }),
        ),
        create(&world, &json!({ "name": "two", "enabled": false })),
    );
    // Disabled, so that nobody takes the pending one.
    for webhook in [&one, &two] {
        let _ = world
            .admin
            .put(
                &format!("/webhooks/{}", id(webhook)),
                &json!({ "enabled": false }),
            )
            .expect(200);
    }
    let first = deliveries(
        &world,
        &id(&one),
        &["pending", "success", "dead", "success"],
    );
    let second = deliveries(&world, &id(&two), &["success"]);
    let list = |query: &str| {
        let path = format!("/webhooks/{}/deliveries{query}", id(&one));
        world.admin.get(&path).expect(200).json()
    };
    let newest = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<Vec<_>>();
    let all = list("");
    shapes::check("[WebhookDelivery]", &all);
    assert_eq!(
        ids(&all),
        newest(&[&first[3], &first[2], &first[1], &first[0]])
    );
    assert_eq!(
        ids(&list("?status=success")),
        newest(&[&first[3], &first[1]])
    );
    assert_eq!(ids(&list("?limit=1&offset=1")), newest(&[&first[2]]));
    assert_eq!(ids(&list("?limit=-5&offset=-5")), newest(&[&first[3]]));
    assert_eq!(ids(&list("?limit=100000")).len(), 4);
    let feed = |query: &str| {
        let path = format!("/webhook-deliveries{query}");
        world.admin.get(&path).expect(200).json()
    };
    let all = feed("");
    shapes::check("[WebhookDeliveryFeedItem]", &all);
    assert_eq!(ids(&all)[..2], newest(&[&second[0], &first[3]]));
    assert_eq!(
        (
            &all[0]["subscription_name"],
            &all[1]["subscription_name"],
            &all[0]["target_labels"]
        ),
        (&json!("two"), &json!("one"), &json!([]))
    );
    assert!(all[0].get("payload").is_none());
    assert_eq!(ids(&feed("?status=dead")), newest(&[&first[2]]));
    assert_eq!(ids(&feed("?status=acquired")), Vec::<String>::new());
    assert_eq!(ids(&feed("?offset=4&limit=500")), newest(&[&first[0]]));
    for query in ["?status=nonsense", "?status="] {
        let _ = refused(
            &world.admin.get(&format!("/webhook-deliveries{query}")),
            400,
            "invalid_status",
        );
        let path = format!("/webhooks/{}/deliveries{query}", id(&one));
        let _ = refused(&world.admin.get(&path), 400, "invalid_status");
    }
    for query in ["?limit=x", "?offset=1.5"] {
        let _ = refused(
            &world.admin.get(&format!("/webhook-deliveries{query}")),
            400,
            "bad_request",
        );
    }
    let many = vec!["success"; 205];
    deliveries(&world, &id(&two), &many);
    assert_eq!(ids(&feed("")).len(), 50);
    assert_eq!(ids(&feed("?limit=1000")).len(), 200);
}

#[test]
fn the_key_is_the_tenants_own_made_when_first_needed_and_never_shown() {
    let world = World::with(&[("log.level", "\"trace\"")]);
    let file = world.broker.state_dir().join("webhook.key");
    let _ = world.admin.get("/webhooks").expect(200);
    assert!(!file.exists(), "nothing to seal yet");
    create(&world, &json!({ "auth_header": "Bearer hidden-token" }));
    let key = fs::read_to_string(&file).unwrap();
    assert_eq!(key.trim().len(), 64);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let log = world.broker.log();
    for secret in [key.trim(), "secret-path", "hidden-token"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[test]
fn a_broker_whose_webhook_key_is_gone_says_so_and_does_not_start() {
    let world = World::new();
    create(&world, &json!({}));
    // Another host, say: the schema without the state folder.
    let other = Broker::on(server()).schema(&world.schema).run(&["serve"]);
    assert_eq!(other.code, Some(78), "{}", other.stderr);
    assert!(
        other.stderr.contains("webhook.key") && other.stderr.contains("webhook_encryption_key"),
        "{}",
        other.stderr
    );
    let key = fs::read_to_string(world.broker.state_dir().join("webhook.key")).unwrap();
    let told = Broker::on(server())
        .schema(&world.schema)
        .set(
            "broker.webhook_encryption_key",
            &format!("{:?}", key.trim()),
        )
        .start();
    assert!(!told.log().contains("sealed with another key"));
    let malformed = Broker::on(server())
        .schema(&world.schema)
        .set("broker.webhook_encryption_key", "\"abc\"")
        .run(&["serve"]);
    assert_eq!(malformed.code, Some(78), "{}", malformed.stderr);
    assert!(!malformed.stderr.contains("abc\""), "{}", malformed.stderr);
}

#[test]
fn a_key_file_that_is_none_is_a_configuration_error() {
    let draft = Broker::on(server()).schema("tenant_badkey");
    let broker = draft.start();
    let state = broker.state_dir();
    assert!(broker.stop().success());
    fs::write(state.join("webhook.key"), "no key\n").unwrap();
    let ran = broker.run(&["serve"]);
    assert_eq!(ran.code, Some(78), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("webhook.key") && !ran.stderr.contains("no key"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_broker_with_another_key_says_so_in_log_metric_last_error_and_audit() {
    let world = World::new();
    let webhook = create(&world, &json!({ "auth_header": "Bearer x" }));
    let other = Broker::on(server())
        .schema(&world.schema)
        .set(
            "broker.webhook_encryption_key",
            &format!("{:?}", "ab".repeat(32)),
        )
        .start();
    assert!(
        other.log().contains("sealed with another key"),
        "{}",
        other.log()
    );
    // The one with the right key must not be the one that delivers.
    assert!(world.broker.stop().success());
    let api = brokkr_tests::Api::new(other.addr(), world.admin.pak.clone());
    let path = format!("/webhooks/{}", id(&webhook));
    let _ = refused(
        &api.call("POST", &format!("{path}/test"), None),
        400,
        "webhook_test_failed",
    );
    let generator = api
        .post("/generators", &json!({ "name": "g" }))
        .expect(201)
        .json();
    let stack = json!({ "name": "s", "generator_id": id(&generator["generator"]) });
    let _ = api.post("/stacks", &stack).expect(201);
    let dead = until(Duration::from_secs(20), "a dead delivery", || {
        let list = api
            .get(&format!("{path}/deliveries?status=dead"))
            .expect(200)
            .json();
        list.get(0).cloned()
    });
    assert!(
        dead["last_error"].as_str().unwrap().contains("decrypt"),
        "{dead}"
    );
    let entries = audited(&world, "webhook.delivery_failed");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].0, id(&webhook));
    assert_eq!(entries[0].1["delivery_id"], dead["id"]);
    let metrics = brokkr_tests::http::get(&other.addr(), "/metrics")
        .unwrap()
        .text();
    let line = "brokkr_webhook_decrypt_failures_total{field=\"url\",path=\"broker\"}";
    let count = metrics
        .lines()
        .find_map(|l| l.strip_prefix(line))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(count.trim().parse::<u32>().unwrap() >= 2, "{count}");
}
