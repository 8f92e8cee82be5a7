//! The results of the probers, as published to the fleet.

use crate::budget::{AdmittedTenant, ConnectionTarget, Facts, ServerId};
use brokkr_tenant::{DatabaseUrl, TenantName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// State of every URL and server at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServersView {
    /// Every wanted URL.
    pub endpoints: BTreeMap<DatabaseUrl, Endpoint>,
    /// Every server that a wanted URL leads to, or led to when it was last up.
    pub servers: BTreeMap<ServerId, ServerView>,
    /// Present names of servers, by the address names they have had, or would have, while no URL could identify them.
    pub aliases: BTreeMap<ServerId, ServerId>,
}

/// The server that a URL leads to, or the reason why there is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoint {
    /// Not tried yet.
    Unknown,
    /// No server answers now. The URL is tried again several times a second.
    Unreachable {
        /// Reason in words, without secrets.
        reason: String,
        /// Time since which the URL is unreachable.
        since: Instant,
        /// The server it led to when it was last up.
        last: Option<ConnectionTarget>,
    },
    /// A server answers but is not usable for a tenant: a wrong password, no such database, a pooler that shares
    /// backends, a standby. The URL is tried again every few seconds, because the server may be corrected.
    Refused {
        /// Reason in words, without secrets.
        reason: String,
        /// The server it led to when it was last usable.
        last: Option<ConnectionTarget>,
        /// True when the server was usable before and only refuses writes now. The URL is tried again several times a
        /// second, because this may end without any change to this host.
        passing: bool,
    },
    /// A usable server for a tenant.
    Ready(ConnectionTarget),
}

impl Endpoint {
    /// Returns the place it leads to, or led to when last known.
    pub fn place(&self) -> Option<&ConnectionTarget> {
        match self {
            Endpoint::Unknown => None,
            Endpoint::Unreachable { last, .. } | Endpoint::Refused { last, .. } => last.as_ref(),
            Endpoint::Ready(place) => Some(place),
        }
    }

    /// Returns true when the server was usable before and only refuses writes now.
    pub fn takes_no_writes(&self) -> bool {
        matches!(self, Endpoint::Refused { passing: true, .. })
    }

    /// Returns the reason why a tenant cannot start there now, if any.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Endpoint::Unknown => Some("its server has not been tried yet"),
            Endpoint::Unreachable { reason, .. } | Endpoint::Refused { reason, .. } => Some(reason),
            Endpoint::Ready(_) => None,
        }
    }
}

/// State of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerView {
    /// Its settings and limits, as read when it was last up.
    pub facts: Facts,
    /// True when the server answers.
    pub up: bool,
    /// Reason why it does not answer.
    pub reason: Option<String>,
    /// Time since which it has been up or down.
    pub since: Instant,
    /// Time of the query that `ours` and `in_use` come from.
    pub sampled: Instant,
    /// Backends of this host's tenants by tenant and database OID: of instances, commands, and killed brokers.
    pub ours: BTreeMap<(TenantName, u32), BTreeSet<i32>>,
    /// Backends of tenants with a login role of their own, by role.
    pub ours_by_role: BTreeMap<String, BTreeSet<i32>>,
    /// Number of all connections of this host's brokkr programs, the supervisor's own included.
    pub in_use: u32,
    /// `server_version`.
    pub version: String,
    /// True when a pooler in session mode stands in front; its own limits are unknown.
    pub pooler: bool,
    /// Warnings for the operator: an identity that may not be read, a URL that names a superuser.
    pub warnings: Vec<String>,
}

impl ServerView {
    /// Returns a server of which only these facts are known.
    pub fn unseen(facts: Facts) -> Self {
        let now = Instant::now();
        Self {
            facts,
            up: false,
            reason: None,
            since: now,
            sampled: now,
            ours: BTreeMap::new(),
            ours_by_role: BTreeMap::new(),
            in_use: 0,
            version: String::new(),
            pooler: false,
            warnings: Vec::new(),
        }
    }
}

impl ServersView {
    /// Returns true when the views differ at most in the time of the last count.
    pub(super) fn same_but_for_times(&self, other: &Self) -> bool {
        let timeless = |view: &Self| {
            let mut servers = view.servers.clone();
            servers
                .values_mut()
                .for_each(|server| server.sampled = server.since);
            servers
        };
        self.endpoints == other.endpoints
            && self.aliases == other.aliases
            && timeless(self) == timeless(other)
    }

    /// Returns true when both views lead to the same decisions about tenants.
    pub fn decides_as(&self, other: &Self) -> bool {
        let facts_differ = |(id, server): (&ServerId, &ServerView)| {
            self.servers.get(id).map(|own| &own.facts) != Some(&server.facts)
        };
        self.endpoints == other.endpoints
            && self.aliases == other.aliases
            && self.servers.len() == other.servers.len()
            && !other.servers.iter().any(facts_differ)
    }

    /// Returns the facts by server, for the budget.
    pub fn facts(&self) -> BTreeMap<ServerId, Facts> {
        self.servers
            .iter()
            .map(|(id, server)| (id.clone(), server.facts.clone()))
            .collect()
    }

    /// Returns the admitted list with the present names of servers.
    pub fn by_present_names(&self, admitted: &[AdmittedTenant]) -> Vec<AdmittedTenant> {
        let rename = |server: &mut ServerId| {
            if let Some(name) = self.aliases.get(server) {
                server.clone_from(name);
            }
        };
        let mut admitted = admitted.to_vec();
        for admission in &mut admitted {
            let database = admission
                .schema_and_address
                .as_mut()
                .and_then(|s| s.database.as_mut());
            let of_database = database.map(|(server, _)| server);
            admission
                .server
                .iter_mut()
                .chain(of_database)
                .for_each(rename);
        }
        admitted
    }

    /// Returns the endpoint of a URL; `Unknown` when it is not wanted.
    pub fn endpoint(&self, url: &DatabaseUrl) -> &Endpoint {
        self.endpoints.get(url).unwrap_or(&Endpoint::Unknown)
    }

    /// Returns the server that a URL leads to, if ever seen.
    #[cfg(test)]
    pub fn server(&self, url: &DatabaseUrl) -> Option<(&ServerId, &ServerView)> {
        self.servers
            .get_key_value(&self.endpoint(url).place()?.server)
    }
}
