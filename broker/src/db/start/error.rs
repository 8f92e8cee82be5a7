//! The errors of a start, sorted by the remedy: time, a person, or neither.
//!
//! The broker retries only after [`StartError::Away`], so only errors that time alone can end belong there.

use std::time::Duration;

use brokkr_pg::Reason;
use postgres::error::SqlState;

use super::admin_pak_file::AdminPakFile;
use crate::db::error::{describe, server_lost};
use crate::pak::MintError;

/// The number of retries of a statement that lost a race against another start.
const RACES: usize = 20;

/// Reason why a start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The server is away, starting, full or busy: the same start may succeed later.
    #[error("{0}")]
    Away(String),
    /// A person must change something: refused credentials, a missing database, missing rights, or a schema that needs
    /// a newer broker.
    #[error("{0}")]
    Configuration(String),
    /// Any other error.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    pub(super) fn key_file(file: &AdminPakFile, error: &std::io::Error) -> Self {
        StartError::Failed(format!("{}: {error}", file.path().display()))
    }
}

impl From<MintError> for StartError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Format(_) => StartError::Configuration(error.to_string()),
            MintError::Randomness(_) => StartError::Failed(error.to_string()),
        }
    }
}

impl From<postgres::Error> for StartError {
    fn from(error: postgres::Error) -> Self {
        sort(&error, describe(&error))
    }
}

/// Sorts an error of the server; `text` describes it in full.
pub(super) fn sort(error: &postgres::Error, text: String) -> StartError {
    match error.code() {
        Some(code) if in_the_way(code) => StartError::Configuration(format!(
            "{text}: the schema holds something of that name that no start of this broker has made; choose another schema"
        )),
        Some(code) if needs_a_person(code) => StartError::Configuration(text),
        _ if server_lost(error) || contended(error) => StartError::Away(text),
        _ => StartError::Failed(text),
    }
}

impl From<brokkr_pg::ConnectError> for StartError {
    fn from(error: brokkr_pg::ConnectError) -> Self {
        let refused = match error.reason() {
            Reason::Denied | Reason::NoDatabase => true,
            // Without a code the driver refused: the URL's options contradict each other.
            Reason::Other => error.code().is_none_or(needs_a_person),
            _ => error.code().is_some_and(needs_a_person),
        };
        if refused {
            StartError::Configuration(error.to_string())
        } else {
            // Unreachable, no such host, a standby, or full: each may pass soon.
            StartError::Away(error.to_string())
        }
    }
}

/// Codes 28xxx: authentication; 3D000: no such database; 42501: missing rights; 3F000: no such schema; 53400: a limit
/// that an operator has set.
fn needs_a_person(code: &SqlState) -> bool {
    code.code().starts_with("28")
        || *code == SqlState::INVALID_CATALOG_NAME
        || *code == SqlState::INSUFFICIENT_PRIVILEGE
        || *code == SqlState::INVALID_SCHEMA_NAME
        || *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED
}

/// Codes 23505, 42P06, 42P07, 42710, 42723: the object exists already; 42809: it exists and is of another kind. Only in
/// [`racing`] can another start have made it, because all other statements of a start run under the lock.
fn in_the_way(code: &SqlState) -> bool {
    *code == SqlState::UNIQUE_VIOLATION
        || *code == SqlState::DUPLICATE_SCHEMA
        || *code == SqlState::DUPLICATE_TABLE
        // A table also creates its row type, and the row type may be the duplicate.
        || *code == SqlState::DUPLICATE_OBJECT
        || *code == SqlState::DUPLICATE_FUNCTION
        || *code == SqlState::WRONG_OBJECT_TYPE
}

/// Codes 55P03: `lock_timeout`; 40001 and 40P01: this transaction gave way to another.
pub(super) fn contended(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::LOCK_NOT_AVAILABLE
            || *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::T_R_DEADLOCK_DETECTED
    })
}

/// Repeats a statement that looks for an object and creates it if missing. `IF NOT EXISTS` is not atomic, so another
/// start may create the object in between. An object that is still in the way after `RACES` retries is no race.
pub(super) fn racing(
    mut statement: impl FnMut() -> Result<(), postgres::Error>,
) -> Result<(), StartError> {
    let mut tries = 0;
    loop {
        match statement() {
            Err(error) if error.code().is_some_and(in_the_way) && tries < RACES => tries += 1,
            result => return result.map_err(StartError::from),
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(5..25)));
    }
}
