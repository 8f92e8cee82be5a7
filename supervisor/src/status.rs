//! What the supervisor says of itself: the JSON of `status --format json`, and nothing that is not in it.
//!
//! Keys may be added, never renamed; what is unknown is `null`.

use serde::{Deserialize, Serialize};
use std::time::Instant;

/// One consistent picture of every tenant and every server, made by the fleet after each change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every tenant that has a file, or still has an instance, by name.
    pub tenants: Vec<TenantStatus>,
    /// Every PostgreSQL server some tenant's URL leads to, by id.
    pub servers: Vec<ServerStatus>,
    /// What is wrong that is no single tenant's: an unreadable `tenants_dir`, held removals, a missing group.
    #[serde(default)]
    pub notices: Vec<String>,
    /// When it was made: ages in it are as of then.
    #[serde(skip)]
    pub taken: Option<Instant>,
}

impl Snapshot {
    /// The same picture with its ages as of now.
    #[must_use]
    pub fn aged(&self) -> Self {
        let mut aged = self.clone();
        let Some(taken) = aged.taken.replace(Instant::now()) else {
            return aged;
        };
        let passed = taken.elapsed().as_secs_f64();
        for tenant in &mut aged.tenants {
            tenant.uptime_s = tenant.uptime_s.map(|s| s + passed);
            tenant.next_try_s = tenant.next_try_s.map(|s| (s - passed).max(0.0));
        }
        aged
    }
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// The tenant's name.
    pub name: String,
    /// Where its `current` instance is in its life.
    pub state: State,
    /// Why it is in that state, where the state alone does not say it.
    pub reason: Option<String>,
    /// What is wanted, and why it is not so yet.
    pub pending: Option<String>,
    /// Process id of the current instance.
    pub pid: Option<i32>,
    /// Seconds since the current instance was spawned.
    pub uptime_s: Option<f64>,
    /// Unplanned exits since the supervisor first saw this tenant.
    pub restarts: u64,
    /// The running instance's listen address, or the one wanted when none runs.
    pub listen: Option<String>,
    /// The running instance's schema, or the one wanted when none runs.
    pub schema: Option<String>,
    /// The running instance's pool, or the one wanted when none runs.
    pub pool_size: Option<u32>,
    /// Id of the server it uses.
    pub server: Option<String>,
    /// Seconds until the next try, in `backoff`.
    #[serde(default)]
    pub next_try_s: Option<f64>,
    /// Last lines of the last instance that ended unplanned.
    #[serde(default)]
    pub last_words: Vec<String>,
    /// How the last instance that ended unplanned did: what each of its threads was doing, where it was killed because it
    /// was hung.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// Libraries or programs that the current instance executes and that are no longer on disk, after an upgrade say;
    /// `null` until it has been asked.
    #[serde(default)]
    pub deleted_maps: Option<Vec<String>>,
    /// What is wrong with its file, with the source lines and what to write instead.
    #[serde(default)]
    pub problem: Option<String>,
    /// What its file asks for that is not enforced, and other things worth knowing.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One PostgreSQL server and its budget, in connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// `system_identifier`, or the resolved address where that may not be read.
    pub id: String,
    /// The server's `max_connections`.
    pub max_connections: Option<u32>,
    /// `superuser_reserved_connections` and, from 16 on, `reserved_connections`.
    pub reserved: Option<u32>,
    /// What is left for people and other programs.
    pub headroom: Option<u32>,
    /// What tenants may take altogether.
    pub capacity: Option<u32>,
    /// What the admitted tenants, replacements, the supervisor and one command may take.
    pub committed: u32,
    /// Connections of ours the server has now.
    pub in_use: Option<u32>,
    /// False while it cannot be reached.
    #[serde(default)]
    pub up: bool,
    /// Why it is not up, or what `check` warns of.
    #[serde(default)]
    pub reason: Option<String>,
}

/// States of a tenant, as an operator reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// File invalid, schema or address taken, or over budget.
    Refused,
    /// For a start slot or its server.
    Waiting,
    /// Spawned, not ready.
    Starting,
    /// Serves.
    Ready,
    /// Alive, but its server is away.
    Degraded,
    /// Exited; tried again later.
    Backoff,
    /// Draining.
    Stopping,
    /// By the operator, or `enabled = false`.
    Stopped,
}

impl State {
    /// The word used in tables, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Refused => "refused",
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Degraded => "degraded",
            State::Backoff => "backoff",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
