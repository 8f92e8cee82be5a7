//! One connection to one server, with a deadline for every step.

use brokkr_pg::{ConnectError, Connector, Options, Reason};
use brokkr_tenant::DatabaseUrl;
use std::cell::Cell;
use std::error::Error as _;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// The longest time for one login or one answer. A stopped server keeps its connections open and never answers, and no
/// timeout of PostgreSQL ends that.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// Reason why a URL is not usable now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeFailure {
    pub(super) kind: FailureKind,
    reason: String,
    /// The server's code, where the server has answered.
    code: Option<SqlState>,
}

/// Cause of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The address: no server answers there, or the server refuses every login.
    Address,
    /// This URL: its connection failed or has ended. Only a knock tells whether the address is at fault.
    Silent,
    /// This URL: no answer in time. Only a knock tells whether the address is at fault.
    Late,
    /// This URL: the connection limit of its role or database is reached.
    Full,
    /// This URL: the server or pooler cannot serve it now, but may later.
    Unavailable,
    /// This URL: the server cancelled the statement, for example by the role's `statement_timeout`.
    Cancelled,
    /// This URL: the server answers and refuses.
    Refused,
    /// This URL: the server answers but takes no writes: a standby, or a read-only session.
    ReadOnly,
}

impl ProbeFailure {
    fn new(kind: FailureKind, reason: String) -> Self {
        Self {
            kind,
            reason,
            code: None,
        }
    }

    /// Returns true when the server has answered with one of these codes.
    pub(super) fn has_code(&self, codes: &[SqlState]) -> bool {
        self.code.as_ref().is_some_and(|code| codes.contains(code))
    }

    pub(super) fn refused(reason: &str) -> Self {
        Self::new(FailureKind::Refused, reason.to_owned())
    }

    pub(super) fn read_only(reason: &str) -> Self {
        Self::new(FailureKind::ReadOnly, reason.to_owned())
    }

    /// Returns the failure of an address that gives no answer.
    pub(super) fn of_address(reason: String) -> Self {
        Self::new(FailureKind::Address, reason)
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Returns true when it may pass without a change to a configuration.
    pub(super) fn passes(&self) -> bool {
        !matches!(self.kind, FailureKind::Refused | FailureKind::ReadOnly)
    }

    pub(super) fn late(what: &str, after: Duration) -> Self {
        Self::new(
            FailureKind::Late,
            format!("{what} took longer than {} s", after.as_secs()),
        )
    }
}

impl From<ConnectError> for ProbeFailure {
    fn from(error: ConnectError) -> Self {
        // A pooler uses class 08 when the server behind it is unreachable.
        let behind = error
            .code()
            .is_some_and(|code| code.code().starts_with("08"));
        let kind = match error.reason() {
            _ if error.concerns_every_login() => FailureKind::Address,
            Reason::TooManyConnections => FailureKind::Full,
            Reason::Unreachable => FailureKind::Silent,
            _ if error.is_transient() || behind => FailureKind::Unavailable,
            _ => FailureKind::Refused,
        };
        Self {
            code: error.code().cloned(),
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<tokio_postgres::Error> for ProbeFailure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            // Class 53 is "insufficient resources", 08 "connection exception" (a pooler's server is unreachable).
            let code = db.code().code();
            let kind = match db.code() {
                &SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN => FailureKind::Silent,
                &SqlState::CANNOT_CONNECT_NOW => FailureKind::Unavailable,
                &SqlState::QUERY_CANCELED => FailureKind::Cancelled,
                _ if code.starts_with("53") || code.starts_with("08") => FailureKind::Unavailable,
                _ => FailureKind::Refused,
            };
            return Self {
                code: Some(db.code().clone()),
                ..Self::new(kind, format!("{} ({code})", db.message()))
            };
        }
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !reason.contains(&cause_text) {
                reason = format!("{reason}: {cause_text}");
            }
            source = cause.source();
        }
        if reason.starts_with("invalid configuration") || reason.contains("TLS") {
            Self::new(FailureKind::Refused, reason)
        } else {
            Self::new(FailureKind::Silent, reason)
        }
    }
}

#[derive(Debug)]
pub(super) struct Row(SimpleQueryRow);

impl Row {
    /// Returns a column that is never null.
    pub(super) fn text(&self, column: usize) -> Result<&str, ProbeFailure> {
        self.0.try_get(column).ok().flatten().ok_or_else(|| {
            ProbeFailure::refused("gave an answer PostgreSQL 14 to 18 does not give")
        })
    }

    /// Returns a column that may be null.
    pub(super) fn nullable(&self, column: usize) -> Option<&str> {
        self.0.try_get(column).ok().flatten()
    }

    pub(super) fn number(&self, column: usize) -> Result<u32, ProbeFailure> {
        self.text(column)?
            .parse()
            .map_err(|_| ProbeFailure::refused("gave an answer PostgreSQL 14 to 18 does not give"))
    }

    pub(super) fn flag(&self, column: usize) -> Result<bool, ProbeFailure> {
        Ok(self.text(column)? == "t")
    }
}

/// Disables a role's `statement_timeout`. Sent alone, because the timer runs from the arrival of the whole message.
const NO_STATEMENT_TIMEOUT: &str = "SET statement_timeout TO 0";

/// Overrides settings of the role or database, because they must not decide how the probe answers for all tenants.
/// Names are looked up in `pg_catalog` alone, and no timeout of the server ends a statement or the session.
/// `transaction_timeout` exists from 17 on. `default_transaction_read_only` stays, because tenants' sessions have it.
const OWN_SETTINGS: &str = "\
SET search_path TO pg_catalog, pg_temp; \
SELECT pg_catalog.set_config(s.name, '0', false) FROM pg_catalog.pg_settings s \
 WHERE s.name OPERATOR(pg_catalog.=) ANY (ARRAY['lock_timeout', 'idle_session_timeout', \
       'idle_in_transaction_session_timeout', 'transaction_timeout']); \
SET jit TO off";

/// The largest number of tries of a statement that the server cancels. A role may allow its statements only a
/// millisecond, which a busy machine exceeds now and then; each of the prober's statements may run again.
const TRIES: usize = 20;

/// An open connection. Dropping it logs out.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    ended: JoinHandle<Option<ProbeFailure>>,
    backend: Cell<Option<i32>>,
    /// True while a statement is unanswered.
    asking: Cell<bool>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Otherwise the logout would wait for the answer, which may never come.
        if self.asking.get() {
            self.ended.abort();
        }
    }
}

impl Session {
    /// Connects and logs in, with `name` as `application_name`.
    pub(super) async fn open(url: &DatabaseUrl, name: &str) -> Result<Self, ProbeFailure> {
        let (client, connection) = within("connecting", DEADLINE, async {
            // Reading certificates may block, and this thread serves every tenant.
            let (url, options) = (url.clone(), Options::new(name));
            let connector = tokio::task::spawn_blocking(move || Connector::new(&url, &options))
                .await
                .map_err(|error| {
                    ProbeFailure::new(FailureKind::Unavailable, error.to_string())
                })??;
            Ok(connector.open().await?)
        })
        .await?;
        let ended =
            tokio::task::spawn_local(async move { connection.await.err().map(ProbeFailure::from) });
        Ok(Self {
            client,
            ended,
            backend: Cell::new(None),
            asking: Cell::new(false),
        })
    }

    /// Overrides the settings of the role and database for this session. Must not be used through a pooler that may
    /// share backends, because the next client would get these settings too.
    pub(super) async fn set_own_settings(&self) -> Result<(), ProbeFailure> {
        self.ask(NO_STATEMENT_TIMEOUT).await?;
        self.ask(OWN_SETTINGS).await.map(|_| ())
    }

    /// Returns the rows of one statement by the simple protocol: one round trip and nothing prepared, so that a pooler
    /// in any mode answers. A statement that the server cancels is sent again, [`TRIES`] times in all.
    pub(super) async fn ask(&self, sql: &str) -> Result<Vec<Row>, ProbeFailure> {
        let mut tries = 1;
        loop {
            match self.ask_within(DEADLINE, sql).await {
                Err(failure) if failure.kind == FailureKind::Cancelled && tries < TRIES => {
                    tries += 1
                }
                result => return result,
            }
        }
    }

    /// Runs a statement with this deadline.
    pub(super) async fn ask_within(
        &self,
        deadline: Duration,
        sql: &str,
    ) -> Result<Vec<Row>, ProbeFailure> {
        self.asking.set(true);
        let messages = within("an answer", deadline, async {
            Ok(self.client.simple_query(sql).await?)
        })
        .await;
        let unanswered = messages
            .as_ref()
            .is_err_and(|f| f.kind == FailureKind::Late);
        self.asking.set(unanswered);
        let messages = messages?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(Row(row)),
                _ => None,
            })
            .collect())
    }

    /// Returns the only row of a statement.
    pub(super) async fn ask_one(&self, sql: &str) -> Result<Row, ProbeFailure> {
        self.ask(sql)
            .await?
            .pop()
            .ok_or_else(|| ProbeFailure::refused("gave no answer where there is always one"))
    }

    /// Asks for the backend that serves this connection now.
    pub(super) async fn ask_backend(&self) -> Result<i32, ProbeFailure> {
        let row = self.ask_one("SELECT pg_catalog.pg_backend_pid()").await?;
        let pid = row
            .text(0)?
            .parse()
            .map_err(|_| ProbeFailure::refused("gave a backend that is no number"))?;
        self.backend.set(Some(pid));
        Ok(pid)
    }

    /// Returns the backend that served this connection last.
    pub(super) fn backend(&self) -> Option<i32> {
        self.backend.get()
    }

    /// Returns the process id that was announced at login: a server's backend pid, or a pooler's invented number.
    pub(super) async fn process_id(&self) -> Option<i32> {
        // The library keeps the id only for cancel requests, so let it write a cancel request to this process. The
        // request has four numbers: length, code, process, key.
        let (mut ours, theirs) = tokio::io::duplex(64);
        let token = self.client.cancel_token();
        let cancel = token.cancel_query_raw(theirs, super::no_tls::Plain);
        let read = async {
            let mut request = [0; 16];
            ours.read_exact(&mut request[..8]).await.ok()?;
            const SSL_REQUEST: i32 = 80_877_103;
            if number(&request, 4) == SSL_REQUEST {
                // Over TLS the library asks for TLS first. "S" grants it; `Plain` adds no encryption.
                ours.write_all(b"S").await.ok()?;
                ours.read_exact(&mut request[..8]).await.ok()?;
            }
            ours.read_exact(&mut request[8..]).await.ok()?;
            Some(number(&request, 8))
        };
        let (_, process) = within("", DEADLINE, async { Ok(tokio::join!(cancel, read)) })
            .await
            .ok()?;
        process
    }

    /// Returns true when the connection has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_finished()
    }

    /// Waits until the connection ends, and returns the reason.
    pub(super) async fn ended(&mut self) -> ProbeFailure {
        match (&mut self.ended).await {
            Ok(Some(failure)) => failure,
            _ => ProbeFailure::new(
                FailureKind::Silent,
                "connection closed by the server".to_owned(),
            ),
        }
    }
}

fn number(request: &[u8; 16], at: usize) -> i32 {
    i32::from_be_bytes([
        request[at],
        request[at + 1],
        request[at + 2],
        request[at + 3],
    ])
}

/// Runs `work` with a deadline.
pub(super) async fn within<T>(
    what: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T, ProbeFailure>>,
) -> Result<T, ProbeFailure> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(ProbeFailure::late(what, deadline)))
}
