//! The permitted values of a subscription, and the refusals of all others.

use crate::webhooks::{NOWHERE, audited, create, with};
use brokkr_tests::api_fixture::{World, id, ids};
use brokkr_tests::response_schema;
use serde_json::{Value, json};

#[test]
fn a_subscription_has_defaults_and_shows_that_it_has_secrets_but_not_which() {
    let world = World::new();
    let made = create(&world, &json!({}));
    response_schema::check("WebhookResponse", &made);
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
    let list = world.get("/webhooks").expect(200);
    assert_eq!(ids(&list.json()).len(), 4);
    assert_eq!(
        ids(&list.json())[2..],
        [id(&second), id(&made)],
        "newest first"
    );
    let shown = world.get(&format!("/webhooks/{}", id(&second)));
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
        world.get_json("/webhooks/event-types"),
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
        world
            .post("/webhooks", &with(&changes))
            .refused(status, code);
        world.put(&path, &changes).refused(status, code);
    }
    for body in [
        json!([]),
        json!("x"),
        json!(null),
        json!(["a", "https://x", null, ["*"]]),
    ] {
        for answer in [world.post("/webhooks", &body), world.put(&path, &body)] {
            answer.refused(422, "invalid_request_body");
        }
    }
    world
        .post("/webhooks", &json!({}))
        .refused(422, "invalid_request_body");
    let wrong_url_first = with(&json!({ "url": "x", "name": "", "max_retries": 99 }));
    world
        .post("/webhooks", &wrong_url_first)
        .refused(400, "invalid_url_scheme");
    for (method, path) in [("POST", "/webhooks"), ("PUT", path.as_str())] {
        let bytes = |kind, text: &[u8]| world.try_bytes(method, path, kind, Some(text)).unwrap();
        bytes("application/json", b"{").refused(400, "bad_request");
        bytes("text/plain", b"{}").refused(415, "unsupported_media_type");
    }
    assert_eq!(audited(&world, "webhook.created").len(), 1);
    assert_eq!(audited(&world, "webhook.updated").len(), 0);
}

#[test]
fn keys_that_are_no_more_are_refused_and_say_what_to_use() {
    let world = World::new();
    let path = format!("/webhooks/{}", id(&create(&world, &json!({}))));
    let validate = json!({ "validate": null });
    let details = world
        .post("/webhooks", &with(&validate))
        .refused(422, "unsupported_field");
    assert_eq!(
        details,
        json!({ "field": "validate", "use_instead": "POST /webhooks/{id}/test" })
    );
    world.put(&path, &validate).expect(200);
    let labels = json!({ "filters": { "labels": ["x"] } });
    for answer in [
        world.post("/webhooks", &with(&labels)),
        world.post("/webhooks", &labels),
        world.put(&path, &labels),
    ] {
        let details = answer.refused(422, "unsupported_field");
        assert_eq!(
            details,
            json!({ "field": "filters.labels", "use_instead": "target_labels" })
        );
    }
}

#[test]
fn fault_41_a_put_with_null_clears_a_field_and_an_absent_field_stays() {
    let world = World::new();
    let made = create(
        &world,
        &json!({ "auth_header": "Bearer x", "filters": {}, "target_labels": ["a"] }),
    );
    let path = format!("/webhooks/{}", id(&made));
    let put = |body: Value| world.put(&path, &body).expect(200).json();
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
        let answer = world.put(&path, &json!({ "url": bad }));
        assert_eq!(answer.status, 400, "{bad}");
    }
    assert_eq!(sealed_url(&world), before);
    world
        .put(&path, &json!({ "url": "http://other.example/" }))
        .expect(200);
    assert_ne!(sealed_url(&world), before);
}

fn sealed_url(world: &World) -> Vec<u8> {
    world.sql_value("SELECT url FROM webhook_subscriptions")
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
        let answer = world.call(method, &path, body.as_ref());
        answer.refused(404, "webhook_not_found");
        let answer = agent.call(method, &path, body.as_ref());
        answer.refused(403, "admin_required");
    }
    agent.get("/webhooks/x").refused(400, "bad_request");
    let malformed = agent
        .try_bytes("POST", "/webhooks", "application/json", Some(b"{"))
        .unwrap();
    malformed.refused(400, "bad_request");
    let shapeless = agent.post("/webhooks", &json!({ "validate": true }));
    shapeless.refused(403, "admin_required");
    let unknown = "/webhook-deliveries/00000000-0000-0000-0000-000000000001/result";
    let said = json!({ "success": true });
    agent
        .post(unknown, &said)
        .refused(404, "delivery_not_found");
    world
        .post(unknown, &said)
        .refused(403, "agent_pak_required");
    agent
        .post(unknown, &json!({}))
        .refused(422, "unprocessable");
    let no_agent = "/agents/00000000-0000-0000-0000-000000000001/webhooks/pending";
    world.get(no_agent).refused(404, "agent_not_found");
    agent.get(no_agent).refused(403, "agent_pak_mismatch");
}
