//! Signs on one checkout that the server or the schema is unfit for work, though the connection works.
//!
//! A checkout proves a connection and no more: reading goes on while nothing can be written, and connecting goes on while
//! the schema is gone. So [`Conn`](super::Conn) notes what the server refuses, and the pool draws the conclusion: not ready,
//! until a trial shows otherwise ([`Db::probe`](super::Db::probe)). Healthy requests pay nothing for it.

use std::collections::BTreeSet;
use std::time::Instant;

use postgres::error::SqlState;

use super::error::{describe, schema_lost};

/// Everything noted on one checkout.
#[derive(Debug, Default)]
pub(in crate::db) struct Signs {
    /// Why the server took no writes, if it did not.
    pub(in crate::db) unwritable: Option<TakesNoWrites>,
    /// The statement that named something the schema does not hold, and the server's words.
    pub(in crate::db) schema_lost: Option<(&'static str, String)>,
}

impl Signs {
    /// Notes what a refusal says. `sql` is the statement, where there was one.
    pub(in crate::db) fn note(&mut self, error: &postgres::Error, sql: Option<&'static str>) {
        if let Some(said) = TakesNoWrites::said_by(error) {
            self.unwritable = Some(said);
        }
        if let Some(sql) = sql
            && schema_lost(error)
        {
            self.schema_lost = Some((sql, describe(error)));
        }
    }

    /// Adds what was noted later, in a transaction.
    pub(in crate::db) fn add(&mut self, later: Signs) {
        self.unwritable = later.unwritable.or(self.unwritable.take());
        self.schema_lost = later.schema_lost.or(self.schema_lost.take());
    }
}

/// Why the server answers and takes no writes. Reading goes on as if nothing were wrong, so nobody would notice by
/// connections alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::db) struct TakesNoWrites {
    /// What it said.
    pub(in crate::db) reason: String,
    /// It is read-only, and not full: it may be that another server takes them now.
    pub(in crate::db) read_only: bool,
}

impl TakesNoWrites {
    /// If the error says so: 53100, its disk is full, or 25006, it has become read-only.
    pub(in crate::db) fn said_by(error: &postgres::Error) -> Option<Self> {
        let code = error.code()?;
        let read_only = *code == SqlState::READ_ONLY_SQL_TRANSACTION;
        (read_only || *code == SqlState::DISK_FULL).then(|| TakesNoWrites {
            reason: describe(error),
            read_only,
        })
    }
}

/// A schema that does not hold what statements name.
#[derive(Clone, Debug)]
pub(in crate::db) struct LostSchema {
    /// When a statement last failed so.
    pub(in crate::db) at: Instant,
    /// Which schema, and what the server said.
    pub(in crate::db) reason: String,
    /// The statements that failed. The schema is back when the server can prepare all of them.
    pub(in crate::db) statements: BTreeSet<&'static str>,
}
