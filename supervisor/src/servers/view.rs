//! What the probers have found.

use crate::budget::{Admission, Facts, Place, ServerId};
use brokkr_tenant::{DatabaseUrl, TenantName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Everything known of every server, at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServersView {
    /// Every wanted URL.
    pub endpoints: BTreeMap<DatabaseUrl, Endpoint>,
    /// Every server some wanted URL leads to, or led to when it was last up.
    pub servers: BTreeMap<ServerId, Server>,
    /// Addresses that have stood for a server, or would, while none of its URLs told which it is; and what it is called now.
    pub aliases: BTreeMap<ServerId, ServerId>,
}

/// Where a URL leads.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoint {
    /// Not tried yet.
    Unknown,
    /// Nothing answers there now. It is tried again several times a second.
    Unreachable {
        /// Why, in words, without secrets.
        reason: String,
        /// Since when.
        since: Instant,
        /// Where it led when it was last up.
        last: Option<Place>,
    },
    /// A server answers, but it is none for a tenant: a wrong password, no such database, a pooler that shares backends, a
    /// standby. It is tried again every few seconds, for any of these can be mended on the server.
    Refused {
        /// Why, in words, without secrets.
        reason: String,
        /// Where it led when it was last good.
        last: Option<Place>,
        /// It was a server for a tenant and takes no writes just now: it is tried again several times a second, for that
        /// may end without anybody touching this host.
        passing: bool,
    },
    /// A server for a tenant.
    Ready(Place),
}

impl Endpoint {
    /// Where it leads, or led when that was last known.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Endpoint::Unknown => None,
            Endpoint::Unreachable { last, .. } | Endpoint::Refused { last, .. } => last.as_ref(),
            Endpoint::Ready(place) => Some(place),
        }
    }

    /// Whether it answers as it did, and only takes no writes now.
    pub fn takes_no_writes(&self) -> bool {
        matches!(self, Endpoint::Refused { passing: true, .. })
    }

    /// Why a tenant cannot start there now, if it cannot.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Endpoint::Unknown => Some("its server has not been tried yet"),
            Endpoint::Unreachable { reason, .. } | Endpoint::Refused { reason, .. } => Some(reason),
            Endpoint::Ready(_) => None,
        }
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// What it has to give, as read when it was last up.
    pub facts: Facts,
    /// Whether it answers.
    pub up: bool,
    /// Why it does not.
    pub reason: Option<String>,
    /// Since when it has been up or down.
    pub since: Instant,
    /// When `ours` and `in_use` were asked for: they tell of nothing earlier.
    pub sampled: Instant,
    /// Backends of this host's tenants in each database, by its OID, as the server shows them: whoever they work for, an
    /// instance, a command, or a broker that was killed.
    pub ours: BTreeMap<(TenantName, u32), BTreeSet<i32>>,
    /// All connections of this machine's brokkr programs, the supervisor's own included.
    pub in_use: u32,
    /// `server_version`.
    pub version: String,
    /// A pooler in session mode stands in front: its own limits are not known here.
    pub pooler: bool,
    /// What an operator should know: identity not permitted to be read, a URL that names a superuser.
    pub warnings: Vec<String>,
}

impl Server {
    /// A server of which only these facts are known.
    pub fn unseen(facts: Facts) -> Self {
        let now = Instant::now();
        Self {
            facts,
            up: false,
            reason: None,
            since: now,
            sampled: now,
            ours: BTreeMap::new(),
            in_use: 0,
            version: String::new(),
            pooler: false,
            warnings: Vec::new(),
        }
    }
}

impl ServersView {
    /// Whether nothing but the time of the last count differs.
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

    /// Facts by server, as the budget takes them.
    pub fn facts(&self) -> BTreeMap<ServerId, Facts> {
        self.servers
            .iter()
            .map(|(id, server)| (id.clone(), server.facts.clone()))
            .collect()
    }

    /// The admitted list with the names that servers have now.
    pub fn by_present_names(&self, admitted: &[Admission]) -> Vec<Admission> {
        let rename = |server: &mut ServerId| {
            if let Some(name) = self.aliases.get(server) {
                server.clone_from(name);
            }
        };
        let mut admitted = admitted.to_vec();
        for admission in &mut admitted {
            let database = admission.seat.as_mut().and_then(|s| s.database.as_mut());
            let of_database = database.map(|(server, _)| server);
            admission
                .server
                .iter_mut()
                .chain(of_database)
                .for_each(rename);
        }
        admitted
    }

    /// The endpoint of a URL; `Unknown` when it is not wanted.
    pub fn endpoint(&self, url: &DatabaseUrl) -> &Endpoint {
        self.endpoints.get(url).unwrap_or(&Endpoint::Unknown)
    }

    /// The server a URL leads to, if it was ever seen.
    pub fn server(&self, url: &DatabaseUrl) -> Option<(&ServerId, &Server)> {
        self.servers
            .get_key_value(&self.endpoint(url).place()?.server)
    }
}
