//! WebSockets of a [`World`], and the frames that agents send.
#![allow(missing_docs, reason = "names and types say it")]

use std::time::Duration;

use crate::{Addr, Socket, until};
use serde_json::{Value, json};

use crate::api_fixture::{Party, World};

/// The path to which agents connect.
pub const AGENT: &str = "/internal/ws/agent";

/// Longest wait until a change is visible elsewhere.
pub const SOON: Duration = Duration::from_secs(20);

pub fn addr(world: &World) -> Addr {
    world.broker.addr()
}

impl World {
    /// Opens the agent's channel and waits until it is registered.
    pub fn connect(&self, agent: &Party) -> Socket {
        let socket = Socket::open(&addr(self), AGENT, &agent.pak);
        let _ = until(SOON, "the agent to be connected", || self.connection(agent));
        socket
    }

    /// Returns the broker's record of the agent's socket.
    pub fn connection(&self, agent: &Party) -> Option<Value> {
        let list = self.get_json("/admin/ws/connections");
        list["connections"]
            .as_array()
            .unwrap()
            .iter()
            .find(|connection| connection["agent_id"] == agent.id)
            .cloned()
    }

    /// Subscribes to a stack and waits until the subscriber is registered.
    pub fn tail(&self, stack: &str, pak: &str) -> Socket {
        let before = self.subscribers();
        let socket = Socket::open(&addr(self), &format!("/api/v1/stacks/{stack}/live"), pak);
        until(SOON, "the subscriber to be known", || {
            (self.subscribers() > before).then_some(())
        });
        socket
    }

    /// Returns the number of subscribers of stacks.
    pub fn subscribers(&self) -> u64 {
        let list = self.get_json("/admin/ws/connections");
        list["live_subscribers"].as_u64().unwrap()
    }

    /// Subscribes to the fleet and waits until the subscriber is registered.
    pub fn watch(&self) -> Socket {
        let before = self.metric("brokkr_fleet_live_subscribers");
        let socket = Socket::open(&addr(self), "/api/v1/fleet/live", &self.admin.pak);
        until(SOON, "the subscriber to be known", || {
            (self.metric("brokkr_fleet_live_subscribers") > before).then_some(())
        });
        socket
    }

    /// Returns a value of `/metrics`; 0 when it is absent.
    pub fn metric(&self, name: &str) -> f64 {
        let text = crate::http::get(&addr(self), "/metrics")
            .unwrap()
            .expect(200)
            .text();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .map_or(0.0, |value| value.parse().unwrap())
    }
}

pub fn line(agent: &Party, stack: &str, text: &str) -> Value {
    json!({
        "agent_id": agent.id, "stack_id": stack, "namespace": "default", "pod": "web-0", "container": "web",
        "ts": "2024-05-01T12:00:00.5Z", "line": text,
    })
}

pub fn k8s_event(agent: &Party, stack: &str, reason: &str) -> Value {
    json!({
        "agent_id": agent.id, "stack_id": stack, "observed_at": "2024-05-01T14:00:00+02:00", "reason": reason,
        "message": "Back-off restarting failed container", "event_type": "Warning", "source": "kubelet",
        "involved_object": { "api_version": "v1", "kind": "Pod", "namespace": "default", "name": "web-0", "uid": null },
    })
}
