//! Clients that never rest: each belongs to one tenant, checks every answer and remembers every write.

mod asking;
#[cfg(test)]
mod tests;

use super::account::{Diary, Kind, Tally};
use super::excuse::Excuses;
use super::ledger::{Agent, Home, Ledger};
use crate::http::Addr;
use asking::{Held, Outcome};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Between two requests of one client: the load is constant, not as much as the host can bear.
const PAUSE: Duration = Duration::from_millis(20);
/// And after an answer that says to come again later: a little more, so that an outage does not end in a storm of them.
const PAUSE_LATER: Duration = Duration::from_millis(100);
/// Agents of one client that live at once; the next creation is preceded by a deletion.
const MOST_AGENTS: usize = 8;
/// Connections opened at once, now and then.
const BURST: usize = 8;
/// The longest a request is in flight because its client takes its time. The supervisor answers in a broker's place only
/// whom it has heard out within two seconds.
const SLOWEST: u64 = 1200;

/// What all clients of a host share.
#[derive(Debug, Default)]
pub struct Shared {
    /// What may fail.
    pub excuses: Excuses,
    /// What happened.
    pub diary: Diary,
    ended: AtomicBool,
}

impl Shared {
    /// No client begins another request.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Where a tenant answers, and its administrator.
#[derive(Debug, Clone)]
pub struct Address {
    /// The tenant's name: with it, and a hyphen, every name in its data begins.
    pub tenant: String,
    /// Where it listens.
    pub addr: Addr,
    /// Its admin PAK.
    pub pak: String,
}

/// One client of one tenant.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    address: Address,
    name: &'static str,
    keep_alive: bool,
    stranger: Option<String>,
    dice: fastrand::Rng,
    kept: Option<Held>,
    /// In the middle of the next request with a body.
    pause: Option<Duration>,
    written: u64,
    tally: Tally,
    ledger: Ledger,
}

impl Client {
    /// One that has not asked anything yet.
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

    /// Has it try another tenant's PAK now and then, which is worth nothing here.
    pub fn knows(&mut self, pak: &str) {
        self.stranger = Some(pak.into());
    }

    /// Asks until the end: what it saw, and what it was promised.
    pub fn run(mut self) -> (Tally, Ledger) {
        while !self.shared.ended.load(Ordering::Relaxed) {
            let before = self.tally.unavailable + self.tally.stood_in;
            self.once();
            let later = self.tally.unavailable + self.tally.stood_in > before;
            std::thread::sleep(if later { PAUSE_LATER } else { PAUSE });
        }
        // The last word of all: with nothing amiss any more, everything is read once again.
        self.list();
        (self.tally, self.ledger)
    }

    /// One request, whichever the dice say.
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

    /// A name nobody has used. Names grow.
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

    /// One creation in four is slow: in flight for longer than a broker needs to start, or to be told to go.
    fn create(&mut self) {
        let name = self.next_name();
        if self.dice.u32(..4) == 0 {
            self.pause = Some(Duration::from_millis(self.dice.u64(..SLOWEST)));
        }
        if let Some((agent, _)) = self.create_agent(&name) {
            self.ledger.created(name, agent);
        }
    }

    /// The new agent and its status, when it was acknowledged.
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

    /// An agent reads itself, with its own PAK.
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

    /// Another tenant's administrator is nobody here.
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

    /// Many connections at once: some wait in the backlog, whoever serves.
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
