//! Sockets of a [`World`], and what agents say over theirs.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses its part of it"
)]

use std::time::Duration;

use brokkr_tests::{Addr, Socket, until};
use serde_json::{Value, json};

use crate::world::{Party, World};

/// Where agents connect.
pub(crate) const AGENT: &str = "/internal/ws/agent";

/// How long something may take to be seen elsewhere.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn addr(world: &World) -> Addr {
    world.broker.addr()
}

impl World {
    /// The agent's channel, open and registered.
    pub(crate) fn connect(&self, agent: &Party) -> Socket {
        let socket = Socket::open(&addr(self), AGENT, &agent.pak);
        let _ = until(SOON, "the agent to be connected", || self.connection(agent));
        socket
    }

    /// What the broker says of the agent's socket.
    pub(crate) fn connection(&self, agent: &Party) -> Option<Value> {
        let list = self.admin.get("/admin/ws/connections").expect(200).json();
        list["connections"]
            .as_array()
            .unwrap()
            .iter()
            .find(|connection| connection["agent_id"] == agent.id)
            .cloned()
    }

    /// A subscriber of a stack, open and registered.
    pub(crate) fn tail(&self, stack: &str, pak: &str) -> Socket {
        let before = self.subscribers();
        let socket = Socket::open(&addr(self), &format!("/api/v1/stacks/{stack}/live"), pak);
        until(SOON, "the subscriber to be known", || {
            (self.subscribers() > before).then_some(())
        });
        socket
    }

    /// How many subscribers stacks have.
    pub(crate) fn subscribers(&self) -> u64 {
        let list = self.admin.get("/admin/ws/connections").expect(200).json();
        list["live_subscribers"].as_u64().unwrap()
    }

    /// A subscriber of the fleet, open and registered.
    pub(crate) fn watch(&self) -> Socket {
        let before = self.metric("brokkr_fleet_live_subscribers");
        let socket = Socket::open(&addr(self), "/api/v1/fleet/live", &self.admin.pak);
        until(SOON, "the subscriber to be known", || {
            (self.metric("brokkr_fleet_live_subscribers") > before).then_some(())
        });
        socket
    }

    /// A figure of `/metrics`; 0 when there is none.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = brokkr_tests::http::get(&addr(self), "/metrics")
            .unwrap()
            .expect(200)
            .text();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .map_or(0.0, |value| value.parse().unwrap())
    }
}

/// The body of a log line.
pub(crate) fn line(agent: &Party, stack: &str, text: &str) -> Value {
    json!({
        "agent_id": agent.id, "stack_id": stack, "namespace": "default", "pod": "web-0", "container": "web",
        "ts": "2024-05-01T12:00:00.5Z", "line": text,
    })
}

/// The body of an event in a cluster.
pub(crate) fn k8s_event(agent: &Party, stack: &str, reason: &str) -> Value {
    json!({
        "agent_id": agent.id, "stack_id": stack, "observed_at": "2024-05-01T14:00:00+02:00", "reason": reason,
        "message": "Back-off restarting failed container", "event_type": "Warning", "source": "kubelet",
        "involved_object": { "api_version": "v1", "kind": "Pod", "namespace": "default", "name": "web-0", "uid": null },
    })
}
