//! The one connection of a command that a person runs beside the broker, or without one.

use std::collections::HashMap;

use postgres::{Client, Statement};

use super::conn::Tx;
use super::error::DbError;
use super::start::{self, Plan, StartError};

/// A connection outside any pool, closed when dropped. It looks at the tenant's schema, and that is up to date.
pub struct Single {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Single {
    /// Opens it. Creates and migrates nothing.
    ///
    /// # Errors
    ///
    /// [`StartError`]; [`StartError::Configuration`] when the schema is not there or not up to date.
    pub fn open(plan: &Plan) -> Result<Self, StartError> {
        let mut client = start::open(plan)?;
        // A person waits for it.
        client.batch_execute("SET statement_timeout = '30s'")?;
        Ok(Single {
            client,
            statements: HashMap::new(),
        })
    }

    /// Runs `work` in one transaction.
    ///
    /// # Errors
    ///
    /// What `work` returned, after rolling back; or why the transaction could not begin or commit.
    pub fn transaction<T, E: From<DbError>>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx =
            Tx::begin(&mut self.client, &mut self.statements).map_err(|e| E::from(e.into()))?;
        // Dropped without a commit, a transaction is rolled back.
        let result = work(&mut tx)?;
        tx.commit().map_err(|e| E::from(e.into()))?;
        Ok(result)
    }
}
