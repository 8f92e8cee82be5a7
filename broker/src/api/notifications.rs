//! Sends hints to connected agents that their target state may have changed. Agents look only at the type and poll by
//! REST at once.
//!
//! Hints are sent after the commit. The receivers are found by one statement, or none when no agent is connected here.
//! A hint that cannot be sent only delays the agent until its next poll, so it never fails the request.

use serde_json::json;
use uuid::Uuid;

use super::request::ApiRequest;
use crate::db::{Conn, DbError};
use crate::store::stack_matching;
use crate::store::stacks::Stack;

/// Tells every connected agent that serves the stack that the stack, its objects, labels or annotations changed.
pub(super) fn stack_changed(call: &ApiRequest, db: &mut Conn, stack: &Stack) {
    let agents = who_serves(call, db, stack.id);
    tell(call, &agents, stack);
}

/// Returns the connected agents that serve a stack.
pub(super) fn who_serves(call: &ApiRequest, db: &mut Conn, stack: Uuid) -> Vec<Uuid> {
    of_connected(call, |connected| {
        stack_matching::agents_serving(db, stack, connected)
    })
}

pub(super) fn tell(call: &ApiRequest, agents: &[Uuid], stack: &Stack) {
    for agent in agents {
        call.app.live.push(*agent, "stack_changed", stack);
    }
}

/// Tells every connected agent that served a stack at its deletion, because its deletion marker waits for them.
pub(super) fn stack_deleted(call: &ApiRequest, db: &mut Conn, stack: &Stack) {
    let agents = of_connected(call, |connected| {
        stack_matching::departing(db, &[stack.id], connected)
    });
    tell(call, &agents, stack);
}

/// Same as [`stack_deleted`] for many stacks: each agent gets one hint, without a stack.
pub(super) fn stacks_deleted(call: &ApiRequest, db: &mut Conn, stacks: &[Uuid]) {
    let agents = of_connected(call, |connected| {
        stack_matching::departing(db, stacks, connected)
    });
    for agent in agents {
        target_changed(call, agent);
    }
}

/// Tells one agent that the stacks it serves changed for a reason other than a new target.
pub(super) fn target_changed(call: &ApiRequest, agent: Uuid) {
    let nil = Uuid::nil();
    let body = json!({ "id": nil, "agent_id": agent, "stack_id": nil });
    call.app.live.push(agent, "target_changed", &body);
}

fn of_connected(
    call: &ApiRequest,
    ask: impl FnOnce(&[Uuid]) -> Result<Vec<Uuid>, DbError>,
) -> Vec<Uuid> {
    let connected = call.app.live.connected();
    if connected.is_empty() {
        return Vec::new();
    }
    ask(&connected).unwrap_or_else(|error| {
        tracing::debug!(%error, "agents were not told of a change");
        Vec::new()
    })
}
