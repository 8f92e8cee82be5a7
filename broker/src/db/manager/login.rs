//! Logs in to the server with `r2d2_postgres`.
//!
//! A manager of `r2d2_postgres` connects either with TLS or without. `sslmode=prefer` tries both, so [`Login`] holds
//! two.

use brokkr_pg::{ConnectError, Connector, MakeRustlsConnect, Options};
use brokkr_tenant::DatabaseUrl;
use postgres::{Client, NoTls};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;

/// Connects to one URL and recognises a closed connection. Changes no setting of the session.
pub(in crate::db) struct Login {
    connector: Connector,
    /// `None` when TLS is not wanted.
    tls: Option<PostgresConnectionManager<MakeRustlsConnect>>,
    plain: PostgresConnectionManager<NoTls>,
}

impl Login {
    pub(super) fn new(url: &DatabaseUrl, options: &Options) -> Result<Self, ConnectError> {
        let connector = Connector::new(url, options)?;
        let tls = connector.with_tls();
        Ok(Login {
            tls: tls.map(|(config, tls)| PostgresConnectionManager::new(config, tls)),
            plain: PostgresConnectionManager::new(connector.without_tls(), NoTls),
            connector,
        })
    }
}

impl ManageConnection for Login {
    type Connection = Client;
    type Error = ConnectError;

    fn connect(&self) -> Result<Client, ConnectError> {
        let fail = |error| self.connector.failure(error);
        let plain = || self.plain.connect().map_err(fail);
        match &self.tls {
            None => plain(),
            Some(tls) => match tls.connect().map_err(fail) {
                Err(error) if self.connector.falls_back(&error) => plain(),
                result => result,
            },
        }
    }

    /// Sends an empty query and waits for the answer.
    fn is_valid(&self, client: &mut Client) -> Result<(), ConnectError> {
        // Either manager can test a connection, because they differ only in how they connect.
        self.plain
            .is_valid(client)
            .map_err(|error| self.connector.failure(error))
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        self.plain.has_broken(client)
    }
}
