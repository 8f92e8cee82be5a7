//! One connection to one server, every step of it within a deadline of ours.

use brokkr_pg::{ConnectError, Connector, Options};
use brokkr_tenant::DatabaseUrl;
use std::cell::Cell;
use std::error::Error as _;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// The longest one login or one answer may take. A server that is stopped keeps its connections open and
/// never answers; no timeout of PostgreSQL's ends that.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// Why a URL or a server is not usable now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing answers, or what answers is starting, stopping or full.
    Unreachable(String),
    /// It answers, and says no.
    Refused(String),
    /// It answers, and takes no writes: a standby, or one that was switched to read-only.
    ReadOnly(String),
}

impl Failure {
    pub(super) fn refused(reason: &str) -> Self {
        Self::Refused(reason.to_owned())
    }

    pub(super) fn read_only(reason: &str) -> Self {
        Self::ReadOnly(reason.to_owned())
    }

    /// In words.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Unreachable(reason) | Self::Refused(reason) | Self::ReadOnly(reason) => reason,
        }
    }

    fn late(what: &str) -> Self {
        Self::Unreachable(format!("{what} took longer than {} s", DEADLINE.as_secs()))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        // A pooler says with class 08 that the server behind it is away.
        let behind = error
            .code()
            .is_some_and(|code| code.code().starts_with("08"));
        if error.is_transient() || behind {
            Self::Unreachable(error.to_string())
        } else {
            Self::Refused(error.to_string())
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let reason = format!("{} ({})", db.message(), db.code().code());
            let passing = [
                &SqlState::CANNOT_CONNECT_NOW,
                &SqlState::ADMIN_SHUTDOWN,
                &SqlState::CRASH_SHUTDOWN,
                &SqlState::QUERY_CANCELED,
            ];
            // Class 53 is "insufficient resources", 08 "connection exception" (a pooler's server is away).
            let code = db.code().code();
            return if passing.contains(&db.code())
                || code.starts_with("53")
                || code.starts_with("08")
            {
                Self::Unreachable(reason)
            } else {
                Self::Refused(reason)
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
            Self::Refused(reason)
        } else {
            Self::Unreachable(reason)
        }
    }
}

/// One row of text.
#[derive(Debug)]
pub(super) struct Row(SimpleQueryRow);

impl Row {
    /// A column that is never null.
    pub(super) fn text(&self, column: usize) -> Result<&str, Failure> {
        self.0.try_get(column).ok().flatten().ok_or_else(|| {
            Failure::Refused("gave an answer PostgreSQL 14 to 18 does not give".to_owned())
        })
    }

    /// A column that may be null.
    pub(super) fn nullable(&self, column: usize) -> Option<&str> {
        self.0.try_get(column).ok().flatten()
    }

    /// A number.
    pub(super) fn number(&self, column: usize) -> Result<u32, Failure> {
        self.text(column)?.parse().map_err(|_| {
            Failure::Refused("gave an answer PostgreSQL 14 to 18 does not give".to_owned())
        })
    }

    /// A boolean.
    pub(super) fn flag(&self, column: usize) -> Result<bool, Failure> {
        Ok(self.text(column)? == "t")
    }
}

/// An open connection. Dropped, it says goodbye to the server and is gone.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    ended: JoinHandle<Option<Failure>>,
    backend: Cell<Option<i32>>,
}

impl Session {
    /// Connects and logs in, with `name` as `application_name`.
    pub(super) async fn open(url: &DatabaseUrl, name: &str) -> Result<Self, Failure> {
        let connector = Connector::new(url, &Options::new(name))?;
        let (client, connection) =
            within("connecting", async { Ok(connector.open().await?) }).await?;
        let ended =
            tokio::task::spawn_local(async move { connection.await.err().map(Failure::from) });
        Ok(Self {
            client,
            ended,
            backend: Cell::new(None),
        })
    }

    /// The rows of one statement, by the simple protocol: one round trip, nothing prepared, so a pooler in
    /// any mode answers it.
    pub(super) async fn ask(&self, sql: &str) -> Result<Vec<Row>, Failure> {
        let messages = within("an answer", async {
            Ok(self.client.simple_query(sql).await?)
        })
        .await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(Row(row)),
                _ => None,
            })
            .collect())
    }

    /// The one row of a statement.
    pub(super) async fn ask_one(&self, sql: &str) -> Result<Row, Failure> {
        self.ask(sql)
            .await?
            .pop()
            .ok_or_else(|| Failure::Refused("gave no answer where there is always one".to_owned()))
    }

    /// Which backend serves this connection now.
    pub(super) async fn ask_backend(&self) -> Result<i32, Failure> {
        let row = self.ask_one("SELECT pg_catalog.pg_backend_pid()").await?;
        let pid = row
            .text(0)?
            .parse()
            .map_err(|_| Failure::refused("gave a backend that is no number"))?;
        self.backend.set(Some(pid));
        Ok(pid)
    }

    /// The backend it was last served by.
    pub(super) fn backend(&self) -> Option<i32> {
        self.backend.get()
    }

    /// Which process was announced at login. The server tells its own; a pooler makes one up.
    pub(super) async fn process_id(&self) -> Option<i32> {
        // The library keeps it for cancelling, and writes it nowhere else than into a cancel request: so let
        // it write one, to ourselves. Length, code, process, key: four numbers.
        let (mut ours, theirs) = tokio::io::duplex(64);
        let token = self.client.cancel_token();
        let cancel = token.cancel_query_raw(theirs, super::plain::Plain);
        let read = async {
            let mut request = [0; 16];
            ours.read_exact(&mut request[..8]).await.ok()?;
            const SSL_REQUEST: i32 = 80_877_103;
            if number(&request, 4) == SSL_REQUEST {
                // Over TLS the library asks for TLS first: granted, there is no wire in between.
                ours.write_all(b"S").await.ok()?;
                ours.read_exact(&mut request[..8]).await.ok()?;
            }
            ours.read_exact(&mut request[8..]).await.ok()?;
            Some(number(&request, 8))
        };
        let (_, process) = within("", async { Ok(tokio::join!(cancel, read)) })
            .await
            .ok()?;
        process
    }

    /// Waits until the connection ends, whoever ends it.
    pub(super) async fn ended(&mut self) -> Failure {
        match (&mut self.ended).await {
            Ok(Some(failure)) => failure,
            _ => Failure::Unreachable("connection closed by the server".to_owned()),
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

async fn within<T>(
    what: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| Err(Failure::late(what)))
}
