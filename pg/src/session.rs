//! Session settings that correctness depends on, set at connect because a role or a database may change any of them
//! (`ALTER ROLE … SET`).
//!
//! The book's page on the tenant file lists the settings made here and those left to the operator.

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

/// The largest number of tries for a session's first message.
const TRIES: usize = 20;

/// Sends a session's first message, which begins with [`SETTINGS`].
///
/// The role's `statement_timeout` still applies to that message, and a busy machine may exceed a short timeout. A
/// message that the server cancels is therefore sent again, up to twenty times, after a single statement that lifts
/// the timeout.
pub fn set_up(
    client: &mut Client,
    message: &str,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    let mut tries = 1;
    loop {
        match client.simple_query(message) {
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) && tries < TRIES => {
                tries += 1;
                // The next round repeats this statement if the server cancels it too.
                let _ = client.simple_query("SET statement_timeout = 0");
            }
            result => return result,
        }
    }
}

/// The session settings, sent in one message with others. Returns one row, which begins with the pid of the session's
/// backend.
///
/// - All parameters exist since PostgreSQL 14, except `transaction_timeout` (17), which the message looks up first.
/// - The timeouts come first and are switched off, because an inherited timeout could end the statements that follow.
///   The caller sets its own after them.
/// - `default_transaction_read_only` is left alone, because an operator freezes a server, a database or a role with it,
///   and `target_session_attrs` asks for it.
/// - `row_security` is off, so that a policy makes a statement fail instead of hiding rows from it.
/// - `synchronous_commit` is changed only where it is `off`: `local`, `remote_write` and `remote_apply` are the
///   operator's.
/// - `session_replication_role` is set only where it differs, because only a superuser may set it. The connection of
///   any other role is refused then, because the tables would lose their triggers and foreign keys.
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

/// Resolves names in the server's own catalogue only, because a role's `search_path` could put another schema before
/// it.
pub(crate) const CATALOG_ONLY: &str = "SET search_path TO pg_catalog, pg_temp; ";
