//! Hints to connected agents that what they should have may have changed. They look at the type and ask by REST at once.
//!
//! Sent after the commit. Who is to be told is one statement, and none while no agent is connected here; a hint that cannot
//! be sent is a poll's delay and never fails the request.

use serde_json::json;
use uuid::Uuid;

use super::call::Call;
use crate::db::{Conn, DbError};
use crate::store::association;
use crate::store::stacks::Stack;

/// To every connected agent that serves the stack: it, its objects or what it is matched by changed.
pub(super) fn stack_changed(call: &Call, db: &mut Conn, stack: &Stack) {
    let agents = who_serves(call, db, stack.id);
    tell(call, &agents, stack);
}

/// The connected agents that serve a stack.
pub(super) fn who_serves(call: &Call, db: &mut Conn, stack: Uuid) -> Vec<Uuid> {
    of_connected(call, |connected| {
        association::agents_serving(db, stack, connected)
    })
}

/// Tells these agents of a stack.
pub(super) fn tell(call: &Call, agents: &[Uuid], stack: &Stack) {
    for agent in agents {
        call.app.live.push(*agent, "stack_changed", stack);
    }
}

/// To every connected agent that served a stack when it was deleted: its marker waits for them.
pub(super) fn stack_deleted(call: &Call, db: &mut Conn, stack: &Stack) {
    let agents = of_connected(call, |connected| {
        association::departing(db, &[stack.id], connected)
    });
    tell(call, &agents, stack);
}

/// As [`stack_deleted`], of many stacks at once: to each agent one hint that names none of them.
pub(super) fn stacks_deleted(call: &Call, db: &mut Conn, stacks: &[Uuid]) {
    let agents = of_connected(call, |connected| {
        association::departing(db, stacks, connected)
    });
    for agent in agents {
        target_changed(call, agent);
    }
}

/// To one agent: which stacks it serves changed, in a way that no target says.
pub(super) fn target_changed(call: &Call, agent: Uuid) {
    let nil = Uuid::nil();
    let body = json!({ "id": nil, "agent_id": agent, "stack_id": nil });
    call.app.live.push(agent, "target_changed", &body);
}

fn of_connected(call: &Call, ask: impl FnOnce(&[Uuid]) -> Result<Vec<Uuid>, DbError>) -> Vec<Uuid> {
    let connected = call.app.live.connected();
    if connected.is_empty() {
        return Vec::new();
    }
    ask(&connected).unwrap_or_else(|error| {
        tracing::debug!(%error, "agents were not told of a change");
        Vec::new()
    })
}
