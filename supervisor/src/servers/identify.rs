//! Logs into one URL, identifies its server, and checks that it is usable for a tenant.

use super::session::{DEADLINE, ProbeFailure, Row, Session};
use crate::budget::{Database, Role};
use brokkr_tenant::{DatabaseUrl, Host};
use std::collections::BTreeSet;
use std::time::Duration;

/// Number of times each of two connections is asked for its backend: a busy pooler may give them different backends
/// once, but hardly every time.
const ROUNDS: usize = 3;

/// A second connection that has no answer after this time counts as queued at a pooler.
const QUEUES: Duration = Duration::from_secs(1);
const HEARD_LATE: Duration = Duration::from_millis(100);

/// Identity of a server, as far as a URL may read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerMarks {
    /// `system_identifier`, when both it and the start time may be read.
    pub(super) identifier: Option<String>,
    /// `pg_postmaster_start_time()`, to the microsecond.
    pub(super) started: Option<String>,
    /// Addresses, as URLs spell them and as they resolve here.
    pub(super) addresses: BTreeSet<String>,
}

impl ServerMarks {
    /// Returns true when both identify the same server, by the best value that both know.
    pub(super) fn same_server(&self, other: &Self) -> bool {
        match (&self.identifier, &other.identifier) {
            (Some(ours), Some(theirs)) => ours == theirs && self.started == other.started,
            _ => match (&self.started, &other.started) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ => self.share_an_address(other),
            },
        }
    }

    pub(super) fn share_an_address(&self, other: &Self) -> bool {
        !self.addresses.is_disjoint(&other.addresses)
    }
}

/// Result of one look over one connection.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) marks: ServerMarks,
    /// The address as it resolves here: the server's name when there is no better name.
    pub(super) address: String,
    pub(super) database_oid: u32,
    pub(super) database: Database,
    pub(super) role_name: String,
    pub(super) role: Role,
    pub(super) max_connections: u32,
    pub(super) superuser_reserved: u32,
    pub(super) reserved: u32,
    pub(super) version: String,
    /// True when a pooler in session mode stands in front.
    pub(super) pooler: bool,
}

/// Asks for everything except the identity, in one statement. `reserved_connections` exists from 16 on.
const ASK: &str = "\
SELECT d.oid, d.datname, d.datconnlimit, r.rolname, r.rolconnlimit, r.rolsuper, \
       current_setting('max_connections'), current_setting('superuser_reserved_connections'), \
       coalesce(current_setting('reserved_connections', true), '0'), current_setting('server_version'), \
       pg_is_in_recovery(), current_setting('transaction_read_only'), \
       has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'), \
       has_function_privilege('pg_catalog.pg_postmaster_start_time()', 'EXECUTE'), \
       pg_encoding_to_char(d.encoding) \
  FROM pg_catalog.pg_database d, pg_catalog.pg_roles r \
 WHERE d.datname = current_database() AND r.rolname = session_user";

const STARTED: &str = "SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())";

const WHO: &str = "SELECT system_identifier, extract(epoch FROM pg_catalog.pg_postmaster_start_time()) \
                   FROM pg_catalog.pg_control_system()";

/// Logs into `url` and identifies the server. Returns the connection too, because the prober keeps it.
pub(super) async fn identify(
    url: &DatabaseUrl,
    name: &str,
) -> Result<(Identity, Session), ProbeFailure> {
    let first = Session::open(url, name).await?;
    let own = first.ask_backend().await?;
    let told = first.process_id().await;
    let pooler = told.is_some_and(|told| told != own);
    if !pooler {
        first.set_own_settings().await?;
    }
    not_shared(&first, pooler, url, name).await?;
    if pooler {
        first.set_own_settings().await?;
    }

    let row = first.ask_one(ASK).await?;
    if row.flag(10)? {
        return Err(ProbeFailure::read_only(
            "is a standby: it is in recovery and takes no writes",
        ));
    }
    if row.text(11)? == "on" {
        return Err(ProbeFailure::read_only(
            "is read-only: transaction_read_only is on for this role, database or server",
        ));
    }
    let (database, encoding) = (row.text(1)?, row.text(14)?);
    if encoding != "UTF8" {
        return Err(ProbeFailure::refused(&format!(
            "database \"{database}\" has encoding {encoding}; Brokkr needs UTF8: create it with ENCODING 'UTF8' \
             TEMPLATE template0"
        )));
    }
    let (identifier, started) = match (row.flag(12)?, row.flag(13)?) {
        (true, true) => {
            let who = first.ask_one(WHO).await?;
            (Some(who.text(0)?.to_owned()), Some(who.text(1)?.to_owned()))
        }
        (false, true) => {
            let who = first.ask_one(STARTED).await?;
            (None, Some(who.text(0)?.to_owned()))
        }
        (_, false) => (None, None),
    };
    let address = resolved(url).await;
    let superuser = row.flag(5)?;
    let identity = Identity {
        marks: ServerMarks {
            identifier,
            started,
            addresses: [url.address(), address.clone()].into(),
        },
        address,
        database_oid: row.number(0)?,
        database: Database {
            name: database.to_owned(),
            limit: limit(&row, 2)?,
        },
        role_name: row.text(3)?.to_owned(),
        role: Role {
            limit: limit(&row, 4)?,
            superuser,
        },
        max_connections: row.number(6)?,
        superuser_reserved: row.number(7)?,
        reserved: row.number(8)?,
        version: row.text(9)?.to_owned(),
        pooler,
    };
    Ok((identity, first))
}

/// Refuses a pooler that shares backends between connections statement by statement, because that would carry one
/// tenant's `search_path` to the next. Two connections that are open at once must have different backends.
///
/// Brokers may hold all connections but one. Without a pooler one connection is enough then. Behind a full pooler the
/// second connection queues, which also answers the question: a pooler that shares would give the idle backend of the
/// first connection to the queued connection before the first could use it again.
async fn not_shared(
    first: &Session,
    pooler: bool,
    url: &DatabaseUrl,
    name: &str,
) -> Result<(), ProbeFailure> {
    let second = async {
        let second = Session::open(url, name).await?;
        second.ask_backend().await?;
        if !pooler {
            second.set_own_settings().await?;
        }
        Ok::<_, ProbeFailure>(second)
    };
    tokio::pin!(second);
    let second = match tokio::time::timeout(QUEUES, &mut second).await {
        Ok(Ok(second)) => second,
        Ok(Err(failure)) if !pooler && failure.passes() => return Ok(()),
        Ok(Err(failure)) => return Err(failure),
        Err(_) => {
            let before = first.backend();
            let again = first.ask_backend().await?;
            // The second connection may have been served before the first, but its answer may arrive a little later.
            match tokio::time::timeout(HEARD_LATE, &mut second).await {
                Ok(second) => second?,
                Err(_) if before == Some(again) => return Ok(()),
                Err(_) => return Err(pooled()),
            }
        }
    };
    not_served_by_one(first, &second).await
}

async fn not_served_by_one(first: &Session, second: &Session) -> Result<(), ProbeFailure> {
    let mut seen: [Option<i32>; 2] = [None, None];
    for _ in 0..ROUNDS {
        for (session, seen) in [first, second].into_iter().zip(&mut seen) {
            let pid = session.ask_backend().await?;
            if seen.is_some_and(|before| before != pid) {
                return Err(pooled());
            }
            *seen = Some(pid);
        }
        if seen[0] == seen[1] {
            return Err(pooled());
        }
    }
    Ok(())
}

fn pooled() -> ProbeFailure {
    ProbeFailure::refused(
        "is a pooler in transaction or statement mode: two connections share one backend, which would \
         carry search_path from one tenant to another; use session mode, or the server itself",
    )
}

/// Reads a connection limit. -1 means no limit; other negative values mark an invalid database, which refuses logins.
fn limit(row: &Row, column: usize) -> Result<Option<u32>, ProbeFailure> {
    let text = row.text(column)?;
    Ok(if text == "-1" {
        None
    } else {
        Some(text.parse().unwrap_or(0))
    })
}

/// Returns address and port as the name resolves here, for a server that cannot be identified otherwise.
async fn resolved(url: &DatabaseUrl) -> String {
    match url.host() {
        Host::Unix(folder) => {
            let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
            format!("{}:{}", folder.display(), url.port())
        }
        Host::Tcp(name) => {
            let lookup = tokio::net::lookup_host((name.as_str(), url.port()));
            let found = tokio::time::timeout(DEADLINE, lookup).await;
            let first = found.ok().and_then(Result::ok).and_then(|mut a| a.next());
            first.map_or_else(|| url.address(), |address| address.to_string())
        }
    }
}
