//! The supervisor's status: the content of `status --format json`.
//!
//! Keys may be added and are never renamed; unknown values are `null`.

use brokkr_tenant::instance_protocol::IsolationLayer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// A consistent snapshot of all tenants and servers, made by the fleet after each change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every tenant with a file or with an instance, by name.
    pub tenants: Vec<Arc<TenantStatus>>,
    /// Every PostgreSQL server in tenants' URLs, by id.
    pub servers: Vec<ServerStatus>,
    /// Problems that concern no single tenant: an unreadable `tenants_dir`, held removals, a missing cgroup.
    #[serde(default)]
    pub notices: Vec<String>,
    /// The time of the snapshot; `None` before the fleet's first one.
    #[serde(skip)]
    pub taken: Option<Instant>,
}

impl Snapshot {
    /// Returns true when a tenant's uptime or next try changes by itself.
    pub fn has_ages(&self) -> bool {
        self.tenants.iter().any(|tenant| tenant.has_age())
    }

    /// Returns the snapshot with the ages that its tenants have now.
    #[must_use]
    pub fn aged(&self) -> Self {
        let mut aged = self.clone();
        let now = Instant::now();
        for tenant in &mut aged.tenants {
            if tenant.has_age() {
                let tenant = Arc::make_mut(tenant);
                let age = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
                let left = |until: Instant| until.saturating_duration_since(now).as_secs_f64();
                tenant.uptime_s = tenant.spawned.map(age);
                tenant.next_try_s = tenant.next_try.map(left);
            }
        }
        aged
    }
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// The tenant's name.
    pub name: String,
    /// The state of its `current` instance.
    pub state: State,
    /// The reason for the state, where the state alone does not show it.
    pub reason: Option<String>,
    /// The pending change, and the reason why it waits.
    pub pending: Option<String>,
    /// The process id of the current instance.
    pub pid: Option<i32>,
    /// The user id of the current instance; `null` when none runs.
    #[serde(default)]
    pub uid: Option<u32>,
    /// True when no other tenant has this user id (`[isolation] uids`).
    #[serde(default)]
    pub own_uid: Option<bool>,
    /// The time when the current instance was spawned.
    #[serde(skip)]
    pub spawned: Option<Instant>,
    /// The seconds since the current instance was spawned, as of [`Snapshot::aged`].
    pub uptime_s: Option<f64>,
    /// The number of unplanned exits since the supervisor first saw this tenant.
    pub restarts: u64,
    /// The listen address of the running instance, or the wanted address when none runs.
    pub listen: Option<String>,
    /// The schema of the running instance, or the wanted schema when none runs.
    pub schema: Option<String>,
    /// The pool size of the running instance, or the wanted pool size when none runs.
    pub pool_size: Option<u32>,
    /// The role that the broker logs in as; `null` while the name of a provisioned role is unknown.
    #[serde(default)]
    pub role: Option<String>,
    /// The reason why that role is not the tenant's own; `null` for a provisioned role.
    #[serde(default)]
    pub role_note: Option<String>,
    /// True while an instance is starting, which may migrate.
    #[serde(skip)]
    pub starts: bool,
    /// The id of the server it uses.
    pub server: Option<String>,
    /// The time of the next try, in `backoff`.
    #[serde(skip)]
    pub next_try: Option<Instant>,
    /// The seconds until the next try, in `backoff`, as of [`Snapshot::aged`].
    #[serde(default)]
    pub next_try_s: Option<f64>,
    /// The last lines of the last instance that ended unplanned.
    #[serde(default)]
    pub last_words: Vec<String>,
    /// The exit of the last instance that ended unplanned. For an instance killed because it was hung, it includes the
    /// activity of each thread.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// Libraries or programs that the current instance executes although they are deleted from disk, for example after
    /// an upgrade; `null` until they have been checked.
    #[serde(default)]
    pub deleted_maps: Option<Vec<String>>,
    /// The layers of the current instance's sandbox; `null` until the instance has answered.
    #[serde(default)]
    pub isolation: Option<Vec<IsolationLayer>>,
    /// The problem with its file, with source lines and hints.
    #[serde(default)]
    pub problem: Option<String>,
    /// Warnings, for example about settings that are not enforced.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl TenantStatus {
    fn has_age(&self) -> bool {
        self.spawned.is_some() || self.next_try.is_some()
    }
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
    /// The connections left for people and other programs.
    pub headroom: Option<u32>,
    /// The connections for all tenants together.
    pub capacity: Option<u32>,
    /// The connections that admitted tenants, replacements, the supervisor and one command may use.
    pub committed: u32,
    /// The number of our connections on the server.
    pub in_use: Option<u32>,
    /// False while the server cannot be reached.
    #[serde(default)]
    pub up: bool,
    /// The reason why the server is down, or a warning of `check`.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The state of a tenant, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The file is invalid, its schema or address is taken, or the tenant is over budget.
    Refused,
    /// The tenant waits for a start slot or for its server.
    Waiting,
    /// The instance is spawned and not ready yet.
    Starting,
    /// The instance serves.
    Ready,
    /// The instance is alive, but its server is away.
    Degraded,
    /// The instance exited, and the next start waits.
    Backoff,
    /// The instance drains.
    Stopping,
    /// The tenant is stopped by the operator or by `enabled = false`.
    Stopped,
}

impl State {
    /// Returns the word for this state in tables, logs and JSON.
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
