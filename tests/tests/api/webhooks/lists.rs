//! Creating and deleting subscriptions, and the lists of their deliveries.

use crate::webhooks::{audited, create, deliveries, wants_events};
use brokkr_tests::api_fixture::{World, id, ids};
use brokkr_tests::response_schema;
use serde_json::{Value, json};
use std::thread;

#[test]
fn a_subscription_goes_with_its_deliveries_and_is_written_down() {
    let world = World::new();
    let made = create(&world, &json!({}));
    let path = format!("/webhooks/{}", id(&made));
    deliveries(&world, &id(&made), &["success", "dead"]);
    world.remove(&path);
    world.delete(&path).refused(404, "webhook_not_found");
    assert_eq!(world.get_json("/webhook-deliveries"), json!([]));
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
fn events_are_recorded_only_while_a_subscription_exists() {
    let world = World::new();
    assert!(!wants_events(&world));
    let (one, two) = (create(&world, &json!({})), create(&world, &json!({})));
    assert!(wants_events(&world));
    let path = |webhook: &Value| format!("/webhooks/{}", id(webhook));
    let enable = |webhook: &Value, on: bool| {
        world
            .put(&path(webhook), &json!({ "enabled": on }))
            .expect(200);
    };
    enable(&one, false);
    assert!(wants_events(&world), "the other is enabled");
    enable(&two, false);
    assert!(!wants_events(&world));
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    let waiting: i64 = world.sql_value("SELECT count(*) FROM event_outbox");
    assert_eq!(waiting, 0, "nothing piles up");
    enable(&one, true);
    assert!(wants_events(&world));
    world.remove(&path(&one));
    assert!(!wants_events(&world));
}

#[test]
fn changes_of_subscriptions_at_the_same_moment_leave_the_right_interest() {
    let world = World::new();
    for round in 0..10 {
        let old = create(&world, &json!({}));
        thread::scope(|scope| {
            scope.spawn(|| {
                world.remove(&format!("/webhooks/{}", id(&old)));
            });
            scope.spawn(|| drop(create(&world, &json!({}))));
        });
        assert!(wants_events(&world), "round {round}: one is left");
        let all = ids(&world.get_json("/webhooks"));
        thread::scope(|scope| {
            for webhook in &all {
                let path = format!("/webhooks/{webhook}");
                let admin = &world.admin;
                scope.spawn(move || {
                    admin.put(&path, &json!({ "enabled": false })).expect(200);
                });
            }
        });
        assert!(!wants_events(&world), "round {round}: none is enabled");
        for webhook in all {
            world.remove(&format!("/webhooks/{webhook}"));
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
    // Disabled, so that no pending delivery is taken.
    for webhook in [&one, &two] {
        world
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
        world.get_json(&path)
    };
    let newest = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<Vec<_>>();
    let all = list("");
    response_schema::check("[WebhookDelivery]", &all);
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
        world.get_json(&path)
    };
    let all = feed("");
    response_schema::check("[WebhookDeliveryFeedItem]", &all);
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
    assert_eq!(ids(&feed("?status=acquired")), [""; 0]);
    assert_eq!(ids(&feed("?offset=4&limit=500")), newest(&[&first[0]]));
    for query in ["?status=nonsense", "?status="] {
        world
            .get(&format!("/webhook-deliveries{query}"))
            .refused(400, "invalid_status");
        let path = format!("/webhooks/{}/deliveries{query}", id(&one));
        world.get(&path).refused(400, "invalid_status");
    }
    for query in ["?limit=x", "?offset=1.5"] {
        world
            .get(&format!("/webhook-deliveries{query}"))
            .refused(400, "bad_request");
    }
    let many = vec!["success"; 205];
    deliveries(&world, &id(&two), &many);
    assert_eq!(ids(&feed("")).len(), 50);
    assert_eq!(ids(&feed("?limit=1000")).len(), 200);
}
