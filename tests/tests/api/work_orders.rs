//! Work orders and their log, as agents and the administrator see them.

mod claiming;
mod creating;
mod ending;
mod faults;

use brokkr_tests::api_fixture::{Party, World, id, ids, server};
use brokkr_tests::pg::Options;
use brokkr_tests::{Api, PgServer, Response, until};
use serde_json::{Value, json};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);
const UNKNOWN: &str = "00000000-0000-0000-0000-000000000001";

/// Creates an order with these keys besides type and content.
fn create(world: &World, more: Value) -> Response {
    let mut body = json!({ "work_type": "build", "yaml_content": "kind: Build" });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    world.post("/work-orders", &body)
}

/// Creates an order for this agent with these further keys, and returns its id.
fn order_for(world: &World, agent: &Party, mut more: Value) -> String {
    more["targeting"] = json!({ "agent_ids": [agent.id] });
    id(&create(world, more).expect(201).json())
}

fn pending(agent: &Party) -> Vec<String> {
    let path = format!("/agents/{}/work-orders/pending", agent.id);
    ids(&agent.get_json(&path))
}

fn claim(api: &Api, order: &str, agent: &Party) -> Response {
    api.post(
        &format!("/work-orders/{order}/claim"),
        &json!({ "agent_id": agent.id }),
    )
}

fn complete(api: &Api, order: &str, outcome: Value) -> Response {
    api.post(&format!("/work-orders/{order}/complete"), &outcome)
}

fn show(world: &World, order: &str) -> Value {
    let path = format!("/work-orders/{order}");
    world.get_json(&path)
}

fn count(world: &World, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    world.sql_value(&sql)
}
