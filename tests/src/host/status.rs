//! `status --format json`, parsed strictly and only by its documented keys.

use serde::Deserialize;

/// The whole answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// Every tenant.
    pub tenants: Vec<TenantStatus>,
    /// Every server.
    pub servers: Vec<ServerStatus>,
    /// Notices that concern no single tenant.
    #[serde(default)]
    pub notices: Vec<String>,
}

impl Status {
    /// Parses the answer.
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text)
            .unwrap_or_else(|e| panic!("status is not as promised ({e}): {text}"))
    }

    /// Returns a tenant, if it is listed.
    pub fn tenant(&self, name: &str) -> Option<&TenantStatus> {
        self.tenants.iter().find(|t| t.name == name)
    }

    /// Returns the state of a tenant; empty when it is not listed.
    pub fn state(&self, name: &str) -> &str {
        self.tenant(name).map_or("", |t| t.state.as_str())
    }

    /// Returns true when there are tenants and all are in this state.
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
    /// The reason for its state.
    pub reason: Option<String>,
    /// The change that is wanted and not yet done.
    pub pending: Option<String>,
    /// Pid of the current instance.
    pub pid: Option<i32>,
    /// User id of the current instance.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The layers of the current instance's sandbox; `None` until the instance has answered.
    pub isolation: Option<Vec<serde_json::Value>>,
    /// Seconds since the instance was spawned.
    pub uptime_s: Option<f64>,
    /// Number of unplanned exits.
    pub restarts: u64,
    /// The tenant's address.
    pub listen: Option<String>,
    /// The tenant's schema.
    pub schema: Option<String>,
    /// The size of the tenant's pool.
    pub pool_size: Option<u32>,
    /// The role that its broker logs in as.
    #[serde(default)]
    pub role: Option<String>,
    /// The reason why that role is not the tenant's own.
    #[serde(default)]
    pub role_note: Option<String>,
    /// Id of the tenant's server.
    pub server: Option<String>,
    /// The exit of the last instance that ended unplanned.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// Last lines of the last instance that ended unplanned.
    #[serde(default)]
    pub last_words: Vec<String>,
    /// Files that the broker executes and that were deleted from disk.
    #[serde(default)]
    pub deleted_maps: Option<Vec<String>>,
}

impl TenantStatus {
    /// Returns all its text, for a test to search.
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
    /// The server's id.
    pub id: String,
    /// The server's `max_connections`.
    pub max_connections: Option<u32>,
    /// Connections reserved for superusers.
    pub reserved: Option<u32>,
    /// Connections left for operators and other programs.
    pub headroom: Option<u32>,
    /// Connections that tenants may take.
    pub capacity: Option<u32>,
    /// Connections that tenants take by their pool sizes.
    pub committed: u32,
    /// Connections that tenants hold now.
    pub in_use: Option<u32>,
    /// True when the server can be reached.
    #[serde(default)]
    pub up: bool,
    /// The reason why the server is down, or a warning.
    pub reason: Option<String>,
}
