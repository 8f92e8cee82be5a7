//! What can go wrong between a handler and its database, sorted by what the caller can do about it.

use std::time::Duration;

use postgres::error::SqlState;

/// Why database work did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection was free in time, the server is away, or it was lost under the work. Trying again later helps;
    /// whether the lost work took effect is not known.
    #[error("database unavailable: {reason}")]
    Unavailable {
        /// What a client is told to wait (`Retry-After`).
        retry_after: Duration,
        /// For the log and for `/readyz`; holds no secret.
        reason: String,
    },
    /// The server refused the statement.
    #[error("database error: {}", describe(.0))]
    Postgres(#[source] postgres::Error),
    /// The work panicked. Its connection was discarded, so nothing of it was committed.
    #[error("database work panicked")]
    Panicked,
    /// A statement's text would have changed the session or a transaction behind the pool's back.
    #[error("statement refused: {0}")]
    Refused(&'static str),
    /// The pool could not be built.
    #[error("database pool: {0}")]
    Setup(String),
}

impl DbError {
    /// An [`DbError::Unavailable`] with the usual one second to wait.
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        DbError::Unavailable {
            retry_after: Duration::from_secs(1),
            reason: reason.into(),
        }
    }

    /// The server's code for what it refused, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            DbError::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// The violated constraint or unique index, where the server names one.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            DbError::Postgres(error) => error.as_db_error().and_then(|e| e.constraint()),
            _ => None,
        }
    }

    /// True when the same work may succeed a moment later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, DbError::Unavailable { .. })
    }
}

impl From<postgres::Error> for DbError {
    fn from(error: postgres::Error) -> Self {
        if server_lost(&error) || schema_lost(&error) {
            DbError::unavailable(describe(&error))
        } else {
            DbError::Postgres(error)
        }
    }
}

/// True when the error speaks of the server or the connection, not of the statement.
///
/// Also a cancelled statement (57014): only the statement timeout set at connect cancels here, so it says "too busy".
/// Also 25006: the server has become a standby, and work belongs on another one. Also class 53: it is out of connections,
/// memory or disk, and will not be for ever.
pub(crate) fn server_lost(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => {
            *code == SqlState::READ_ONLY_SQL_TRANSACTION
                || *code == SqlState::QUERY_CANCELED
                || is_shutdown(code)
                || code.code().starts_with("08")
                || code.code().starts_with("53")
        }
        // Without a code the server said nothing: closed, an I/O error or a timeout. Conversion errors and the like
        // have no code either and are ours.
        None => error.is_closed() || is_io(error),
    }
}

/// True when the schema does not hold what a statement names: it was dropped, renamed or replaced, or the server is another.
///
/// 42P01, 3F000, 42703 and 42883: no such table, schema, column or function. The broker's statements name its own only, and
/// every one was there when it started.
pub(crate) fn schema_lost(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::UNDEFINED_TABLE
            || *code == SqlState::INVALID_SCHEMA_NAME
            || *code == SqlState::UNDEFINED_COLUMN
            || *code == SqlState::UNDEFINED_FUNCTION
    })
}

/// 57P01 to 57P03: shutting down, crashed, starting up.
fn is_shutdown(code: &SqlState) -> bool {
    *code == SqlState::ADMIN_SHUTDOWN
        || *code == SqlState::CRASH_SHUTDOWN
        || *code == SqlState::CANNOT_CONNECT_NOW
}

/// True when a connection that has seen this error must not be used again.
pub(crate) fn spoils_connection(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => is_shutdown(code) || code.code().starts_with("08"),
        None => error.is_closed() || is_io(error),
    }
}

/// 0A000 and 26000: the plan behind a prepared statement no longer fits the tables, or the statement is gone. A new
/// connection knows neither; the statement itself was not executed.
pub(crate) fn stale_statement(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::FEATURE_NOT_SUPPORTED || *code == SqlState::INVALID_SQL_STATEMENT_NAME
    })
}

fn is_io(error: &postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// The whole of it in one line: `postgres::Error` alone prints "db error" and keeps the rest for its source.
pub(crate) fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
