//! One checked-out connection as handlers and stores use it: statements by their text, transactions by closure.

use std::collections::HashMap;

use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Row, Statement};

use super::error::{DbError, spoils_connection, stale_statement};
use super::manager::{Manager, OpenConnection};
use super::signs::CheckoutSignals;

/// Runs a store's statements. Each text is prepared once per connection, and the statement is kept by its `&'static
/// str`.
pub trait Sql {
    /// Returns all rows of a query.
    fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DbError>;

    /// Runs a statement and returns the number of rows that it changed.
    fn execute(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DbError>;

    /// Returns the first row, if there is one.
    fn query_opt(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, DbError> {
        Ok(self.query(sql, params)?.into_iter().next())
    }

    /// Notes that the current work has stored events for subscribers; see [`Conn::take_wrote_events`].
    fn wrote_events(&mut self);

    /// Returns the first row of a query that always has a row.
    fn query_one(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, DbError> {
        self.query_opt(sql, params)?
            .ok_or(DbError::Refused("a query that always has a row had none"))
    }
}

/// A checked-out connection, whose `search_path` is the tenant's schema.
pub struct Conn {
    live: r2d2::PooledConnection<Manager>,
    wrote: bool,
    wrote_events: bool,
    signs: CheckoutSignals,
    only_reads: bool,
}

/// An open transaction. Commits when its closure returns `Ok`, rolls back when it returns `Err` or panics.
pub struct Tx<'a> {
    tx: postgres::Transaction<'a>,
    statements: &'a mut HashMap<&'static str, Statement>,
    spoiled: bool,
    wrote_events: bool,
    signs: CheckoutSignals,
}

impl Conn {
    pub(super) fn new(live: r2d2::PooledConnection<Manager>) -> Self {
        Conn {
            live,
            wrote: false,
            wrote_events: false,
            signs: CheckoutSignals::default(),
            only_reads: false,
        }
    }

    /// Makes the server refuse every change from now until the end of this checkout.
    pub fn only_reads(&mut self) {
        self.only_reads = true;
    }

    pub(super) fn signs(&self) -> &CheckoutSignals {
        &self.signs
    }

    /// Prepares statements without running them. Fails at the first statement that names a missing table, column or
    /// function.
    pub(super) fn try_statements(
        &mut self,
        statements: impl IntoIterator<Item = &'static str>,
    ) -> Result<(), DbError> {
        let live = self.live.live()?;
        for sql in statements {
            if let Err(error) = live.client.prepare(sql) {
                live.spoiled |= spoils_connection(&error);
                self.signs.note(&error, Some(sql));
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Marks the connection's server as read-only, for [`Manager`] to judge.
    pub(super) fn mark_read_only(&mut self) {
        self.live.mark_read_only();
    }

    /// Moves this checkout to a server that takes writes, if there is one.
    pub(super) fn move_on(&mut self) -> Result<(), DbError> {
        self.live.move_on()?;
        self.signs.unwritable = None;
        Ok(())
    }

    /// Returns true when this checkout may have changed something: it committed a transaction or called `execute`.
    pub(super) fn wrote(&self) -> bool {
        self.wrote
    }

    /// Returns true when this checkout has committed events for subscribers since the last call.
    pub fn take_wrote_events(&mut self) -> bool {
        std::mem::take(&mut self.wrote_events)
    }

    /// Closes the connection after this checkout if it was opened for this checkout, because a check once a minute must
    /// not leave a connection open in an idle broker.
    pub fn leave_nothing_behind(&mut self) {
        self.live.close_if_new();
    }

    /// Marks the connection as unfit for further use.
    pub(super) fn spoil(&mut self) {
        self.live.spoil();
    }

    /// Runs `work` in one transaction.
    ///
    /// # Errors
    /// The error of `work`, after a rollback, or the reason why the transaction could not begin or commit. When a
    /// commit fails with [`DbError::Unavailable`], the transaction may or may not have been committed.
    pub fn transaction<T, E: From<DbError>>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.only_reads {
            return Err(E::from(CHANGES_NOTHING));
        }
        let live = self.live.live().map_err(E::from)?;
        // Stays set if the code below panics or fails before the transaction has surely ended: `has_broken` then closes
        // the connection, because `SET` would succeed inside a transaction that was left open.
        live.spoiled = true;
        let tx = live.client.transaction().map_err(|e| E::from(e.into()))?;
        let mut tx = Tx {
            tx,
            statements: &mut live.statements,
            spoiled: false,
            wrote_events: false,
            signs: CheckoutSignals::default(),
        };
        let result = work(&mut tx);
        let Tx {
            tx,
            spoiled,
            wrote_events,
            signs,
            ..
        } = tx;
        self.signs.add(signs);
        let ended = match &result {
            Ok(_) => tx.commit(),
            Err(_) => tx.rollback(),
        };
        match ended {
            Ok(()) => {
                live.spoiled = spoiled;
                self.wrote |= result.is_ok();
                self.wrote_events |= wrote_events && result.is_ok();
            }
            // A commit that the server refuses (a deferred constraint) also ends the transaction.
            Err(error) => {
                live.spoiled = spoiled || spoils_connection(&error) || error.code().is_none();
                self.signs.note(&error, None);
                if result.is_ok() {
                    return Err(E::from(error.into()));
                }
            }
        }
        result
    }

    /// Runs one statement outside a transaction. Repeats it once on a new connection if its prepared statement is
    /// stale.
    fn run<T>(
        &mut self,
        sql: &'static str,
        call: impl Fn(&mut Client, &Statement) -> Result<T, postgres::Error>,
    ) -> Result<T, DbError> {
        let error = match self.attempt(sql, &call)? {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if stale_statement(&error) {
            tracing::debug!(%error, "statement no longer fits its tables: reconnecting");
            self.live.reconnect()?;
            return self.attempt(sql, &call)?.map_err(DbError::from);
        }
        Err(error.into())
    }

    fn attempt<T>(
        &mut self,
        sql: &'static str,
        call: &impl Fn(&mut Client, &Statement) -> Result<T, postgres::Error>,
    ) -> Result<Result<T, postgres::Error>, DbError> {
        let live = self.live.live()?;
        let statement = match live.statements.get(sql) {
            Some(statement) => Ok(statement.clone()),
            None => {
                refuse_session_control(sql)?;
                live.client.prepare(sql).inspect(|statement| {
                    live.statements.insert(sql, statement.clone());
                })
            }
        };
        let result = statement.and_then(|statement| {
            if self.only_reads {
                reading(live, |client| call(client, &statement))
            } else {
                call(&mut live.client, &statement)
            }
        });
        if let Err(error) = &result {
            // Says nothing about the server, because the transaction was opened as read-only.
            if self.only_reads && error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
                return Err(CHANGES_NOTHING);
            }
            live.spoiled |= spoils_connection(error);
            self.signs.note(error, Some(sql));
        }
        Ok(result)
    }

    /// Returns the pid of the server's process behind this connection, for tests and diagnostics.
    pub fn backend_pid(&mut self) -> Result<i32, DbError> {
        Ok(self.query_one("SELECT pg_backend_pid()", &[])?.get(0))
    }
}

impl Sql for Conn {
    fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DbError> {
        self.run(sql, |client, statement| client.query(statement, params))
    }

    fn execute(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DbError> {
        if self.only_reads {
            return Err(CHANGES_NOTHING);
        }
        self.wrote = true;
        self.run(sql, |client, statement| client.execute(statement, params))
    }

    fn wrote_events(&mut self) {
        self.wrote_events = true;
    }
}

impl<'a> Tx<'a> {
    /// Opens a transaction on a connection that belongs to no pool.
    pub(super) fn begin(
        client: &'a mut Client,
        statements: &'a mut HashMap<&'static str, Statement>,
    ) -> Result<Self, postgres::Error> {
        Ok(Tx {
            tx: client.transaction()?,
            statements,
            spoiled: false,
            wrote_events: false,
            signs: CheckoutSignals::default(),
        })
    }

    pub(super) fn commit(self) -> Result<(), postgres::Error> {
        self.tx.commit()
    }

    fn run<T>(
        &mut self,
        sql: &'static str,
        call: impl FnOnce(&mut postgres::Transaction<'_>, &Statement) -> Result<T, postgres::Error>,
    ) -> Result<T, DbError> {
        let statement = match self.statements.get(sql) {
            Some(statement) => Ok(statement.clone()),
            None => {
                refuse_session_control(sql)?;
                self.tx.prepare(sql).inspect(|statement| {
                    self.statements.insert(sql, statement.clone());
                })
            }
        };
        let result = statement.and_then(|statement| call(&mut self.tx, &statement));
        if let Err(error) = &result {
            // A stale statement has failed this transaction and cannot be repeated in it. The next request gets a new
            // connection, which prepares the statement anew.
            self.spoiled |= spoils_connection(error) || stale_statement(error);
            self.signs.note(error, Some(sql));
        }
        result.map_err(DbError::from)
    }
}

impl Sql for Tx<'_> {
    fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DbError> {
        self.run(sql, |tx, statement| tx.query(statement, params))
    }

    fn execute(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DbError> {
        self.run(sql, |tx, statement| tx.execute(statement, params))
    }

    fn wrote_events(&mut self) {
        self.wrote_events = true;
    }
}

/// The answer to a write on a checkout that only reads.
const CHANGES_NOTHING: DbError = DbError::Refused("a write, where nothing may be changed");

/// Runs one statement in a transaction in which the server refuses every write.
fn reading<T>(
    live: &mut OpenConnection,
    call: impl FnOnce(&mut Client) -> Result<T, postgres::Error>,
) -> Result<T, postgres::Error> {
    // Stays set until the transaction has surely ended, as in `Conn::transaction`.
    let was = std::mem::replace(&mut live.spoiled, true);
    live.client.batch_execute("START TRANSACTION READ ONLY")?;
    let result = call(&mut live.client);
    live.client.batch_execute("ROLLBACK")?;
    live.spoiled = was;
    result
}

/// Refuses statements that would open or end a transaction, or change the session, without the pool knowing.
///
/// Called only when a text is prepared, so it costs once per text and connection.
fn refuse_session_control(sql: &str) -> Result<(), DbError> {
    const WORDS: [&str; 13] = [
        "begin",
        "start",
        "commit",
        "end",
        "rollback",
        "abort",
        "savepoint",
        "release",
        "prepare",
        "set",
        "reset",
        "discard",
        "listen",
    ];
    let first: String = sql
        .trim_start()
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if WORDS.contains(&first.as_str()) {
        return Err(DbError::Refused(
            "transactions and settings belong to the pool (use Conn::transaction)",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::refuse_session_control;

    #[test]
    fn texts_that_would_change_the_session_are_refused_and_all_others_are_not() {
        for text in [
            "BEGIN",
            " begin; x",
            "SET search_path TO public",
            "rollback",
            "DISCARD ALL",
            "Prepare x AS y",
        ] {
            assert!(refuse_session_control(text).is_err(), "{text}");
        }
        for text in [
            "SELECT 1",
            "INSERT INTO settings VALUES (1)",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "",
        ] {
            assert!(refuse_session_control(text).is_ok(), "{text}");
        }
    }
}
