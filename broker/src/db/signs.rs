//! Signs on one checkout that the server or the schema is unfit for work, though the connection works.
//!
//! A checkout proves only the connection: reads succeed while nothing can be written, and logins succeed while the
//! schema is gone. So [`Conn`](super::Conn) notes every refusal of the server, and the pool then counts as not ready
//! until a trial succeeds ([`Db::probe`](super::Db::probe)). This costs healthy requests nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use postgres::error::SqlState;

use super::error::{describe, schema_lost};

/// The signs of an unfit server or schema that one checkout has seen.
#[derive(Debug, Default)]
pub(in crate::db) struct CheckoutSignals {
    /// Reason why the server took no writes.
    pub(in crate::db) unwritable: Option<TakesNoWrites>,
    /// The statement that named something missing, and the server's message.
    pub(in crate::db) schema_lost: Option<(&'static str, String)>,
}

impl CheckoutSignals {
    /// Notes the meaning of an error. `sql` is the failed statement, if known.
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

    /// Adds the signals of a later transaction of the same checkout.
    pub(in crate::db) fn add(&mut self, later: CheckoutSignals) {
        self.unwritable = later.unwritable.or(self.unwritable.take());
        self.schema_lost = later.schema_lost.or(self.schema_lost.take());
    }
}

/// Reason why a server answers but takes no writes. Reads still succeed, so connections alone would not show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::db) struct TakesNoWrites {
    /// The server's message.
    pub(in crate::db) reason: String,
    /// True when the server is read-only, so that another server may take writes; false when its disk is full.
    pub(in crate::db) read_only: bool,
}

impl TakesNoWrites {
    /// Returns the reason if the code is 53100 (disk full) or 25006 (read-only).
    pub(in crate::db) fn said_by(error: &postgres::Error) -> Option<Self> {
        let code = error.code()?;
        let read_only = *code == SqlState::READ_ONLY_SQL_TRANSACTION;
        (read_only || *code == SqlState::DISK_FULL).then(|| TakesNoWrites {
            reason: describe(error),
            read_only,
        })
    }
}

/// A schema that lacks something that statements name.
#[derive(Clone, Debug)]
pub(in crate::db) struct LostSchema {
    /// Time of the last failed statement.
    pub(in crate::db) at: Instant,
    /// The schema's name and the server's message.
    pub(in crate::db) reason: String,
    /// The statements that failed. The schema is back when the server can prepare all of them.
    pub(in crate::db) statements: BTreeSet<&'static str>,
}
