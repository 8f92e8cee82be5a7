//! The session settings that the product's correctness rests on, set at connect and never inherited.
//!
//! A role or a database may set any of them (`ALTER ROLE … SET`). The book's page of the tenant file says which settings
//! are set here and which stay the operator's.

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

/// Tries of a session's first message, and of the statement that lifts the role's `statement_timeout` before the next try.
const TRIES: usize = 20;

/// Sends a session's first message, which begins with [`SETTINGS`].
///
/// The role's `statement_timeout` still applies to that message, and a busy machine may exceed a short one. The statement
/// that lifts it is short enough alone.
///
/// # Errors
/// The statement's, after twenty tries where the server cancels it.
pub fn set_up(
    client: &mut Client,
    message: &str,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    let mut tries = 1;
    loop {
        match client.simple_query(message) {
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) && tries < TRIES => {
                tries += 1;
                // Cancelled as well, it is sent again with the next try.
                let _ = client.simple_query("SET statement_timeout = 0");
            }
            result => return result,
        }
    }
}

/// Sets every one of them, in one message with others. Its one row begins with the server's process for the session.
///
/// - All parameters are known since PostgreSQL 14, but `transaction_timeout` (17), which is looked for first.
/// - The timeouts come first and are none, because an inherited one could end the statements that follow. The caller sets
///   its own behind these.
/// - `default_transaction_read_only` is not among them: it is how an operator freezes a server, a database or a role, and
///   `target_session_attrs` asks for it.
/// - `row_security` is off, so that a policy makes a statement fail instead of hiding rows from it.
/// - `synchronous_commit` is only kept from being `off`: `local`, `remote_write` and `remote_apply` are the operator's.
/// - `session_replication_role` is set only where it differs, because only a superuser may: for any other role the
///   connection is refused, for without triggers and foreign keys the tables would not hold.
pub const SETTINGS: &str = "\
    SET statement_timeout = 0; \
    SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; \
    SET idle_session_timeout = 0; \
    SET client_encoding = 'UTF8'; \
    SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_deferrable = off; \
    SET standard_conforming_strings = on; \
    SET transform_null_equals = off; \
    SET array_nulls = on; \
    SET DateStyle = 'ISO, MDY'; \
    SET IntervalStyle = 'postgres'; \
    SET TimeZone = 'UTC'; \
    SET bytea_output = 'hex'; \
    SET extra_float_digits = 1; \
    SET xmloption = 'content'; \
    SET row_security = off; \
    SET gin_fuzzy_search_limit = 0; \
    SELECT pg_catalog.pg_backend_pid(), \
        CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL \
            THEN pg_catalog.set_config('transaction_timeout', '0', false) END, \
        CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' \
            THEN pg_catalog.set_config('synchronous_commit', 'on', false) END, \
        CASE WHEN pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.<>) 'origin' \
            THEN pg_catalog.set_config('session_replication_role', 'origin', false) END; ";

/// Resolves names in the server's own catalogue only: a role's `search_path` could put a schema of its own before it.
pub(crate) const CATALOG_ONLY: &str = "SET search_path TO pg_catalog, pg_temp; ";
