//! Ends sessions of provisioned roles that use more of the server than `[provision.limits]` allows.
//!
//! Any role can fill the server's lock table with locks on its own tables, in a fraction of a second. Then a new login
//! fails, a superuser's too, and so does every view. So the sweeper works over a connection that is open and has run its
//! statements before, and reads two functions that take no locks beside those of the connection itself. A second
//! connection holds locks as ballast, and lets them go when a statement fails for want of one.

use super::role::ROLE_PREFIX;
use super::sql::literal;
use crate::servers::session::{ProbeFailure, Row, Session};
use crate::status::Snapshot;
use brokkr_tenant::DatabaseUrl;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::error::SqlState;

/// The time between two sweeps, and between two tries to connect.
const PERIOD: Duration = Duration::from_secs(1);
/// The longest wait for one answer. The server gives up a little earlier, so that no backend is left behind.
const ANSWER: Duration = Duration::from_secs(2);
const OWN_LIMIT: &str = "SET statement_timeout TO '1500ms'";
/// The number of advisory locks held as ballast.
const BALLAST: u32 = 200;
/// "Out of shared memory": the lock table is full.
const FULL: &[SqlState] = &[SqlState::OUT_OF_MEMORY];

/// `[provision.limits]`: the most that a tenant's sessions may use before they are ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionLimits {
    /// Entries of the server's lock table that the sessions of one role hold or await together.
    pub(crate) locks: u32,
    /// The age of a transaction.
    pub(crate) transaction: Duration,
    /// The age of a statement.
    pub(crate) statement: Duration,
}

/// The sweeper, before it runs.
pub(crate) struct Sweeper {
    pub(crate) admin: DatabaseUrl,
    pub(crate) limits: SessionLimits,
    /// The beginning of every `application_name` of this supervisor.
    pub(crate) prefix: String,
    /// Tells which tenants have which role, and which of them are starting.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// The knowledge kept from sweep to sweep.
#[derive(Default)]
struct Seen {
    /// The tenant of each role of this supervisor, also of roles whose tenants have gone.
    tenants: BTreeMap<String, String>,
    /// Roles whose sessions could not be ended, which has been said.
    refused: BTreeSet<String>,
}

/// A session over its limits.
struct Offender {
    pid: String,
    role: String,
    reason: String,
}

impl Sweeper {
    /// Sweeps until dropped.
    pub(super) async fn run(self) {
        let mut said = None;
        let mut seen = Seen::default();
        loop {
            if let Err(failure) = self.sweep_until_failure(&mut seen, &mut said).await {
                let reason = failure.reason().to_owned();
                if said.as_ref() != Some(&reason) {
                    tracing::warn!(
                        "[provision]: sessions cannot be swept: {reason}; it is tried again"
                    );
                    said = Some(reason);
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn sweep_until_failure(
        &self,
        seen: &mut Seen,
        said: &mut Option<String>,
    ) -> Result<(), ProbeFailure> {
        let ballast = Ballast::take(&self.admin, &self.prefix).await?;
        let session = open(&self.admin, &self.prefix).await?;
        // Each statement must have run before it is needed. There is no backend 0.
        ask(&session, &end("0")).await?;
        loop {
            let outcome = match self.sweep(&session, seen).await {
                Err(failure) if failure.has_code(FULL) => {
                    tracing::warn!("[provision]: the server's lock table is full");
                    ballast.let_go().await?;
                    let outcome = self.sweep(&session, seen).await;
                    ballast.hold().await?;
                    outcome
                }
                outcome => outcome,
            };
            outcome?;
            if said.take().is_some() {
                tracing::info!("[provision]: sessions are swept again");
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Ends every session over its limits, and says whose.
    async fn sweep(&self, session: &Session, seen: &mut Seen) -> Result<(), ProbeFailure> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let own = snapshot.tenants.iter().filter_map(|tenant| {
            let role = tenant.role.as_ref()?;
            let own = role.starts_with(ROLE_PREFIX) && tenant.role_note.is_none();
            own.then(|| (role.clone(), tenant.name.clone()))
        });
        seen.tenants.extend(own);
        // Migrations may take long, and a broker that starts has not been reached by an attacker yet.
        let starting = snapshot.tenants.iter().filter(|tenant| tenant.starts);
        let starting = list(starting.filter_map(|tenant| tenant.role.as_deref()));
        let roles = list(seen.tenants.keys().map(String::as_str));
        for offender in self.offenders(session, &roles, &starting).await? {
            let Offender { pid, role, reason } = offender;
            let tenant = seen.tenants.get(&role).cloned();
            match ask(session, &end(&pid)).await {
                Ok(_) => {
                    tracing::warn!(
                        tenant,
                        role,
                        "its session (backend {pid}) is ended: {reason}"
                    );
                }
                Err(failure) if failure.passes() => return Err(failure),
                Err(failure) if seen.refused.insert(role.clone()) => {
                    let why = failure.reason();
                    tracing::error!(
                        tenant,
                        role,
                        "its session (backend {pid}) cannot be ended: {why}; {reason}"
                    );
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the sessions over their limits. Of a role with too many locks the sessions with the most are over, until
    /// the rest is within the limit.
    async fn offenders(
        &self,
        session: &Session,
        roles: &str,
        starting: &str,
    ) -> Result<Vec<Offender>, ProbeFailure> {
        let SessionLimits {
            locks,
            transaction,
            statement,
        } = self.limits;
        let (transaction, statement) = (transaction.as_secs(), statement.as_secs());
        // Locks of the fast path take no entry of the lock table.
        let sql = format!(
            "SELECT s.pid, s.role, s.running > {locks}, s.total, s.transaction, s.statement FROM ( \
               SELECT b.*, sum(b.locks) OVER (PARTITION BY b.role) AS total, \
                      sum(b.locks) OVER (PARTITION BY b.role ORDER BY b.locks, b.pid) AS running FROM ( \
                 SELECT a.pid, pg_catalog.pg_get_userbyid(a.usesysid)::text AS role, coalesce(l.n, 0) AS locks, \
                        coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::int8 AS transaction, \
                        CASE a.state WHEN 'active' THEN extract(epoch FROM clock_timestamp() - a.query_start) ELSE 0 END::int8 \
                          AS statement \
                   FROM pg_catalog.pg_stat_get_activity(NULL) a \
                   LEFT JOIN (SELECT pid, count(*) AS n FROM pg_catalog.pg_lock_status() WHERE NOT fastpath GROUP BY pid) l \
                     ON l.pid = a.pid \
                  WHERE a.usesysid IS NOT NULL) b \
                WHERE b.role IN ({roles})) s \
              WHERE s.running > {locks} \
                 OR s.role NOT IN ({starting}) AND (s.transaction >= {transaction} OR s.statement >= {statement})"
        );
        let mut offenders = Vec::new();
        for row in ask(session, &sql).await? {
            let reason = if row.flag(2)? {
                let total = row.text(3)?;
                format!(
                    "{total} locks of its sessions together, [provision.limits] locks = {locks}"
                )
            } else if u64::from(row.number(4)?) >= transaction {
                let age = row.text(4)?;
                format!(
                    "a transaction of {age} s, [provision.limits] transaction = \"{transaction}s\""
                )
            } else {
                let age = row.text(5)?;
                format!("a statement of {age} s, [provision.limits] statement = \"{statement}s\"")
            };
            offenders.push(Offender {
                pid: row.text(0)?.to_owned(),
                role: row.text(1)?.to_owned(),
                reason,
            });
        }
        Ok(offenders)
    }
}

/// Returns these texts as the inside of an SQL list, which is never empty.
fn list<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let texts: Vec<String> = std::iter::once("").chain(texts).map(literal).collect();
    texts.join(", ")
}

/// Returns the statement that ends a backend.
fn end(pid: &str) -> String {
    format!("SELECT pg_catalog.pg_terminate_backend({pid})")
}

async fn ask(session: &Session, sql: &str) -> Result<Vec<Row>, ProbeFailure> {
    session.ask_within(ANSWER, sql).await
}

async fn open(admin: &DatabaseUrl, prefix: &str) -> Result<Session, ProbeFailure> {
    let session = Session::open(admin, &format!("{prefix}.sweeper")).await?;
    session.set_own_settings().await?;
    ask(&session, OWN_LIMIT).await?;
    Ok(session)
}

/// A connection that holds advisory locks, which are entries of the lock table that it can give away.
struct Ballast {
    session: Session,
    /// The first half of their keys: random, so that no other session holds or awaits them.
    key: i32,
}

impl Ballast {
    async fn take(admin: &DatabaseUrl, prefix: &str) -> Result<Self, ProbeFailure> {
        let ballast = Self {
            session: open(admin, prefix).await?,
            key: fastrand::i32(..),
        };
        // Both statements must have run before they are needed.
        ballast.let_go().await?;
        ballast.hold().await?;
        Ok(ballast)
    }

    async fn hold(&self) -> Result<(), ProbeFailure> {
        let key = self.key;
        let sql = format!(
            "SELECT count(*) FROM generate_series(1, {BALLAST}) n WHERE pg_catalog.pg_try_advisory_lock({key}, n)"
        );
        ask(&self.session, &sql).await.map(|_| ())
    }

    async fn let_go(&self) -> Result<(), ProbeFailure> {
        let sql = "SELECT pg_catalog.pg_advisory_unlock_all()";
        ask(&self.session, sql).await.map(|_| ())
    }
}
