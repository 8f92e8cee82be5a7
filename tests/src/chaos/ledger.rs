//! What one client was promised, and whether its tenant's data keeps it.
//!
//! Every agent's name is used once. A write that was acknowledged is binding; one whose answer was lost, or was 503, may
//! have taken effect or not, and may still take effect when a server that stood still goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

/// A statement that nobody waits for any more is ended by its server, or its broker, long before this.
const LATE: Duration = Duration::from_secs(60);

/// An agent that was acknowledged.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Its own PAK.
    pub pak: String,
}

/// The one agent of a client that is never deleted: it is changed, and says that it lives.
#[derive(Debug)]
pub struct Home {
    /// Its name.
    pub name: String,
    /// Id and PAK.
    pub agent: Agent,
    /// The last status that was acknowledged.
    status: String,
    /// Statuses that were sent since and may have been written, or be written yet.
    maybe: Vec<(String, Instant)>,
    /// When acknowledged heartbeats were sent, the latest last; no more of them than a crash could lose.
    beats: VecDeque<SystemTime>,
}

/// From when on heartbeats may be lost, and until when: a server that was ended at once, and has started again.
///
/// They alone are written without waiting for the disk (`synchronous_commit`): within a second where a server has nothing
/// else to do, later where its processes have to wait for a processor.
pub type Crash = (SystemTime, SystemTime);

/// So long before a crash.
const UNWRITTEN: Duration = Duration::from_secs(6);

impl Home {
    /// As it was created.
    pub fn new(name: String, agent: Agent, status: String) -> Self {
        Self {
            name,
            agent,
            status,
            maybe: Vec::new(),
            beats: VecDeque::new(),
        }
    }

    /// A heartbeat was acknowledged that was sent then.
    pub fn beaten(&mut self, sent: SystemTime) {
        self.beats.push_back(sent);
        if self.beats.len() > 500 {
            self.beats.pop_front();
        }
    }

    /// The latest heartbeat that no crash may have lost.
    fn beat(&self, crashes: &[Crash]) -> Option<SystemTime> {
        let lost = |beat: &SystemTime| {
            let of = |(from, to): &Crash| *from - UNWRITTEN <= *beat && beat <= to;
            crashes.iter().any(of)
        };
        self.beats.iter().rev().find(|beat| !lost(beat)).copied()
    }

    /// A change was acknowledged.
    pub fn changed(&mut self, status: String) {
        self.status = status;
        self.maybe.retain(|(_, sent)| sent.elapsed() < LATE);
    }

    /// A change had no answer.
    pub fn perhaps_changed(&mut self, status: String) {
        self.maybe.push((status, Instant::now()));
    }

    /// What is wrong with a status that was read, if anything.
    ///
    /// # Errors
    /// In words.
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

/// Everything one client wrote.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The tenant whose data it is.
    pub tenant: String,
    there: BTreeMap<String, Agent>,
    maybe: BTreeSet<String>,
    gone: BTreeSet<String>,
    /// Its own agent.
    pub home: Option<Home>,
}

/// One agent as it was read at the end.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its name, which says whose it is.
    pub name: String,
    /// Whether it is marked as deleted.
    pub deleted: bool,
    /// Its status.
    pub status: String,
    /// Its last heartbeat.
    pub beat: Option<SystemTime>,
}

impl Ledger {
    /// Nothing written yet.
    pub fn new(tenant: &str) -> Self {
        Self {
            tenant: tenant.into(),
            ..Self::default()
        }
    }

    /// 201.
    pub fn created(&mut self, name: String, agent: Agent) {
        self.there.insert(name, agent);
    }

    /// Sent, and not known what came of it: a creation or a deletion.
    pub fn unknown(&mut self, name: &str) {
        self.there.remove(name);
        self.maybe.insert(name.into());
    }

    /// 204.
    pub fn deleted(&mut self, name: &str) {
        self.there.remove(name);
        self.gone.insert(name.into());
    }

    /// Agents that are there for certain.
    pub fn living(&self) -> usize {
        self.there.len()
    }

    /// One of them, by number.
    pub fn nth(&self, n: usize) -> Option<(String, Agent)> {
        let (name, agent) = self.there.iter().nth(n)?;
        Some((name.clone(), agent.clone()))
    }

    /// The one that was created first: names grow.
    pub fn oldest(&self) -> Option<(String, Agent)> {
        self.nth(0)
    }

    /// Looks at the names of a whole list of living agents.
    ///
    /// # Errors
    /// The first promise it breaks.
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

    /// Looks at every row of the tenant's table at the end; gives every promise that is broken.
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
    fn a_change_is_the_last_acknowledged_one_or_one_that_may_come_late() {
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
