//! A single connection for a command that a person runs, with or without a running broker.

use std::collections::HashMap;

use postgres::{Client, Statement};

use super::conn::Tx;
use super::error::DbError;
use super::start::{self, Plan, StartError};

/// A connection outside any pool, closed when dropped, to a tenant's schema that is up to date.
pub struct CliConnection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl CliConnection {
    /// Opens the connection. Creates and migrates nothing.
    ///
    /// # Errors
    /// [`StartError::Configuration`] when the schema is missing or not up to date; otherwise as for a start.
    pub fn open(plan: &Plan) -> Result<Self, StartError> {
        let mut client = start::open(plan)?;
        // Bounded, because a person waits for the command.
        client.batch_execute("SET statement_timeout = '30s'")?;
        Ok(CliConnection {
            client,
            statements: HashMap::new(),
        })
    }

    /// Runs `work` in one transaction.
    ///
    /// # Errors
    /// The error of `work`, after a rollback, or the reason why the transaction could not begin or commit.
    pub fn transaction<T, E: From<DbError>>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx =
            Tx::begin(&mut self.client, &mut self.statements).map_err(|e| E::from(e.into()))?;
        // On an error `tx` is dropped without a commit, which rolls back.
        let result = work(&mut tx)?;
        tx.commit().map_err(|e| E::from(e.into()))?;
        Ok(result)
    }
}
