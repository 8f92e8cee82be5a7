//! Errors of database work, sorted by how the caller can react.

use std::time::Duration;

use postgres::error::SqlState;

/// Reason why database work failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection was free in time, the server is away, or the connection was lost during the work. A retry may
    /// succeed; the lost work may or may not have taken effect.
    #[error("database unavailable: {reason}")]
    Unavailable {
        /// The time that a client is told to wait (`Retry-After`).
        retry_after: Duration,
        /// Reason for the log and for `/readyz`; holds no secret.
        reason: String,
    },
    /// The server refused the statement.
    #[error("database error: {}", describe(.0))]
    Postgres(#[source] postgres::Error),
    /// The work panicked. Its connection was closed, so nothing was committed.
    #[error("database work panicked")]
    Panicked,
    /// The statement would have changed the session or a transaction without the pool knowing.
    #[error("statement refused: {0}")]
    Refused(&'static str),
    /// The pool could not be built.
    #[error("database pool: {0}")]
    Setup(String),
}

impl DbError {
    /// Returns [`DbError::Unavailable`] with the default `Retry-After` of one second.
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        DbError::Unavailable {
            retry_after: Duration::from_secs(1),
            reason: reason.into(),
        }
    }

    /// Returns the SQLSTATE, if the server refused the statement.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            DbError::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Returns the violated constraint or unique index, if the server names it.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            DbError::Postgres(error) => error.as_db_error().and_then(|e| e.constraint()),
            _ => None,
        }
    }

    /// Returns true when a retry may succeed.
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

/// Returns true when the error concerns the server or the connection, not the statement.
///
/// Includes three codes that could be read otherwise:
/// - 57014 (cancelled): only the statement timeout cancels statements here, so the server is too busy.
/// - 25006 (read-only): the server has become a standby, and another server may take the work.
/// - class 53: the server is out of connections, memory or disk, which passes.
pub(crate) fn server_lost(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => {
            *code == SqlState::READ_ONLY_SQL_TRANSACTION
                || *code == SqlState::QUERY_CANCELED
                || is_shutdown(code)
                || code.code().starts_with("08")
                || code.code().starts_with("53")
        }
        // An error without a code is a closed connection, an I/O error or a timeout. Errors of conversion have no code
        // either, but they are bugs of the broker.
        None => error.is_closed() || is_io(error),
    }
}

/// Returns true when the schema lacks something that a statement names, because it was dropped, renamed or replaced, or
/// because the connection leads to another server.
///
/// The codes are 42P01, 3F000, 42703 and 42883: no such table, schema, column or function. The broker's statements name
/// only objects that existed when it started.
pub(crate) fn schema_lost(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::UNDEFINED_TABLE
            || *code == SqlState::INVALID_SCHEMA_NAME
            || *code == SqlState::UNDEFINED_COLUMN
            || *code == SqlState::UNDEFINED_FUNCTION
    })
}

/// Codes 57P01 to 57P03: shutting down, crashed, starting up.
fn is_shutdown(code: &SqlState) -> bool {
    *code == SqlState::ADMIN_SHUTDOWN
        || *code == SqlState::CRASH_SHUTDOWN
        || *code == SqlState::CANNOT_CONNECT_NOW
}

/// Returns true when the connection must not be used after this error.
pub(crate) fn spoils_connection(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => is_shutdown(code) || code.code().starts_with("08"),
        None => error.is_closed() || is_io(error),
    }
}

/// Codes 0A000 and 26000: the prepared statement no longer fits the tables, or it is gone. The statement was not
/// executed, and a new connection prepares it anew.
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

/// Describes the error in one line, because `postgres::Error` alone prints "db error" and keeps the rest in its source.
pub(crate) fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
