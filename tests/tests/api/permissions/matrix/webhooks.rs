//! Rows for webhooks and their deliveries.

use super::*;
use brokkr_tests::api_fixture::id;
use serde_json::json;

const APR: &str = "403 agent_pak_required";

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    ("GET /webhooks", "", "[WebhookResponse]", ["200", AR, AR, AR, AR]),
    ("POST /webhooks", r#"{"name":"{new}","url":"https://example.com/","event_types":["*"]}"#, "WebhookResponse",
        ["201", AR, AR, AR, AR]),
    ("GET /webhooks/event-types", "", "[s]", ["200", AR, AR, AR, AR]),
    ("GET /webhooks/{webhook}", "", "WebhookResponse", ["200", AR, AR, AR, AR]),
    ("PUT /webhooks/{webhook}", r#"{"name":"{new}"}"#, "WebhookResponse", ["200", AR, AR, AR, AR]),
    ("DELETE /webhooks/{webhook}", "", "", ["204", AR, AR, AR, AR]),
    ("GET /webhooks/{webhook}/deliveries", "", "[WebhookDelivery]", ["200", AR, AR, AR, AR]),
    // The webhook's address is loopback, which is not allowed.
    ("POST /webhooks/{webhook}/test", "", "", ["400 webhook_test_failed", AR, AR, AR, AR]),
    ("GET /webhook-deliveries", "", "[WebhookDeliveryFeedItem]", ["200", AR, AR, AR, AR]),
    ("POST /webhook-deliveries/{delivery}/result", r#"{"success":true}"#, "DeliveryTaken",
        [APR, "200", "403 delivery_not_acquired_by_agent", APR, APR]),
    ("GET /agents/{self}/webhooks/pending", "", "[PendingWebhookDelivery]", ["200", "200", APM, APM, APM]),
];

pub(crate) fn names(scene: &Scene<'_>) -> Names {
    let body = json!({
        "name": "the scene's", "url": "http://127.0.0.1:9/", "auth_header": "Bearer x", "event_types": ["nothing"],
        "target_labels": ["here"],
    });
    let webhook = id(&scene.world.create("/webhooks", &body));
    let mut sql = scene.world.sql();
    let deliver = |status: &str| {
        format!(
            "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, target_labels, status,
                    acquired_by, acquired_until, claim)
             SELECT '{webhook}', 'stack.created', gen_random_uuid(), '{{}}', '{{here}}', '{status}', agent, until, claim
               FROM (VALUES ('{}'::uuid, now() + interval '1 hour', gen_random_uuid())) AS held (agent, until, claim)
             RETURNING id::text",
            scene.own.id
        )
    };
    let held = sql.query(&deliver("acquired"), &[]);
    let waiting = sql.query(&deliver("pending"), &[]);
    assert!(waiting.is_ok(), "{waiting:?}");
    let delivery = held
        .ok()
        .and_then(|rows| rows.first().map(|row| row.get(0)))
        .unwrap_or_default();
    vec![("webhook", webhook), ("delivery", delivery)]
}
