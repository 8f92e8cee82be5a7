//! Webhook subscriptions and the lists of their deliveries, as a client sees them.

mod key;
mod lists;
mod values;

use brokkr_tests::api_fixture::World;
use serde_json::{Value, json};

pub(crate) const NOWHERE: &str = "/webhooks/00000000-0000-0000-0000-000000000001";

pub(crate) fn body() -> Value {
    json!({ "name": "ops", "url": "https://hooks.example/secret-path", "event_types": ["stack.*"] })
}

/// Returns [`body`] with some keys changed.
pub(crate) fn with(changes: &Value) -> Value {
    let mut whole = body();
    for (key, value) in changes.as_object().unwrap() {
        whole[key] = value.clone();
    }
    whole
}

pub(crate) fn create(world: &World, changes: &Value) -> Value {
    world.create("/webhooks", &with(changes))
}

pub(crate) fn wants_events(world: &World) -> bool {
    world.sql_value("SELECT wants_events FROM brokkr_meta")
}

/// Returns resource and details of an action's audit entries, oldest first.
pub(crate) fn audited(world: &World, action: &str) -> Vec<(String, Value)> {
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

/// Inserts deliveries in these states, the last the newest, and returns their ids.
pub(crate) fn deliveries(world: &World, webhook: &str, states: &[&str]) -> Vec<String> {
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
