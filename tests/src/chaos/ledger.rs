//! The writes of one client, and the check that its tenant's data has them.
//!
//! Every agent's name is used once. An acknowledged write must be there. A write whose answer was lost, or was 503, may
//! have taken effect or not, and may still take effect when a frozen server goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

/// Time after which a write can no longer take effect: its server or its broker ends an abandoned statement much
/// earlier.
const LATE: Duration = Duration::from_secs(60);

/// An agent whose creation was acknowledged.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The agent's id.
    pub id: String,
    /// The agent's PAK.
    pub pak: String,
}

/// The agent of a client that is never deleted: its status changes and it sends heartbeats.
#[derive(Debug)]
pub struct Home {
    /// The agent's name.
    pub name: String,
    /// The agent's id and PAK.
    pub agent: Agent,
    /// The last acknowledged status.
    status: String,
    /// Statuses that were sent later and may have been written, or may yet be.
    maybe: Vec<(String, Instant)>,
    /// Send times of acknowledged heartbeats in order, as many as a crash could lose.
    beats: VecDeque<SystemTime>,
}

/// A crash of the server: the time when it was killed and the time when it had started again.
///
/// A crash may lose the heartbeats before it, because they alone are written without waiting for the disk
/// (`synchronous_commit`). They reach the disk within a second on an idle server, and later when its processes wait for
/// a processor.
pub type Crash = (SystemTime, SystemTime);

/// Age up to which a crash may lose a heartbeat.
const UNWRITTEN: Duration = Duration::from_secs(6);

impl Home {
    /// Makes the record of a newly created agent.
    pub fn new(name: String, agent: Agent, status: String) -> Self {
        Self {
            name,
            agent,
            status,
            maybe: Vec::new(),
            beats: VecDeque::new(),
        }
    }

    /// Notes an acknowledged heartbeat, sent at `sent`.
    pub fn beaten(&mut self, sent: SystemTime) {
        self.beats.push_back(sent);
        if self.beats.len() > 500 {
            self.beats.pop_front();
        }
    }

    /// Returns the latest heartbeat that no crash may have lost.
    fn beat(&self, crashes: &[Crash]) -> Option<SystemTime> {
        let lost = |beat: &SystemTime| {
            let of = |(from, to): &Crash| *from - UNWRITTEN <= *beat && beat <= to;
            crashes.iter().any(of)
        };
        self.beats.iter().rev().find(|beat| !lost(beat)).copied()
    }

    /// Notes an acknowledged change.
    pub fn changed(&mut self, status: String) {
        self.status = status;
        self.maybe.retain(|(_, sent)| sent.elapsed() < LATE);
    }

    /// Notes a change without an answer.
    pub fn perhaps_changed(&mut self, status: String) {
        self.maybe.push((status, Instant::now()));
    }

    /// Checks a status that was read.
    ///
    /// # Errors
    /// A sentence that says which status was expected.
    pub fn check(&self, status: &str) -> Result<(), String> {
        if status == self.status || self.maybe.iter().any(|(maybe, _)| maybe == status) {
            return Ok(());
        }
        Err(format!(
            "agent {} has status {status:?}; {:?} was acknowledged last",
            self.name, self.status
        ))
    }
}

/// Everything that one client wrote.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The name of the tenant.
    pub tenant: String,
    there: BTreeMap<String, Agent>,
    maybe: BTreeSet<String>,
    gone: BTreeSet<String>,
    /// The client's own agent.
    pub home: Option<Home>,
}

/// An agent's row as read at the end.
#[derive(Debug, Clone)]
pub struct Row {
    /// The agent's name, which begins with the tenant and the client.
    pub name: String,
    /// True when the row is marked as deleted.
    pub deleted: bool,
    /// The agent's status.
    pub status: String,
    /// The time of the last heartbeat.
    pub beat: Option<SystemTime>,
}

impl Ledger {
    /// Makes an empty ledger.
    pub fn new(tenant: &str) -> Self {
        Self {
            tenant: tenant.into(),
            ..Self::default()
        }
    }

    /// Notes an acknowledged creation (201).
    pub fn created(&mut self, name: String, agent: Agent) {
        self.there.insert(name, agent);
    }

    /// Notes a creation or a deletion whose effect is unknown.
    pub fn unknown(&mut self, name: &str) {
        self.there.remove(name);
        self.maybe.insert(name.into());
    }

    /// Notes an acknowledged deletion (204).
    pub fn deleted(&mut self, name: &str) {
        self.there.remove(name);
        self.gone.insert(name.into());
    }

    /// Returns the number of agents that must be there.
    pub fn living(&self) -> usize {
        self.there.len()
    }

    /// Returns the nth of the agents that must be there.
    pub fn nth(&self, n: usize) -> Option<(String, Agent)> {
        let (name, agent) = self.there.iter().nth(n)?;
        Some((name.clone(), agent.clone()))
    }

    /// Returns the agent that was created first; names grow in order.
    pub fn oldest(&self) -> Option<(String, Agent)> {
        self.nth(0)
    }

    /// Checks the names of a complete list of living agents.
    ///
    /// # Errors
    /// The first violation, in words.
    pub fn check_living(&self, names: &BTreeSet<&str>) -> Result<(), String> {
        let home = self.home.iter().map(|home| &home.name);
        for name in self.there.keys().chain(home) {
            if !names.contains(name.as_str()) {
                return Err(format!("agent {name} was acknowledged and is not there"));
            }
        }
        if let Some(name) = self.gone.iter().find(|name| names.contains(name.as_str())) {
            return Err(format!(
                "agent {name} is there, and its deletion was acknowledged"
            ));
        }
        Ok(())
    }

    /// Checks every row of the tenant's table at the end and returns all violations.
    pub fn check_rows(&self, rows: &[Row], crashes: &[Crash]) -> Vec<String> {
        let mut wrong = Vec::new();
        let living: BTreeSet<&str> = rows
            .iter()
            .filter(|row| !row.deleted)
            .map(|row| row.name.as_str())
            .collect();
        wrong.extend(self.check_living(&living).err());
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows {
            *times.entry(&row.name).or_default() += 1;
        }
        for name in self.there.keys().chain(&self.gone).chain(&self.maybe) {
            match times.get(name.as_str()) {
                Some(1) => {}
                Some(n) => wrong.push(format!("agent {name} is there {n} times")),
                None if self.maybe.contains(name) => {}
                None => wrong.push(format!(
                    "agent {name} was acknowledged and has left no row at all"
                )),
            }
        }
        if let Some(home) = &self.home {
            match rows.iter().find(|row| row.name == home.name) {
                Some(row) => {
                    wrong.extend(home.check(&row.status).err());
                    let beat = home.beat(crashes);
                    if row.beat < beat {
                        wrong.push(format!(
                            "agent {}: a heartbeat at {beat:?} was acknowledged, the last one there is {:?}",
                            home.name, row.beat
                        ));
                    }
                }
                None => wrong.push(format!("agent {} has left no row at all", home.name)),
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Agent {
        Agent {
            id: "1".into(),
            pak: "p".into(),
        }
    }

    fn row(name: &str, deleted: bool) -> Row {
        Row {
            name: name.into(),
            deleted,
            status: "s1".into(),
            beat: None,
        }
    }

    #[test]
    fn acknowledged_writes_must_be_there_once_and_unknown_ones_may_be() {
        let mut ledger = Ledger::new("a");
        ledger.created("a-1".into(), agent());
        ledger.created("a-2".into(), agent());
        ledger.deleted("a-2");
        ledger.unknown("a-3");
        let good = [row("a-1", false), row("a-2", true)];
        assert_eq!(ledger.check_rows(&good, &[]), Vec::<String>::new());
        let late = [row("a-1", false), row("a-2", true), row("a-3", false)];
        assert_eq!(ledger.check_rows(&late, &[]), Vec::<String>::new());

        let broken: [&[Row]; 5] = [
            &[row("a-2", true)],
            &[row("a-1", true), row("a-2", true)],
            &[row("a-1", false), row("a-2", false)],
            &[row("a-1", false), row("a-1", true), row("a-2", true)],
            &[
                row("a-1", false),
                row("a-2", true),
                row("a-3", false),
                row("a-3", false),
            ],
        ];
        for rows in broken {
            assert!(!ledger.check_rows(rows, &[]).is_empty(), "{rows:?}");
        }
    }

    #[test]
    fn a_value_is_the_last_acknowledged_write_or_a_write_that_may_come_late() {
        let mut home = Home::new("a-0".into(), agent(), "s0".into());
        home.perhaps_changed("s1".into());
        home.changed("s2".into());
        assert!(home.check("s2").is_ok());
        assert!(home.check("s1").is_ok());
        assert!(home.check("s0").is_err());
    }

    #[test]
    fn a_heartbeat_that_was_acknowledged_is_not_older_at_the_end_unless_a_crash_could_lose_it() {
        let mut ledger = Ledger::new("a");
        let mut home = Home::new("a-0".into(), agent(), "s1".into());
        let now = SystemTime::now();
        let before = now - Duration::from_secs(20);
        home.beaten(before);
        home.beaten(now);
        ledger.home = Some(home);
        let wrong = |beat, crashes: &[Crash]| {
            let row = Row {
                beat,
                ..row("a-0", false)
            };
            ledger.check_rows(&[row], crashes).len()
        };
        assert_eq!(wrong(Some(now), &[]), 0);
        assert_eq!(wrong(None, &[]), 1);
        assert_eq!(wrong(Some(before), &[]), 1);
        let crash = |at| (at, at + Duration::from_secs(2));
        assert_eq!(
            wrong(Some(before), &[crash(now + Duration::from_secs(1))]),
            0
        );
        assert_eq!(wrong(None, &[crash(now + Duration::from_secs(1))]), 1);
        assert_eq!(
            wrong(Some(before), &[crash(now - Duration::from_secs(5))]),
            1
        );
    }
}
