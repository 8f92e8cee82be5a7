//! Clients under constant load: each belongs to one tenant, checks every answer and remembers every write.

mod asking;
#[cfg(test)]
mod tests;

use super::account::{Diary, Kind, Tally};
use super::allowed_failures::AllowedFailures;
use super::ledger::{Agent, Home, Ledger};
use crate::http::Addr;
use asking::{Held, Outcome};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Pause between two requests of a client: the load is constant, not the most that the host can bear.
const PAUSE: Duration = Duration::from_millis(20);
/// Pause after an answer 503: longer, so that the end of an outage brings no storm of requests.
const PAUSE_LATER: Duration = Duration::from_millis(100);
/// The largest number of agents that one client keeps; another creation deletes the oldest first.
const MOST_AGENTS: usize = 8;
/// Number of connections that a burst opens at once.
const BURST: usize = 8;
/// The longest that a client delays its own request, in milliseconds. It is below two seconds because the supervisor
/// answers in a broker's place only requests that arrive completely within two seconds.
const SLOWEST: u64 = 1200;

/// State that all clients of a host share.
#[derive(Debug, Default)]
pub struct Shared {
    /// The failures that are allowed.
    pub allowed_failures: AllowedFailures,
    /// The diary of the run.
    pub diary: Diary,
    ended: AtomicBool,
}

impl Shared {
    /// Tells all clients to send no further request.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A tenant's address and its admin PAK.
#[derive(Debug, Clone)]
pub struct Address {
    /// The tenant's name. Every name in the tenant's data begins with it and a hyphen.
    pub tenant: String,
    /// The address on which the tenant's broker listens.
    pub addr: Addr,
    /// The admin PAK.
    pub pak: String,
}

/// A client of one tenant.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    address: Address,
    name: &'static str,
    keep_alive: bool,
    stranger: Option<String>,
    dice: fastrand::Rng,
    kept: Option<Held>,
    /// Pause in the middle of the next request with a body.
    pause: Option<Duration>,
    written: u64,
    tally: Tally,
    ledger: Ledger,
}

impl Client {
    /// Makes a client that has sent no request yet.
    pub fn new(
        shared: Arc<Shared>,
        address: Address,
        name: &'static str,
        keep_alive: bool,
        dice: fastrand::Rng,
    ) -> Self {
        Self {
            ledger: Ledger::new(&address.tenant),
            shared,
            address,
            name,
            keep_alive,
            stranger: None,
            dice,
            kept: None,
            pause: None,
            written: 0,
            tally: Tally::default(),
        }
    }

    /// Sets the PAK of another tenant, which this tenant must refuse; the client tries it now and then.
    pub fn knows(&mut self, pak: &str) {
        self.stranger = Some(pak.into());
    }

    /// Sends requests until the end. Returns the counts, and the writes that the tenant must have.
    pub fn run(mut self) -> (Tally, Ledger) {
        while !self.shared.ended.load(Ordering::Relaxed) {
            let before = self.tally.unavailable + self.tally.stood_in;
            self.once();
            let later = self.tally.unavailable + self.tally.stood_in > before;
            std::thread::sleep(if later { PAUSE_LATER } else { PAUSE });
        }
        // Read everything once more after all faults have ended.
        self.list();
        (self.tally, self.ledger)
    }

    /// Sends one request of a random kind.
    fn once(&mut self) {
        if self.ledger.home.is_none() {
            return self.settle();
        }
        match self.dice.u32(..100) {
            0..30 => self.read_one(),
            30..40 => self.read_home(),
            40..55 => self.list(),
            55..70 if self.ledger.living() < MOST_AGENTS => self.create(),
            55..70 => self.delete(),
            70..82 => self.change_home(),
            82..94 => self.beat(),
            94..96 => self.be_a_stranger(),
            96..98 => self.burst(),
            _ => self.healthz(),
        }
    }

    /// Returns a new name; names grow in order.
    fn next_name(&mut self) -> String {
        self.written += 1;
        format!("{}-{}-{:07}", self.address.tenant, self.name, self.written)
    }

    fn settle(&mut self) {
        let name = self.next_name();
        if let Some((agent, status)) = self.create_agent(&name) {
            self.ledger.home = Some(Home::new(name, agent, status));
        }
    }

    /// Creates an agent. One creation in four is in flight for longer than a broker needs to start or to begin
    /// draining.
    fn create(&mut self) {
        let name = self.next_name();
        if self.dice.u32(..4) == 0 {
            self.pause = Some(Duration::from_millis(self.dice.u64(..SLOWEST)));
        }
        if let Some((agent, _)) = self.create_agent(&name) {
            self.ledger.created(name, agent);
        }
    }

    /// Returns the new agent and its status when the creation was acknowledged.
    fn create_agent(&mut self, name: &str) -> Option<(Agent, String)> {
        let body = json!({ "name": name, "cluster_name": self.address.tenant });
        let admin = self.address.pak.clone();
        let answer = self.write("POST", "/agents", &admin, Some(&body), 201);
        let Some(answer) = answer else {
            self.ledger.unknown(name);
            return None;
        };
        let answer = self.body(&answer)?;
        self.is_named(&answer["agent"], name);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let agent = Agent {
            id: text(&answer["agent"]["id"]),
            pak: text(&answer["initial_pak"]),
        };
        Some((agent, text(&answer["agent"]["status"])))
    }

    fn delete(&mut self) {
        let Some((name, agent)) = self.ledger.oldest() else {
            return;
        };
        let path = format!("/agents/{}", agent.id);
        let admin = self.address.pak.clone();
        match self.write("DELETE", &path, &admin, None, 204) {
            Some(_) => self.ledger.deleted(&name),
            None => self.ledger.unknown(&name),
        }
    }

    /// Reads an agent with the agent's own PAK.
    fn read_one(&mut self) {
        let n = self.dice.usize(..MOST_AGENTS);
        let Some((name, agent)) = self.ledger.nth(n) else {
            return self.read_home();
        };
        self.read_agent(&name, &agent);
    }

    fn read_agent(&mut self, name: &str, agent: &Agent) -> Option<Value> {
        let path = format!("/agents/{}", agent.id);
        let answer = match self.call("GET", &path, &agent.pak, None) {
            Outcome::Answer(answer) => answer,
            Outcome::Unknown => return None,
        };
        if [401, 404].contains(&answer.status) {
            let text = answer.text();
            self.bad(
                Kind::Lost,
                format!(
                    "agent {name} was acknowledged; it reads itself and gets {} {text}",
                    answer.status
                ),
            );
            return None;
        }
        let answer = self.expect("GET", &path, answer, 200)?;
        let agent = self.body(&answer)?;
        self.is_named(&agent, name);
        Some(agent)
    }

    fn read_home(&mut self) {
        let Some(home) = &self.ledger.home else {
            return;
        };
        let (name, agent) = (home.name.clone(), home.agent.clone());
        let Some(read) = self.read_agent(&name, &agent) else {
            return;
        };
        let status = read["status"].as_str().unwrap_or_default();
        if let Some(Err(wrong)) = self.ledger.home.as_ref().map(|home| home.check(status)) {
            self.bad(Kind::Lost, wrong);
        }
    }

    fn list(&mut self) {
        let admin = self.address.pak.clone();
        let Some(answer) = self.read("/agents", &admin) else {
            return;
        };
        let Some(answer) = self.body(&answer) else {
            return;
        };
        let agents = answer.as_array().map_or(&[][..], Vec::as_slice);
        let names: BTreeSet<&str> = agents.iter().filter_map(|a| a["name"].as_str()).collect();
        let own = format!("{}-", self.address.tenant);
        if let Some(strange) = names.iter().find(|name| !name.starts_with(&own)) {
            self.bad(Kind::WrongTenant, format!("lists agent {strange}"));
        }
        if names.len() != agents.len() {
            self.bad(Kind::Lost, "lists an agent twice");
        }
        if let Err(wrong) = self.ledger.check_living(&names) {
            self.bad(Kind::Lost, wrong);
        }
    }

    fn change_home(&mut self) {
        let Some(home) = &self.ledger.home else {
            return;
        };
        let agent = home.agent.clone();
        self.written += 1;
        let status = format!("s{}", self.written);
        let body = json!({ "status": status });
        let path = format!("/agents/{}", agent.id);
        let answer = self.write("PUT", &path, &agent.pak, Some(&body), 200);
        let Some(home) = &mut self.ledger.home else {
            return;
        };
        match answer {
            Some(_) => home.changed(status),
            None => home.perhaps_changed(status),
        }
    }

    fn beat(&mut self) {
        let Some(home) = &self.ledger.home else {
            return;
        };
        let agent = home.agent.clone();
        let path = format!("/agents/{}/heartbeat", agent.id);
        let sent = SystemTime::now();
        if self.write("POST", &path, &agent.pak, None, 204).is_some()
            && let Some(home) = &mut self.ledger.home
        {
            home.beaten(sent);
        }
    }

    /// Sends a request with another tenant's admin PAK, which must be refused.
    fn be_a_stranger(&mut self) {
        let Some(pak) = self.stranger.clone() else {
            return;
        };
        let Outcome::Answer(answer) = self.call("GET", "/agents", &pak, None) else {
            return;
        };
        if answer.status == 200 {
            self.bad(
                Kind::WrongTenant,
                format!("took another tenant's PAK: {}", answer.text()),
            );
        } else {
            self.expect(
                "GET",
                "/agents, as another tenant's administrator",
                answer,
                401,
            );
        }
    }

    /// Opens many connections at once, so that some wait in the listener's backlog.
    fn burst(&mut self) {
        let Some(home) = &self.ledger.home else {
            return;
        };
        let (name, agent) = (home.name.clone(), home.agent.clone());
        let path = format!("/api/v1/agents/{}", agent.id);
        for answer in self.ask_at_once(BURST, &path, &agent.pak) {
            let answer = self.expect("GET", &path, answer, 200);
            if let Some(agent) = answer.and_then(|answer| self.body(&answer)) {
                self.is_named(&agent, &name);
            }
        }
    }

    fn healthz(&mut self) {
        if let Outcome::Answer(answer) = self.ask("GET", "/healthz", "", None) {
            self.expect("GET", "/healthz", answer, 200);
        }
    }
}
