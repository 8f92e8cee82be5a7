//! A model of the published agent: its requests and their order, its memory and its removals.

use crate::agent_life::model::Party;
use brokkr_tests::ws::{Came, Socket};
use brokkr_tests::{Api, Connection, Response};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;
use tungstenite::Message;

/// An agent with the cluster that it manages.
pub(crate) struct Agent {
    api: Api,
    id: String,
    name: String,
    rng: fastrand::Rng,
    /// The applied checksum of each stack.
    cluster: BTreeMap<String, String>,
    /// The stacks of the previous answer.
    previous: BTreeSet<String>,
    removed: Vec<String>,
    failed: bool,
    /// True once the model makes no more failures on purpose.
    settled: bool,
    /// A kept connection, which a draining or killed broker closes.
    kept: Option<Connection>,
    /// True when the agent prefers the WebSocket, as the published agent does; polling is the fallback.
    prefers_socket: bool,
    socket: Option<Socket>,
    frames: u32,
}

impl Agent {
    pub(crate) fn new(party: &Party, rng: fastrand::Rng, prefers_socket: bool) -> Self {
        Self {
            prefers_socket,
            socket: None,
            frames: 0,
            api: party.api.clone(),
            id: party.id.clone(),
            name: party.name.clone(),
            rng,
            cluster: BTreeMap::new(),
            previous: BTreeSet::new(),
            removed: Vec::new(),
            failed: false,
            settled: false,
            kept: None,
        }
    }

    pub(crate) fn cluster(&self) -> &BTreeMap<String, String> {
        &self.cluster
    }

    /// Returns the stacks removed from the cluster since the last call.
    pub(crate) fn take_removed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.removed)
    }

    /// Returns true when the latest poll could not apply an object.
    pub(crate) fn failed_an_apply(&self) -> bool {
        self.failed
    }

    /// Returns the number of frames sent and pushes received.
    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    /// Stops failing on purpose and polls until a poll succeeds.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
        for _ in 0..100 {
            if self.poll().is_ok() {
                return;
            }
        }
    }

    /// Runs one turn of the agent's loop: heartbeat, its own record, target state, an event for each object.
    ///
    /// # Errors
    /// When the broker does not answer or answers 503: the agent tries again at its next turn.
    pub(crate) fn poll(&mut self) -> io::Result<()> {
        self.failed = false;
        let cut = !self.settled && self.rng.u8(..) < 12;
        self.tend_socket();
        let beat = json!({ "agent_id": self.id, "sent_at": "2024-01-01T00:00:00Z" });
        if !self.over_socket("heartbeat", &beat) {
            let path = format!("/agents/{}/heartbeat", self.id);
            let _ = self.ask("POST", &path, Some(&json!({})))?;
        }
        let itself = format!("/agents/?name={}&cluster_name=c", self.name);
        let found = self.ask("GET", &itself, None)?;
        assert_eq!(found.json()["status"], "ACTIVE");
        let path = format!("/agents/{}/target-state", self.id);
        if cut {
            // The answer is lost on its way.
            self.send_and_hang_up(&path);
            return Err(io::Error::other("cut"));
        }
        let state = self.ask("GET", &path, None)?.json();
        let objects = state.as_array().expect("a list").clone();
        let answered: BTreeSet<String> = objects.iter().map(|o| text(o, "stack_id")).collect();
        for gone in std::mem::replace(&mut self.previous, answered.clone()) {
            if !answered.contains(&gone) {
                self.remove(&gone);
            }
        }
        for object in &objects {
            self.take(object)?;
        }
        Ok(())
    }

    /// Applies an object and reports the result.
    fn take(&mut self, object: &Value) -> io::Result<()> {
        let stack = text(object, "stack_id");
        let empty = text(object, "yaml_content").trim().is_empty();
        let applied = self.settled || empty || self.rng.u8(..) >= 12;
        if empty {
            self.remove(&stack);
        } else if applied {
            let _ = self.cluster.insert(stack, text(object, "yaml_checksum"));
        }
        self.failed |= !applied;
        let mut event = json!({
            "agent_id": self.id, "deployment_object_id": object["id"], "event_type": "DEPLOY",
            "status": if applied { "SUCCESS" } else { "FAILURE" }, "message": null,
        });
        if self.socket.is_some() {
            // Over the socket the whole event is sent, with an id and times that the broker replaces.
            for (key, value) in [
                ("id", json!("00000000-0000-0000-0000-000000000000")),
                ("created_at", json!("2024-01-01T00:00:00Z")),
                ("updated_at", json!("2024-01-01T00:00:00Z")),
                ("deleted_at", json!(null)),
            ] {
                event[key] = value;
            }
            if self.over_socket("agent_event", &event) {
                return Ok(());
            }
        }
        let path = format!("/agents/{}/events", self.id);
        let _ = self.ask("POST", &path, Some(&event))?;
        Ok(())
    }

    /// Opens the socket where it is missing and reads pushes. Pushes are only hints: the agent polls regardless.
    fn tend_socket(&mut self) {
        if !self.prefers_socket {
            return;
        }
        if !self.settled && self.rng.u8(..) < 6 {
            // The network fails silently.
            self.socket = None;
        }
        while let Some(socket) = &mut self.socket {
            match socket.within(Duration::from_millis(1)) {
                Came::Frame(_) => self.frames += 1,
                Came::Nothing => return,
                Came::End(_) => self.socket = None,
            }
        }
        let bearer = format!("Bearer {}", self.api.pak);
        let headers = [("Authorization", bearer.as_str())];
        if let Ok(Ok(socket)) = Socket::try_ask(&self.api.addr, "/internal/ws/agent", &headers) {
            self.socket = Some(socket);
        }
    }

    /// Sends a frame if a socket is open. The agent never learns that it arrived.
    fn over_socket(&mut self, kind: &str, body: &Value) -> bool {
        let Some(socket) = &mut self.socket else {
            return false;
        };
        let text = json!({ "type": kind, "body": body }).to_string();
        let sent = socket.message(Message::Text(text.into())).is_ok();
        if sent {
            self.frames += 1;
        } else {
            self.socket = None;
        }
        sent
    }

    fn remove(&mut self, stack: &str) {
        if self.cluster.remove(stack).is_some() {
            self.removed.push(stack.to_owned());
        }
    }

    /// Sends a request on the kept connection, as pooling HTTP clients do. It is sent again on a new connection if the
    /// old was closed before any answer and repeating does no harm.
    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Response> {
        let bearer = format!("Bearer {}", self.api.pak);
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/json"),
        ];
        let bytes = body.map(Value::to_string);
        let bytes = bytes.as_deref().map(str::as_bytes);
        let path = format!("/api/v1{path}");
        let answer = match self.kept.take() {
            Some(mut kept) => kept
                .request(method, &path, &headers, bytes)
                .map(|answer| (kept, answer)),
            None => Err(io::Error::other("none kept")),
        };
        let (connection, answer) = match answer {
            Ok(both) => both,
            Err(_) => {
                let mut fresh = Connection::open(&self.api.addr)?;
                let answer = fresh.request(method, &path, &headers, bytes)?;
                (fresh, answer)
            }
        };
        if !answer.closes() {
            self.kept = Some(connection);
        }
        match answer.status {
            200..=299 => Ok(answer),
            503 => Err(io::Error::other("503")),
            status => panic!("{method} {path}: {status} {}", answer.text()),
        }
    }

    fn send_and_hang_up(&mut self, path: &str) {
        let bearer = format!("Bearer {}", self.api.pak);
        if let Ok(mut connection) = Connection::open(&self.api.addr) {
            let headers = [("Authorization", bearer.as_str())];
            let _ = connection.send("GET", &format!("/api/v1{path}"), &headers, None);
        }
    }
}

fn text(object: &Value, key: &str) -> String {
    object[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {object}"))
        .to_owned()
}
