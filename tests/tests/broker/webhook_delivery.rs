//! Webhooks on their way from an event to an endpoint or an agent, and failed deliveries.

mod agents;
mod arriving;
mod brokers;
mod cost;
mod receiver;
mod targets;

use brokkr_tests::api_fixture::{Party, World, id, server};
use brokkr_tests::{Api, Broker, response_schema, until};
use receiver::Seen;
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// Settings that allow loopback and make rounds frequent.
pub(crate) const OPEN: &[(&str, &str)] = &[
    ("webhooks.allowed_networks", "[\"127.0.0.1\"]"),
    ("broker.webhook_delivery_interval_seconds", "1"),
];

pub(crate) fn open() -> World {
    World::with(OPEN)
}

/// Returns [`OPEN`] and a key that a second broker can share.
pub(crate) fn shared() -> Vec<(&'static str, &'static str)> {
    const KEY: &str = "\"abababababababababababababababababababababababababababababababab\"";
    let mut settings = OPEN.to_vec();
    settings.push(("broker.webhook_encryption_key", KEY));
    settings
}

/// Starts another broker of the same tenant.
pub(crate) fn second(world: &World) -> Broker {
    let mut draft = Broker::on(server()).schema(&world.schema);
    for (key, toml) in shared() {
        draft = draft.set(key, toml);
    }
    draft.start()
}

pub(crate) fn subscribe(api: &Api, url: &str, more: &Value) -> String {
    let mut body = json!({ "name": "ops", "url": url, "event_types": ["*"] });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    id(&api.create("/webhooks", &body))
}

pub(crate) fn deliveries(api: &Api, webhook: &str, query: &str) -> Vec<Value> {
    let path = format!("/webhooks/{webhook}/deliveries{query}");
    let list = api.get_json(&path);
    list.as_array().unwrap().clone()
}

/// Waits for a delivery in this state and returns the newest.
#[track_caller]
pub(crate) fn becomes(api: &Api, webhook: &str, status: &str) -> Value {
    until(BOUND, format!("a delivery that is {status}"), || {
        deliveries(api, webhook, &format!("?status={status}"))
            .first()
            .cloned()
    })
}

/// Waits until every event has been turned into deliveries.
pub(crate) fn fanned_out(world: &World) {
    let mut sql = world.sql();
    until(BOUND, "an empty outbox", || {
        let row = sql.query_one("SELECT count(*) FROM event_outbox", &[]);
        (row.unwrap().get::<_, i64>(0) == 0).then_some(())
    });
}

/// Returns the details of the deliveries that were given up.
pub(crate) fn given_up(world: &World) -> Vec<Value> {
    let rows = world.sql().query(
        "SELECT details FROM audit_log WHERE action = 'webhook.delivery_failed' AND actor_type = 'system' ORDER BY timestamp",
        &[],
    );
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Makes every later retry due now.
pub(crate) fn hurry(world: &World) {
    world
        .sql_execute("UPDATE webhook_deliveries SET next_retry_at = now() WHERE status = 'failed'");
}

pub(crate) fn event_id(seen: &Seen) -> String {
    id(&seen.json())
}

pub(crate) fn with_agent(world: &World, name: &str, labels: &[&str]) -> Party {
    let agent = world.agent(name);
    for label in labels {
        world.label_agent(&agent, label);
    }
    agent
}

pub(crate) fn pull(agent: &Party) -> Vec<Value> {
    let answer = agent.get_json(&format!("/agents/{}/webhooks/pending", agent.id));
    response_schema::check("[PendingWebhookDelivery]", &answer);
    answer.as_array().unwrap().clone()
}

pub(crate) fn report(agent: &Party, delivery: &Value, body: &Value) -> brokkr_tests::Response {
    let path = format!("/webhook-deliveries/{}/result", id(delivery));
    agent.post(&path, body)
}
