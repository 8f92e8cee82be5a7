//! `status --format json`, as a program outside reads it: only the keys that are promised, and those strictly.

use serde::Deserialize;

/// The whole answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// Every tenant.
    pub tenants: Vec<TenantStatus>,
    /// Every server.
    pub servers: Vec<ServerStatus>,
    /// What is no single tenant's.
    #[serde(default)]
    pub notices: Vec<String>,
}

impl Status {
    /// Reads it.
    ///
    /// # Panics
    /// When it is not what is promised.
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text)
            .unwrap_or_else(|e| panic!("status is not as promised ({e}): {text}"))
    }

    /// One tenant, if it is there.
    pub fn tenant(&self, name: &str) -> Option<&TenantStatus> {
        self.tenants.iter().find(|t| t.name == name)
    }

    /// The word of a tenant's state; empty when there is no such tenant.
    pub fn state(&self, name: &str) -> &str {
        self.tenant(name).map_or("", |t| t.state.as_str())
    }

    /// Whether every tenant is in this state, and there is one.
    pub fn all(&self, state: &str) -> bool {
        !self.tenants.is_empty() && self.tenants.iter().all(|t| t.state == state)
    }
}

/// One tenant.
#[derive(Debug, Clone, Deserialize)]
pub struct TenantStatus {
    /// The tenant's name.
    pub name: String,
    /// The word of its state.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
    /// What is wanted and not so yet.
    pub pending: Option<String>,
    /// Pid of the current instance.
    pub pid: Option<i32>,
    /// Seconds since it was spawned.
    pub uptime_s: Option<f64>,
    /// Unplanned exits.
    pub restarts: u64,
    /// Its address.
    pub listen: Option<String>,
    /// Its schema.
    pub schema: Option<String>,
    /// Its pool.
    pub pool_size: Option<u32>,
    /// Id of its server.
    pub server: Option<String>,
    /// How the last instance that ended unplanned did.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// Last lines of the last instance that ended unplanned.
    #[serde(default)]
    pub last_words: Vec<String>,
    /// Files its broker executes that are no longer on disk.
    #[serde(default)]
    pub deleted_maps: Option<Vec<String>>,
}

impl TenantStatus {
    /// Everything it says in words, for a test to search.
    pub fn words(&self) -> String {
        [self.reason.as_deref(), self.pending.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// One server.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerStatus {
    /// Its id.
    pub id: String,
    /// `max_connections`.
    pub max_connections: Option<u32>,
    /// Reserved for superusers.
    pub reserved: Option<u32>,
    /// Left for people and other programs.
    pub headroom: Option<u32>,
    /// What tenants may take.
    pub capacity: Option<u32>,
    /// What they take.
    pub committed: u32,
    /// What they hold now.
    pub in_use: Option<u32>,
    /// Whether it can be reached.
    #[serde(default)]
    pub up: bool,
}
