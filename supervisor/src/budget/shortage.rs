//! Explains a refusal in numbers, and computes remedies.

use super::ServerId;
use std::fmt;

/// The smallest pool: one connection for work and one beside it.
const SMALLEST_POOL: u32 = 2;

/// The limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `max_connections`.
    Server(ServerId),
    /// `datconnlimit`.
    Database {
        /// The database's server.
        server: ServerId,
        /// The database's name.
        name: String,
    },
    /// `rolconnlimit`.
    Role {
        /// The role's server.
        server: ServerId,
        /// The role's name.
        role: String,
    },
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Server(server) => write!(f, "server {server}"),
            Scope::Database { server, name } => write!(f, "database {name} of server {server}"),
            Scope::Role { server, role } => write!(f, "role {role} of server {server}"),
        }
    }
}

/// The missing connections. Displays as one sentence with the numbers and the advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The limit that was reached.
    pub scope: Scope,
    /// The pool wanted.
    pub needs: u32,
    /// The pool the tenant is charged already.
    pub has: u32,
    /// Connections kept beside the pools: for a replacement, the supervisor and a command.
    pub extra: u32,
    /// Connections the scope has to give; `None` while its server has not been seen.
    pub capacity: Option<u32>,
    /// Connections free for this tenant, including those it is charged already.
    pub free: u32,
    /// `max_connections`, or the connection limit of the database or role.
    pub limit: u32,
    /// A remedy for each limit that the wanted pools together exceed.
    pub remedies: Vec<Remedy>,
}

/// Changes that let all tenants have their wanted pools within one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The limit.
    pub scope: Scope,
    /// True when the wanted pools exceed the limit.
    pub short: bool,
    /// The largest `pool_size` with which all tenants fit if none has more; `None` if there is none.
    pub pool: Option<u32>,
    /// The limit that fits the pools as wanted.
    pub limit: u32,
}

impl Remedy {
    fn raise_limit(&self) -> String {
        let limit = self.limit;
        match &self.scope {
            Scope::Server(_) => format!("max_connections = {limit}"),
            Scope::Database { name, .. } => {
                format!("ALTER DATABASE {name} CONNECTION LIMIT {limit}")
            }
            Scope::Role { role, .. } => format!("ALTER ROLE {role} CONNECTION LIMIT {limit}"),
        }
    }
}

impl Shortage {
    pub(super) fn unseen(scope: Scope, needs: u32) -> Self {
        Self {
            scope,
            needs,
            has: 0,
            extra: 0,
            capacity: None,
            free: 0,
            limit: 0,
            remedies: Vec::new(),
        }
    }

    /// Returns the largest `pool_size` that fits all tenants within every limit; `None` if there is none.
    pub fn pool_that_fits(&self) -> Option<u32> {
        let pools: Option<Vec<u32>> = self.remedies.iter().map(|remedy| remedy.pool).collect();
        pools?.into_iter().min()
    }

    /// Returns the advice as a clause.
    pub fn advice(&self) -> String {
        let limits: Vec<String> = self.remedies.iter().map(Remedy::raise_limit).collect();
        let limits = limits.join(" and ");
        match self.pool_that_fits() {
            Some(pool) => {
                format!("pool_size = {pool} at most for each would fit everyone, or {limits}")
            }
            None => format!("no pool_size would fit everyone; {limits} would"),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scope,
            needs,
            has,
            extra,
            capacity,
            free,
            ..
        } = self;
        let Some(capacity) = capacity else {
            return write!(f, "needs {needs} on {scope}, which cannot be asked now");
        };
        write!(
            f,
            "needs {needs} and {extra} more of {capacity} on {scope}; {free} are free"
        )?;
        if *has > 0 {
            write!(f, " with the {has} it has")?;
        }
        write!(f, "; {}", self.advice())
    }
}

/// Returns the largest pool size such that pools cut to it fit into `room` together.
pub(super) fn pool_that_fits(pools: &[u32], room: u32) -> Option<u32> {
    let mut sorted = pools.to_vec();
    sorted.sort_unstable();
    let mut room = room;
    let mut left = u32::try_from(sorted.len()).unwrap_or(u32::MAX);
    let mut most = None;
    for pool in sorted {
        let share = room / left;
        if pool > share {
            most = Some(share);
            break;
        }
        room -= pool;
        left -= 1;
        most = Some(pool);
    }
    most.filter(|most| *most >= SMALLEST_POOL)
}
