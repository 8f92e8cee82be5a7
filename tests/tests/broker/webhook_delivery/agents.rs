//! Deliveries that agents fetch, make and report.

use crate::webhook_delivery::receiver::Receiver;
use crate::webhook_delivery::{
    BOUND, becomes, deliveries, given_up, open, pull, report, subscribe, with_agent,
};
use brokkr_tests::api_fixture::{Party, id};
use brokkr_tests::{response_schema, until};
use serde_json::{Value, json};
use std::thread;

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
    let left: f64 = world.sql_value(
        "SELECT extract(epoch FROM max(acquired_until) - now())::float8 FROM webhook_deliveries",
    );
    assert!((50.0..=60.0).contains(&left), "{left}");
    assert_eq!(pull(&agent).len(), 2, "the rest, and nothing twice");
    assert_eq!(pull(&agent).len(), 0);

    let success = json!({ "success": true, "status_code": 200, "duration_ms": 12 });
    report(&half, first, &success).refused(403, "delivery_not_acquired_by_agent");
    let said = report(&agent, first, &success).expect(200).json();
    assert_eq!(
        said,
        json!({ "status": "success", "delivery_id": first["id"] })
    );
    for body in [&success, &json!({ "success": false })] {
        report(&agent, first, body).refused(403, "delivery_not_acquired_by_agent");
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
    report(&agent, &taken[1], &success).refused(403, "delivery_not_acquired_by_agent");
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
    // The retry returns without a request.
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
    world.sql_execute(end);
    // Any event wakes the broker, which would otherwise check within a minute.
    let _ = world.agent("waker");
    let again = until(BOUND, "it to be free again", || pull(&two).pop());
    assert_eq!(
        (&again["id"], &again["attempts"]),
        (&taken["id"], &json!(0)),
        "no attempt was counted"
    );
    let late = json!({ "success": true });
    report(&one, &taken, &late).refused(403, "delivery_not_acquired_by_agent");
    report(&two, &again, &late).expect(200);
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
        world.sql_execute("DELETE FROM webhook_deliveries");
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
        let seen = world.get_json(&path);
        response_schema::check("[PendingWebhookDelivery]", &seen);
        assert_eq!(seen.as_array().unwrap().len(), 1);
    }
    assert_eq!(
        deliveries(&world.admin, &webhook, "?status=pending").len(),
        1
    );
    assert_eq!(pull(&agent).len(), 1);
    assert_eq!(world.get_json(&path), json!([]));
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
        world
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
        .get_json("/webhook-deliveries")
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
    world.sql_execute(damage);
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
