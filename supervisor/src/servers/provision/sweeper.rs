//! Ends sessions of provisioned roles that use more of the server than `[provision.limits]` allows.
//!
//! Any role can fill the server's lock table with locks on its own tables, in a fraction of a second. Then a new login
//! fails, a superuser's too, and so does every view. So the sweeper works over a connection that is open and has run its
//! statement before, and reads two functions that take no locks beside those of the connection itself. A second
//! connection holds locks as ballast, and lets them go when the statement fails for want of one.

use super::role::ROLE_PREFIX;
use super::sql::literal;
use crate::servers::session::{ProbeFailure, Row, Session};
use crate::status::{Snapshot, State};
use brokkr_tenant::DatabaseUrl;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The time between two sweeps, and between two tries to connect.
const PERIOD: Duration = Duration::from_secs(1);
/// The number of advisory locks held as ballast, and the first half of their keys.
const BALLAST: u32 = 200;
const BALLAST_KEY: u32 = 0x6272_6f6b;
/// "Out of shared memory": the lock table is full.
const FULL: &str = "(53200)";

/// `[provision.limits]`: the most that a session of a provisioned role may use before it is ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionLimits {
    /// Locks held or awaited.
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

impl Sweeper {
    /// Sweeps until dropped.
    pub(super) async fn run(self) {
        let mut said = None;
        loop {
            if let Err(failure) = self.sweep_until_failure(&mut said).await {
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

    async fn sweep_until_failure(&self, said: &mut Option<String>) -> Result<(), ProbeFailure> {
        let ballast = Ballast::take(&self.admin, &self.prefix).await?;
        let session = open(&self.admin, &self.prefix).await?;
        loop {
            let outcome = match self.sweep(&session).await {
                Err(failure) if failure.reason().ends_with(FULL) => {
                    tracing::warn!("[provision]: the server's lock table is full");
                    ballast.let_go().await?;
                    let outcome = self.sweep(&session).await;
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
    async fn sweep(&self, session: &Session) -> Result<(), ProbeFailure> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let tenants: BTreeMap<&str, &str> = snapshot
            .tenants
            .iter()
            .filter_map(|tenant| Some((tenant.role.as_deref()?, tenant.name.as_str())))
            .collect();
        // Migrations may take long, and a broker that starts has not been reached by an attacker yet.
        let starting = snapshot.tenants.iter().filter_map(|tenant| {
            let starts = tenant.state == State::Starting || tenant.pending.is_some();
            tenant.role.as_deref().filter(|_| starts)
        });
        let starting: Vec<String> = starting.map(literal).collect();
        for row in session.ask(&self.statement(&starting)).await? {
            let role = row.text(1)?;
            let tenant = tenants.get(role).copied();
            let use_of = self.excess(&row)?;
            tracing::warn!(
                tenant,
                role,
                "its session (backend {}) is ended: {use_of}",
                row.text(0)?
            );
        }
        Ok(())
    }

    /// Returns the statement that ends the sessions: backend, role, locks, seconds of its transaction and of its
    /// statement.
    fn statement(&self, starting: &[String]) -> String {
        let SessionLimits {
            locks,
            transaction,
            statement,
        } = self.limits;
        let starts = match starting.is_empty() {
            true => "false".to_owned(),
            false => format!("s.role IN ({})", starting.join(", ")),
        };
        format!(
            "SELECT s.pid, s.role, s.locks, s.transaction, s.statement, pg_catalog.pg_terminate_backend(s.pid) FROM ( \
               SELECT a.pid, pg_catalog.pg_get_userbyid(a.usesysid) AS role, coalesce(l.n, 0) AS locks, \
                      coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::int8 AS transaction, \
                      CASE a.state WHEN 'active' THEN extract(epoch FROM clock_timestamp() - a.query_start) ELSE 0 END::int8 \
                        AS statement \
                 FROM pg_catalog.pg_stat_get_activity(NULL) a \
                 LEFT JOIN (SELECT pid, count(*) AS n FROM pg_catalog.pg_lock_status() GROUP BY pid) l ON l.pid = a.pid \
                WHERE a.usesysid IS NOT NULL) s \
              WHERE pg_catalog.starts_with(s.role, {}) \
                AND (s.locks > {locks} \
                     OR NOT {starts} AND (s.transaction >= {} OR s.statement >= {}))",
            literal(ROLE_PREFIX),
            transaction.as_secs(),
            statement.as_secs(),
        )
    }

    /// Says which limit an ended session was over.
    fn excess(&self, row: &Row) -> Result<String, ProbeFailure> {
        let limits = &self.limits;
        let (locks, transaction, statement) = (row.number(2)?, row.number(3)?, row.number(4)?);
        Ok(if locks > limits.locks {
            format!("{locks} locks, [provision.limits] locks = {}", limits.locks)
        } else if u64::from(transaction) >= limits.transaction.as_secs() {
            let most = limits.transaction.as_secs();
            format!(
                "a transaction of {transaction} s, [provision.limits] transaction = \"{most}s\""
            )
        } else {
            let most = limits.statement.as_secs();
            format!("a statement of {statement} s, [provision.limits] statement = \"{most}s\"")
        })
    }
}

async fn open(admin: &DatabaseUrl, prefix: &str) -> Result<Session, ProbeFailure> {
    let session = Session::open(admin, &format!("{prefix}.sweeper")).await?;
    session.set_own_settings().await?;
    Ok(session)
}

/// A connection that holds advisory locks, which are entries of the lock table that it can give away.
struct Ballast(Session);

impl Ballast {
    async fn take(admin: &DatabaseUrl, prefix: &str) -> Result<Self, ProbeFailure> {
        let ballast = Self(open(admin, prefix).await?);
        // Both statements must have run before they are needed.
        ballast.let_go().await?;
        ballast.hold().await?;
        Ok(ballast)
    }

    async fn hold(&self) -> Result<(), ProbeFailure> {
        let sql = format!(
            "SELECT count(pg_catalog.pg_advisory_lock({BALLAST_KEY}, n)) FROM generate_series(1, {BALLAST}) n"
        );
        self.0.ask(&sql).await.map(|_| ())
    }

    async fn let_go(&self) -> Result<(), ProbeFailure> {
        let sql = "SELECT pg_catalog.pg_advisory_unlock_all()";
        self.0.ask(sql).await.map(|_| ())
    }
}
